"""The node's own addresses, as clients outside would use them."""

from __future__ import annotations

import _socket
from _struct import pack, unpack_from

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_FAMILIES = (
    # Targets no route names specifically: class E, and an unallocated part of the global unicast block.
    (_socket.AF_INET, "240.0.0.1"),
    (_socket.AF_INET6, "2000::1"),
)
_PORT = 9  # discard; nothing is sent

# linux/rtnetlink.h, linux/netlink.h, linux/if_addr.h
_RTM_GETADDR, _NLMSG_DONE, _NLMSG_ERROR, _NLM_F_REQUEST_DUMP = 22, 3, 2, 0x301
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_IFA_F_UNUSABLE = 0x01 | 0x08 | 0x20 | 0x40  # secondary or temporary, failed duplicate check, deprecated, tentative
_SCOPE_UNIVERSE = 0
_HEADER = "=IHHII"


class RouteAddresses:
    """NodeAddresses by the kernel's own choice: the source address of the default route, per family.

    A family without a default route falls back to the first global address of the lowest-numbered interface: the
    uplink is there before the bridges of the containers are.
    """

    def primary(self) -> tuple[str, ...]:
        """At most one IPv4 and one IPv6 address, in that order; a family without any is left out."""
        found = [_source(family, target) or _first_global(family) for family, target in _FAMILIES]
        return tuple(address for address in found if address)


def _source(family: int, target: str) -> str:
    """The source the kernel would use towards `target`: connecting a UDP socket picks it and sends nothing."""
    try:
        probe = _socket.socket(family, _socket.SOCK_DGRAM | _socket.SOCK_CLOEXEC)
    except OSError:
        return ""  # a kernel without IPv6
    try:
        probe.connect((target, _PORT))
        address = str(probe.getsockname()[0])
    except OSError:
        return ""
    finally:
        probe.close()
    return "" if _is_local_only(address) else address


def _is_local_only(address: str) -> bool:
    return address.lower().startswith(("fe80:", "127.", "169.254.")) or address == "::1"


def _first_global(family: int) -> str:
    try:
        candidates = [(index, text) for index, text in _dump(family) if not _is_local_only(text)]
    except OSError:
        return ""
    return min(candidates, key=lambda candidate: candidate[0])[1] if candidates else ""


def _dump(family: int) -> Iterator[tuple[int, str]]:
    """RTM_GETADDR: (interface index, address) of every usable address of global scope, in the kernel's order."""
    channel = _socket.socket(_socket.AF_NETLINK, _socket.SOCK_RAW | _socket.SOCK_CLOEXEC, 0)
    try:
        channel.bind((0, 0))
        channel.send(pack(_HEADER + "BBBBI", 24, _RTM_GETADDR, _NLM_F_REQUEST_DUMP, 1, 0, family, 0, 0, 0, 0))
        while True:
            data = channel.recv(65536)
            offset = 0
            while offset < len(data):
                length, kind, _, _, _ = unpack_from(_HEADER, data, offset)
                if kind in (_NLMSG_DONE, _NLMSG_ERROR):
                    return
                yield from _address(family, data[offset + 16 : offset + length])
                offset += (length + 3) & ~3
    finally:
        channel.close()


def _address(family: int, body: bytes) -> Iterator[tuple[int, str]]:
    _, _, flags, scope, index = unpack_from("=BBBBI", body)
    if scope != _SCOPE_UNIVERSE or flags & _IFA_F_UNUSABLE:
        return
    values = {}
    offset = 8
    while offset + 4 <= len(body):
        length, kind = unpack_from("=HH", body, offset)
        if length < 4:
            break
        values[kind] = body[offset + 4 : offset + length]
        offset += (length + 3) & ~3
    packed = values.get(_IFA_LOCAL) or values.get(_IFA_ADDRESS)
    if packed:
        yield index, _socket.inet_ntop(family, packed)
