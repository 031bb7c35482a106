"""What `cnimeta ports list` and `show` tell: every port that is given out, and a range's occupancy."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cnimeta.errors import InvalidEnvironment, InvalidNetworkConfig, shown
from cnimeta_plugins.hostport_alloc.allocate.expose import PROTOCOLS
from cnimeta_plugins.hostport_alloc.allocate.ranges import parse_range, ports_of
from cnimeta_plugins.hostport_alloc.operator.drawing import drawing, in_words
from cnimeta_plugins.hostport_alloc.state.listed import KEYS
from cnimeta_plugins.hostport_alloc.state.schema import EXPLICIT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cnimeta_plugins.hostport_alloc.allocate.ranges import PortRange, Ports, PortSet
    from cnimeta_plugins.hostport_alloc.config import Settings
    from cnimeta_plugins.hostport_alloc.state.store import Occupancy, Store

Entry = dict[str, str | int]
"""One host port of one attachment, with the keys that `--json` prints."""


def entries_of(store: Store) -> list[Entry]:
    """Every host port on record, by number."""
    return [dict(zip(KEYS, port, strict=True)) for port in store.listed()]


class RangeView(NamedTuple):
    """A range and what its ports are taken by."""

    range: PortRange
    used: PortSet
    blocked: PortSet
    quarantined: PortSet

    @classmethod
    def of(cls, found: PortRange, occupancy: Occupancy, blocked: Ports) -> RangeView:
        """Of all protocols together."""
        used = taken = 0
        for protocol in PROTOCOLS:
            used |= occupancy.used.get(protocol, 0)
            taken |= blocked.get(protocol, 0)
        return cls(found, used, taken, ports_of((held.port, held.port) for held in occupancy.quarantined))

    @property
    def counts(self) -> dict[str, int]:
        """How many ports of the range are in which state."""
        ports = self.range.ports
        return {
            "size": self.range.size,
            "used": (self.used & ports).bit_count(),
            "quarantined": (self.quarantined & ports & ~self.used).bit_count(),
            "blocked": (self.blocked & ports & ~self.used).bit_count(),
            "free": (ports & ~self.used & ~self.quarantined & ~self.blocked).bit_count(),
        }

    @property
    def body(self) -> dict[str, object]:
        """What `--json` prints."""
        members = [port for first, last in self.range.spans for port in range(first, last + 1) if self.used >> port & 1]
        return {"range": self.range.name, "ports": self.range.text, **self.counts, "usedPorts": members}

    @property
    def text(self) -> str:
        """The drawing for people, and what it shows in words."""
        counts = ", ".join(f"{name} {count}" for name, count in self.counts.items())
        shown_of = self.range, self.used, self.blocked, self.quarantined
        return f"{self.range.name}: {self.range.text}, {counts}\n{drawing(*shown_of)}{in_words(*shown_of)}"


def range_named(name: str, settings: Settings | None) -> PortRange:
    """A range of the configuration, or one that is written out. Raises InvalidEnvironment (code 4), wrong usage."""
    if name[:1].isdigit():
        try:
            return parse_range(name, name, "RANGE")
        except InvalidNetworkConfig as error:
            raise InvalidEnvironment(error.msg) from None
    for found in settings.ranges if settings is not None else ():
        if found.name == name:
            return found
    raise _no_range(name, settings)


def refuse_unknown_ranges(names: Iterable[str], settings: Settings | None, entries: Iterable[Entry]) -> None:
    """Raise InvalidEnvironment (code 4), wrong usage, for a name that neither the configuration nor a record has."""
    configured = [found.name for found in settings.ranges] if settings is not None else []
    known = {*configured, EXPLICIT, *(str(entry["range"]) for entry in entries)}
    for name in names:
        if name not in known:
            raise _no_range(name, settings, known - set(configured))


def _no_range(name: str, settings: Settings | None, more: Iterable[str] = ()) -> InvalidEnvironment:
    known = [*(found.name for found in (settings.ranges if settings is not None else ())), *sorted(more)]
    hint = "" if settings is not None else "no configuration was found, use --conf"
    return InvalidEnvironment(f"there is no range {shown(name)}: {'; '.join(filter(None, (', '.join(known), hint)))}")
