"""Rules on the wire, written: the part of nft's language that port mappings use, as the kernel's expressions. Pure.

A rule is read word by word; each phrase becomes the expressions that nft 1.0.6 makes of it, in registers as it numbers
them. Whatever else a rule may say is Unwritable: nft itself is asked then.
"""

from __future__ import annotations

import struct

from cnimeta.host.netlink import NESTED, attribute
from cnimeta.host.nftables.elements import PROTOCOLS, VERDICTS, Unwritable, verdict_attributes
from cnimeta.spec.ip import parse_cidr, parse_ip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

NFPROTO, L4PROTO, IIFNAME = 15, 16, 6
NETWORK, TRANSPORT = 1, 2
EQUAL, UNEQUAL = 0, 1
CT_STATUS, CT_DIRECTION = 2, 1
DNAT_STATUS = 0x20
LOCAL = 2
_DNAT, _PORT_GIVEN = 1, 2
FIB_TYPE, FIB_DADDR = 3, 2
FAMILIES = {"ip": 2, "ip6": 10}
_SIZES = {"ip": 4, "ip6": 16}
OFFSETS = {("ip", "saddr"): 12, ("ip", "daddr"): 16, ("ip6", "saddr"): 8, ("ip6", "daddr"): 24}
IFNAME_BYTES = 16
_REGISTER = 1  # of 16 bytes; those of 4 bytes are numbered from 8
_SMALL = 8


class _Writer:
    """The expressions of one rule, and what is known of a packet by then."""

    def __init__(self, text: str, numbers: Mapping[str, int]) -> None:
        self.words = text.split()
        self.numbers = numbers
        self.found = b""
        self.family = self.protocol = ""

    def next(self, *wanted: str) -> str:
        """The next word, which has to be one of these."""
        if not self.words or (wanted and self.words[0] not in wanted):
            raise Unwritable(" ".join(self.words[:1]))
        return self.words.pop(0)

    def follows(self, *words: str) -> bool:
        """Whether these words are next; they are taken then."""
        if tuple(self.words[: len(words)]) != words:
            return False
        del self.words[: len(words)]
        return True

    def put(self, name: str, *parts: bytes) -> None:
        """One expression."""
        data = attribute(1, name.encode() + b"\0") + attribute(2 | NESTED, b"".join(parts))
        self.found += attribute(1 | NESTED, data)

    def load(self, name: str, key: int, register: int = _REGISTER) -> None:
        """Load a fact of the packet or the connection (meta, ct)."""
        self.put(name, number(2, key), number(1, register))

    def payload(self, base: int, offset: int, size: int, register: int = _REGISTER) -> None:
        """Load bytes of a header."""
        self.put("payload", number(1, register), number(2, base), number(3, offset), number(4, size))

    def compare(self, value: bytes, operator: int = EQUAL) -> None:
        """Go on only if the register has this value, or another."""
        self.put("cmp", number(1, _REGISTER), number(2, operator), attribute(3 | NESTED, attribute(1, value)))

    def mask(self, mask: bytes) -> None:
        """Keep some bits of the register."""
        data, zero = attribute(1, mask), attribute(1, bytes(len(mask)))
        sizes = number(1, _REGISTER), number(2, _REGISTER), number(3, len(mask))
        self.put("bitwise", *sizes, attribute(4 | NESTED, data), attribute(5 | NESTED, zero))

    def immediate(self, register: int, data: bytes) -> None:
        """A constant, or a verdict for register 0."""
        self.put("immediate", number(1, register), attribute(2 | NESTED, data))

    def look_up(self, into: int, name: str) -> None:
        """What a map has for the registers from the first on."""
        end = number(4, self.numbers[name]) if name in self.numbers else b""
        self.put("lookup", number(2, _REGISTER), number(3, into), attribute(1, name.encode() + b"\0"), end)

    def is_of(self, family: str) -> None:
        """Go on only for IPv4 or IPv6."""
        if self.family != family:
            self.load("meta", NFPROTO)
            self.compare(bytes([FAMILIES[family]]))
            self.family = family

    def carries(self, protocol: str) -> None:
        """Go on only for a transport protocol."""
        if self.protocol != protocol:
            self.load("meta", L4PROTO)
            self.compare(bytes([PROTOCOLS[protocol]]))
            self.protocol = protocol


def expressions_of(rule: str, numbers: Mapping[str, int] | None = None) -> bytes:
    """The list of a rule's expressions. `numbers` are those of maps made in the same transaction. Raises Unwritable."""
    writer = _Writer(rule, numbers or {})
    while writer.words:
        word = writer.next()
        phrase = _PHRASES.get(word)
        if phrase is None:
            raise Unwritable(word)
        phrase(writer, word)
    return writer.found


def number(kind: int, value: int) -> bytes:
    """An attribute that is a number."""
    return attribute(kind, struct.pack(">I", value))


def _address(writer: _Writer, family: str) -> None:
    """`ip daddr [!=] ADDRESS[/PREFIX]`, `ip daddr vmap @MAP`."""
    side = writer.next("saddr", "daddr")
    offset = OFFSETS[family, side]
    if writer.follows("vmap"):
        writer.is_of(family)
        writer.payload(NETWORK, offset, _SIZES[family])
        writer.look_up(0, _map_name(writer))
        return
    operator = UNEQUAL if writer.follows("!=") else EQUAL
    packed, bits = _network(writer.next())
    if len(packed) != _SIZES[family]:
        raise Unwritable("an address of the other family")
    writer.is_of(family)
    if bits % 8:
        writer.payload(NETWORK, offset, len(packed))
        writer.mask(((1 << bits) - 1 << len(packed) * 8 - bits).to_bytes(len(packed), "big"))
    else:
        packed = packed[: bits // 8]
        writer.payload(NETWORK, offset, len(packed))
    writer.compare(packed, operator)


def _network(text: str) -> tuple[bytes, int]:
    try:
        if "/" not in text:
            packed = parse_ip(text).packed
            return packed, len(packed) * 8
        cidr = parse_cidr(text).network
    except ValueError:
        raise Unwritable(text) from None
    if not cidr.prefix:
        raise Unwritable(text)
    return cidr.address.packed, cidr.prefix


def _meta(writer: _Writer, _: str) -> None:
    """`meta nfproto ipv4`."""
    writer.next("nfproto")
    writer.is_of("ip" if writer.next("ipv4", "ipv6") == "ipv4" else "ip6")


def _fib(writer: _Writer, _: str) -> None:
    """`fib daddr type local`."""
    for word in ("daddr", "type", "local"):
        writer.next(word)
    writer.put("fib", number(3, FIB_DADDR), number(2, FIB_TYPE), number(1, _REGISTER))
    writer.compare(struct.pack("=I", LOCAL))


def _ct(writer: _Writer, _: str) -> None:
    """`ct status [!] dnat`, `ct direction original`."""
    if writer.next("status", "direction") == "direction":
        writer.next("original")
        writer.load("ct", CT_DIRECTION)
        writer.compare(b"\0")
        return
    operator = EQUAL if writer.follows("!") else UNEQUAL
    writer.next("dnat")
    writer.load("ct", CT_STATUS)
    writer.mask(struct.pack("=I", DNAT_STATUS))
    writer.compare(bytes(4), operator)


def _iifname(writer: _Writer, _: str) -> None:
    """`iifname [!=] "NAME"`."""
    operator = UNEQUAL if writer.follows("!=") else EQUAL
    name = writer.next().strip('"').encode()
    if len(name) >= IFNAME_BYTES or b"*" in name:
        raise Unwritable("the name of an interface")
    writer.load("meta", IIFNAME)
    writer.compare(name.ljust(IFNAME_BYTES, b"\0"), operator)


def _port(writer: _Writer, protocol: str) -> None:
    """`tcp dport NUMBER`."""
    writer.next("dport")
    port = writer.next()
    if not port.isdigit():
        raise Unwritable(port)
    writer.carries(protocol)
    writer.payload(TRANSPORT, 2, 2)
    writer.compare(struct.pack(">H", int(port)))


def _dnat(writer: _Writer, _: str) -> None:
    """`dnat ip to ADDRESS:PORT`, `dnat ip to [ip daddr .] meta l4proto . th dport map @NAME`."""
    family = writer.next("ip", "ip6")
    writer.next("to")
    if writer.words[:1] not in (["meta"], [family]):
        address, colon, port = writer.next().rpartition(":")
        packed = _network(address.strip("[]"))[0]
        if not colon or not port.isdigit() or len(packed) != _SIZES[family]:
            raise Unwritable(port)
        writer.immediate(_REGISTER, attribute(1, packed))
        writer.immediate(_REGISTER + 1, attribute(1, struct.pack(">H", int(port))))
        writer.put("nat", *_target(family), number(5, _REGISTER + 1), number(7, _PORT_GIVEN))
        return
    register = _REGISTER
    if writer.follows(family, "daddr", "."):
        writer.is_of(family)
        writer.payload(NETWORK, OFFSETS[family, "daddr"], _SIZES[family])
        register = _after(register, _SIZES[family])
    elif writer.family != family:
        raise Unwritable("a family that nobody has told")
    for word in ("meta", "l4proto", ".", "th", "dport", "map"):
        writer.next(word)
    name = _map_name(writer)
    keeps_port = name.startswith(("range", "hostrange"))
    writer.load("meta", L4PROTO, register)
    if keeps_port:  # an interval's parts are put in order, though there is nothing to order in one byte
        writer.put("byteorder", *(number(at, value) for at, value in enumerate((register, register, 1, 1, 2), 1)))
    writer.payload(TRANSPORT, 2, 2, _after(register, 1))
    writer.look_up(_REGISTER, name)
    ports = () if keeps_port else (number(5, _after(_REGISTER, _SIZES[family])),)
    writer.put("nat", *_target(family), *ports)


def _target(family: str) -> tuple[bytes, bytes, bytes]:
    """Translate the destination, to the address in the first register."""
    return number(1, _DNAT), number(2, FAMILIES[family]), number(3, _REGISTER)


def _after(register: int, size: int) -> int:
    """The register behind `size` bytes in this one."""
    at = (register - _REGISTER) * 16 if register < _SMALL else (register - _SMALL) * 4
    at += size + 3 & ~3
    return _REGISTER + at // 16 if at % 16 == 0 else _SMALL + at // 4


def _map_name(writer: _Writer) -> str:
    name = writer.next()
    if not name.startswith("@"):
        raise Unwritable(name)
    return name[1:]


def _masquerade(writer: _Writer, _: str) -> None:
    writer.put("masq")


def _verdict(writer: _Writer, word: str) -> None:
    """`return`, `jump CHAIN`."""
    chain = writer.next() if word in ("jump", "goto") else ""
    writer.immediate(0, attribute(2 | NESTED, verdict_attributes(word, chain)))


_PHRASES = {
    **dict.fromkeys(FAMILIES, _address),
    **dict.fromkeys(PROTOCOLS, _port),
    **dict.fromkeys(VERDICTS, _verdict),
    "meta": _meta,
    "fib": _fib,
    "ct": _ct,
    "iifname": _iifname,
    "dnat": _dnat,
    "masquerade": _masquerade,
}
