"""What the node should be like, written without the code: which attachments there are, and what is mapped for each.

An attachment is *sure* when its last command ended; a killed command leaves it *unsure* until the next one. Whatever was
damaged or flushed since then may be told of (CHECK 101), but nobody else may get its ports, and DEL removes all of it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

Mapping = tuple[str, int, int]
"""Protocol, host port, container port."""

_NFT = re.compile(r"map any4: (\w+) \. (\d+)(?: comment \S+)? : ([\d.]+) \. (\d+)$")
_IPTABLES = re.compile(r"nat -A CNI-DN-\S+ -p (\w+) -m \w+ --dport (\d+) -j DNAT --to-destination ([\d.]+):(\d+)$")


@dataclass
class Attachment:
    """A container on a network. `wanted`: protocol and container port of what it exposes."""

    name: str
    network: str
    named: str
    """What the network was called at its ADD."""
    address: str
    wanted: frozenset[tuple[str, int]]
    sure: bool = True
    flushed: bool = False
    damaged: bool = False
    """Its record may be lost."""
    old: bool = False
    """Of an earlier boot."""
    gone: bool = False
    """Its namespace has ended."""
    told: bool = False
    """Its Pod has been told of its ports."""
    ports: frozenset[Mapping] = frozenset()
    """As first seen; they stay."""


@dataclass
class Seen:
    """What is on the node, from the outside."""

    rules: frozenset[str]
    records: frozenset[str]
    """The containers of which a database or a file tells, one that is damaged too."""
    running: tuple[str, ...] = ()
    places: dict[str, str] = field(default_factory=dict)
    """Where else than in the database there is a record, by container."""
    told: dict[str, set[Mapping]] = field(default_factory=dict)
    """What the annotations say, by container."""

    def mapped(self) -> dict[str, set[Mapping]]:
        """By container address."""
        found: dict[str, set[Mapping]] = {}
        for line in self.rules:
            match = _NFT.search(line) or _IPTABLES.search(line)
            if match:
                found.setdefault(match[3], set()).add((match[1], int(match[2]), int(match[4])))
        return found


@dataclass
class Model:
    """The attachments by name."""

    attachments: dict[str, Attachment] = field(default_factory=dict)

    def breaches(self, seen: Seen) -> list[str]:
        """What does not agree."""
        mapped, found = seen.mapped(), list(seen.running)
        addresses = {one.address: one for one in self.attachments.values()}
        holders: dict[tuple[str, int], set[str]] = {}
        for address, ports in mapped.items():
            for protocol, port, _ in ports:
                holders.setdefault((protocol, port), set()).add(address)
            if address not in addresses or addresses[address].old:
                found.append(f"{address} is mapped ({sorted(ports)}) and should not be there")
        found += [f"{place} leads to {sorted(held)}" for place, held in holders.items() if len(held) > 1]
        for one in self.attachments.values():
            found += self._about(one, mapped.get(one.address, set()), seen)
        found += [
            f"there is a record of {name}, which is gone, in {seen.places.get(name)}"
            for name in seen.records - set(self.attachments)
        ]
        return found

    @staticmethod
    def _about(one: Attachment, ports: set[Mapping], seen: Seen) -> list[str]:
        if not one.sure:
            lost = bool(ports) and one.name not in seen.records and not one.damaged
            return [f"{one.name} has rules and no record"] if lost else []
        if one.old or one.flushed:
            return []
        if {(protocol, target) for protocol, _, target in ports} != one.wanted or len(ports) != len(one.wanted):
            return [f"{one.name} wants {sorted(one.wanted)} and has {sorted(ports)}"]
        if one.ports and ports != one.ports:
            return [f"the ports of {one.name} were {sorted(one.ports)} and are {sorted(ports)}"]
        one.ports = frozenset(ports)
        if one.name not in seen.records and not one.damaged:
            return [f"there is no record of {one.name}"]
        if one.told and seen.told.get(one.name, ports) != ports:  # none is one that is yet to be written
            return [f"the Pod of {one.name} was told {seen.told.get(one.name)}, and its ports are {sorted(ports)}"]
        return []
