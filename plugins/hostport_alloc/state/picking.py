"""Which ports an attachment gets, from a snapshot of the state: those it has, those its Pod had, or others. Pure."""

from __future__ import annotations

from cnimeta.namedtuple import NamedTuple
from cnimeta_plugins.hostport_alloc.allocate import picks
from cnimeta_plugins.hostport_alloc.allocate.picks import Situation
from cnimeta_plugins.hostport_alloc.state import rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cnimeta_plugins.hostport_alloc.allocate.expose import Exposure
    from cnimeta_plugins.hostport_alloc.allocate.picks import Port, Preferred, QuarantinedPort
    from cnimeta_plugins.hostport_alloc.allocate.quotas import Quotas
    from cnimeta_plugins.hostport_alloc.allocate.ranges import PortRange, Ports
    from cnimeta_plugins.hostport_alloc.state.record import Record


class Demand(NamedTuple):
    """What ADD asks for, beside the draft record (whose `explicit` mappings are reserved with it)."""

    exposures: tuple[Exposure, ...]
    ranges: Mapping[str, PortRange]
    """Every range an exposure names."""
    blocked: Ports
    """Ports not to be had, from `blocked.set_aside`."""
    probe: Callable[[str, int], bool]
    """probe(protocol, port): whether no socket has the port right now. Not called in a transaction."""
    sticky: bool = True
    """Prefer the ports the same Pod had."""
    fixed: Preferred = {}  # noqa: RUF012 - never changed
    """The ports that are the Pod's by its ordinal."""
    quotas: Quotas | None = None
    used: Callable[[], Ports] = dict
    """What the probe has learnt of other ports that are not to be had."""

    @property
    def port_count(self) -> int:
        """How many ports are asked for; a number for two protocols counts as two, as it is held."""
        return sum(exposure.length * len(exposure.protocols) for exposure in self.exposures)


class View(NamedTuple):
    """What a pick is made from: a snapshot, so the transaction that commits it looks again."""

    before: Record | None
    used: Ports
    """Less what the attachment itself holds."""
    quarantined: tuple[QuarantinedPort, ...]
    preferred: Preferred


def kept(before: Record | None, demand: Demand) -> tuple[Port, ...] | None:
    """The ports of the record before, when they are exactly what is asked for now."""
    if before is None or before.salvaged:
        return None
    wanted = {
        (exposure.port + offset, protocol, exposure.range, exposure.host_ip)
        for exposure in demand.exposures
        for offset in range(exposure.length)
        for protocol in exposure.protocols
    }
    have = {(port.asked, port.protocol, port.range, port.host_ip) for port in before.ports}
    inside = all(
        port.range in demand.ranges and demand.ranges[port.range].ports >> port.host_port & 1 for port in before.ports
    )
    return before.ports if wanted == have and inside else None


def choose(view: View, draft: Record, demand: Demand) -> tuple[Port, ...]:
    """Pick until every picked port passes the probe; each that does not is out, so this ends."""
    used = rows.with_bits(view.used, ((port.protocol, port.host_port) for port in draft.explicit))
    blocked = dict(demand.blocked)
    preferred = {**view.preferred, **demand.fixed} if demand.fixed else view.preferred
    while True:
        situation = Situation(used, blocked, view.quarantined)
        ports = picks.choose(demand.exposures, demand.ranges, situation, preferred)
        if demand.fixed:
            from cnimeta_plugins.hostport_alloc.allocate.ordinal import refuse_others

            refuse_others(ports, demand.fixed, demand.ranges, used)
        refused = [port for port in ports if not demand.probe(port.protocol, port.host_port)]
        if not refused:
            return ports
        for port in refused:
            blocked[port.protocol] = blocked.get(port.protocol, 0) | 1 << port.host_port
        for protocol, in_use in demand.used().items():
            blocked[protocol] = blocked.get(protocol, 0) | in_use
