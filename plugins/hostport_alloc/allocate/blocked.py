"""Which ports of the node are not to be had, beside those in records.

Sources: net.ipv4.ip_local_reserved_ports, DNAT rules of others in iptables and nftables, and sockets. ADD asks about
the ports that it picks (`Probe`), which costs little, and has all sockets listed only when one of these may be in use.
"""

from __future__ import annotations

from cnimeta_plugins.hostport_alloc.allocate.expose import PROTOCOLS
from cnimeta_plugins.hostport_alloc.allocate.ranges import ports_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.host.protocols import PortScan, Sockets
    from cnimeta_plugins.hostport_alloc.allocate.ranges import Ports, PortSet

_ANY = ""


def blocked_ports(sockets: Sockets, scan: PortScan, ours: PortSet = 0) -> dict[str, PortSet]:
    """The ports that must not be picked, per protocol. Raises IoFailure (code 5) when a source cannot be read.

    `ours`: reserved ports that we have reserved ourselves.
    """
    blocked, used = set_aside(sockets, scan, ours), used_by(sockets)
    return {protocol: blocked[protocol] | used[protocol] for protocol in PROTOCOLS}


def set_aside(sockets: Sockets, scan: PortScan, ours: PortSet = 0) -> dict[str, PortSet]:
    """Those of them that are reserved, or that somebody's rules redirect."""
    reserved = ports_of(sockets.reserved()) & ~ours
    blocked = dict.fromkeys(PROTOCOLS, reserved)
    for protocol, first, last in scan.redirected():
        for name in PROTOCOLS if protocol == _ANY else (protocol,):
            blocked[name] |= ports_of([(first, last)])
    return blocked


def used_by(sockets: Sockets) -> dict[str, PortSet]:
    """Those of them that sockets have."""
    used = dict.fromkeys(PROTOCOLS, 0)
    for protocol, port in sockets.in_use():
        used[protocol] |= 1 << port
    return used


class Probe:
    """Whether picked ports are free of sockets. Once one may not be, all sockets are listed, and `used` has them."""

    def __init__(self, sockets: Sockets) -> None:
        self._sockets = sockets
        self._used: Ports | None = None

    def __call__(self, protocol: str, port: int) -> bool:
        """Whether the port can be had. Raises IoFailure (code 5)."""
        if self._sockets.is_unused(protocol, port):
            return True
        if self._used is None:
            self._used = used_by(self._sockets)
        return not self._used[protocol] >> port & 1 and self._sockets.can_listen(protocol, port)

    def used(self) -> Ports:
        """The ports of all sockets, as far as they had to be listed."""
        return self._used or {}
