"""Forgetting UDP flows: a flow that conntrack remembers keeps its old translation whatever the rules say now.

containernetworking/plugins#123: packets of a client that sent before the mapping changed would go to the old container
as long as they keep coming. Flows are told by what was translated, never by a port number alone: another host has the
same port. Entries are dumped with a filter for protocol and port in the kernel (5.8 and later),
checked again here, and deleted one by one by their exact tuple: a delete with a filter would flush the whole table on
a kernel that ignores the filter (containernetworking/plugins#705).
"""

from __future__ import annotations

import errno
import struct
from _socket import AF_INET, AF_INET6

from cnimeta.errors import IoFailure
from cnimeta.host import netlink
from cnimeta.host.netlink import DUMP, NESTED, NETFILTER, ROUTE, attribute, attributes
from cnimeta.host.reading import told
from cnimeta.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from cnimeta.host.netlink import Ask, Tell

_GET, _DELETE = (1 << 8) | 1, (1 << 8) | 2
_TUPLE_ORIG, _TUPLE_REPLY, _ID, _ZONE, _FILTER = 1, 2, 12, 18, 25
_TUPLE_IP, _TUPLE_PROTO = 1, 2
_V4_SRC, _V4_DST, _V6_SRC, _V6_DST = 1, 2, 3, 4
_PROTO_NUM, _PROTO_DST_PORT = 1, 3
_UDP = 17
_RTM_GETADDR = 22
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_LOOPBACK = b"\x7f"
_FILTER_PROTO_NUM, _FILTER_DST_PORT = 1 << 3, 1 << 5
_FAMILIES = {4: AF_INET, 6: AF_INET6}
_ABSENT = (errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT)
"""No ctnetlink in this kernel (EINVAL: nfnetlink knows no such subsystem), or no netlink for netfilter at all."""


class KernelConntrack:
    """The Conntrack adapter on ctnetlink."""

    def __init__(self, ask: Ask = netlink.ask, tell: Tell = netlink.tell) -> None:
        self._ask = ask
        self._tell = tell

    @netlink.understood("the flows")
    def forget_udp(
        self, family: int, ports: Iterable[tuple[int, int, bytes]], translated_to: Collection[bytes] | None
    ) -> None:
        """Delete the UDP flows of a family whose original destination is one of `ports`, of two kinds.

        Each port is (first port, last port, packed address); an empty address means every address. `translated_to`:
        the flows whose answers come from one of these packed addresses; None: those to an address of this host.
        IoFailure (code 5) when ctnetlink refuses; a kernel without it has no flows.
        """
        wanted = list(ports)
        local = self._local(family) if translated_to is None else frozenset()
        stale = _Stale(family, wanted, local, translated_to)
        for port in {first for first, last, _ in wanted if first == last}:
            self._forget(stale, port)
        if any(first != last for first, last, _ in wanted):
            self._forget(stale, None)

    def _local(self, family: int) -> frozenset[bytes]:
        """The packed addresses of this host."""
        header = struct.pack("=BBBBI", _FAMILIES[family], 0, 0, 0, 0)
        messages = told("the addresses", lambda: self._ask(ROUTE, _RTM_GETADDR, DUMP, header), _ABSENT) or ()
        found = [attributes(message.body[8:]) for message in messages if message.body[0] == _FAMILIES[family]]
        return frozenset(one.get(_IFA_LOCAL) or one.get(_IFA_ADDRESS, b"") for one in found)

    def _forget(self, stale: _Stale, port: int | None) -> None:
        header = struct.pack("=BBH", _FAMILIES[stale.family], 0, 0)
        request = header + _filter(port)
        for message in told("the flows", lambda: self._ask(NETFILTER, _GET, DUMP, request), _ABSENT) or ():
            found = attributes(message.body[4:])
            if message.body[0] != _FAMILIES[stale.family] or not stale.is_one(found):
                continue
            body = attribute(_TUPLE_ORIG | NESTED, found[_TUPLE_ORIG])
            body += b"".join(attribute(number, found[number]) for number in (_ID, _ZONE) if number in found)
            try:
                self._tell(NETFILTER, [(_DELETE, 0, header + body)])
            except FileNotFoundError:
                pass  # it expired meanwhile
            except OSError as error:
                raise IoFailure(f"cannot delete a flow: {error.strerror or error}") from None


class _Stale(NamedTuple):
    """Which flows are to be forgotten."""

    family: int
    ports: list[tuple[int, int, bytes]]
    local: frozenset[bytes]
    translated_to: Collection[bytes] | None

    def is_one(self, flow: dict[int, bytes]) -> bool:
        """Whether a flow, by its attributes, is one of them."""
        original, reply = attributes(flow.get(_TUPLE_ORIG, b"")), attributes(flow.get(_TUPLE_REPLY, b""))
        proto, address = attributes(original.get(_TUPLE_PROTO, b"")), attributes(original.get(_TUPLE_IP, b""))
        if proto.get(_PROTO_NUM) != bytes([_UDP]) or _PROTO_DST_PORT not in proto:
            return False
        port = struct.unpack(">H", proto[_PROTO_DST_PORT])[0]
        target = address.get(_V4_DST if self.family == 4 else _V6_DST, b"")
        if not any(first <= port <= last and where in (b"", target) for first, last, where in self.ports):
            return False
        if self.translated_to is None:
            return target in self.local or (self.family == 4 and target[:1] == _LOOPBACK)
        answering = attributes(reply.get(_TUPLE_IP, b"")).get(_V4_SRC if self.family == 4 else _V6_SRC)
        return answering in self.translated_to


def _filter(port: int | None) -> bytes:
    proto = attribute(_PROTO_NUM, bytes([_UDP]))
    flags = _FILTER_PROTO_NUM
    if port is not None:
        proto += attribute(_PROTO_DST_PORT, struct.pack(">H", port))
        flags |= _FILTER_DST_PORT
    wanted = attribute(_TUPLE_ORIG | NESTED, attribute(_TUPLE_PROTO | NESTED, proto))
    return wanted + attribute(_FILTER | NESTED, attribute(1, struct.pack("=I", flags)))
