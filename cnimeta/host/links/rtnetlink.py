"""Links and routes by single requests, for what must not wait for pyroute2's import. Format: linux/rtnetlink.h."""

from __future__ import annotations

import errno
import os
import struct
from _socket import AF_INET, AF_INET6, if_indextoname

from cnimeta.errors import IoFailure, shown
from cnimeta.host.netlink import DUMP, ROUTE, ask, attribute, attributes
from cnimeta.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.host.netlink import Message
    from cnimeta.spec.ip import Address

_RTM_GETROUTE, _RTA_DST, _RTA_OIF = 26, 1, 4
_RTM_GETLINK = 18
_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_LINK, _IFLA_LINKINFO, _IFLA_IFALIAS = 1, 3, 4, 5, 18, 20
_IFLA_INFO_KIND = 1


class Link(NamedTuple):
    """A network interface. `peer` is the ifindex of the other end of a veth, 0 for other kinds."""

    ifindex: int
    name: str
    kind: str
    mac: str
    mtu: int
    peer: int = 0
    alias: str = ""


def link_of(index: int) -> Link | None:
    """The interface with this ifindex, None when there is none. Raises IoFailure (code 5)."""
    return _one(ifinfo(index), str(index))


def link_named(name: str) -> Link | None:
    """The interface of this name, None when there is none. Raises IoFailure (code 5)."""
    return _one(ifinfo(0) + attribute(_IFLA_IFNAME, name.encode() + b"\0"), name)


def links_of_kind(kind: str) -> list[Link]:
    """Every interface of one kind; the kernel picks them. Raises IoFailure (code 5)."""
    wanted = attribute(_IFLA_LINKINFO, attribute(_IFLA_INFO_KIND, kind.encode() + b"\0"))
    try:
        found = [_link(message) for message in ask(ROUTE, _RTM_GETLINK, DUMP, ifinfo(0) + wanted)]
    except OSError as error:
        raise refused("list", f"of kind {kind}", error) from None
    return [link for link in found if link.kind == kind]


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


def ifinfo(index: int) -> bytes:
    """A struct ifinfomsg that names an interface."""
    return struct.pack("=BxHiII", 0, 0, index, 0, 0)


def refused(verb: str, what: str, error: OSError) -> IoFailure:
    """The error for what the kernel did not do."""
    return IoFailure(f"cannot {verb} interface {shown(what)}: {os.strerror(error.errno or 0)}")


def _one(body: bytes, what: str) -> Link | None:
    try:
        (message,) = ask(ROUTE, _RTM_GETLINK, 0, body)
    except OSError as error:
        if error.errno == errno.ENODEV:
            return None
        raise refused("look up", what, error) from None
    return _link(message)


def _link(message: Message) -> Link:
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


def _text(value: bytes) -> str:
    return value.partition(b"\0")[0].decode("utf-8", "replace")


def _number(value: bytes | None) -> int:
    return 0 if value is None else int(struct.unpack("=I", value)[0])
