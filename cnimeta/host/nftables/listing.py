"""Rules on the wire, read: the kernel's expressions as the words of nft's language that `expressions` writes. Pure.

A rule with anything else is Unwritable: nft is asked for the listing then. The words are nft's, their spelling is not
in every case (nft leaves out what a rule implies); rules are compared by what they mean.
"""

from __future__ import annotations

import struct

from cnimeta.host.netlink import attributes, each_attribute
from cnimeta.host.nftables.elements import PROTOCOLS, VERDICTS, Unwritable
from cnimeta.host.nftables.expressions import (
    CT_DIRECTION,
    CT_STATUS,
    DNAT_STATUS,
    FAMILIES,
    FIB_DADDR,
    FIB_TYPE,
    IIFNAME,
    L4PROTO,
    LOCAL,
    NETWORK,
    NFPROTO,
    OFFSETS,
    TRANSPORT,
    UNEQUAL,
)
from cnimeta.host.nftables.values import Rule
from cnimeta.spec.ip import Address

_FAMILY_NAMES = {number: name for name, number in FAMILIES.items()}
_PROTOCOL_NAMES = {number: name for name, number in PROTOCOLS.items()}
_VERDICT_NAMES = {number: name for name, number in VERDICTS.items()}
_SIDES = {(name, offset): f"{name} {side}" for (name, side), offset in OFFSETS.items()}
_SIZES = {"ip": 4, "ip6": 16}
_FIRST, _SMALL = 1, 8


class _Reader:
    """The words of one rule; what each register holds, by its number: words, or the bytes of a constant."""

    def __init__(self) -> None:
        self.words: list[str] = []
        self.registers: dict[int, str] = {}
        self.constants: dict[int, bytes] = {}
        self.mask = b""
        self.family = ""

    def meta(self, found: dict[int, bytes]) -> None:
        self._load(found[1], {NFPROTO: "meta nfproto", L4PROTO: "meta l4proto", IIFNAME: "iifname"}[_number(found[2])])

    def ct(self, found: dict[int, bytes]) -> None:
        self._load(found[1], {CT_STATUS: "ct status", CT_DIRECTION: "ct direction"}[_number(found[2])])

    def fib(self, found: dict[int, bytes]) -> None:
        if (_number(found[3]), _number(found[2])) != (FIB_DADDR, FIB_TYPE):
            raise Unwritable("fib")
        self._load(found[1], "fib daddr type")

    def payload(self, found: dict[int, bytes]) -> None:
        base, offset, size = (_number(found[at]) for at in (2, 3, 4))
        if base == NETWORK and (self.family, offset) in _SIDES and size <= _SIZES[self.family]:
            self._load(found[1], _SIDES[self.family, offset])
        elif (base, offset, size) == (TRANSPORT, 2, 2):
            self._load(found[1], "th dport")
        else:
            raise Unwritable("payload")

    def byteorder(self, found: dict[int, bytes]) -> None:
        if (_number(found[1]), found[4]) != (_number(found[2]), b"\0\0\0\1"):
            raise Unwritable("byteorder")

    def bitwise(self, found: dict[int, bytes]) -> None:
        if any(attributes(found[5])[1]) or found[1] != found[2]:
            raise Unwritable("bitwise")
        self.mask = attributes(found[4])[1]

    def cmp(self, found: dict[int, bytes]) -> None:
        operator, value, mask = _number(found[2]), attributes(found[3])[1], self.mask
        what, self.mask = self.registers[_number(found[1])], b""
        if operator > UNEQUAL:
            raise Unwritable("cmp")
        negated = ["!="] if operator == UNEQUAL else []
        if what == "meta nfproto" and not negated:
            self.family = _FAMILY_NAMES[value[0]]
            self.words += ["meta", "nfproto", "ipv4" if self.family == "ip" else "ipv6"]
        elif what == "meta l4proto" and not negated:
            self.registers[0] = _PROTOCOL_NAMES[value[0]]
        elif what == "th dport" and not negated:
            self.words += [self.registers[0], "dport", str(int.from_bytes(value, "big"))]
        elif what == "iifname":
            self.words += [what, *negated, '"' + value.rstrip(b"\0").decode() + '"']
        elif what == "fib daddr type" and not negated and value == struct.pack("=I", LOCAL):
            self.words += [what, "local"]
        elif what == "ct direction" and not negated and value == b"\0":
            self.words += [what, "original"]
        elif what == "ct status" and (mask, value) == (struct.pack("=I", DNAT_STATUS), bytes(4)):
            self.words += [what, *([] if negated else ["!"]), "dnat"]
        elif what in _SIDES.values():
            self._imply()
            self.words += [what, *negated, _network(what, value, mask)]
        else:
            raise Unwritable(what)

    def immediate(self, found: dict[int, bytes]) -> None:
        data = attributes(found[2])
        if _number(found[1]):
            self.constants[_number(found[1])] = data[1]
            return
        verdict = attributes(data[2])
        word = _VERDICT_NAMES[int.from_bytes(verdict[1], "big", signed=True)]
        self.words += [word, verdict[2][:-1].decode()] if 2 in verdict else [word]

    def lookup(self, found: dict[int, bytes]) -> None:
        if _number(found.get(5, bytes(4))) or 3 not in found:  # inverted, or of a set
            raise Unwritable("lookup")
        source, name = _number(found[2]), found[1][:-1].decode()
        if not _number(found[3]):
            self._imply()
            self.words += [self.registers[source], "vmap", f"@{name}"]
            return
        key = " . ".join(self.registers[number] for number in sorted(self.registers, key=_place) if number >= source)
        if key.partition(" . ")[0] in _SIDES.values():
            self._imply()
        self.registers = {_FIRST: f"{key} map @{name}"}

    def nat(self, found: dict[int, bytes]) -> None:
        if _number(found[1]) != 1 or found.get(4, found[3]) != found[3] or found.get(6, found.get(5)) != found.get(5):
            raise Unwritable("nat")
        family, target = _FAMILY_NAMES[_number(found[2])], self.registers.get(_number(found[3]), "")
        if " map " not in target:
            address = Address(4 if family == "ip" else 6, self.constants[_number(found[3])]).text
            port = int.from_bytes(self.constants[_number(found[5])], "big")
            target = f"{address}:{port}" if family == "ip" else f"[{address}]:{port}"
        self.words += ["dnat", family, "to", target]

    def masq(self, found: dict[int, bytes]) -> None:
        if any(any(value) for value in found.values()):
            raise Unwritable("masq")
        self.words.append("masquerade")

    def _imply(self) -> None:
        """What follows is of one family only: nft does not say that twice."""
        if self.words[-3:-1] == ["meta", "nfproto"]:
            del self.words[-3:]

    def _load(self, register: bytes, words: str) -> None:
        self.registers[_number(register)] = words


def rule_in(body: bytes) -> Rule:
    """The rule in an answer to GET_RULE. Raises Unwritable."""
    found = attributes(body[4:])
    reader = _Reader()
    try:
        for _, expression in each_attribute(found.get(4, b"")):
            parts = attributes(expression)
            read = _EXPRESSIONS.get(parts[1])
            if read is None:
                raise Unwritable(parts[1].decode("utf-8", "replace"))
            read(reader, attributes(parts.get(2, b"")))
    except (KeyError, IndexError, ValueError, struct.error) as error:
        raise Unwritable(str(error)) from None
    handle = str(int.from_bytes(found[3], "big"))
    return Rule(found[2][:-1].decode("utf-8", "replace"), " ".join(reader.words), handle)


_EXPRESSIONS = {
    b"meta\0": _Reader.meta,
    b"ct\0": _Reader.ct,
    b"fib\0": _Reader.fib,
    b"payload\0": _Reader.payload,
    b"byteorder\0": _Reader.byteorder,
    b"bitwise\0": _Reader.bitwise,
    b"cmp\0": _Reader.cmp,
    b"immediate\0": _Reader.immediate,
    b"lookup\0": _Reader.lookup,
    b"nat\0": _Reader.nat,
    b"masq\0": _Reader.masq,
}


def _number(data: bytes) -> int:
    return int.from_bytes(data, "big")


def _place(register: int) -> int:
    """Where a register begins, in bytes."""
    return (register - _FIRST) * 16 if register < _SMALL else (register - _SMALL) * 4


def _network(what: str, value: bytes, mask: bytes) -> str:
    """An address, or a network: of leading bytes, or by a mask."""
    size = _SIZES[what.split(maxsplit=1)[0]]
    bits = len(value) * 8
    if mask:
        bits = int.from_bytes(mask, "big").bit_count()
        if len(mask) != size or int.from_bytes(mask, "big") != (1 << bits) - 1 << size * 8 - bits:
            raise Unwritable("a mask")
    text = Address(4 if size == 4 else 6, value.ljust(size, b"\0")).text
    return text if bits == size * 8 else f"{text}/{bits}"
