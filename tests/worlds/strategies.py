"""How worlds are drawn. Ordinary values come first, so that examples shrink to them."""

from __future__ import annotations

import ipaddress
import string
from dataclasses import replace

from hypothesis import strategies as st
from others import WHO
from worlds import BACKENDS, VERSIONS, Attachment, Mapping, World

_LETTERS = string.ascii_letters + string.digits
_NETS4 = (
    "10.0.0.0/8",
    "192.168.0.0/16",
    "172.16.0.0/12",
    "100.64.0.0/10",
    "169.254.0.0/16",
    "203.0.113.0/24",
    "0.0.0.0/0",
)
_NETS6 = ("fd00::/8", "2001:db8::/32", "fe80::/10", "::/96", "64:ff9b::/96", "::/0")
_HOST_IPS = (
    *("", "", "", "", "", "", "192.0.2.1", "127.0.0.1", "0.0.0.0", "::", "2001:db8:1::1"),
    *("::ffff:192.0.2.1", "::192.0.2.1", "::1", "2001:DB8:1:0::1", "127.0.0.2", "fe80::1"),
)


_HOSTS = (
    ((),) * 10
    + (("all-processes",),) * 5
    + (("settings-sealed",), ("localnet-all",), ("localnet-all", "settings-sealed"))
)


# Strategies are made once: hypothesis wants each draw to be of the same ones.


def _inside(net: str) -> st.SearchStrategy[str]:
    network = ipaddress.ip_network(net)
    first = int(network.network_address)
    kind = type(network.network_address)
    return st.integers(2, network.num_addresses - 1).map(lambda offset: str(kind(first + offset)))


def _cidrs(nets: tuple[str, ...], prefixes: st.SearchStrategy[int]) -> st.SearchStrategy[str]:
    return st.tuples(st.one_of(*(_inside(net) for net in nets)), prefixes).map(lambda pair: f"{pair[0]}/{pair[1]}")


ADDRESSES4 = _cidrs(_NETS4, st.sampled_from((24, 16, 32, 8, 31, 30, 12, 1, 0)) | st.integers(0, 32))
_MAPPED = _cidrs(("10.0.0.0/8",), st.integers(96, 128)).map(lambda text: f"::ffff:{text}")
_PLAIN6 = _cidrs(_NETS6, st.sampled_from((64, 128, 48, 10, 127, 1, 0)) | st.integers(0, 128))
ADDRESSES6 = st.sampled_from((0, 1, 2, 3)).flatmap((_PLAIN6, _PLAIN6, _PLAIN6, _MAPPED).__getitem__)
_SHAPES = ("4", "46", "4", "46", "4", "6", "64", "44", "664", "")


@st.composite
def ips(draw: st.DrawFn) -> tuple[str, ...]:
    """A container's addresses: one family or both, several of one, or none."""
    return tuple(draw(ADDRESSES4 if family == "4" else ADDRESSES6) for family in draw(st.sampled_from(_SHAPES)))


@st.composite
def names(draw: st.DrawFn, longest: int) -> str:
    """Network names and container IDs as the specification allows them, 1 to `longest` characters."""
    if draw(st.booleans()):
        return draw(st.sampled_from(("net", "a", "0", "net.1", "n_-.")))
    length = draw(st.sampled_from((longest, 1, longest - 1)) | st.integers(2, longest))
    return draw(st.sampled_from(_LETTERS)) + draw(st.sampled_from(_LETTERS + "_.-")) * (length - 1)


_ODD = st.text("eth0.-_@\"'\\;{}#$%*!,ü", min_size=1, max_size=15)
IFNAMES = st.sampled_from(("eth0", "e", "eth0.100", "en0123456789012")) | _ODD.filter(
    lambda text: len(text.encode()) <= 15 and text not in (".", "..")
)
"""Interface names: 1 to 15 bytes, anything printable but `/`, `:` and space."""

PORTS = st.sampled_from((8080, 80, 8081, 53, 1, 65535)) | st.integers(1, 65535)
"""Few, so that containers want the same; the ends; and any."""


@st.composite
def mappings(draw: st.DrawFn, protocols: tuple[str, ...] = ("tcp", "udp", "sctp", "TCP")) -> Mapping:
    """One mapping; a quarter are ranges."""
    host, container = draw(PORTS), draw(PORTS)
    protocol, where = draw(st.sampled_from(protocols)), draw(st.sampled_from(_HOST_IPS))
    if not draw(st.sampled_from((False, False, False, True))):
        return Mapping(host, container, protocol, where)
    if draw(st.booleans()):
        container = host
    longest = min(65535 - host, 65535 - container, draw(st.sampled_from((20, 20, 20, 20, 20, 20, 20, 1000))))
    return Mapping(host, container, protocol, where, host + draw(st.integers(0, longest)))


def _apart(found: list[Mapping]) -> bool:
    """Whether no two mappings of one call contradict each other (that is refused, and tested elsewhere)."""
    for index, one in enumerate(found):
        for other in found[:index]:
            if any(one.meets(other, family) and one.where(family) == other.where(family) for family in (4, 6)):
                return False
    return True


FEW = st.lists(mappings(), min_size=1, max_size=3).filter(_apart).map(tuple)


@st.composite
def attachments(draw: st.DrawFn, index: int = 0) -> Attachment:
    """The index-th attachment: a container and a network of its own, or those of others."""
    odd = draw(st.sampled_from((False, False, True)))
    return Attachment(
        draw(names(64)) if odd else draw(st.sampled_from((f"c{index + 1}", "c1"))),
        draw(names(170)) if odd else draw(st.sampled_from(("net", f"net{index}"))),
        draw(IFNAMES) if odd else draw(st.sampled_from(("eth0", f"eth{index}"))),
        draw(ips()),
        draw(FEW) if draw(st.sampled_from((True,) * 7 + (False,))) else (),
        draw(st.sampled_from((True, True, False))),
        draw(st.sampled_from((False, False, True))),
        draw(st.sampled_from(((), (), (), ("192.0.2.9",), ("2001:db8:1::/64",), ("192.0.2.0/24", "2001:db8:1::9")))),
        draw(st.sampled_from(("usual",) * 20 + ("bare", "unnumbered", "beyond", "host", "unboxed"))),
        draw(st.sampled_from(("bind", "proc"))),
        draw(st.sampled_from((*VERSIONS[:1], *VERSIONS))),
    )


_GUESTS = tuple(f"{what} {who}" for who in WHO for what in ("come", "come", "go"))
_EVENTS = (
    "restore",
    "GC",
    "forget localnet",
    "flush",
    *(f"flush {number}" for number in (17, 0, 5, 11, 19, 23, 16, 18)),
)
_KINDS = ("ADD", "ADD", "ADD", "DEL", "fate", "guest", "event")


@st.composite
def steps(draw: st.DrawFn, count: int) -> tuple[str, ...]:
    """A sequence for `count` attachments; laws.py adds what every step has to stand (CHECK, ADD again, DEL at the end)."""
    found, added = ["ADD 0"], 1
    for _ in range(draw(st.sampled_from((2, 3, 1, 4, 5, 6)))):
        kind = draw(st.sampled_from(_KINDS if added == count else ("ADD", *_KINDS)))
        number = draw(st.integers(0, added - 1))
        if kind == "ADD" and added < count:
            found.append(f"ADD {added}")
            added += 1
        elif kind == "ADD":
            found.append(f"ADD {number}")
        elif kind == "DEL":
            found.append(f"DEL {number}{draw(st.sampled_from(('', ' nowhere', ' bare', ' own')))}")
        elif kind == "fate":
            found.append(f"{draw(st.sampled_from(('die', 'stale', 'reuse', 'hide')))} {number}")
        else:
            found.append(draw(st.sampled_from(_GUESTS if kind == "guest" else _EVENTS)))
    return tuple(found)


def _wishing(draw: st.DrawFn, attachment: Attachment, wish: tuple[tuple[Mapping, ...], tuple[str, ...]]) -> Attachment:
    """The attachment, or half of the time one that wants the ports that others want, or their very address."""
    if draw(st.sampled_from((False, True))):
        attachment = replace(attachment, mappings=wish[0])
    return replace(attachment, ips=wish[1]) if draw(st.sampled_from((False,) * 7 + (True,))) else attachment


def _one_network_each(drawn: list[Attachment]) -> tuple[Attachment, ...]:
    """An interface of a container is on one network: to a plugin, on another it is one whose network was renamed."""
    first: dict[tuple[str, str], str] = {}
    return tuple(replace(a, network=first.setdefault((a.container, a.ifname), a.network)) for a in drawn)


@st.composite
def rule_worlds(draw: st.DrawFn, backend: str = "") -> World:
    """Worlds for the rules alone: no packet is sent."""
    count = draw(st.sampled_from((2, 3, 1)))
    wish = draw(FEW), draw(ips())
    return World(
        _one_network_each([_wishing(draw, draw(attachments(index)), wish) for index in range(count)]),
        draw(steps(count)),
        backend or draw(st.sampled_from(BACKENDS)),
        draw(st.sampled_from(_HOSTS)),
    )


_ROUTED4 = _cidrs(("10.0.0.0/9", "192.168.0.0/16", "172.16.0.0/12", "100.64.0.0/10", "11.0.0.0/8"), st.integers(0, 32))
_ROUTED6 = _cidrs(("fd00:1::/32", "2001:db8:ff00::/40", "2a00::/16"), st.integers(0, 128))
_BYSTANDERS = ("docker", "firewalld", "kube-nft", "kube-iptables", "ufw", "connmark", "whole-marks")
"""Who does not stop what should pass, if it is not marked."""


@st.composite
def _reachable(draw: st.DrawFn, index: int, *, ranges: bool) -> Attachment:
    """An attachment that packets can be sent to: a container of its own, ports that can be served."""
    shape = draw(st.sampled_from(("46", "4", "46", "6")))
    found = draw(st.lists(mappings(("tcp", "udp", "TCP")), min_size=1, max_size=3).filter(_apart))
    if not ranges:
        found = [Mapping(m.host, m.container, m.protocol.lower(), m.ip) for m in found]
    return Attachment(
        f"c{index + 1}",
        ips=tuple(draw(_ROUTED4 if family == "4" else _ROUTED6) for family in shape),
        mappings=tuple(found),
        snat=draw(st.sampled_from((True, True, False))),
        masq_all=draw(st.sampled_from((False, False, True))),
        sources=draw(st.sampled_from(((), (), (), ("192.0.2.9",), ("192.0.2.0/24", "2001:db8:1::9")))),
        version="1.0.0",
    )


def _distinct(attachments: tuple[Attachment, ...]) -> bool:
    addresses = [address for a in attachments for address, _ in a.addresses().values()]
    return len(addresses) == len(set(addresses))


@st.composite
def traffic_worlds(draw: st.DrawFn, backend: str = "") -> World:
    """Worlds that packets are sent through, before and after one of the containers goes."""
    count = draw(st.integers(1, 3))
    there = tuple(draw(_reachable(index, ranges=True)) for index in range(count))
    if not _distinct(there):
        there = there[:1]
    adds = tuple(f"ADD {number}" for number in range(len(there)))
    guest = draw(st.sampled_from(("", "", "restore", *(f"come {who}" for who in _BYSTANDERS))))
    more = ("DEL 0", "SEND") if draw(st.booleans()) else ("KNOCK",)
    return World(
        there, (*adds, *((guest,) if guest else ()), "SEND", *more), backend or draw(st.sampled_from(BACKENDS))
    )


@st.composite
def reference_worlds(draw: st.DrawFn) -> World:
    """Worlds that the reference understands: no ranges, its iptables conditions."""
    count = draw(st.integers(1, 2))
    there = tuple(draw(_reachable(index, ranges=False)) for index in range(count))
    if not _distinct(there):
        there = there[:1]
    return World(there, tuple(f"ADD {number}" for number in range(len(there))), draw(st.sampled_from(BACKENDS[1:])))
