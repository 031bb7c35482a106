"""Ranges of host ports, and sets of ports as whole numbers. Pure."""

from __future__ import annotations

from cnimeta.errors import InvalidNetworkConfig, shown
from cnimeta.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence
    from typing import TypeAlias

    PortSet: TypeAlias = int
    """Bit p is set when port p is a member."""
    Ports: TypeAlias = Mapping[str, PortSet]
    """A set of ports per protocol; a missing protocol is the empty set."""

PORT_MAX = 65535


class PortRange(NamedTuple):
    """A named set of host ports: spans of (first, last), both included, ascending, not overlapping."""

    name: str
    spans: tuple[tuple[int, int], ...]
    namespaces: tuple[str, ...] = ()
    """Whose Pods alone may have ports of it, as patterns; none: everybody."""
    by_ordinal: bool = False
    """Ports are those of the Pod's ordinal, and"""
    refuses: bool = False
    """no others, rather than random ones, where those cannot be had."""

    @property
    def ports(self) -> PortSet:
        """The members."""
        return ports_of(self.spans)

    @property
    def size(self) -> int:
        """How many ports it has."""
        return sum(last - first + 1 for first, last in self.spans)

    @property
    def text(self) -> str:
        """As it would be written: `20000-24999,25010`."""
        return ",".join(f"{first}-{last}" if last > first else str(first) for first, last in self.spans)


def parse_range(name: str, text: str, path: str) -> PortRange:
    """Read `20000-24999,25010`. Raises InvalidNetworkConfig (code 7) naming `path`."""
    spans: list[tuple[int, int]] = []
    for part in text.split(","):
        first, dash, last = (piece.strip() for piece in part.partition("-"))
        ends = [_number(first), _number(last) if dash else _number(first)]
        if ends[0] is None or ends[1] is None or ends[0] > ends[1]:
            raise InvalidNetworkConfig(
                f'{path} must be ports from 1 to {PORT_MAX} such as "20000-24999" or "20000-24999,25010",'
                f" got {shown(text)}"
            )
        spans.append((ends[0], ends[1]))
    spans.sort()
    before = 0
    for low, high in spans:
        if low <= before:
            raise InvalidNetworkConfig(f"{path} names port {low} twice: {shown(text)}")
        before = high
    return PortRange(name, tuple(spans))


def _number(text: str) -> int | None:
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        return None
    return int(text) if 1 <= int(text) <= PORT_MAX else None


def refuse_reserved(ranges: Iterable[PortRange], reserved: Iterable[tuple[str, int, int]]) -> None:
    """Raise InvalidNetworkConfig (code 7) when a range shares ports with one of `reserved` (what, first, last).

    Callers give NodePorts, which no bind test can see, and the ephemeral range, from which the kernel takes source
    ports at any moment; nothing when the operator forces the overlap.
    """
    kept = tuple(reserved)
    for found in ranges:
        for what, first, last in kept:
            if any(low <= last and first <= high for low, high in found.spans):
                raise InvalidNetworkConfig(
                    f"$.ranges.{found.name} {shown(found.text)} overlaps {what} ({first}-{last}): choose ports outside"
                    " it, or set forceOverlap if you keep them apart yourself"
                )


def refuse_overlaps(ranges: Sequence[PortRange], where: str = "$.ranges.") -> None:
    """Raise InvalidNetworkConfig (code 7) when two ranges share a port."""
    for index, one in enumerate(ranges):
        for other in ranges[:index]:
            if one.ports & other.ports:
                raise InvalidNetworkConfig(
                    f"{where}{one.name} ({one.text}) overlaps {where}{other.name} ({other.text}): keep them apart"
                )


def ports_of(spans: Iterable[tuple[int, int]]) -> PortSet:
    """The set of all ports in `spans` (first, last), both included."""
    members = 0
    for first, last in spans:
        members |= ((1 << (last - first + 1)) - 1) << first
    return members


def ports_of_all(ranges: Iterable[PortRange]) -> PortSet:
    """The ports of all these ranges."""
    return ports_of(span for found in ranges for span in found.spans)


def ports_in(text: str) -> PortSet:
    """The ports of a list as the kernel writes it, `8080,20000-24999`; 0 for none. ValueError for anything else."""
    spans = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if first:
            spans.append((int(first), int(last if dash else first)))
    return ports_of(spans)


def text_of(ports: PortSet) -> str:
    """The list of a set, as the kernel writes it."""
    parts, bits, end = [], bin(ports)[:1:-1], 0
    while (first := bits.find("1", end)) >= 0:
        end = bits.find("0", first)
        end = len(bits) if end < 0 else end
        parts.append(f"{first}-{end - 1}" if end - first > 1 else str(first))
    return ",".join(parts)
