"""The node's own addresses, as clients outside would use them."""

from __future__ import annotations

import errno
from _socket import AF_INET, AF_INET6, SOCK_CLOEXEC, SOCK_DGRAM, inet_ntop, socket
from _struct import pack, unpack_from

from cnimeta.host import netlink
from cnimeta.host.netlink import DUMP, ROUTE, attributes
from cnimeta.host.reading import retried, told

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cnimeta.host.netlink import Ask, Connect

_FAMILIES = (
    # Targets no route names specifically: class E, and an unallocated part of the global unicast block.
    (AF_INET, "240.0.0.1"),
    (AF_INET6, "2000::1"),
)
_PORT = 9  # discard; nothing is sent

# linux/rtnetlink.h, linux/if_addr.h
_RTM_GETADDR = 22
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFA_F_UNUSABLE = 0x01 | 0x08 | 0x20 | 0x40  # secondary or temporary, failed duplicate check, deprecated, tentative
_SCOPE_UNIVERSE = 0
_NO_FAMILY = (errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT, errno.EOPNOTSUPP)
_NO_ROUTE = (errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EADDRNOTAVAIL, errno.EACCES, errno.EINVAL)
"""No route, or one of the kinds unreachable, prohibit (EACCES) and blackhole (EINVAL); no usable source address."""


class RouteAddresses:
    """NodeAddresses by the kernel's own choice: the source address of the default route, per family.

    A family without a default route falls back to the first global address of the lowest-numbered interface: the
    uplink is there before the bridges of the containers are.
    """

    def __init__(self, ask: Ask = netlink.ask, connect: Connect = socket) -> None:
        self._ask = ask
        self._connect = connect

    def primary(self) -> tuple[str, ...]:
        """At most one IPv4 and one IPv6 address, in that order; a family without any is left out.

        IoFailure (code 5) when the kernel does not tell.
        """
        found = [self._source(family, target) or self._first_global(family) for family, target in _FAMILIES]
        return tuple(address for address in found if address)

    def _source(self, family: int, target: str) -> str:
        """The source the kernel would use towards `target`, empty for none."""
        absent = (*_NO_FAMILY, *_NO_ROUTE)
        address = told(f"the route to {target}", lambda: retried(lambda: self._probed(family, target)), absent) or ""
        return "" if _is_local_only(address) else address

    def _probed(self, family: int, target: str) -> str:
        """Connecting a UDP socket picks the source address and sends nothing."""
        probe = self._connect(family, SOCK_DGRAM | SOCK_CLOEXEC, 0)
        try:
            probe.connect((target, _PORT))
            return str(probe.getsockname()[0])
        finally:
            probe.close()

    @netlink.understood("the node's addresses")
    def _first_global(self, family: int) -> str:
        """The first address of the lowest-numbered interface, empty for none."""
        header = pack("=BBBBI", family, 0, 0, 0, 0)
        messages = told("the node's addresses", lambda: self._ask(ROUTE, _RTM_GETADDR, DUMP, header), _NO_FAMILY) or []
        found = [pair for message in messages for pair in _address(family, message.body) if not _is_local_only(pair[1])]
        return min(found, key=lambda pair: pair[0])[1] if found else ""


def _is_local_only(address: str) -> bool:
    return address.lower().startswith(("fe80:", "127.", "169.254.")) or address == "::1"


def _address(family: int, body: bytes) -> Iterator[tuple[int, str]]:
    """(interface index, address) of a usable address of global scope."""
    found, _, flags, scope, index = unpack_from("=BBBBI", body)
    if found != family or scope != _SCOPE_UNIVERSE or flags & _IFA_F_UNUSABLE:
        return
    values = attributes(body[8:])
    packed = values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS)
    if packed:
        yield index, inet_ntop(family, packed)
