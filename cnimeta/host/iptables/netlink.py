"""Reading iptables-nft's nat table over netlink: which tables and chains there are, and the rules of one chain.

`iptables-nft-save` decodes the whole table (100 ms with 2000 mapped containers); one chain over netlink costs a tenth.
Two forms of rules are decoded: the entry rule of a container's chain (`-p P -m comment … -m multiport … -j CHAIN`),
and the return of an IPv6 address (`-d PREFIX -j RETURN`). A chain with any other is reported as unreadable and left to
the iptables program.

Wire format: linux/netfilter/nf_tables.h, linux/netfilter/xt_multiport.h.
"""

from __future__ import annotations

import struct

from cnimeta.host.iptables.values import quote
from cnimeta.host.netlink import (
    DUMP,
    NETFILTER,
    NFT_ABSENT,
    ask,
    attribute,
    attributes,
    each_attribute,
    first,
    nft_chain_exists,
    nft_tables,
)
from cnimeta.host.reading import told
from cnimeta.spec.ip import Address

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cnimeta.host.iptables.values import Change
    from cnimeta.host.netlink import Ask, First, Order

_GETRULE = (10 << 8) | 7
_REMOVING = {"delete": (10 << 8) | 8, "flush": (10 << 8) | 8, "remove": (10 << 8) | 5}  # DELRULE, DELCHAIN
_FAMILIES = {4: "ip", 6: "ip6"}
_AF = {4: 2, 6: 10}
_NFGENMSG = 4
_EXPRESSIONS = ["meta", "cmp", "match", "match", "counter", "immediate"]
_L4PROTO = 16
_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp", 33: "dccp", 136: "udplite"}
_MULTIPORT = b"multiport\0"
_RETURNING = (["payload", "cmp", "counter", "immediate"], ["payload", "bitwise", "cmp", "counter", "immediate"])
_ADDRESS_AT = {8: "-s", 24: "-d"}  # offsets of an IPv6 header
_RETURN = struct.pack(">i", -5)  # NFT_RETURN
_DESTINATION = 1  # enum xt_multiport_flags
_JUMP = struct.pack(">i", -3)  # NFT_JUMP


class Unreadable(Exception):
    """What the kernel holds is not in the form decoded here, or it could not be listed: the program is to be asked."""


def table_names(ask: Ask = ask) -> set[tuple[int, str]]:
    """(4 or 6, name) of every nf_tables table of these two families. IoFailure (code 5) when unknown."""
    found = nft_tables(ask)
    return {(version, name) for version, family in _FAMILIES.items() for other, name in found if other == family}


def chain_exists(family: int, chain: str, ask: Ask = ask, table: str = "nat") -> bool:
    """Whether a table of a family has `chain`. IoFailure (code 5) when unknown."""
    return nft_chain_exists(_FAMILIES[family], table, chain, ask)


def mentions(family: int, chain: str, word: str, ask: Ask = ask) -> bool:
    """Whether any rule of `chain` in the nat table has a word. IoFailure (code 5) when unknown."""
    what = f"the rules of chain {_FAMILIES[family]} nat {chain}"
    if not chain_exists(family, chain, ask):
        return False
    return any(word.encode() in rule for rule in told(what, lambda: _rules(family, chain, ask)) or ())


def entry_rules(
    family: int, chain: str, mentioning: tuple[str, ...] = (), ask: Ask = ask
) -> list[tuple[str, int]] | None:
    """The rules of a chain as `iptables-save` prints them, with the kernel's number of each; None for no such chain.

    Unreadable when it takes the program to tell; IoFailure (code 5) when nobody knows whether there is such a chain.

    With `mentioning`, only those with any of the words are decoded and returned.
    """
    if not chain_exists(family, chain, ask):
        return None
    decode = _Decoder().decode
    words = [word.encode() for word in mentioning]
    try:
        found = _rules(family, chain, ask)
        wanted = [data for data in found if _has_any(data, words)] if words else found
        return [(decode(data) if _MULTIPORT in data else _returning(data), _number(data)) for data in wanted]
    except (OSError, struct.error, IndexError, KeyError, ValueError) as error:
        raise Unreadable(str(error)) from None


def has_rules(family: int, chain: str, first: First = first) -> bool:
    """Whether the chain is there and has a rule; the others are not listed. IoFailure (code 5) when unknown."""
    what = f"the rules of chain {_FAMILIES[family]} nat {chain}"
    return bool(told(what, lambda: first(NETFILTER, _GETRULE, _of_chain(family, chain)), NFT_ABSENT))


def removal(
    family: int, changes: Sequence[Change], numbers: Mapping[tuple[str, str], Sequence[int]]
) -> list[Order] | None:
    """Changes that only take away, as requests; None for others, and where the number of a rule is not known.

    `numbers`: those of the rules of a chain with that text.
    """
    found = []
    left = {place: list(some) for place, some in numbers.items()}
    for action, chain, rule, table in changes:
        known = left.get((chain, rule), [])
        if action not in _REMOVING or (action == "delete" and not known):
            return None
        body = struct.pack("=BBH", _AF[family], 0, 0) + attribute(1, table.encode() + b"\0")
        body += attribute(3 if action == "remove" else 2, chain.encode() + b"\0")
        if action == "delete":
            body += attribute(3, struct.pack(">Q", known.pop(0)))
        found.append((_REMOVING[action], 0, body))
    return found


def _has_any(data: bytes, words: list[bytes]) -> bool:
    for word in words:  # noqa: SIM110 - a generator takes three times as long, and there are thousands of rules
        if word in data:
            return True
    return False


def _number(message: bytes) -> int:
    """NFTA_RULE_HANDLE: never that of another rule again."""
    return struct.unpack(">Q", attributes(message)[3])[0]  # type: ignore[no-any-return]


class _Decoder:
    """Decodes entry rules. They all have one layout, so the first is taken apart and the others compared with it."""

    def __init__(self) -> None:
        self._same: tuple[tuple[int, int, bytes], ...] = ()
        self._length = 0
        self._protocol = self._comment = self._ports = self._target = 0

    def decode(self, message: bytes) -> str:
        """One rule as text. Raises Unreadable."""
        if len(message) != self._length or any(message[start:end] != same for start, end, same in self._same):
            self._learn(message)
        comment = message[self._comment : self._comment + 256].partition(b"\0")[0].decode("utf-8", "replace")
        ports = _ports(message[self._ports : self._ports + 48])
        protocol = _PROTOCOLS.get(message[self._protocol])
        name = message[self._target :].partition(b"\0")[0].decode()
        if protocol is None:
            raise Unreadable(f"protocol {message[self._protocol]}")
        return f"-p {protocol} -m comment --comment {quote(comment)} -m multiport --dports {ports} -j {name}"

    def _learn(self, message: bytes) -> None:
        """Take one rule apart; remember where its values are, and every byte between them that must be the same."""
        expressions = list(_nested(attributes(message).get(4, b"")))
        names = [name for name, _ in expressions]
        if names != _EXPRESSIONS:
            raise Unreadable(f"a rule of {', '.join(names)}")
        meta, compare, comment, multiport, counter, jump = (data for _, data in expressions)
        verdict = attributes(attributes(jump)[2])[2]
        info = attributes(multiport)
        if (
            attributes(meta)[2] != struct.pack(">I", _L4PROTO)
            or attributes(compare)[2] != bytes(4)
            or attributes(comment)[1] != b"comment\0"
            or info[1] != _MULTIPORT
            or info[2] != struct.pack(">I", 1)
            or attributes(verdict)[1] != _JUMP
        ):
            raise Unreadable("not an entry rule")
        self._length = len(message)
        self._protocol = message.index(compare) + compare.index(attributes(compare)[3]) + 4
        self._comment = message.index(comment) + comment.index(attributes(comment)[3])
        self._ports = message.index(multiport) + multiport.index(info[3])
        self._target = message.index(jump) + jump.index(attributes(verdict)[2])
        counts = message.index(counter)
        expressions_at = message.index(meta)
        spans = (
            (expressions_at, self._protocol),
            (self._protocol + 1, self._comment),
            (self._comment + 256, self._ports),
            (self._ports + 48, counts),
            (counts + len(counter), self._target),
        )
        self._same = tuple((start, end, message[start:end]) for start, end in spans)


def _returning(message: bytes) -> str:
    """`-s fe80::/10 -j RETURN`: one IPv6 address or prefix. Raises Unreadable."""
    expressions = list(_nested(attributes(message).get(4, b"")))
    if [name for name, _ in expressions] not in _RETURNING:
        raise Unreadable(f"a rule of {', '.join(name for name, _ in expressions)}")
    parts = {name: attributes(data) for name, data in expressions}
    payload, compare, end = parts["payload"], parts["cmp"], attributes(attributes(parts["immediate"][2])[2])
    flag = _ADDRESS_AT.get(struct.unpack(">I", payload[3])[0])
    mask = attributes(parts["bitwise"][4])[1] if "bitwise" in parts else b"\xff" * struct.unpack(">I", payload[4])[0]
    bits = "".join(f"{byte:08b}" for byte in mask)
    if flag is None or payload[2] != struct.pack(">I", 1) or compare[2] != bytes(4) or end[1] != _RETURN:
        raise Unreadable("not the return of an address")
    prefix = bits.rstrip("0")
    if "0" in prefix:
        raise Unreadable("a mask with holes")
    address = Address(6, attributes(compare[3])[1].ljust(16, b"\0"))
    return f"{flag} {address.text}/{len(prefix)} -j RETURN"


def _ports(info: bytes) -> str:
    """The ports of a struct xt_multiport_v1: flags, count, ports[15], pflags[15], invert."""
    flags, count = info[0], info[1]
    if flags != _DESTINATION or info[47] or count > 15:
        raise Unreadable("another use of multiport")
    ports = struct.unpack_from("=15H", info, 2)
    words = [str(ports[0])]
    for place in range(1, count):
        joint = ":" if info[32 + place - 1] else ","
        words.append(f"{joint}{ports[place]}")
    return "".join(words)


# --- netlink ---------------------------------------------------------------------------------------------


def _rules(family: int, chain: str, ask: Ask) -> list[bytes]:
    """The attributes of every rule of a chain. Raises OSError."""
    return [message.body[_NFGENMSG:] for message in ask(NETFILTER, _GETRULE, DUMP, _of_chain(family, chain))]


def _of_chain(family: int, chain: str) -> bytes:
    return struct.pack("=BBH", _AF[family], 0, 0) + attribute(1, b"nat\0") + attribute(2, chain.encode() + b"\0")


def _nested(data: bytes) -> Iterator[tuple[str, bytes]]:
    """(name, data) of each expression in a list."""
    for _, element in each_attribute(data):
        parts = attributes(element)
        yield parts[1][:-1].decode(), parts.get(2, b"")
