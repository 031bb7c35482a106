"""Forgetting UDP flows: a flow that conntrack remembers keeps its old translation whatever the rules say now.

containernetworking/plugins#123: packets of a client that sent before the mapping changed would go to the old container
as long as they keep coming. Entries are dumped with a filter for protocol and port in the kernel (5.8 and later),
checked again here, and deleted one by one by their exact tuple: a delete with a filter would flush the whole table on
a kernel that ignores the filter (containernetworking/plugins#705).
"""

from __future__ import annotations

import errno
import struct
from _socket import AF_INET, AF_INET6

from cnimeta.errors import IoFailure
from cnimeta.host import netlink
from cnimeta.host.netlink import DUMP, NESTED, NETFILTER, attribute, attributes
from cnimeta.host.reading import told

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from cnimeta.host.netlink import Ask, Tell

_GET, _DELETE = (1 << 8) | 1, (1 << 8) | 2
_TUPLE_ORIG, _ID, _ZONE, _FILTER = 1, 12, 18, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_V4_DST, _V6_DST = 2, 4
_PROTO_NUM, _PROTO_DST_PORT = 1, 3
_UDP = 17
_FILTER_PROTO_NUM, _FILTER_DST_PORT = 1 << 3, 1 << 5
_FAMILIES = {4: AF_INET, 6: AF_INET6}
_ABSENT = (errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT)
"""No ctnetlink in this kernel (EINVAL: nfnetlink knows no such subsystem), or no netlink for netfilter at all."""


class KernelConntrack:
    """The Conntrack adapter on ctnetlink."""

    def __init__(self, ask: Ask = netlink.ask, tell: Tell = netlink.tell) -> None:
        self._ask = ask
        self._tell = tell

    def forget_udp(self, family: int, ports: Iterable[tuple[int, int, bytes]]) -> None:
        """Delete the UDP flows of a family whose original destination is one of `ports`.

        Each is (first port, last port, packed address); an empty address means every address. IoFailure (code 5) when
        ctnetlink refuses; a kernel without it has no flows.
        """
        wanted = list(ports)
        for port in {first for first, last, _ in wanted if first == last}:
            self._forget(family, wanted, port)
        if any(first != last for first, last, _ in wanted):
            self._forget(family, wanted, None)

    def _forget(self, family: int, wanted: list[tuple[int, int, bytes]], port: int | None) -> None:
        header = struct.pack("=BBH", _FAMILIES[family], 0, 0)
        request = header + _filter(port)
        for message in told("the flows", lambda: self._ask(NETFILTER, _GET, DUMP, request), _ABSENT) or ():
            found = attributes(message.body[4:])
            original = found.get(_TUPLE_ORIG, b"")
            if message.body[0] != _FAMILIES[family] or not _matches(original, family, wanted):
                continue
            body = attribute(_TUPLE_ORIG | NESTED, original)
            body += b"".join(attribute(number, found[number]) for number in (_ID, _ZONE) if number in found)
            try:
                self._tell(NETFILTER, [(_DELETE, 0, header + body)])
            except FileNotFoundError:
                pass  # it expired meanwhile
            except OSError as error:
                raise IoFailure(f"cannot delete a flow: {error.strerror or error}") from None


def _filter(port: int | None) -> bytes:
    proto = attribute(_PROTO_NUM, bytes([_UDP]))
    flags = _FILTER_PROTO_NUM
    if port is not None:
        proto += attribute(_PROTO_DST_PORT, struct.pack(">H", port))
        flags |= _FILTER_DST_PORT
    wanted = attribute(_TUPLE_ORIG | NESTED, attribute(_TUPLE_PROTO | NESTED, proto))
    return wanted + attribute(_FILTER | NESTED, attribute(1, struct.pack("=I", flags)))


def _matches(original: bytes, family: int, wanted: list[tuple[int, int, bytes]]) -> bool:
    parts = attributes(original)
    proto, address = attributes(parts.get(_TUPLE_PROTO, b"")), attributes(parts.get(_TUPLE_IP, b""))
    if proto.get(_PROTO_NUM) != bytes([_UDP]) or _PROTO_DST_PORT not in proto:
        return False
    port = struct.unpack(">H", proto[_PROTO_DST_PORT])[0]
    target = address.get(_V4_DST if family == 4 else _V6_DST)
    return any(first <= port <= last and where in (b"", target) for first, last, where in wanted)
