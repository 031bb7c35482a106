"""What `cnimeta ports list` and `show` tell: every port that is given out, and a range's occupancy."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cnimeta.errors import InvalidEnvironment, InvalidNetworkConfig, shown
from cnimeta_plugins.hostport_alloc.allocate.expose import PROTOCOLS
from cnimeta_plugins.hostport_alloc.allocate.ranges import parse_range, ports_of
from cnimeta_plugins.hostport_alloc.operator.drawing import drawing, in_words

if TYPE_CHECKING:
    from cnimeta_plugins.hostport_alloc.allocate.ranges import PortRange, Ports, PortSet
    from cnimeta_plugins.hostport_alloc.config import Settings
    from cnimeta_plugins.hostport_alloc.state.record import Record
    from cnimeta_plugins.hostport_alloc.state.store import Occupancy, Store

Entry = dict[str, str | int]
"""One host port of one attachment, with the keys that `--json` prints."""


def entries_of(store: Store, now: float) -> list[Entry]:
    """Every host port on record, by number."""
    found = [entry for record in store.records() for entry in _entries(record, store, now)]
    return sorted(found, key=lambda entry: (int(entry["hostPort"]), str(entry["protocol"])))


def _entries(record: Record, store: Store, now: float) -> list[Entry]:
    common: Entry = {
        "pod": f"{record.pod.namespace}/{record.pod.name}" if record.pod is not None else "",
        "podUID": record.pod.uid if record.pod is not None else "",
        "containerID": record.container_id,
        "ifname": record.ifname,
        "network": record.network,
        "ageSeconds": round(now - record.created) if record.created else 0,
        "state": record.phase if store.is_alive(record) else "earlier boot",
        "annotation": record.annotation.state,
        "annotationError": record.annotation.error,
    }
    ports = [(port.host_port, port.protocol, port.range, port.container_port, port.host_ip) for port in record.ports]
    ports += [
        (port.host_port, port.protocol, "explicit", port.container_port, port.host_ip) for port in record.explicit
    ]
    keys = ("hostPort", "protocol", "range", "containerPort", "hostIP")
    return [{**dict(zip(keys, port, strict=True)), **common} for port in ports]


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
    known = settings.ranges if settings is not None else ()
    for found in known:
        if found.name == name:
            return found
    where = ", ".join(found.name for found in known) or "no configuration was found, use --conf"
    raise InvalidEnvironment(f"there is no range {shown(name)}: {where}")
