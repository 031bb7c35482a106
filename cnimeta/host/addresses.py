"""The node's own addresses, as clients outside would use them."""

from __future__ import annotations

import _socket

_PROBES = (
    (_socket.AF_INET, "192.0.2.1"),  # TEST-NET-1 (RFC 5737)
    (_socket.AF_INET6, "2001:db8::1"),  # documentation prefix (RFC 3849)
)
_PORT = 9  # discard; nothing is sent


class RouteAddresses:
    """NodeAddresses by the kernel's own choice: the source address of the default route, per family.

    Connecting a UDP socket makes the kernel pick the source address (RFC 6724 for IPv6) and sends nothing.
    """

    def primary(self) -> tuple[str, ...]:
        """At most one IPv4 and one IPv6 address, in that order; a family without a default route is left out."""
        found = []
        for family, target in _PROBES:
            try:
                probe = _socket.socket(family, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
            except OSError:
                continue  # a kernel without IPv6
            try:
                probe.connect((target, _PORT))
                found.append(str(probe.getsockname()[0]))
            except OSError:
                continue
            finally:
                probe.close()
        return tuple(found)
