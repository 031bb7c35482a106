"""Maps and their elements on the wire: keys, values and comments between text and bytes. Pure.

A key is the parts that ` . ` joins, each padded to four bytes; in a map with intervals it has an end of the same form.
"""

from __future__ import annotations

import struct

from cnimeta.host.netlink import NESTED, attribute, attributes, each_attribute
from cnimeta.host.nftables.values import Element, require_comment
from cnimeta.namedtuple import NamedTuple
from cnimeta.spec.ip import Address, parse_ip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from cnimeta.host.nftables.values import Change, Map

_KEY, _DATA, _USERDATA, _KEY_END = 1, 2, 6, 10
_VALUE, _VERDICT = 1, 2
PROTOCOLS = {"tcp": 6, "udp": 17, "dccp": 33, "sctp": 132, "udplite": 136}
_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}
_TYPES = {"ipv4_addr": (7, 4), "ipv6_addr": (8, 16), "inet_proto": (12, 1), "inet_service": (13, 2)}
"""nft's number for a type, and its bytes."""
_BITS_OF_TYPE = 6
_SIZES = dict(_TYPES.values())
_VERDICT_TYPE = 0xFFFFFF00
VERDICTS = {"drop": 0, "accept": 1, "continue": -1, "jump": -3, "goto": -4, "return": -5}
_VERDICT_NAMES = {number: name for name, number in VERDICTS.items()}
_IS_MAP, _HAS_INTERVALS, _IS_CONCATENATION = 0x8, 0x4, 0x80


class Unwritable(Exception):
    """A form that is not written, or not read, here: it is left to the nft program."""


class Layout(NamedTuple):
    """What the parts of a map's keys and values are, by nft's numbers of types; no value types: verdicts."""

    key: tuple[int, ...]
    value: tuple[int, ...]


# --- writing ---------------------------------------------------------------------------------------------


def map_attributes(item: Map, number: int) -> bytes:
    """What a map is made of; `number` tells it from others of the same transaction."""
    keys, values = item.key.split(" . "), item.value.split(" . ")
    flags = _IS_MAP | (_HAS_INTERVALS if item.interval else 0)
    flags |= _IS_CONCATENATION if item.interval and len(keys) > 1 else 0
    key_type, key_bytes = _type(keys)
    value_type, value_bytes = (_VERDICT_TYPE, 0) if item.value == "verdict" else _type(values)
    found = attribute(2, item.name.encode() + b"\0")
    for at, value in ((3, flags), (4, key_type), (5, key_bytes), (6, value_type), (7, value_bytes), (10, number)):
        found += attribute(at, struct.pack(">I", value))
    if flags & _IS_CONCATENATION:
        fields = (attribute(1, struct.pack(">I", _TYPES[name][1])) for name in keys)
        found += attribute(9 | NESTED, attribute(2 | NESTED, b"".join(attribute(1 | NESTED, one) for one in fields)))
    return found + attribute(13, _kinds(keys, values))


def _type(names: list[str]) -> tuple[int, int]:
    number = size = 0
    for name in names:
        if name not in _TYPES:
            raise Unwritable(name)
        number = number << _BITS_OF_TYPE | _TYPES[name][0]
        size += _TYPES[name][1] if len(names) == 1 else _padded(_TYPES[name][1])
    return number, size


def _kinds(keys: list[str], values: list[str]) -> bytes:
    """What nft needs to print a map's elements: byte orders, and that concatenations are such."""
    concatenation = b"\x00\x04\x0d\x00\x00\x00\x01\x00"
    big = struct.pack("=I", 2)
    single_value = len(values) == 1 and values != ["verdict"]
    found = b"\x00\x04" + (big if len(keys) == 1 else bytes(4)) + b"\x01\x04" + (big if single_value else bytes(4))
    found += b"\x03\x08" + concatenation if len(keys) > 1 else b""
    found += b"\x04\x08" + concatenation if len(values) > 1 else b""
    return found + b"\x06\x04" + bytes(4)


def element_attributes(change: Change, element: Element) -> bytes:
    """What an element is made of; its key alone for one that is deleted."""
    found = key_attributes(element.key)
    if change.verb == "delete":
        return found
    found += attribute(_DATA | NESTED, data_attributes(element.value))
    return found + attribute(_USERDATA, said(change.comment)) if change.comment else found


def key_attributes(key: str) -> bytes:
    """A key, and its end when a part is a range."""
    parts = key.split(" . ")
    first = _packed(parts, 0)
    found = attribute(_KEY | NESTED, attribute(_VALUE, first))
    last = _packed(parts, 1)
    return found if last == first else found + attribute(_KEY_END | NESTED, attribute(_VALUE, last))


def data_attributes(value: str) -> bytes:
    """A value: a verdict, or what a key may be."""
    word, _, chain = value.partition(" ")
    if word in VERDICTS:
        return attribute(_VERDICT | NESTED, verdict_attributes(word, chain))
    return attribute(_VALUE, _packed(value.split(" . "), 0))


def verdict_attributes(word: str, chain: str) -> bytes:
    """`jump CHAIN`, `return`."""
    return attribute(1, struct.pack(">i", VERDICTS[word])) + (attribute(2, chain.encode() + b"\0") if chain else b"")


def said(comment: str) -> bytes:
    """A comment as nft keeps it."""
    data = require_comment(comment).encode() + b"\0"
    return struct.pack("=BB", 0, len(data)) + data


def _packed(parts: list[str], end: int) -> bytes:
    """The bytes of a key's first (0) or last (1) member."""
    if len(parts) == 1:
        return _part(parts[0], end)
    return b"".join(data + bytes(-len(data) % 4) for data in (_part(part, end) for part in parts))


def _part(text: str, end: int) -> bytes:
    if text in PROTOCOLS:
        return bytes([PROTOCOLS[text]])
    if text[:1].isdigit() and text.replace("-", "").isdigit():
        first, _, last = text.partition("-")
        return struct.pack(">H", int(last if end and last else first))
    try:
        return parse_ip(text).packed
    except ValueError:
        raise Unwritable(text) from None


# --- reading ---------------------------------------------------------------------------------------------


def layout_of(body: bytes) -> Layout:
    """What the kernel says of a map, in an answer to GET_SET. Raises Unwritable for types that are not read here."""
    found = attributes(body[4:])
    key = _numbers(int.from_bytes(found[4], "big"))
    value = int.from_bytes(found.get(6, b""), "big")
    return Layout(key, () if value == _VERDICT_TYPE else _numbers(value))


def _numbers(kind: int) -> tuple[int, ...]:
    found: list[int] = []
    while kind:
        found.insert(0, kind & ((1 << _BITS_OF_TYPE) - 1))
        kind >>= _BITS_OF_TYPE
    if not found or any(number not in _SIZES for number in found):
        raise Unwritable(f"the types {found}")
    return tuple(found)


def elements_in(name: str, layout: Layout, body: bytes, but: Collection[str] = ()) -> Iterator[tuple[Element, str]]:
    """The elements in an answer to GET_ELEMENT, and their comments, less those whose comment is in `but`."""
    for number, data in each_attribute(body[4:]):
        if number == 3:
            for _, element in each_attribute(data):
                found = attributes(element)
                comment = comment_in(found.get(_USERDATA, b""))
                if comment not in but:
                    yield _element(name, layout, found), comment


def _element(name: str, layout: Layout, found: dict[int, bytes]) -> Element:
    first = attributes(found[_KEY])[_VALUE]
    last = attributes(found[_KEY_END])[_VALUE] if _KEY_END in found else first
    data = attributes(found.get(_DATA, b""))
    value = _verdict(attributes(data[_VERDICT])) if _VERDICT in data else _spelled(layout.value, data[_VALUE])
    return Element(name, _spelled(layout.key, first, last), value)


def _verdict(found: dict[int, bytes]) -> str:
    word = _VERDICT_NAMES.get(int.from_bytes(found[1], "big", signed=True))
    if word is None:
        raise Unwritable("a verdict")
    return f"{word} {found[2][:-1].decode('utf-8', 'replace')}" if 2 in found else word


def comment_in(data: bytes) -> str:
    """The comment in what nft keeps beside an element or a rule, empty for none."""
    at = 0
    while at + 2 <= len(data):
        kind, length = data[at], data[at + 1]
        if kind == 0:
            return data[at + 2 : at + 2 + length].rstrip(b"\0").decode("utf-8", "replace")
        at += 2 + length
    return ""


def _spelled(types: tuple[int, ...], first: bytes, last: bytes = b"") -> str:
    at, words = 0, []
    for number in types:
        size = _SIZES[number]
        words.append(_word(number, first[at : at + size], (last or first)[at : at + size]))
        at += _padded(size)
    return " . ".join(words)


def _word(number: int, first: bytes, last: bytes) -> str:
    if first != last:
        return f"{_word(number, first, first)}-{_word(number, last, last)}"
    if number == 13:
        return str(int.from_bytes(first, "big"))
    if number == 12:
        return _PROTOCOL_NAMES.get(first[0], str(first[0]))
    return Address(4 if number == 7 else 6, first).text


def _padded(size: int) -> int:
    return size + 3 & ~3
