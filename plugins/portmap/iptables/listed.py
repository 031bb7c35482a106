"""The mappings in a nat table by the names they carry: what there is when its record is lost. Pure."""

from __future__ import annotations

from cnimeta.ports.mapper import MappedPort
from cnimeta_plugins.portmap.iptables.names import DNAT_CHAIN
from cnimeta_plugins.portmap.iptables.plan import read_entry, read_owner, translated

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence


def mapped_ports(table: Mapping[str, Sequence[str]]) -> Iterator[MappedPort]:
    """Every mapped port whose comment tells its network and container; upstream's rules name no interface."""
    for entry in map(read_entry, table.get(DNAT_CHAIN, ())):
        named = read_owner(entry)
        for port in _mapped(table.get(entry.chain, ())) if named.whole else ():
            yield MappedPort(named.network, named.container_id, "", *port, recorded=False, managed_by=None)


def _mapped(rules: Iterable[str]) -> list[tuple[str, int, int, str]]:
    """(protocol, host port, container port, host address) of every port that the rules of a container's chain map."""
    found = []
    for rule in rules:
        first_target = _first_target(rule)
        for span in translated((rule,)):
            shift = first_target - span.first if first_target else 0
            ports = range(span.first, span.last + 1)
            found += [(span.protocol, port, port + shift, span.host_ip) for port in ports]
    return found


def _first_target(rule: str) -> int:
    """The first port of `ADDRESS:PORT`, `[ADDRESS]:PORT` or `ADDRESS:PORT-PORT/PORT`; 0 for an address alone."""
    where = rule.rpartition("--to-destination ")[2].partition(" ")[0]
    if where.count(":") > 1 and not where.startswith("["):
        return 0
    digits = where.rpartition("]")[2].partition(":")[2].partition("-")[0]
    return int(digits) if digits.isdecimal() else 0
