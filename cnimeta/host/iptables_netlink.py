"""Reading iptables-nft's nat table over netlink: which tables and chains there are, and the rules of one chain.

`iptables-nft-save` decodes the whole table (100 ms with 2000 mapped containers); one chain over netlink costs a tenth.
Only one form of rule is decoded, the entry rule of a container's chain (`-p P -m comment … -m multiport … -j CHAIN`);
a chain with any other is reported as unreadable and left to the iptables program.

Wire format: linux/netfilter/nf_tables.h, linux/netfilter/xt_multiport.h.
"""

from __future__ import annotations

import struct
from _socket import AF_NETLINK, SOCK_RAW, socket

from cnimeta.host.iptables import quote

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_NETLINK_NETFILTER = 12
_NFNL_SUBSYS_NFTABLES = 10 << 8
_GETTABLE, _GETCHAIN, _GETRULE = (_NFNL_SUBSYS_NFTABLES | number for number in (1, 4, 7))
_ERROR, _DONE = 2, 3
_REQUEST, _DUMP, _DUMP_INTERRUPTED = 0x1, 0x300, 0x10
_AF = {4: 2, 6: 10}
_HEADER = 20  # nlmsghdr and nfgenmsg
_RECEIVE = 1 << 17
_RETRIES = 5
_EXPRESSIONS = ["meta", "cmp", "match", "match", "counter", "immediate"]
_L4PROTO = 16
_PROTOCOLS = {6: "tcp", 17: "udp", 132: "sctp", 33: "dccp", 136: "udplite"}
_DESTINATION = 1  # enum xt_multiport_flags
_JUMP = struct.pack(">i", -3)  # NFT_JUMP


class Unreadable(Exception):
    """What the kernel holds is not in the form decoded here, or it cannot be asked."""


def table_names() -> set[tuple[int, str]]:
    """(4 or 6, name) of every nf_tables table of these two families; empty when the kernel has no nf_tables."""
    found: set[tuple[int, str]] = set()
    try:
        for family, message in _dump(_GETTABLE, 0, b""):
            name = _attributes(message).get(1, b"")[:-1].decode("utf-8", "replace")
            found.update((version, name) for version, number in _AF.items() if number == family)
    except (OSError, Unreadable):
        return set()
    return found


def chain_exists(family: int, chain: str) -> bool:
    """Whether the nat table of a family has `chain`."""
    body = _attribute(1, b"nat\0") + _attribute(3, chain.encode() + b"\0")
    try:
        return any(True for _ in _ask(_GETCHAIN, _REQUEST, _AF[family], body))
    except OSError:
        return False


def has_rules(family: int, chain: str) -> bool:
    """Whether `chain` has any rule."""
    try:
        return any(True for _ in _dump(_GETRULE, _AF[family], _chain_body(chain)))
    except (OSError, Unreadable):
        return False


def entry_rules(family: int, chain: str, mentioning: tuple[str, ...] = ()) -> list[str] | None:
    """The rules of a chain as `iptables-save` prints them, None when there is no such chain. Raises Unreadable.

    With `mentioning`, only those with any of the words are decoded and returned.
    """
    if not chain_exists(family, chain):
        return None
    decode = _Decoder().decode
    words = [word.encode() for word in mentioning]
    try:
        messages = _dump(_GETRULE, _AF[family], _chain_body(chain))
        return [decode(data) for _, data in messages if not words or any(word in data for word in words)]
    except (OSError, struct.error, IndexError, KeyError, ValueError) as error:
        raise Unreadable(str(error)) from None


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
        expressions = list(_nested(_attributes(message).get(4, b"")))
        names = [name for name, _ in expressions]
        if names != _EXPRESSIONS:
            raise Unreadable(f"a rule of {', '.join(names)}")
        meta, compare, comment, multiport, counter, jump = (data for _, data in expressions)
        verdict = _attributes(_attributes(jump)[2])[2]
        info = _attributes(multiport)
        if (
            _attributes(meta)[2] != struct.pack(">I", _L4PROTO)
            or _attributes(compare)[2] != bytes(4)
            or _attributes(comment)[1] != b"comment\0"
            or info[1] != b"multiport\0"
            or info[2] != struct.pack(">I", 1)
            or _attributes(verdict)[1] != _JUMP
        ):
            raise Unreadable("not an entry rule")
        self._length = len(message)
        self._protocol = message.index(compare) + compare.index(_attributes(compare)[3]) + 4
        self._comment = message.index(comment) + comment.index(_attributes(comment)[3])
        self._ports = message.index(multiport) + multiport.index(info[3])
        self._target = message.index(jump) + jump.index(_attributes(verdict)[2])
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


def _chain_body(chain: str) -> bytes:
    return _attribute(1, b"nat\0") + _attribute(2, chain.encode() + b"\0")


def _dump(kind: int, family: int, body: bytes) -> list[tuple[int, bytes]]:
    """(family, attributes) of every object; asked again when the ruleset changed meanwhile."""
    for _ in range(_RETRIES):
        try:
            return list(_ask(kind, _REQUEST | _DUMP, family, body))
        except InterruptedError:
            continue
    raise Unreadable("the ruleset changes too fast")


def _ask(kind: int, flags: int, family: int, body: bytes) -> Iterator[tuple[int, bytes]]:
    request = struct.pack("=BBH", family, 0, 0) + body
    channel = socket(AF_NETLINK, SOCK_RAW, _NETLINK_NETFILTER)
    try:
        channel.bind((0, 0))
        channel.send(struct.pack("=IHHII", 16 + len(request), kind, flags, 1, 0) + request)
        while True:
            data = channel.recv(_RECEIVE)
            offset = 0
            while offset < len(data):
                length, reply, reply_flags = struct.unpack_from("=IHH", data, offset)
                if reply_flags & _DUMP_INTERRUPTED:
                    raise InterruptedError
                if reply == _DONE:
                    return
                if reply == _ERROR:
                    code = -struct.unpack_from("=i", data, offset + 16)[0]
                    if code:
                        raise OSError(code, "netlink")
                    return
                yield data[offset + 16], data[offset + _HEADER : offset + length]
                offset += (length + 3) & ~3
            if not flags & _DUMP:
                return
    finally:
        channel.close()


def _attribute(kind: int, value: bytes) -> bytes:
    return struct.pack("=HH", len(value) + 4, kind) + value + bytes(-len(value) % 4)


def _split(data: bytes) -> Iterator[tuple[int, bytes]]:
    offset = 0
    while offset + 4 <= len(data):
        length, kind = struct.unpack_from("=HH", data, offset)
        if length < 4:
            raise Unreadable("a malformed attribute")
        yield kind & 0x3FFF, data[offset + 4 : offset + length]
        offset += (length + 3) & ~3


def _attributes(data: bytes) -> dict[int, bytes]:
    return dict(_split(data))


def _nested(data: bytes) -> Iterator[tuple[str, bytes]]:
    """(name, data) of each expression in a list."""
    for _, element in _split(data):
        parts = _attributes(element)
        yield parts[1][:-1].decode(), parts.get(2, b"")
