"""Which ports of the node are not to be had, beside those in records: gathered before the lock is taken.

Sources: sockets, net.ipv4.ip_local_reserved_ports, and DNAT rules of others in iptables and nftables. The picked port
is then probed under the lock (`Sockets.can_listen`), so a source that is late or blind only costs another pick.
"""

from __future__ import annotations

from cnimeta_plugins.hostport_alloc.allocate.expose import PROTOCOLS
from cnimeta_plugins.hostport_alloc.allocate.ranges import ports_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.host.protocols import PortScan, Sockets
    from cnimeta_plugins.hostport_alloc.allocate.ranges import PortSet

_ANY = ""


def blocked_ports(sockets: Sockets, scan: PortScan, ours: PortSet = 0) -> dict[str, PortSet]:
    """The ports that must not be picked, per protocol. Raises IoFailure (code 5) when a source cannot be read.

    `ours`: reserved ports that we have reserved ourselves.
    """
    reserved = ports_of(sockets.reserved()) & ~ours
    blocked = dict.fromkeys(PROTOCOLS, reserved)
    for protocol, port in sockets.in_use():
        blocked[protocol] |= 1 << port
    for protocol, first, last in scan.redirected():
        for name in PROTOCOLS if protocol == _ANY else (protocol,):
            blocked[name] |= ports_of([(first, last)])
    return blocked
