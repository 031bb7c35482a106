"""Host ports by the ordinal of a StatefulSet's Pod: `db-3` has the numbers after those of `db-2`. Pure.

Of a range with `by: ordinal`, a Pod that asks for n numbers has those from ordinal * n on, counted from the first of
the range, in the order of its exposures.
"""

from __future__ import annotations

from cnimeta.errors import InvalidNetworkConfig, TryAgainLater, shown
from cnimeta_plugins.hostport_alloc.allocate.picks import member, runs

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cnimeta_plugins.hostport_alloc.allocate.expose import Exposure
    from cnimeta_plugins.hostport_alloc.allocate.picks import Port, Preferred
    from cnimeta_plugins.hostport_alloc.allocate.ranges import PortRange, Ports

_DIGITS_MAX = 5


def ordinal_of(pod_name: str) -> int | None:
    """The number at the end of `db-3`; None for a name without one."""
    head, dash, digits = pod_name.rpartition("-")
    number = head and dash and digits.isascii() and digits.isdigit() and len(digits) <= _DIGITS_MAX
    return int(digits) if number and str(int(digits)) == digits else None


def by_ordinal(exposures: Sequence[Exposure], ranges: Mapping[str, PortRange], pod_name: str) -> Preferred:
    """The host ports of all exposures whose range is by ordinal; without those that fall back.

    Raises InvalidNetworkConfig (code 7) where a range refuses what has no port by its ordinal.
    """
    found: dict[tuple[int, str, str], int] = {}
    for name in dict.fromkeys(exposure.range for exposure in exposures):
        if ranges[name].by_ordinal:
            found.update(
                _of_range([exposure for exposure in exposures if exposure.range == name], ranges[name], pod_name)
            )
    return found


def _of_range(exposures: Sequence[Exposure], found: PortRange, pod_name: str) -> dict[tuple[int, str, str], int]:
    ordinal, asked = ordinal_of(pod_name), sum(exposure.length for exposure in exposures)
    ports, why = {}, ""
    if ordinal is None:
        why = f"{shown(pod_name)} is no Pod of a StatefulSet" if pod_name else "there is no Pod"
    else:
        index = ordinal * asked
        for exposure in exposures:
            start = member(found.ports, index) if index + exposure.length <= found.size else 0
            if not runs(found.ports, exposure.length) >> start & 1:
                why = f"Pod {shown(pod_name)} would have its numbers {index} to {index + exposure.length - 1}"
                break
            for offset in range(exposure.length):
                for protocol in exposure.protocols:
                    ports[exposure.port and exposure.port + offset, protocol, exposure.range] = start + offset
            index += exposure.length
    if not why:
        return ports
    if found.refuses:
        raise InvalidNetworkConfig(
            f"range {shown(found.name)} ({found.text}) gives ports by the Pod's ordinal, and {why}: enlarge the range,"
            f' or let $.ranges.{found.name}.otherwise be "random"'
        )
    return {}


def refuse_others(ports: Iterable[Port], fixed: Preferred, ranges: Mapping[str, PortRange], used: Ports) -> None:
    """Raise TryAgainLater (code 11) when a port is not the one of the ordinal, where the range allows no other.

    An earlier sandbox of the Pod may hold it still.
    """
    for port in ports:
        wanted = fixed.get((port.asked, port.protocol, port.range), port.host_port)
        if port.host_port != wanted and ranges[port.range].refuses:
            holder = (
                "another container holds it" if used.get(port.protocol, 0) >> wanted & 1 else "the node itself uses it"
            )
            raise TryAgainLater(
                f"host port {wanted}/{port.protocol} of range {shown(port.range)} is this Pod's by its ordinal,"
                f" and {holder}"
            )
