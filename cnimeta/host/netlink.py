"""A small netlink client for what the launch path asks the kernel: one request, its answers, its error.

`pyroute2` does all of this and costs 145 ms to import; links and traffic control use it, a question of 0.1 ms does
not. Wire format: linux/netlink.h, linux/rtnetlink.h, linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import errno
import os
import struct
from _socket import AF_INET, AF_INET6, AF_NETLINK, SOCK_RAW, if_indextoname, socket

from cnimeta._record import NamedTuple
from cnimeta.errors import IoFailure, shown

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cnimeta.spec.ip import Address

ROUTE, NETFILTER = 0, 12
REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
NESTED = 0x8000
_ERROR, _DONE, _DUMP_INTERRUPTED = 2, 3, 0x10
_RECEIVE_BYTES = 1 << 18
_INTERRUPTED_RETRIES = 8
_NFT_GETCHAIN, _NFT_GETTABLE = (10 << 8) | 4, (10 << 8) | 1
_NFPROTO = {"inet": 1, "ip": 2, "ip6": 10}
_RTM_GETROUTE, _RTA_DST, _RTA_OIF = 26, 1, 4
_RTM_DELLINK, _RTM_GETLINK = 17, 18
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_LINKINFO, _IFLA_IFALIAS = 1, 3, 4, 5, 18, 20
_IFLA_INFO_KIND = 1


class Message(NamedTuple):
    """One answer: its type, and what follows the netlink header."""

    type: int
    body: bytes


class Link(NamedTuple):
    """A network interface. `peer` is the ifindex of the other end of a veth, 0 for other kinds."""

    ifindex: int
    name: str
    kind: str
    mac: str
    mtu: int
    peer: int = 0
    alias: str = ""


def attribute(number: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return struct.pack("=HH", len(value) + 4, number) + value + b"\0" * (-len(value) % 4)


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes in `data` by number, flags cleared."""
    found: dict[int, bytes] = {}
    at = 0
    while at + 4 <= len(data):
        length, number = struct.unpack_from("=HH", data, at)
        if length < 4:
            break
        found[number & 0x3FFF] = data[at + 4 : at + length]
        at += (length + 3) & ~3
    return found


def ask(protocol: int, kind: int, flags: int, body: bytes) -> list[Message]:
    """Send one request and collect its answers. Raises OSError with the kernel's errno.

    A dump that changed underneath (NLM_F_DUMP_INTR) is asked again, a few times.
    """
    for _ in range(_INTERRUPTED_RETRIES):
        link = socket(AF_NETLINK, SOCK_RAW, protocol)
        try:
            link.send(struct.pack("=IHHII", 16 + len(body), kind, REQUEST | flags, 1, 0) + body)
            found, interrupted = _answers(link, dump=bool(flags & DUMP))
        finally:
            link.close()
        if not interrupted:
            break
    return found


def _answers(link: socket, *, dump: bool) -> tuple[list[Message], bool]:
    found: list[Message] = []
    interrupted = False
    while True:
        data = link.recv(_RECEIVE_BYTES)
        for kind, flags, body in _split(data):
            interrupted = interrupted or bool(flags & _DUMP_INTERRUPTED)
            if kind == _DONE:
                return found, interrupted
            if kind == _ERROR:
                number = -struct.unpack_from("=i", body)[0]
                if number:
                    raise OSError(number, "netlink request refused")
                return found, interrupted
            found.append(Message(kind, body))
            if not dump:
                return found, interrupted


def _split(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    at = 0
    while at + 16 <= len(data):
        length, kind, flags, _, _ = struct.unpack_from("=IHHII", data, at)
        yield kind, flags, data[at + 16 : at + length]
        at += (length + 3) & ~3


def nft_chain_exists(family: str, table: str, chain: str) -> bool:
    """Whether nf_tables has the chain. False also where the kernel has no nf_tables."""
    body = struct.pack("=BBH", _NFPROTO[family], 0, 0)
    body += attribute(1, table.encode() + b"\0") + attribute(3, chain.encode() + b"\0")
    try:
        return bool(ask(NETFILTER, _NFT_GETCHAIN, 0, body))
    except OSError:
        return False


def nft_table_exists(family: str, table: str) -> bool:
    """Whether nf_tables has the table."""
    body = struct.pack("=BBH", _NFPROTO[family], 0, 0) + attribute(1, table.encode() + b"\0")
    try:
        return bool(ask(NETFILTER, _NFT_GETTABLE, 0, body))
    except OSError:
        return False


def nft_supported() -> bool:
    """Whether the kernel answers nf_tables requests from this process."""
    try:
        ask(NETFILTER, _NFT_GETTABLE, DUMP, struct.pack("=BBH", 0, 0, 0))
    except OSError:
        return False
    return True


def route_interface(address: Address) -> str:
    """The interface through which the kernel routes to `address`; empty when it has no route."""
    family = AF_INET if address.family == 4 else AF_INET6
    bits = len(address.packed) * 8
    body = struct.pack("=BBBBBBBBI", family, bits, 0, 0, 0, 0, 0, 0, 0) + attribute(_RTA_DST, address.packed)
    try:
        for message in ask(ROUTE, _RTM_GETROUTE, 0, body):
            index = attributes(message.body[12:]).get(_RTA_OIF)
            if index is not None:
                return if_indextoname(struct.unpack("=I", index)[0])
    except OSError:
        pass
    return ""


def link_of(index: int) -> Link | None:
    """The interface with this ifindex, None when there is none. Raises IoFailure (code 5)."""
    try:
        (message,) = ask(ROUTE, _RTM_GETLINK, 0, _ifinfo(index))
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise _refused("look up", str(index), error) from None
    found = attributes(message.body[16:])
    kind = _text(attributes(found.get(_IFLA_LINKINFO, b"")).get(_IFLA_INFO_KIND, b""))
    return Link(
        struct.unpack_from("=i", message.body, 4)[0],
        _text(found.get(_IFLA_IFNAME, b"")),
        kind,
        found.get(_IFLA_ADDRESS, b"").hex(":"),
        _number(found.get(_IFLA_MTU)),
        _number(found.get(_IFLA_LINK)) if kind == "veth" else 0,
        _text(found.get(_IFLA_IFALIAS, b"")),
    )


def remove_link(index: int, name: str) -> None:
    """Remove an interface; missing is fine. Raises IoFailure (code 5), naming it by `name`."""
    try:
        ask(ROUTE, _RTM_DELLINK, ACK, _ifinfo(index))
    except OSError as error:
        if error.errno != errno.ENODEV:
            raise _refused("remove", name, error) from None


def _ifinfo(index: int) -> bytes:
    return struct.pack("=BxHiII", 0, 0, index, 0, 0)


def _text(value: bytes) -> str:
    return value.partition(b"\0")[0].decode("utf-8", "replace")


def _number(value: bytes | None) -> int:
    return 0 if value is None else int(struct.unpack("=I", value)[0])


def _refused(verb: str, what: str, error: OSError) -> IoFailure:
    return IoFailure(f"cannot {verb} interface {shown(what)}: {os.strerror(error.errno or 0)}")
