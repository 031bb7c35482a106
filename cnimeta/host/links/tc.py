"""Traffic control requests and answers: what shaping asks of the kernel, packed and read here.

Format: linux/pkt_sched.h, linux/pkt_cls.h, linux/tc_act/tc_mirred.h, linux/if_link.h; numbers are the host's there.
"""

from __future__ import annotations

import struct

from cnimeta.host.links.htb import KEY_BYTES, LEAF, SHAPED_CLASS, keys_of, protocol
from cnimeta.host.links.rtnetlink import ifinfo
from cnimeta.host.links.values import (
    GONE,
    HANDLE,
    INGRESS,
    INGRESS_PARENT,
    ROOT,
    Classes,
    Classifier,
    Queue,
    Rule,
    ticks,
)
from cnimeta.host.netlink import NESTED, attribute, attributes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from cnimeta.host.netlink import Message, Order

NEW_LINK = 16
NEW_QUEUE, DELETE_QUEUE, GET_QUEUE = 36, 37, 38
NEW_CLASS, GET_CLASS = 40, 42
NEW_FILTER, DELETE_FILTER, GET_FILTER = 44, 45, 46
CREATE, EXCLUSIVE, REPLACE, ECHO = 0x400, 0x200, 0x100, 0x8
ARRIVING = 0xFFFFFFF2
_ETH_P_ALL = 0x0003
_UINT32 = 2**32 - 1
_CELL, _ETHERNET = 3, 1
_RATE_BYTES = 12
_QUANTUM, _RATE_TO_QUANTUM, _HTB_VERSION = 60_000, 10, 3
_REDIRECT, _STOLEN = 1, 4
_TERMINAL, _FIRST_CLASS = 1, 0x10001
_TCMSG_BYTES = 20
_ADDRESS, _IFNAME, _MTU, _TXQLEN, _LINKINFO, _ALIAS = 1, 3, 4, 13, 18, 20
_INFO_KIND = 1
_KIND, _OPTIONS = 1, 2
_TBF_PARMS, _TBF_RATE64 = 1, 4
_HTB_PARMS, _HTB_INIT, _HTB_RATE64, _HTB_CEIL64 = 1, 2, 6, 7
_U32_CLASS, _U32_SELECTOR, _U32_ACTIONS = 1, 5, 7
_ACTION_KIND, _ACTION_OPTIONS, _MIRRED_PARMS = 1, 2, 2


def make_ifb(name: str, mtu: int, mac: bytes) -> Order:
    """An ifb, up, without a queue of its own."""
    kind = attribute(_INFO_KIND, b"ifb\0")
    keys = (_text(_IFNAME, name), _number(_MTU, mtu), _number(_TXQLEN, 0), attribute(_ADDRESS, mac))
    body = ifinfo(0, up=True) + b"".join(keys) + attribute(_LINKINFO, kind)
    return NEW_LINK, CREATE | EXCLUSIVE, body


def set_up(name: str, alias: str, mtu: int) -> Order:
    """An interface up, with an alias and an MTU."""
    return NEW_LINK, 0, ifinfo(0, up=True) + _text(_IFNAME, name) + _number(_MTU, mtu) + _text(_ALIAS, alias)


def label(name: str, alias: str) -> Order:
    """The alias of an interface."""
    return NEW_LINK, 0, ifinfo(0) + _text(_IFNAME, name) + _text(_ALIAS, alias)


def queue_length(index: int, packets: int) -> Order:
    """How many packets an interface's own queue may hold."""
    return NEW_LINK, 0, ifinfo(index) + _number(_TXQLEN, packets)


def token_bucket(index: int, rate: int, burst: int, limit: int, ticks_per_us: float) -> Order:
    """A tbf as root: new, or other numbers for the one that is there. Bytes per second, bytes, bytes."""
    numbers = _rate(rate) + bytes(_RATE_BYTES) + struct.pack("=III", limit, ticks(rate, burst, ticks_per_us), 0)
    options = attribute(_TBF_PARMS, numbers) + _large(rate, _TBF_RATE64)
    return NEW_QUEUE, CREATE | REPLACE, place(index, ROOT, HANDLE) + _of_kind("tbf", options)


def same_again(index: int, queue: Queue) -> Order:
    """A root queueing discipline as it was read, less the classes and filters in it."""
    options = attribute(_OPTIONS, queue.options) if queue.options else b""
    return NEW_QUEUE, CREATE | REPLACE, place(index, ROOT, queue.handle) + _text(_KIND, queue.kind) + options


def hierarchy(index: int, default: int) -> Order:
    """An htb as root; traffic that no filter puts in a class goes to `default` (0: past all classes)."""
    start = attribute(_HTB_INIT, struct.pack("=IIIII", _HTB_VERSION, _RATE_TO_QUANTUM, default, 0, 0))
    return NEW_QUEUE, CREATE | EXCLUSIVE, place(index, ROOT, HANDLE) + _of_kind("htb", start)


def shaped_class(index: int, wanted: Classes) -> list[Order]:
    """The htb's class with its queue: new, or other numbers for the one that is there."""
    numbers = struct.pack("=IIIII", wanted.buffer, wanted.buffer, _QUANTUM, 0, 0)
    options = attribute(_HTB_PARMS, _rate(wanted.rate) + _rate(wanted.rate) + numbers)
    options += _large(wanted.rate, _HTB_RATE64) + _large(wanted.rate, _HTB_CEIL64)
    shaped = place(index, HANDLE, SHAPED_CLASS) + _of_kind("htb", options)
    leaf = place(index, SHAPED_CLASS, LEAF) + _of_kind("bfifo", struct.pack("=I", wanted.waiting))
    return [(NEW_CLASS, CREATE, shaped), (NEW_QUEUE, CREATE | REPLACE, leaf)]


def by_subnet(index: int, rule: Rule) -> Order:
    """A u32 filter of the htb."""
    return _filter(index, HANDLE, _info(rule.priority, protocol(rule)), rule.target, rule.keys)


def redirect(index: int, target: int, priority: int) -> Order:
    """A u32 filter that sends everything that arrives through `target`."""
    numbers = struct.pack("=IIIIIII", 0, 0, _STOLEN, 0, 0, _REDIRECT, target)
    mirred = _text(_ACTION_KIND, "mirred") + attribute(_ACTION_OPTIONS | NESTED, attribute(_MIRRED_PARMS, numbers))
    action = attribute(_U32_ACTIONS, attribute(1, mirred))
    return _filter(index, ARRIVING, _info(priority, _ETH_P_ALL), _FIRST_CLASS, bytes(KEY_BYTES), action)


def ingress(index: int) -> Order:
    """The queueing discipline where filters for arriving packets go."""
    return NEW_QUEUE, CREATE | EXCLUSIVE, place(index, INGRESS_PARENT, INGRESS) + _of_kind("ingress", bytes(4))


def no_root(index: int) -> Order:
    """The end of the root queueing discipline."""
    return DELETE_QUEUE, 0, place(index, ROOT)


def no_ingress(index: int) -> Order:
    """The end of `ingress` and its filters."""
    return DELETE_QUEUE, 0, place(index, INGRESS_PARENT, INGRESS)


def no_filters(index: int, priority: int) -> Order:
    """The end of the arriving packets' filters of one priority."""
    return DELETE_FILTER, 0, place(index, ARRIVING, info=_info(priority, _ETH_P_ALL))


def place(index: int, parent: int = 0, handle: int = 0, info: int = 0) -> bytes:
    """A struct tcmsg: which queue, class or filter is meant."""
    return struct.pack("=BxHiIII", 0, 0, index, handle, parent, info)


def queue_of(message: Message) -> Queue:
    """An answer to GET_QUEUE."""
    handle, parent = struct.unpack_from("=II", message.body, 8)
    found = attributes(message.body[_TCMSG_BYTES:])
    kind = _word(found.get(_KIND, b""))
    raw = found.get(_OPTIONS, b"")
    options = attributes(raw) if kind == "tbf" else {}
    if _TBF_PARMS not in options:
        return Queue(kind, handle, parent, options=raw)
    rate, limit, buffer = struct.unpack_from("=8xI12xII", options[_TBF_PARMS])
    if _TBF_RATE64 in options:
        (rate,) = struct.unpack("=Q", options[_TBF_RATE64])
    return Queue(kind, handle, parent, rate, limit, buffer, raw)


def classifier_of(message: Message) -> Classifier | None:
    """An answer to GET_FILTER.

    None for what only holds filters: the entry of a priority, and u32's hash tables.
    """
    (info,) = struct.unpack_from("=I", message.body, 16)
    found = attributes(message.body[_TCMSG_BYTES:])
    kind = _word(found.get(_KIND, b""))
    if _OPTIONS not in found:
        return None
    if kind != "u32":
        return Classifier(kind, info >> 16)
    options = attributes(found[_OPTIONS])
    if _U32_SELECTOR not in options:
        return None
    action = attributes(attributes(options.get(_U32_ACTIONS, b"")).get(1, b""))
    if _word(action.get(_ACTION_KIND, b"")) != "mirred":
        return Classifier(kind, info >> 16)
    (target,) = struct.unpack_from("=24xI", attributes(action[_ACTION_OPTIONS])[_MIRRED_PARMS])
    return Classifier(kind, info >> 16, target or GONE)


def classes_of(queues: Iterable[Message], classes: Iterable[Message], filters: Iterable[Message]) -> Classes | None:
    """What `hierarchy`, `shaped_class` and `by_subnet` made; None when a part is missing or another."""
    options = {_word(found.get(_KIND, b"")): found.get(_OPTIONS, b"") for _, found in map(_parts, queues)}
    shaped = next((found for handle, found in map(_parts, classes) if handle == SHAPED_CLASS), None)
    if shaped is None or not options.get("htb") or not options.get("bfifo"):
        return None
    parts = attributes(shaped.get(_OPTIONS, b""))
    rate, buffer = struct.unpack_from("=8xI12xI", parts[_HTB_PARMS])
    if _HTB_RATE64 in parts:
        (rate,) = struct.unpack("=Q", parts[_HTB_RATE64])
    (default,) = struct.unpack_from("=8xI", attributes(options["htb"])[_HTB_INIT])
    (waiting,) = struct.unpack_from("=I", options["bfifo"])
    rules = {rule for rule in map(_rule, filters) if rule is not None}
    return Classes(rate, buffer, waiting, default, tuple(sorted(rules)))


def _rule(message: Message) -> Rule | None:
    """A u32 filter by subnet; None for what only holds filters."""
    (info,) = struct.unpack_from("=16xI", message.body)
    found = attributes(message.body[_TCMSG_BYTES:])
    options = attributes(found.get(_OPTIONS, b"")) if _word(found.get(_KIND, b"")) == "u32" else {}
    if _U32_SELECTOR not in options or _U32_CLASS not in options:
        return None
    (target,) = struct.unpack("=I", options[_U32_CLASS])
    return Rule(info >> 16, target, keys_of(options[_U32_SELECTOR]))


def _parts(message: Message) -> tuple[int, dict[int, bytes]]:
    """The handle and the attributes of a queue or a class."""
    return struct.unpack_from("=8xI", message.body)[0], attributes(message.body[_TCMSG_BYTES:])


def _filter(index: int, parent: int, info: int, target: int, keys: bytes, action: bytes = b"") -> Order:
    selector = struct.pack("=BBBxHHHHI", _TERMINAL, 0, len(keys) // KEY_BYTES, 0, 0, 0, 0, 0) + keys
    options = action + _number(_U32_CLASS, target) + attribute(_U32_SELECTOR, selector)
    return NEW_FILTER, CREATE | EXCLUSIVE, place(index, parent, info=info) + _of_kind("u32", options)


def _rate(rate: int) -> bytes:
    """A struct tc_ratespec. The link layer is told, or the kernel would guess it by a table that no slow rate fits."""
    return struct.pack("=BBHhHI", _CELL, _ETHERNET, 0, -1, 0, min(rate, _UINT32))


def _large(rate: int, number: int) -> bytes:
    return attribute(number, struct.pack("=Q", rate)) if rate > _UINT32 else b""


def _info(priority: int, ethertype: int) -> int:
    return priority << 16 | int.from_bytes(ethertype.to_bytes(2, "big"), "little")


def _of_kind(kind: str, options: bytes) -> bytes:
    return _text(_KIND, kind) + attribute(_OPTIONS, options)


def _text(number: int, value: str) -> bytes:
    return attribute(number, value.encode() + b"\0")


def _number(number: int, value: int) -> bytes:
    return attribute(number, struct.pack("=I", value))


def _word(value: bytes) -> str:
    return value.partition(b"\0")[0].decode("ascii", "replace")
