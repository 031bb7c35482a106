"""The traffic matrix: callers x destinations x protocols x families x settings, the same cells on every backend.

What must happen in a cell is computed from the settings alone (`traffic.expected`). One world for each combination of
settings has three containers (two of one subnet, one with a subnet of its own), every kind of host address, and ranges.
"""

from __future__ import annotations

import itertools
import resource

from exchange import Cell
from laws import Breach
from sandbox import inside
from traffic import BEYOND, LINK_LOCAL, LOOPBACK, NODES, TrafficNode, expected, seen_as, served_ports, source_of
from worlds import BACKENDS, Attachment, Mapping, World

PROTOCOLS = ("tcp", "udp", "sctp")
OTHER_LOOPBACK = "127.0.0.2"
SOURCES = ("192.0.2.9", "2001:db8:1::9")
"""The client's addresses, for the conditions that let it alone in."""
_FAMILIES = ("46", "4", "6")
_FILES = 16384


def combinations() -> list[tuple[bool, bool, bool, str]]:
    """(snat, masqAll, with conditions, the containers' families)."""
    return list(itertools.product((True, False), (False, True), (False, True), _FAMILIES))


def world_of(backend: str, combination: tuple[bool, bool, bool, str]) -> World:
    """The world of a combination."""
    snat, masq_all, conditions, families = combination

    def attachment(name: str, address4: str, address6: str, *mappings: Mapping) -> Attachment:
        return Attachment(
            name,
            ips=tuple(address4 if family == "4" else address6 for family in families),
            mappings=tuple(
                Mapping(one.host, one.container, protocol, one.ip, one.end)
                for one in mappings
                for protocol in PROTOCOLS
                if not one.ip or any(str(family) in families for family in one.families())
            ),
            snat=snat,
            masq_all=masq_all,
            sources=SOURCES if conditions else (),
            version="1.0.0",
        )

    there = (
        attachment(
            *("c1", "10.99.1.2/24", "fd00:1::2/64"),
            *(Mapping(8080, 80), Mapping(8080, 90, ip="192.0.2.1"), Mapping(8080, 91, ip="2001:db8:1::1")),
            *(Mapping(8081, 81, ip="0.0.0.0"), Mapping(8082, 82, ip="::"), Mapping(8083, 83, ip="127.0.0.1")),
        ),
        attachment(
            *("c2", "10.99.1.3/24", "fd00:1::3/64"),
            *(Mapping(9000, 9000, end=9002), Mapping(7000, 100, end=7002)),
            *(Mapping(8084, 84, ip="192.0.2.2"), Mapping(8085, 85, ip="2001:db8:1::2")),
        ),
        attachment("c3", "192.168.7.2/32", "fd00:7::2/128", Mapping(8086, 86)),
    )
    return World(there, tuple(f"ADD {number}" for number in range(len(there))), backend)


def cells_of(world: World) -> list[Cell]:
    """Every cell of a world."""
    ports = sorted({p for a in world.attachments for m in a.mappings for p in (m.host, m.last, m.last + 1)})
    found = []
    for caller in ("client", "node", *(a.container for a in world.attachments)):
        has = {f for a in world.attachments if a.container == caller for f in a.addresses()} or {4, 6}
        ways = [(address, "") for family in sorted(has) for address in NODES[family]]
        if caller in ("client", "node"):
            ways.append((f"{LINK_LOCAL}%{'eth0' if caller == 'client' else 'br0'}", ""))
        if caller == "node":
            ways += [(LOOPBACK[4], ""), (OTHER_LOOPBACK, ""), (LOOPBACK[6], "")]
            ways += [(LOOPBACK[4], OTHER_LOOPBACK), (NODES[4][0], OTHER_LOOPBACK)]
        for (address, source), port, protocol in itertools.product(ways, ports, PROTOCOLS):
            found.append(Cell(caller, address, port, protocol, source))
        if caller != "client" and 4 in has:
            found += [Cell(caller, BEYOND, port, "tcp") for port in ports]
    return found


def examine_matrix(world: World) -> tuple[int, list[Breach]]:
    """How many cells were tried, and those that did not end as the settings say."""
    return inside(lambda: _take(world), timeout_s=180)


def _take(world: World) -> tuple[int, list[Breach]]:
    resource.setrlimit(resource.RLIMIT_NOFILE, (_FILES, _FILES))
    node = TrafficNode(world)
    found = []
    for attachment in world.attachments:
        answer = node.call("ADD", attachment)
        if answer.status:
            found.append(Breach("accepted", f"ADD {attachment.container}", f"{answer.code} {answer.msg}"))
    there = list(world.attachments)
    wanted = {cell: expected(there, cell) for cell in cells_of(world)}
    outcomes = node.try_cells(wanted, served_ports(there))
    for cell, outcome in outcomes.items():
        want, seen = wanted[cell], seen_as(outcome, source_of(there, cell))
        if want is not None and (seen.who != want.who or (want.source and seen.source != want.source)):
            found.append(Breach("packets", "SEND", f"{cell}: expected {want}, seen {seen}"))
    return len(wanted), found


def share(number: int) -> list[tuple[str, tuple[bool, bool, bool, str]]]:
    """(backend, combination) of `number` combinations spread over all of them, each on every backend; 0 for all."""
    every = combinations()
    chosen = (
        every if number == 0 else [every[(3 + at * (len(every) // number - 1)) % len(every)] for at in range(number)]
    )
    return [(backend, combination) for combination in chosen for backend in BACKENDS]
