"""Traffic control on the wire: to the byte what pyroute2 makes of the same numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pyroute2.netlink.rtnl.ifinfmsg import ifinfmsg
from pyroute2.netlink.rtnl.tcmsg import sched_pfifo, sched_tbf, tcmsg

from cnimeta.host.links import htb, tc
from cnimeta.host.links.values import HANDLE, INGRESS, INGRESS_PARENT, ROOT, Bucket, Classes, Rule, ticks
from cnimeta.host.netlink import Message

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = pytest.mark.unit
TICKS = 15.625
INDEX, RATE, BYTES = st.integers(1, 2**31 - 1), st.integers(1, 2**40), st.integers(0, 2**32 - 1)


def made_anew(definition: type) -> None:
    """pyroute2 prepares a class once, and takes what its parent has prepared for its own."""
    for attribute in ("nla", "ft"):
        setattr(definition, f"_nlmsg_base__compiled_{attribute}", False)


class TokenBucket(sched_tbf.options):  # type: ignore[misc]
    nla_map = (*sched_tbf.options.nla_map, ("TCA_TBF_RATE64", "uint64"))


class Fifo(sched_pfifo.options):  # type: ignore[misc]
    fields = (("limit", "I"),)


class TrafficControl(tcmsg):  # type: ignore[misc]
    """With what pyroute2 0.9 does not know of the kernel's."""

    @staticmethod
    def get_options(message: Any, *_: object, **__: object) -> Any:
        ours = {"tbf": TokenBucket, "bfifo": Fifo}
        return ours.get(message.get_attr("TCA_KIND")) or message.get_plugin("options")


for one in (TokenBucket, Fifo, TrafficControl):
    made_anew(one)


def encoded(definition: Any, fields: dict[str, int], attributes: Iterable[tuple[str, object]]) -> bytes:
    message = definition()
    message.update(fields)
    message["attrs"] = list(attributes)
    message.encode()
    return bytes(message.data[16:])


def traffic(kind: str, options: object, **fields: int) -> bytes:
    found = {"attrs": options} if isinstance(options, list) else options
    return encoded(TrafficControl, fields, [("TCA_KIND", kind), ("TCA_OPTIONS", found)])


def spec(rate: int, name: str = "rate") -> dict[str, int]:
    return {name: min(rate, 2**32 - 1), f"{name}___reserved": 1}


@settings(deadline=None)
@given(
    index=INDEX,
    name=st.from_regex(r"[a-z]{1,15}", fullmatch=True),
    mtu=st.integers(68, 65535),
    mac=st.binary(min_size=6, max_size=6),
)
def test_an_ifb(index: int, name: str, mtu: int, mac: bytes) -> None:
    up = {"flags": 1, "change": 1}
    keys = [("IFLA_IFNAME", name), ("IFLA_MTU", mtu), ("IFLA_TXQLEN", 0), ("IFLA_ADDRESS", mac.hex(":"))]
    kind = ("IFLA_LINKINFO", {"attrs": [("IFLA_INFO_KIND", "ifb")]})
    assert tc.make_ifb(name, mtu, mac)[2] == encoded(ifinfmsg, up, [*keys, kind])
    alias = ("IFLA_IFALIAS", f"of {name}")
    assert tc.set_up(name, f"of {name}", mtu)[2] == encoded(ifinfmsg, up, [*keys[:2], alias])
    assert tc.label(name, f"of {name}")[2] == encoded(ifinfmsg, {}, [keys[0], alias])
    assert tc.queue_length(index, mtu)[2] == encoded(ifinfmsg, {"index": index}, [("IFLA_TXQLEN", mtu)])


@settings(deadline=None)
@given(INDEX, RATE, BYTES, BYTES)
def test_a_token_bucket(index: int, rate: int, burst: int, limit: int) -> None:
    buffer = ticks(rate, burst, TICKS)
    if buffer >= 2**32:
        return  # the plan never has such a one
    options: list[tuple[str, object]] = [("TCA_TBF_PARMS", {**spec(rate), "limit": limit, "buffer": buffer})]
    if rate >= 2**32:
        options.append(("TCA_TBF_RATE64", rate))
    wanted = traffic("tbf", options, index=index, handle=HANDLE, parent=ROOT)
    order = tc.token_bucket(index, rate, burst, limit, TICKS)
    assert order[2] == wanted
    read = tc.queue_of(Message(tc.NEW_QUEUE, order[2]))
    assert (read.kind, read.rate, read.limit, read.buffer) == ("tbf", rate, limit, buffer)


@settings(deadline=None)
@given(INDEX, RATE, st.integers(1, 10**6), BYTES, st.booleans())
def test_classes(index: int, rate: int, burst: int, limit: int, only: bool) -> None:
    subnets = [(4, b"\x0a\0\0\0", 8), (6, bytes.fromhex("fd00") + bytes(14), 64), (4, bytes(4), 0)]
    wanted = htb.classes(Bucket(rate, burst, limit), TICKS, "src", subnets, only)
    if wanted.buffer >= 2**32:
        return
    start = [("TCA_HTB_INIT", {"version": 3, "rate2quantum": 10, "defcls": wanted.default})]
    assert tc.hierarchy(index, wanted.default)[2] == traffic("htb", start, index=index, handle=HANDLE, parent=ROOT)
    numbers = {**spec(rate), **spec(rate, "ceil"), "buffer": wanted.buffer, "cbuffer": wanted.buffer, "quantum": 60_000}
    options: list[tuple[str, object]] = [("TCA_HTB_PARMS", numbers)]
    if rate >= 2**32:
        options += [("TCA_HTB_RATE64", rate), ("TCA_HTB_CEIL64", rate)]
    shaped, leaf = tc.shaped_class(index, wanted)
    assert shaped[2] == traffic("htb", options, index=index, handle=htb.SHAPED_CLASS, parent=HANDLE)
    fields = {"index": index, "handle": htb.LEAF, "parent": htb.SHAPED_CLASS}
    assert leaf[2] == traffic("bfifo", {"limit": wanted.waiting}, **fields)
    filters = [tc.by_subnet(index, rule) for rule in wanted.rules]
    for order, rule in zip(filters, wanted.rules, strict=True):
        chosen = [("TCA_U32_CLASSID", rule.target), ("TCA_U32_SEL", {"keys": texts(rule)})]
        info = rule.priority << 16 | int.from_bytes(htb.protocol(rule).to_bytes(2, "big"), "little")
        assert order[2] == traffic("u32", chosen, index=index, parent=HANDLE, info=info)
    queues = [Message(tc.NEW_QUEUE, body) for body in (tc.hierarchy(index, wanted.default)[2], leaf[2])]
    listed = [Message(tc.NEW_FILTER, body) for _, _, body in filters]
    assert tc.classes_of(queues, [Message(tc.NEW_CLASS, shaped[2])], listed) == wanted


def texts(rule: Rule) -> list[str]:
    """The keys as pyroute2 takes them: `0xVALUE/0xMASK+OFFSET`."""
    found = []
    for at in range(0, len(rule.keys), htb.KEY_BYTES):
        mask, value = rule.keys[at : at + 4], rule.keys[at + 4 : at + 8]
        offset = int.from_bytes(rule.keys[at + 8 : at + 12], "little")
        found.append(f"0x{value.hex()}/0x{mask.hex()}+{offset}" if any(mask) else "0x0/0x0+0")
    return found


@settings(deadline=None)
@given(INDEX, INDEX, st.integers(1, 65535))
def test_a_redirect(index: int, target: int, priority: int) -> None:
    numbers = {"eaction": 1, "action": 4, "ifindex": target}
    mirred = [("TCA_ACT_KIND", "mirred"), ("TCA_ACT_OPTIONS", {"attrs": [("TCA_MIRRED_PARMS", numbers)]})]
    action = ("TCA_U32_ACT", {"attrs": [("TCA_ACT_PRIO_1", {"attrs": mirred})]})
    chosen = [action, ("TCA_U32_CLASSID", 0x10001), ("TCA_U32_SEL", {"keys": ["0x0/0x0+0"]})]
    order = tc.redirect(index, target, priority)
    assert order[2] == traffic("u32", chosen, index=index, parent=tc.ARRIVING, info=priority << 16 | 0x0300)
    found = tc.classifier_of(Message(tc.NEW_FILTER, order[2]))
    assert found is not None
    assert (found.kind, found.priority, found.redirect) == ("u32", priority, target)


@settings(deadline=None)
@given(INDEX)
def test_an_entrance(index: int) -> None:
    wanted = traffic("ingress", [], index=index, handle=INGRESS, parent=INGRESS_PARENT)
    assert tc.ingress(index)[2] == wanted


def test_a_part_that_is_missing_is_told() -> None:
    wanted = Classes(1000, 1, 131072, 0, ())
    shaped, leaf = (Message(0, body) for _, _, body in tc.shaped_class(1, wanted))
    root = Message(0, tc.hierarchy(1, 0)[2])
    assert tc.classes_of([root, leaf], [shaped], []) == wanted
    assert tc.classes_of([root], [shaped], []) is None
    assert tc.classes_of([leaf], [shaped], []) is None
    assert tc.classes_of([root, leaf], [], []) is None
