"""nftables on the wire: messages and attributes that nf_tables takes, as nft writes them. Pure.

Format: linux/netfilter/nf_tables.h, linux/netfilter/nfnetlink.h; numbers are big-endian there.
"""

from __future__ import annotations

import struct

from cnimeta.host.netlink import NESTED, attribute
from cnimeta.host.nftables.elements import element_attributes, map_attributes, said
from cnimeta.host.nftables.values import Chain, Map, Rule, Table

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cnimeta.host.netlink import Order
    from cnimeta.host.nftables.values import Change

SUBSYSTEM = 10
NEW_TABLE, GET_TABLE, DELETE_TABLE, NEW_CHAIN, GET_CHAIN, DELETE_CHAIN = ((SUBSYSTEM << 8) | n for n in range(6))
NEW_RULE, GET_RULE, DELETE_RULE, NEW_SET, GET_SET, DELETE_SET = ((SUBSYSTEM << 8) | n for n in range(6, 12))
NEW_ELEMENT, GET_ELEMENT, DELETE_ELEMENT = ((SUBSYSTEM << 8) | n for n in range(12, 15))
DELETIONS = (DELETE_TABLE, DELETE_CHAIN, DELETE_RULE, DELETE_SET, DELETE_ELEMENT)
BATCH_BEGIN, BATCH_END = 16, 17
BATCH = struct.pack("=BBH", 0, 0, SUBSYSTEM << 8)
"""What follows the header of both."""
INET = struct.pack("=BBH", 1, 0, 0)
_CREATE, _EXCLUSIVE, _APPEND = 0x400, 0x200, 0x800
_HOOKS = {"prerouting": 0, "input": 1, "forward": 2, "output": 3, "postrouting": 4}
_PRIORITIES = {"dstnat": -100, "filter": 0, "srcnat": 100}
_ACCEPT = struct.pack(">I", 1)


def orders(table: str, changes: Sequence[Change]) -> list[Order]:
    """The changes as requests, one each, in order. Raises Unwritable for what only nft can write."""
    name = text(1, table)
    numbers: dict[str, int] = {}  # of the maps that are made in the same transaction: nft refers to them by it
    found = []
    for change in changes:
        item = change.item
        if isinstance(item, Map):
            numbers.setdefault(item.name, len(numbers) + 1)
        found.append(_order(change, name, numbers))
    return found


def _order(change: Change, table: bytes, numbers: dict[str, int]) -> Order:
    verb, item = change.verb, change.item
    if isinstance(item, Table):
        return NEW_TABLE, 0, INET + table + attribute(2, bytes(4))
    if isinstance(item, Chain):
        return _chain(verb, item, table)
    if isinstance(item, Map):
        return NEW_SET, _CREATE, INET + table + map_attributes(item, numbers[item.name])
    if isinstance(item, Rule):
        return _rule(change, item, table, numbers)
    end = attribute(4, struct.pack(">I", numbers[item.map])) if item.map in numbers and verb != "delete" else b""
    body = INET + table + text(2, item.map) + end + nested(3, nested(1, element_attributes(change, item)))
    return (DELETE_ELEMENT, 0, body) if verb == "delete" else (NEW_ELEMENT, _flags(verb), body)


def _chain(verb: str, chain: Chain, table: bytes) -> Order:
    if verb == "flush":
        return DELETE_RULE, 0, INET + table + text(2, chain.name)
    body = INET + table + text(3, chain.name)
    if verb == "delete":
        return DELETE_CHAIN, 0, body
    hook = chain.hook
    if hook is not None:
        priority = _PRIORITIES[hook.priority] if hook.priority in _PRIORITIES else int(hook.priority)
        place = attribute(1, struct.pack(">I", _HOOKS[hook.point])) + attribute(2, struct.pack(">i", priority))
        body += text(7, hook.type) + attribute(5, _ACCEPT) + nested(4, place)
    return NEW_CHAIN, _flags(verb), body


def _rule(change: Change, rule: Rule, table: bytes, numbers: dict[str, int]) -> Order:
    body = INET + table + text(2, rule.chain)
    if change.verb == "delete":
        return DELETE_RULE, 0, body + attribute(3, struct.pack(">Q", int(rule.handle)))
    from cnimeta.host.nftables.expressions import expressions_of

    body += nested(4, expressions_of(rule.text, numbers))
    return NEW_RULE, _CREATE | _APPEND, body + (attribute(7, said(change.comment)) if change.comment else b"")


def _flags(verb: str) -> int:
    return _CREATE | _EXCLUSIVE if verb == "create" else _CREATE


def text(number: int, value: str) -> bytes:
    """An attribute of text."""
    return attribute(number, value.encode() + b"\0")


def nested(number: int, value: bytes) -> bytes:
    """An attribute of attributes."""
    return attribute(number | NESTED, value)
