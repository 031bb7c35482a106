"""Links and routes by single requests. Format: linux/rtnetlink.h."""

from __future__ import annotations

import errno
import os
import struct
from _socket import AF_INET, AF_INET6

from cnimeta.errors import IoFailure, shown
from cnimeta.host.links.values import Link
from cnimeta.host.netlink import DUMP, ROUTE, ask, attribute, attributes, understood
from cnimeta.host.reading import told

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.host.netlink import Ask, Message
    from cnimeta.spec.ip import Address

_RTM_GETROUTE, _RTA_DST, _RTA_OIF = 26, 1, 4
_RTM_GETLINK = 18
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_TXQLEN, _IFLA_LINKINFO, _IFLA_IFALIAS = 1, 3, 4, 5, 13, 18, 20
_IFLA_INFO_KIND = 1
_RTM_GETNSID, _NETNSA_NSID, _NETNSA_FD, _IFLA_TARGET_NETNSID = 90, 1, 3, 46
_NO_NUMBER = b"\xff" * 4
IFF_UP, IFF_PROMISC, IFF_ALLMULTI = 0x1, 0x100, 0x200
_IFLA_MASTER = 10
_IFLA_EXT_MASK, _SKIP_STATISTICS = 29, 1 << 3
_NO_STATISTICS = attribute(_IFLA_EXT_MASK, struct.pack("=I", _SKIP_STATISTICS))
_NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL, errno.EAFNOSUPPORT, errno.ESRCH)
"""What the kernel says for no route, and for a route of the kinds unreachable, prohibit and blackhole."""


def link_of(index: int, ask: Ask = ask) -> Link | None:
    """The interface with this ifindex, None when there is none. IoFailure (code 5) when unknown."""
    return _one(ifinfo(index), str(index), ask)


def link_named(name: str, ask: Ask = ask) -> Link | None:
    """The interface of this name, None when there is none. IoFailure (code 5) when unknown."""
    return _one(ifinfo(0) + attribute(_IFLA_IFNAME, name.encode() + b"\0"), name, ask)


def link_seen_in(netns: str, name: str, ask: Ask = ask) -> Link | None:
    """The interface of this name in another namespace, asked for from here by the number that is the namespace's here.

    None when that does not tell: there is no such number (a veth's end mostly gives it one), no such interface, or an
    older kernel. Whoever asks has to go there then, which takes an import of 2 ms.
    """
    try:
        descriptor = os.open(netns, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)  # it may be a FIFO
    except (OSError, ValueError):  # unknown: whoever asks goes there and is told
        return None
    try:
        told = ask(ROUTE, _RTM_GETNSID, 0, bytes(4) + attribute(_NETNSA_FD, struct.pack("=I", descriptor)))
        number = attributes(told[0].body[4:]).get(_NETNSA_NSID, b"") if told else b""
        if len(number) != 4 or number == _NO_NUMBER:
            return None
        wanted = attribute(_IFLA_IFNAME, name.encode() + b"\0") + attribute(_IFLA_TARGET_NETNSID, number)
        found = ask(ROUTE, _RTM_GETLINK, 0, ifinfo(0) + wanted + _NO_STATISTICS)
    except OSError:  # unknown: as above
        return None
    finally:
        os.close(descriptor)
    # A kernel that does not know the attribute answers with an interface of this namespace.
    known = found and attributes(found[0].body[16:]).get(_IFLA_TARGET_NETNSID) == number
    return _link(found[0]) if known else None


def links_of_kind(kind: str, ask: Ask = ask) -> list[Link]:
    """Every interface of one kind; the kernel picks them. IoFailure (code 5) when unknown."""
    wanted = attribute(_IFLA_LINKINFO, attribute(_IFLA_INFO_KIND, kind.encode() + b"\0")) + _NO_STATISTICS
    messages = told(
        f"the interfaces of kind {kind}", lambda: ask(ROUTE, _RTM_GETLINK, DUMP, ifinfo(0) + wanted), absent=()
    )
    return [link for link in map(_link, messages or ()) if link.kind == kind]


def every_link(ask: Ask = ask) -> list[Link]:
    """Every interface here. IoFailure (code 5) when unknown."""
    body = ifinfo(0) + _NO_STATISTICS
    return [_link(one) for one in told("the interfaces", lambda: ask(ROUTE, _RTM_GETLINK, DUMP, body), ()) or ()]


@understood("a route")
def route_interface(address: Address, ask: Ask = ask) -> str:
    """The interface through which the kernel routes to `address`; empty when it has no route.

    IoFailure (code 5) when unknown.
    """
    family = AF_INET if address.family == 4 else AF_INET6
    bits = len(address.packed) * 8
    body = struct.pack("=BBBBBBBBI", family, bits, 0, 0, 0, 0, 0, 0, 0) + attribute(_RTA_DST, address.packed)
    what = f"the route to {address.text}"
    for message in told(what, lambda: ask(ROUTE, _RTM_GETROUTE, 0, body), _NO_ROUTE) or ():
        index = attributes(message.body[12:]).get(_RTA_OIF)
        if index is not None:
            link = link_of(struct.unpack("=I", index)[0], ask)
            return link.name if link is not None else ""
    return ""


def ifinfo(index: int, *, up: bool = False) -> bytes:
    """A struct ifinfomsg that names an interface, and may ask for it to be up."""
    return struct.pack("=BxHiII", 0, 0, index, IFF_UP * up, IFF_UP * up)


def refused(verb: str, what: str, error: OSError) -> IoFailure:
    """The error for what the kernel did not do."""
    return IoFailure(f"cannot {verb} interface {shown(what)}: {os.strerror(error.errno or 0)}")


def _one(body: bytes, what: str, ask: Ask) -> Link | None:
    messages = told(
        f"interface {shown(what)}", lambda: ask(ROUTE, _RTM_GETLINK, 0, body + _NO_STATISTICS), (errno.ENODEV,)
    )
    return _link(messages[0]) if messages else None


@understood("an interface")
def _link(message: Message) -> Link:
    found = attributes(message.body[16:])
    kind = _text(attributes(found.get(_IFLA_LINKINFO, b"")).get(_IFLA_INFO_KIND, b""))
    index, flags = struct.unpack_from("=iI", message.body, 4)
    return Link(
        index,
        _text(found.get(_IFLA_IFNAME, b"")),
        kind,
        found.get(_IFLA_ADDRESS, b"").hex(":"),
        _number(found.get(_IFLA_MTU)),
        _number(found.get(_IFLA_LINK)) if kind == "veth" else 0,
        _text(found.get(_IFLA_IFALIAS, b"")),
        _number(found.get(_IFLA_TXQLEN)),
        bool(flags & IFF_UP),
        bool(flags & IFF_PROMISC),
        bool(flags & IFF_ALLMULTI),
        _number(found.get(_IFLA_MASTER)),
    )


def _text(value: bytes) -> str:
    return value.partition(b"\0")[0].decode("utf-8", "replace")


def _number(value: bytes | None) -> int:
    return 0 if value is None else int(struct.unpack("=I", value)[0])
