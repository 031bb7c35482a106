"""Packets through a world's mappings: who is reached from where, and with which source address, from the settings alone.

The node of `node.py` with a client on its bridge (192.0.2.9, 2001:db8:1::9, and 198.51.100.7 behind it), and each
container on a veth of its own that the node routes to, so any address with any prefix length will do.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
from typing import TYPE_CHECKING

from exchange import Cell, Exchange, Outcome
from look import run
from node import Box, Node
from sandbox import entered

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from worlds import Attachment, Mapping, World

NODES = {4: ("192.0.2.1", "192.0.2.2"), 6: ("2001:db8:1::1", "2001:db8:1::2")}
CLIENT = {4: "192.0.2.9", 6: "2001:db8:1::9"}
GATE = {4: "10.255.255.1", 6: "fd00:ffff::1"}
BEYOND = "198.51.100.7"
LOOPBACK = {4: "127.0.0.1", 6: "::1"}
LINK_LOCAL = "fe80::1"
"""The node's on its bridge."""
PRIVATE = 7777
"""A port that only 127.0.0.1 serves, on the node."""
_OURS = {*NODES[4], *NODES[6], *GATE.values()}


# --- what must happen ------------------------------------------------------------------------------------


def expected(attachments: Iterable[Attachment], cell: Cell) -> Outcome | None:
    """The outcome of a cell, from the settings of what is mapped; None where no setting promises one."""
    family = 6 if ":" in cell.address else 4
    there = list(attachments)
    if cell.address == BEYOND:
        return Outcome(f"client:{cell.port}", "node" if cell.caller == "node" else "caller")
    if cell.address == LOOPBACK[6] or cell.address.startswith(LINK_LOCAL):
        return Outcome(f"node:{cell.port}")  # nobody else's, whatever is mapped
    source = source_of(there, cell)
    found = _target(there, cell, family, source)
    if found is None:
        return Outcome()
    target, mapping = found
    who = f"{target.container}:{mapping.container + cell.port - mapping.host}"
    subnet = ipaddress.ip_network("/".join(map(str, target.addresses()[family])), strict=False)
    hidden = target.snat and (target.masq_all or source == LOOPBACK[4] or ipaddress.ip_address(source) in subnet)
    if cell.caller == target.container and not hidden and cell.protocol == "sctp":
        return None  # it may arrive; nobody could answer
    if ipaddress.ip_address(source).is_loopback or cell.caller == target.container:
        return Outcome(who, "node") if hidden else Outcome()  # the kernel drops what nobody could answer
    return Outcome(who, "node" if hidden or cell.caller == "node" else "caller")


def source_of(attachments: Iterable[Attachment], cell: Cell) -> str:
    """The address that the caller has in the cell's family."""
    family = 6 if ":" in cell.address else 4
    if cell.caller == "client":
        return CLIENT[family]
    if cell.source:
        return cell.source
    if cell.caller == "node":
        if cell.address.startswith("127."):
            return LOOPBACK[4]
        return NODES[family][0] if cell.address == BEYOND else cell.address
    return next(a.addresses()[family][0] for a in attachments if a.container == cell.caller)


def _target(there: list[Attachment], cell: Cell, family: int, source: str) -> tuple[Attachment, Mapping] | None:
    """The attachment that a cell's packets are for: a mapping for just this address goes before one for all."""
    found: list[tuple[bool, Attachment, Mapping]] = []
    for attachment in there:
        for its, mapping in attachment.served():
            where = mapping.where(family)
            fits = its == family and mapping.protocol.lower() == cell.protocol
            if fits and mapping.host <= cell.port <= mapping.last and where in ("", cell.address):
                found.append((not where, attachment, mapping))
    if not found:
        return None
    _, attachment, mapping = min(found, key=lambda one: one[0])
    nets = [ipaddress.ip_network(text) for text in attachment.sources if (":" in text) == (family == 6)]
    if nets and not any(ipaddress.ip_address(source) in net for net in nets):
        return None
    return attachment, mapping


def cells(attachments: tuple[Attachment, ...]) -> list[Cell]:
    """Callers times destinations times the ends of every mapping, and the port after it."""
    found = []
    ends = {(m.protocol.lower(), p) for a in attachments for m in a.mappings for p in (m.host, m.last, m.last + 1)}
    for caller in ("client", "node", *(a.container for a in attachments)):
        has = {f for a in attachments if a.container == caller for f in a.addresses()} or {4, 6}
        for protocol, port in sorted(ends):
            if port > 65535:
                continue
            places = [address for family in sorted(has) for address in NODES[family]]
            places += [LOOPBACK[f] for f in (4, 6)] if caller == "node" else []
            places += [BEYOND] if caller != "client" and 4 in has and protocol == "tcp" else []
            found += [Cell(caller, place, port, protocol) for place in places]
    return found


def served_ports(attachments: list[Attachment]) -> set[tuple[str, str, int]]:
    """(place, protocol, port) that have to be served for the cells of these attachments."""
    found = {
        (a.container, m.protocol.lower(), m.container + offset)
        for a in attachments
        for m in a.mappings
        for offset in {0, m.last - m.host}
    }
    beyond = {
        p for a in attachments for m in a.mappings if m.protocol.lower() == "tcp" for p in (m.host, m.last, m.last + 1)
    }
    return found | {("client", "tcp", port) for port in beyond if port <= 65535}


# --- the node --------------------------------------------------------------------------------------------


class TrafficNode(Node):
    """A node whose containers and whose client are joined to it."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        for name in ("ipv4/ip_forward", "ipv6/conf/all/forwarding"):
            _set(name, "1")
        for name in ("all", "default", "br0"):
            _set(f"ipv4/conf/{name}/rp_filter", "0")
        self.client = Box("client", "bind")
        run("ip", "-batch", "-", stdin=_CLIENT_LINK)
        run("ip", "addr", "add", f"{LINK_LOCAL}/64", "dev", "br0", "nodad")
        with entered(self.client.fd):
            _no_dad()
            run("ip", "-batch", "-", stdin=_CLIENT_SIDE)
        self.joined: dict[str, Attachment] = {}

    def box(self, attachment: Attachment) -> Box:
        box = super().box(attachment)
        if attachment.container not in self.joined:
            self.joined[attachment.container] = attachment
            self._join(attachment, box)
        return box

    def _join(self, attachment: Attachment, box: Box) -> None:
        link = f"v{len(self.joined)}"
        lines = [f"link add {link} type veth peer name eth0 netns {os.path.basename(box.path)}", f"link set {link} up"]
        inner = ["link set eth0 up"]
        for family, (address, _) in attachment.addresses().items():
            bits, plain = (32, "") if family == 4 else (128, " nodad")
            lines += [f"addr add {GATE[family]}/{bits} dev {link}{plain}", f"route add {address}/{bits} dev {link}"]
            inner += [f"addr add {address}/{bits} dev eth0{plain}"]
            inner += [f"route add default via {GATE[family]} dev eth0 onlink"]
        with entered(box.fd):
            _no_dad()
        run("ip", "-batch", "-", stdin="\n".join(lines) + "\n")
        with entered(box.fd):
            run("ip", "-batch", "-", stdin="\n".join(inner) + "\n")

    @contextlib.contextmanager
    def at(self, place: str) -> Iterator[None]:
        """This process where a caller is."""
        if place == "node":
            yield
        else:
            with entered((self.client if place == "client" else self.boxes[place]).fd):
                yield

    def try_cells(self, wanted: dict[Cell, Outcome | None], ports: set[tuple[str, str, int]]) -> dict[Cell, Outcome]:
        """What happens in each cell; `ports` are (place, protocol, port) to serve. `wanted` tells whom to wait for."""
        ends = [
            (*end.who.rpartition(":"), cell.protocol) for cell, end in wanted.items() if end is not None and end.who
        ]
        own = {(place, protocol, int(port)) for place, _, port, protocol in ends}
        with Exchange() as exchange:
            for place, protocol, port in sorted(ports | own):
                with self.at(place):
                    # On the node only what is nobody else's, or every port would be in use.
                    for address in (LOOPBACK[6], f"{LINK_LOCAL}%br0") if place == "node" else ("::",):
                        exchange.serve(place, protocol, port, address)
            for cell in wanted:
                with self.at(cell.caller):
                    exchange.call(cell)
            exchange.run({cell for cell, outcome in wanted.items() if outcome is not None and outcome.who})
            return exchange.outcomes

    def misled(self, attachments: list[Attachment], *, strict: bool) -> list[str]:
        """Every cell that does not end as expected, in words. strict: somebody drops the client's marked packets."""
        wanted = {cell: expected(attachments, cell) for cell in cells(tuple(attachments))}
        if strict:
            hidden = (cell for cell, outcome in wanted.items() if outcome is not None and outcome.source != "caller")
            wanted |= dict.fromkeys([cell for cell in hidden if cell.caller == "client"])
        found = []
        for cell, outcome in self.try_cells(wanted, served_ports(attachments)).items():
            want, seen = wanted[cell], seen_as(outcome, source_of(attachments, cell))
            if want is not None and (seen.who != want.who or (want.source and seen.source != want.source)):
                found.append(f"{cell}: expected {want}, seen {seen}")
        return found

    def open_doors(self, attachments: list[Attachment]) -> list[str]:
        """The containers that reach what is on the node's 127.0.0.1 alone, in words."""
        callers = [a.container for a in attachments if 4 in a.addresses()]
        return [
            f"{name} with NET_ADMIN reaches what the node serves on 127.0.0.1"
            for name in callers
            if self.open_the_back_door(name)
        ]

    def open_the_back_door(self, container: str) -> bool:
        """Whether a container with NET_ADMIN reaches what the node serves on 127.0.0.1 alone."""
        with self.at("node"), Exchange() as exchange:
            exchange.serve("node", "tcp", PRIVATE, LOOPBACK[4])
            with self.at(container):
                _set("ipv4/conf/eth0/route_localnet", "1")
                run("ip", "addr", "del", "127.0.0.1/8", "dev", "lo")
                source = self.joined[container].addresses()[4][0]
                run("ip", "route", "add", "127.0.0.1", "via", GATE[4], "dev", "eth0", "onlink", "src", source)
                cell = Cell(container, LOOPBACK[4], PRIVATE, "tcp")
                exchange.call(cell)
            exchange.run(set(), 0.5)
            return bool(exchange.outcomes[cell].who)


_CLIENT_LINK = """link add up0 type veth peer name eth0 netns client
link set up0 master br0
link set up0 up
addr add 192.0.2.2/24 dev br0
addr add 2001:db8:1::2/64 dev br0 nodad
"""
_CLIENT_SIDE = """link set eth0 up
addr add 192.0.2.9/24 dev eth0
addr add 2001:db8:1::9/64 dev eth0 nodad
addr add 198.51.100.7/32 dev lo
route add default via 192.0.2.1
route add default via 2001:db8:1::1
"""


def _set(name: str, value: str) -> None:
    with open(f"/proc/sys/net/{name}", "w", encoding="ascii") as file:
        file.write(value)


def _no_dad() -> None:
    for name in ("all", "default"):
        _set(f"ipv6/conf/{name}/accept_dad", "0")


def seen_as(outcome: Outcome, own: str) -> Outcome:
    """An outcome with the source named for what it is."""
    if not outcome.who or outcome.source == "":
        return outcome
    kind = "node" if outcome.source in _OURS else ("caller" if outcome.source == own else outcome.source)
    return Outcome(outcome.who, kind)
