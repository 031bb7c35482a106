"""Changes as rtnetlink requests, and its answers as values. Format: linux/rtnetlink.h, if_link.h, if_addr.h, veth.h."""

from __future__ import annotations

import struct
from _socket import AF_INET, AF_INET6

from cnimeta.host.links.rtnetlink import IFF_ALLMULTI, IFF_PROMISC, IFF_UP, ifinfo
from cnimeta.host.netlink import NESTED, attribute, attributes
from cnimeta.host.network.values import mac_of
from cnimeta.spec.ip import Address, Cidr, parse_cidr, parse_ip
from cnimeta.spec.result import Route

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.host.netlink import Message, Order
    from cnimeta.host.network.values import AddVeth, SetLink

GET_ADDRESS, GET_ROUTE = 22, 26
_NEW_LINK, _DEL_LINK, _SET_LINK = 16, 17, 19
_NEW_ADDRESS, _DEL_ADDRESS = 20, 21
_NEW_ROUTE, _DEL_ROUTE = 24, 25
_REPLACE, _EXCLUSIVE, _CREATE = 0x100, 0x200, 0x400

_IFLA_ADDRESS, _IFLA_IFNAME, _IFLA_MTU, _IFLA_MASTER, _IFLA_TXQLEN = 1, 3, 4, 10, 13
_IFLA_LINKINFO, _IFLA_IFALIAS, _IFLA_NET_NS_FD = 18, 20, 28
_INFO_KIND, _INFO_DATA, _VETH_INFO_PEER = 1, 2, 1
_IFA_ADDRESS, _IFA_LOCAL = 1, 2
_RTA_DST, _RTA_OIF, _RTA_GATEWAY, _RTA_PRIORITY, _RTA_METRICS, _RTA_TABLE = 1, 4, 5, 6, 8, 15
_RTAX_MTU, _RTAX_ADVMSS = 2, 8
_MAIN, _KERNEL, _BOOT, _UNICAST, _CLONED = 254, 2, 3, 1, 0x200
_UNIVERSE, _LINK, _NOWHERE = 0, 253, 255
_ROUTE_HEADER = "=BBBBBBBBI"


def new_veth(change: AddVeth, peer_namespace: int | None) -> Order:
    """Make the pair; `peer_namespace` is a descriptor of the other end's namespace."""
    mtu = attribute(_IFLA_MTU, struct.pack("=I", change.mtu)) if change.mtu else b""
    there = ifinfo(0) + _name(change.peer) + mtu
    if peer_namespace is not None:
        there += attribute(_IFLA_NET_NS_FD, struct.pack("=I", peer_namespace))
    data = attribute(_INFO_DATA | NESTED, attribute(_VETH_INFO_PEER | NESTED, there))
    kind = attribute(_IFLA_LINKINFO | NESTED, attribute(_INFO_KIND, b"veth") + data)
    return _NEW_LINK, _CREATE | _EXCLUSIVE, ifinfo(0) + _name(change.name) + mtu + kind


def set_link(index: int, change: SetLink, controller: int | None) -> Order:
    """Everything of one interface in one request."""
    flags, mask = 0, 0
    for wanted, bit in ((change.up, IFF_UP), (change.promiscuous, IFF_PROMISC), (change.all_multicast, IFF_ALLMULTI)):
        if wanted is not None:
            mask |= bit
            flags |= bit if wanted else 0
    body = struct.pack("=BxHiII", 0, 0, index, flags, mask)
    if change.mac is not None:
        body += attribute(_IFLA_ADDRESS, mac_of(change.mac))
    for number, value in ((_IFLA_MTU, change.mtu), (_IFLA_TXQLEN, change.queue_length), (_IFLA_MASTER, controller)):
        if value is not None:
            body += attribute(number, struct.pack("=I", value))
    if change.alias is not None:
        body += attribute(_IFLA_IFALIAS, change.alias.encode() + b"\0")
    return _SET_LINK, 0, body


def move_link(index: int, namespace: int, new_name: str) -> Order:
    """To the namespace of a descriptor."""
    body = ifinfo(index) + attribute(_IFLA_NET_NS_FD, struct.pack("=I", namespace))
    return _SET_LINK, 0, body + (_name(new_name) if new_name else b"")


def remove_link(index: int) -> Order:
    """With its other end."""
    return _DEL_LINK, 0, ifinfo(index)


def address(index: int, text: str, *, add: bool) -> Order:
    """Add or remove an address. Raises ValueError for what is none."""
    found = parse_cidr(text)
    family = _family(found.address)
    body = struct.pack("=BBBBI", family, found.prefix, 0, _UNIVERSE, index)
    body += attribute(_IFA_LOCAL, found.address.packed) + attribute(_IFA_ADDRESS, found.address.packed)
    return (_NEW_ADDRESS, _CREATE | _EXCLUSIVE, body) if add else (_DEL_ADDRESS, 0, body)


def route(index: int, wanted: Route, *, add: bool) -> Order:
    """Add (or replace) or remove a route. Raises ValueError for what is none."""
    target = parse_cidr(wanted.dst)
    table = _MAIN if wanted.table is None else wanted.table
    scope = wanted.scope
    if scope is None:  # as `ip route`: IPv4 without a gateway is on the link itself
        scope = (_UNIVERSE if wanted.gw or target.address.family == 6 else _LINK) if add else _NOWHERE
    family = _family(target.address)
    small = table if table < 256 else 0
    kind = _UNICAST if add else 0
    body = struct.pack(_ROUTE_HEADER, family, target.prefix, 0, 0, small, _BOOT if add else 0, scope, kind, 0)
    body += attribute(_RTA_DST, target.network.address.packed) + attribute(_RTA_OIF, struct.pack("=I", index))
    body += attribute(_RTA_TABLE, struct.pack("=I", table))
    if wanted.gw:
        body += attribute(_RTA_GATEWAY, parse_ip(wanted.gw).packed)
    if wanted.priority:
        body += attribute(_RTA_PRIORITY, struct.pack("=I", wanted.priority))
    metrics = b"".join(
        attribute(number, struct.pack("=I", value))
        for number, value in ((_RTAX_MTU, wanted.mtu), (_RTAX_ADVMSS, wanted.advmss))
        if value
    )
    if add and metrics:
        body += attribute(_RTA_METRICS | NESTED, metrics)
    return (_NEW_ROUTE, _CREATE | _REPLACE, body) if add else (_DEL_ROUTE, 0, body)


def address_of(message: Message, index: int) -> str | None:
    """The address in the answer, None when it is another interface's."""
    _, prefix, _, _, its_index = struct.unpack_from("=BBBBI", message.body)
    found = attributes(message.body[8:])
    packed = found.get(_IFA_LOCAL) or found.get(_IFA_ADDRESS)
    return Cidr(_address(packed), prefix).text if packed and its_index == index else None


def route_of(message: Message, index: int) -> Route | None:
    """The route in the answer; None for another interface's, the kernel's own, and what forwards nothing."""
    family, prefix, _, _, small, origin, scope, kind, flags = struct.unpack_from(_ROUTE_HEADER, message.body)
    found = attributes(message.body[12:])
    if _number(found.get(_RTA_OIF)) != index or kind != _UNICAST or origin == _KERNEL or flags & _CLONED:
        return None
    metrics = attributes(found.get(_RTA_METRICS, b""))
    gateway = found.get(_RTA_GATEWAY)
    table = _number(found.get(_RTA_TABLE)) or small
    usual = _UNIVERSE if gateway or family == AF_INET6 else _LINK
    return Route(
        Cidr(_address(found.get(_RTA_DST, b"\0" * (4 if family == AF_INET else 16))), prefix).text,
        _address(gateway).text if gateway else "",
        _number(metrics.get(_RTAX_MTU)),
        _number(metrics.get(_RTAX_ADVMSS)),
        _number(found.get(_RTA_PRIORITY)),
        None if table == _MAIN else table,
        None if scope == usual else scope,
    )


def _address(packed: bytes) -> Address:
    return Address(4 if len(packed) == 4 else 6, packed)


def _family(found: Address) -> int:
    return int(AF_INET if found.family == 4 else AF_INET6)


def _name(text: str) -> bytes:
    return attribute(_IFLA_IFNAME, text.encode() + b"\0")


def _number(value: bytes | None) -> int:
    return 0 if value is None else int(struct.unpack("=I", value)[0])
