"""Traffic control requests and answers, in pyroute2's definitions of the messages.

pyroute2 takes 145 ms to import, so it is imported when the first message is made. Its sockets are not used: there each
request goes through an event loop, 0.3 ms, for what the kernel answers before the call returns.

Format: linux/pkt_sched.h, linux/pkt_cls.h, linux/tc_act/tc_mirred.h.
"""

from __future__ import annotations

import struct

from cnimeta.host.links.htb import LEAF, SHAPED_CLASS, keys_of, protocol, texts
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
from cnimeta.host.netlink import attribute, attributes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import Any

    from cnimeta.host.netlink import Message, Order

NEW_LINK = 16
NEW_QUEUE, DELETE_QUEUE, GET_QUEUE = 36, 37, 38
NEW_CLASS, GET_CLASS = 40, 42
NEW_FILTER, DELETE_FILTER, GET_FILTER = 44, 45, 46
CREATE, EXCLUSIVE, REPLACE, ECHO = 0x400, 0x200, 0x100, 0x8
ARRIVING = 0xFFFFFFF2
_ETH_P_ALL = 0x0003
_UINT32 = 2**32 - 1
_ETHERNET = 1
"""The link layer, or the kernel would guess it from a table of 256 rates, which no slow rate fits."""
_QUANTUM = 60_000
_IFF_UP = 0x1
_REDIRECT, _STOLEN = 1, 4
_TCMSG_BYTES = 20
_KIND, _OPTIONS = 1, 2
_TBF_PARMS, _TBF_RATE64 = 1, 4
_U32_SELECTOR, _U32_ACTIONS = 5, 7
_ACTION_KIND, _ACTION_OPTIONS, _MIRRED_PARMS = 1, 2, 2


_loaded: list[Any] = []


def _definitions() -> list[Any]:
    """pyroute2's classes for links and for traffic control, the latter with what 0.9 does not know of the kernel's."""
    if _loaded:
        return _loaded
    from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
    from pyroute2.netlink.rtnl.tcmsg import sched_pfifo, sched_tbf, tcmsg

    class TokenBucket(sched_tbf.options):  # type: ignore[misc]
        nla_map = (*sched_tbf.options.nla_map, ("TCA_TBF_RATE64", "uint64"))

    class Fifo(sched_pfifo.options):  # type: ignore[misc]
        fields = (("limit", "I"),)

    class TrafficControl(tcmsg):  # type: ignore[misc]
        @staticmethod
        def get_options(message: Any, *_: object, **__: object) -> Any:
            kind = message.get_attr("TCA_KIND")
            ours = {"tbf": TokenBucket, "bfifo": Fifo}
            return ours.get(kind) or message.get_plugin("options")

    _loaded[:] = [ifinfmsg, TrafficControl]
    return _loaded


def make_ifb(name: str, mtu: int, mac: str) -> Order:
    """An ifb, up, without a queue of its own."""
    kind = {"attrs": [("IFLA_INFO_KIND", "ifb")]}
    keys = [
        ("IFLA_IFNAME", name),
        ("IFLA_MTU", mtu),
        ("IFLA_TXQLEN", 0),
        ("IFLA_ADDRESS", mac),
        ("IFLA_LINKINFO", kind),
    ]
    return NEW_LINK, CREATE | EXCLUSIVE, _encoded(_definitions()[0], {"flags": _IFF_UP, "change": _IFF_UP}, keys)


def set_link(keys: dict[str, object], *, index: int = 0, up: bool = False) -> Order:
    """Attributes of an interface: IFLA_IFALIAS, IFLA_MTU, IFLA_TXQLEN. Without an index, IFLA_IFNAME says which."""
    flags = {"flags": _IFF_UP, "change": _IFF_UP} if up else {}
    return NEW_LINK, 0, _encoded(_definitions()[0], {"index": index, **flags}, keys.items())


def token_bucket(index: int, rate: int, burst: int, limit: int, ticks_per_us: float) -> Order:
    """A tbf as root: new, or other numbers for the one that is there. Bytes per second, bytes, bytes."""
    spec = {"rate": min(rate, _UINT32), "rate___reserved": _ETHERNET}
    numbers = {**spec, "limit": limit, "buffer": ticks(rate, burst, ticks_per_us)}
    options: list[tuple[str, object]] = [("TCA_TBF_PARMS", numbers)]
    if rate > _UINT32:
        options.append(("TCA_TBF_RATE64", rate))
    return NEW_QUEUE, CREATE | REPLACE, _traffic("tbf", options, index=index, handle=HANDLE, parent=ROOT)


def same_again(index: int, queue: Queue) -> Order:
    """A root queueing discipline as it was read, less the classes and filters in it. Without pyroute2."""
    options = attribute(_OPTIONS, queue.options) if queue.options else b""
    body = place(index, ROOT, queue.handle) + attribute(_KIND, queue.kind.encode() + b"\0") + options
    return NEW_QUEUE, CREATE | REPLACE, body


def hierarchy(index: int, default: int) -> Order:
    """An htb as root; traffic that no filter puts in a class goes to `default` (0: past all classes)."""
    start = {"version": 3, "rate2quantum": 10, "defcls": default}
    options = [("TCA_HTB_INIT", start)]
    return NEW_QUEUE, CREATE | EXCLUSIVE, _traffic("htb", options, index=index, handle=HANDLE, parent=ROOT)


def shaped_class(index: int, wanted: Classes) -> list[Order]:
    """The htb's class with its queue: new, or other numbers for the one that is there."""
    rate = min(wanted.rate, _UINT32)
    spec = {"rate": rate, "rate___reserved": _ETHERNET, "ceil": rate, "ceil___reserved": _ETHERNET}
    numbers = {**spec, "buffer": wanted.buffer, "cbuffer": wanted.buffer, "quantum": _QUANTUM}
    options: list[tuple[str, object]] = [("TCA_HTB_PARMS", numbers)]
    if wanted.rate > _UINT32:
        options += [("TCA_HTB_RATE64", wanted.rate), ("TCA_HTB_CEIL64", wanted.rate)]
    body = _traffic("htb", options, index=index, handle=SHAPED_CLASS, parent=HANDLE)
    fields = {"index": index, "handle": LEAF, "parent": SHAPED_CLASS}
    leaf = _encoded(_definitions()[1], fields, [("TCA_KIND", "bfifo"), ("TCA_OPTIONS", {"limit": wanted.waiting})])
    return [(NEW_CLASS, CREATE, body), (NEW_QUEUE, CREATE | REPLACE, leaf)]


def by_subnet(index: int, rule: Rule) -> Order:
    """A u32 filter of the htb."""
    return _filter(index, HANDLE, rule.priority, protocol(rule), rule.target, texts(rule), [])


def redirect(index: int, target: int, priority: int) -> Order:
    """A u32 filter that sends everything that arrives through `target`."""
    numbers = {"eaction": _REDIRECT, "action": _STOLEN, "ifindex": target}
    mirred = [("TCA_ACT_KIND", "mirred"), ("TCA_ACT_OPTIONS", {"attrs": [("TCA_MIRRED_PARMS", numbers)]})]
    action = [("TCA_U32_ACT", {"attrs": [("TCA_ACT_PRIO_1", {"attrs": mirred})]})]
    return _filter(index, ARRIVING, priority, _ETH_P_ALL, 0x10001, ["0x0/0x0+0"], action)


def ingress(index: int) -> Order:
    """The queueing discipline where filters for arriving packets go."""
    return NEW_QUEUE, CREATE | EXCLUSIVE, _traffic("ingress", [], index=index, handle=INGRESS, parent=INGRESS_PARENT)


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
    """An answer to GET_QUEUE. Without pyroute2, as DEL and CHECK read these."""
    handle, parent = struct.unpack_from("=II", message.body, 8)
    found = attributes(message.body[_TCMSG_BYTES:])
    kind = _text(found.get(_KIND, b""))
    raw = found.get(_OPTIONS, b"")
    options = attributes(raw) if kind == "tbf" else {}
    if _TBF_PARMS not in options:
        return Queue(kind, handle, parent, options=raw)
    rate, limit, buffer = struct.unpack_from("=8xI12xII", options[_TBF_PARMS])
    if _TBF_RATE64 in options:
        (rate,) = struct.unpack("=Q", options[_TBF_RATE64])
    return Queue(kind, handle, parent, rate, limit, buffer, raw)


def classifier_of(message: Message) -> Classifier | None:
    """An answer to GET_FILTER, without pyroute2.

    None for what only holds filters: the entry of a priority, and u32's hash tables.
    """
    (info,) = struct.unpack_from("=I", message.body, 16)
    found = attributes(message.body[_TCMSG_BYTES:])
    kind = _text(found.get(_KIND, b""))
    if _OPTIONS not in found:
        return None
    if kind != "u32":
        return Classifier(kind, info >> 16)
    options = attributes(found[_OPTIONS])
    if _U32_SELECTOR not in options:
        return None
    action = attributes(attributes(options.get(_U32_ACTIONS, b"")).get(1, b""))
    if _text(action.get(_ACTION_KIND, b"")) != "mirred":
        return Classifier(kind, info >> 16)
    (target,) = struct.unpack_from("=24xI", attributes(action[_ACTION_OPTIONS])[_MIRRED_PARMS])
    return Classifier(kind, info >> 16, target or GONE)


def classes_of(queues: Iterable[Message], classes: Iterable[Message], filters: Iterable[Message]) -> Classes | None:
    """What `hierarchy`, `shaped_class` and `by_subnet` made; None when a part is missing or another."""
    options = {found.get_attr("TCA_KIND"): found.get_attr("TCA_OPTIONS") for found in map(_decoded, queues)}
    shaped = next((found for found in map(_decoded, classes) if found["handle"] == SHAPED_CLASS), None)
    if shaped is None or not options.get("htb") or not options.get("bfifo"):
        return None
    attributes = shaped.get_attr("TCA_OPTIONS")
    numbers = attributes.get_attr("TCA_HTB_PARMS")
    rate = attributes.get_attr("TCA_HTB_RATE64") or numbers["rate"]
    default = options["htb"].get_attr("TCA_HTB_INIT")["defcls"]
    rules = {rule for rule in map(_rule, filters) if rule is not None}
    return Classes(rate, numbers["buffer"], options["bfifo"]["limit"], default, tuple(sorted(rules)))


def _rule(message: Message) -> Rule | None:
    """A u32 filter by subnet. The keys come from the bytes: pyroute2 0.9 reads them four bytes off their place."""
    found = _decoded(message)
    options = found.get_attr("TCA_OPTIONS") if found.get_attr("TCA_KIND") == "u32" else None
    selector = options.get_attr("TCA_U32_SEL") if options else None
    if options is None or selector is None:
        return None
    raw = bytes(selector.data[selector.offset : selector.offset + selector.length])
    return Rule(found["info"] >> 16, options.get_attr("TCA_U32_CLASSID"), keys_of(raw))


def _filter(
    index: int, parent: int, priority: int, ethertype: int, target: int, keys: list[str], action: list[Any]
) -> Order:
    options = [*action, ("TCA_U32_CLASSID", target), ("TCA_U32_SEL", {"keys": keys})]
    info = _info(priority, ethertype)
    return NEW_FILTER, CREATE | EXCLUSIVE, _traffic("u32", options, index=index, parent=parent, info=info)


def _info(priority: int, ethertype: int) -> int:
    return priority << 16 | int.from_bytes(ethertype.to_bytes(2, "big"), "little")


def _traffic(kind: str, options: Iterable[tuple[str, object]], **fields: int) -> bytes:
    attributes = [("TCA_KIND", kind), ("TCA_OPTIONS", {"attrs": list(options)})]
    return _encoded(_definitions()[1], fields, attributes)


def _text(value: bytes) -> str:
    return value.partition(b"\0")[0].decode("ascii", "replace")


def _encoded(definition: Any, fields: dict[str, int], attributes: Iterable[tuple[str, object]]) -> bytes:
    message = definition()
    message.update(fields)
    message["attrs"] = list(attributes)
    message.encode()
    return bytes(message.data[16:])


def _decoded(message: Message) -> Any:
    header = struct.pack("=IHHII", 16 + len(message.body), message.type, 0, 0, 0)
    found = _definitions()[1](header + message.body)
    found.decode()
    return found
