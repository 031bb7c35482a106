"""One container on several networks, with the same host ports asked for on each: the first mapping serves. Pure.

What a later one asked for and does not get is in its record as *waiting*; it takes over when the first goes.
"""

from __future__ import annotations

from cnimeta.spec.ip import Address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import TypeAlias

    from cnimeta_plugins.portmap.config import PortMapping
    from cnimeta_plugins.portmap.plan import Plan
    from cnimeta_plugins.portmap.records import Record

    Held: TypeAlias = "tuple[int, PortMapping]"
    """A family, and a mapping that somebody has in it."""


def same_container(one: Record, other: Record) -> bool:
    """Whether two attachments are one container's: its ID, or its namespace, is the same."""
    same_id = one.owner.container_id == other.owner.container_id
    return one.owner != other.owner and (same_id or (bool(one.netns_id) and one.netns_id == other.netns_id))


def served(record: Record) -> list[Held]:
    """What a record's attachment has of what it asked for."""
    held = []
    for family in {container.address.family for container in record.addresses}:
        waiting = [(family, one) for one in record.waiting if one.serves(family)]
        for mapping in record.mappings:
            if mapping.serves(family):
                held += [(family, part) for part in _cut(mapping, family, waiting)[0]]
    return held


def waiting(record: Record) -> list[Held]:
    """What it waits for."""
    return [(family, one) for one in record.waiting for family in (4, 6) if one.serves(family)]


def without(plan: Plan, held: Sequence[Held]) -> tuple[Plan, tuple[PortMapping, ...]]:
    """The plan for what is not held already, and what is: the latter by family, every address as 0.0.0.0 or ::."""
    families, mappings, left = [], [], []
    for family in plan.families:
        kept: list[PortMapping] = []
        for mapping in family.mappings:
            free, taken = _cut(mapping, family.family, held)
            kept += free
            left += [_of_family(part, family.family) for part in taken]
        mappings += kept
        if kept:
            families.append(family._replace(mappings=tuple(kept)))
    settings = plan.settings._replace(mappings=tuple(dict.fromkeys(mappings)))
    return plan._replace(families=tuple(families), settings=settings), tuple(left)


def _cut(mapping: PortMapping, family: int, held: Iterable[Held]) -> tuple[list[PortMapping], list[PortMapping]]:
    """The parts of a mapping that are free, and those that are held."""
    others = [other for number, other in held if number == family and _meet(mapping, other)]
    if not others:
        return [mapping], []
    parts: tuple[list[PortMapping], list[PortMapping]] = [], []
    for port in mapping.host_ports:
        into = parts[any(other.first <= port <= other.last for other in others)]
        if into and into[-1].last == port - 1:
            into[-1] = into[-1]._replace(last=port)
        else:
            into.append(mapping._replace(first=port, last=port, container_port=mapping.target(port)))
    return parts


def _meet(one: PortMapping, other: PortMapping) -> bool:
    """Whether a packet of a family that both serve can be for both."""
    same = one.protocol == other.protocol and one.first <= other.last and other.first <= one.last
    return same and (one.is_wildcard or other.is_wildcard or one.host_ip == other.host_ip)


def _of_family(mapping: PortMapping, family: int) -> PortMapping:
    if mapping.host_ip is not None:
        return mapping
    return mapping._replace(host_ip=Address(family, bytes(4 if family == 4 else 16)))
