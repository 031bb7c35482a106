"""A small netlink client: requests, their answers, their errors; and what the launch path asks nf_tables.

`pyroute2` does this too and costs 145 ms to import, and 0.3 ms a request for its event loop. Wire format:
linux/netlink.h, linux/netfilter/nf_tables.h.
"""

from __future__ import annotations

import errno
import os
import struct
from _socket import AF_NETLINK, SO_RCVTIMEO, SOCK_CLOEXEC, SOCK_RAW, SOL_SOCKET, socket

from cnimeta.errors import IoFailure
from cnimeta.host import afterwards
from cnimeta.host.reading import retried, told
from cnimeta.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import ParamSpec, TypeAlias, TypeVar

    P = ParamSpec("P")
    R = TypeVar("R")

    Order: TypeAlias = tuple[int, int, bytes]
    """A request: (type, flags, what follows the netlink header)."""
    Connect: TypeAlias = Callable[[int, int, int], socket]
    """Makes a socket of (family, kind, protocol)."""
    Ask: TypeAlias = Callable[[int, int, int, bytes], "list[Message]"]
    """`ask`: (protocol, type, flags, body) to answers."""
    First: TypeAlias = Callable[[int, int, bytes], "Message | None"]
    """`first`: (protocol, type, body) to an answer."""
    Tell: TypeAlias = Callable[[int, Sequence[Order]], None]
    """`tell`."""

ROUTE, NETFILTER = 0, 12
REQUEST, ACK, DUMP = 0x1, 0x4, 0x300
NESTED = 0x8000
ERROR = 2
_DONE, _DUMP_INTERRUPTED = 3, 0x10
_RECEIVE_BYTES = 1 << 16  # more than the kernel puts in one datagram; malloc takes longer for 128 KiB and more
_TIMEOUT_S = 10
"""The kernel answers before the request's call returns; some do not answer at all to what they do not know."""
_NFT_GETCHAIN, _NFT_GETTABLE, _NFT_GETRULE = (10 << 8) | 4, (10 << 8) | 1, (10 << 8) | 7
_NFT_GETGEN = (10 << 8) | 16
_NFPROTO = {"inet": 1, "ip": 2, "ip6": 10}


class Message(NamedTuple):
    """One answer: its type, and what follows the netlink header."""

    type: int
    body: bytes


def understood(what: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Decorate what takes the kernel's answers apart: one that is cut off or of another form is IoFailure (code 5)."""

    def decorated(read: Callable[P, R]) -> Callable[P, R]:
        def reading(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                return read(*args, **kwargs)
            except (struct.error, LookupError, ValueError) as error:
                raise IoFailure(
                    f"cannot read {what}: the kernel's answer is not understood ({type(error).__name__})"
                ) from None

        reading.__doc__ = read.__doc__
        return reading

    return decorated


def attribute(number: int, value: bytes) -> bytes:
    """One attribute, padded."""
    return struct.pack("=HH", len(value) + 4, number) + value + b"\0" * (-len(value) % 4)


def each_attribute(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(number, value) of each attribute in `data`, flags cleared."""
    at = 0
    while at + 4 <= len(data):
        length, number = struct.unpack_from("=HH", data, at)
        if length < 4:
            break
        yield number & 0x3FFF, data[at + 4 : at + length]
        at += (length + 3) & ~3


def attributes(data: bytes) -> dict[int, bytes]:
    """The attributes in `data` by number."""
    return dict(each_attribute(data))


def ask(protocol: int, kind: int, flags: int, body: bytes, connect: Connect = socket) -> list[Message]:
    """Send one request that only reads, and collect its answers. Raises OSError with the kernel's errno.

    It is sent again when it fails in passing, and when what it lists changed meanwhile (NLM_F_DUMP_INTR), which in the
    end is an InterruptedError.
    """
    return retried(lambda: _asked(protocol, kind, flags, body, connect))


def _asked(protocol: int, kind: int, flags: int, body: bytes, connect: Connect) -> list[Message]:
    with Conversation(protocol, connect) as link:
        link.send(request(1, kind, flags, body))
        answer = _answer(link, until_end=bool(flags & (DUMP | ACK)))
    if answer.refusal:
        raise OSError(answer.refusal, os.strerror(answer.refusal))
    if answer.interrupted:
        raise InterruptedError(errno.EINTR, "it changes too fast to be listed")
    return answer.found


def first(protocol: int, kind: int, body: bytes, connect: Connect = socket) -> Message | None:
    """The first of what would be listed, if there is any; the rest is left. Raises OSError with the kernel's errno."""
    return retried(lambda: _first(protocol, kind, body, connect))


def _first(protocol: int, kind: int, body: bytes, connect: Connect) -> Message | None:
    with Conversation(protocol, connect) as link:
        link.send(request(1, kind, DUMP, body))
        answer = _answer(link, until_end=False)
        if answer.found:
            link.leave()
    if answer.refusal:
        raise OSError(answer.refusal, os.strerror(answer.refusal))
    return answer.found[0] if answer.found else None


def tell(protocol: int, orders: Sequence[Order], connect: Connect = socket) -> None:
    """Send (kind, flags, body) requests as one datagram, which the kernel works off before the call returns.

    So a kill comes before all or after all of them. Raises OSError with the errno of the first that was refused; the
    kernel goes on with the others.
    """
    with Conversation(protocol, connect) as link:
        link.send(b"".join(request(at, kind, flags | ACK, body) for at, (kind, flags, body) in enumerate(orders)))
        answers = [_answer(link, until_end=True) for _ in orders]
    for answer in answers:
        if answer.refusal:
            raise OSError(answer.refusal, os.strerror(answer.refusal))


_idle: dict[tuple[int, int] | None, list[socket]] = {}
"""Sockets to netfilter that are kept, by their network namespace (device and inode)."""


def _place() -> tuple[int, int]:
    here = os.stat("/proc/thread-self/ns/net")
    return here.st_dev, here.st_ino


def keeps_only_idle() -> bool:
    """Whether all that this process holds for later (`afterwards`) are sockets for its next conversations here."""
    return afterwards.count() == len(_idle.get(_place(), ()))


class Conversation:
    """A socket to the kernel for a `with` block, with a receive timeout.

    One to netfilter is kept for the next conversation where the process serves a single command, as it may be slow to
    close (see `afterwards`); unless the block failed: answers may be under way.
    """

    def __init__(self, protocol: int, connect: Connect = socket) -> None:
        self._protocol, self._connect = protocol, connect
        self._left = False

    def __enter__(self) -> Conversation:
        kept = self._protocol == NETFILTER and afterwards.holding()
        self._place = _place() if kept else None
        idle = _idle.get(self._place)
        self._link = idle.pop() if idle else self._opened()
        return self

    def _opened(self) -> socket:
        try:
            link = self._connect(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, self._protocol)
        except OSError as error:
            if error.errno != errno.EAFNOSUPPORT:
                raise
            # Every kernel has netlink: a filter says so (systemd's RestrictAddressFamilies), whatever the kernel holds.
            raise PermissionError(
                errno.EPERM, "netlink is forbidden to this process (RestrictAddressFamilies?)"
            ) from None
        try:
            link.setsockopt(SOL_SOCKET, SO_RCVTIMEO, struct.pack("@ll", _TIMEOUT_S, 0))
        except BaseException:
            link.close()
            raise
        if self._place is not None:
            afterwards.hold(link)
        return link

    def leave(self) -> None:
        """Answers may be under way: the socket is not used again."""
        self._left = True

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if self._place is None:
            self._link.close()
        elif kind is None and not self._left:
            _idle.setdefault(self._place, []).append(self._link)

    def option(self, level: int, name: int, value: int) -> None:
        """Set an option of the socket; one that the kernel does not know, or may not be had, is done without."""
        try:
            self._link.setsockopt(level, name, value)
        except OSError:  # refused: it is done without
            pass

    def send(self, data: bytes) -> None:
        """One datagram."""
        self._link.send(data)

    def receive(self, flags: int = 0) -> bytes:
        """One datagram. Raises OSError: ETIMEDOUT when there is none in time, ENOBUFS when some were lost."""
        try:
            return self._link.recv(_RECEIVE_BYTES, flags)
        except BlockingIOError:
            raise TimeoutError(errno.ETIMEDOUT, f"the kernel did not answer within {_TIMEOUT_S} s") from None


def request(sequence: int, kind: int, flags: int, body: bytes) -> bytes:
    """A message to the kernel, padded so that another can follow."""
    header = struct.pack("=IHHII", 16 + len(body), kind, REQUEST | flags, sequence, 0)
    return header + body + b"\0" * (-len(body) % 4)


class _Answer(NamedTuple):
    """What came back to a request: messages, whether what they list changed meanwhile, the errno of a refusal or 0."""

    found: list[Message]
    interrupted: bool
    refusal: int


def _answer(link: Conversation, *, until_end: bool) -> _Answer:
    found: list[Message] = []
    interrupted = False
    while True:
        for kind, flags, body in split(link.receive()):
            interrupted = interrupted or bool(flags & _DUMP_INTERRUPTED)
            if kind in (_DONE, ERROR):  # a _DONE with an errno: the listing broke off
                number = -struct.unpack_from("=i", body)[0] if len(body) >= 4 else 0
                return _Answer(found, interrupted, max(number, 0))
            found.append(Message(kind, body))
            if not until_end:
                return _Answer(found, interrupted, 0)


def split(data: bytes) -> Iterator[tuple[int, int, bytes]]:
    """The messages of a datagram: (type, flags, what follows the header)."""
    for kind, flags, _, body in messages(data):
        yield kind, flags, body


def messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    """The messages of a datagram: (type, flags, the request's sequence number, what follows the header)."""
    at = 0
    while at + 16 <= len(data):
        length, kind, flags, sequence, _ = struct.unpack_from("=IHHII", data, at)
        if length < 16:
            break
        yield kind, flags, sequence, data[at + 16 : at + length]
        at += (length + 3) & ~3


NFT_ABSENT = (errno.ENOENT, errno.EINVAL, errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT)
"""No such object; no nf_tables in this kernel (EINVAL: nfnetlink knows no such subsystem); not this family; no netlink
for netfilter at all.
"""


def nft_chain_exists(family: str, table: str, chain: str, ask: Ask = ask) -> bool:
    """Whether nf_tables has the chain. False also where the kernel has no nf_tables; IoFailure (5) when unknown."""
    body = struct.pack("=BBH", _NFPROTO[family], 0, 0)
    body += attribute(1, table.encode() + b"\0") + attribute(3, chain.encode() + b"\0")
    what = f"the nftables chain {family} {table} {chain}"
    return told(what, lambda: ask(NETFILTER, _NFT_GETCHAIN, 0, body), NFT_ABSENT) is not None


@understood("the chains of an nftables table")
def nft_chain_uses(family: str, table: str, ask: Ask = ask) -> dict[str, int]:
    """Each chain of a table and the kernel's count of its uses: its rules, and what leads to it. IoFailure (code 5)."""
    body = struct.pack("=BBH", _NFPROTO[family], 0, 0) + attribute(1, table.encode() + b"\0")
    what = f"the chains of the nftables table {family} {table}"
    found = {}
    for message in told(what, lambda: ask(NETFILTER, _NFT_GETCHAIN, DUMP, body), NFT_ABSENT) or ():
        parts = attributes(message.body[4:])
        if message.body[0] == _NFPROTO[family] and parts.get(1) == table.encode() + b"\0":
            found[parts[3][:-1].decode("utf-8", "replace")] = struct.unpack(">I", parts[6])[0]
    return found


def nft_rule_count(family: str, table: str, chain: str, ask: Ask = ask) -> int:
    """How many rules a chain has, none when there is no such chain. IoFailure (code 5)."""
    body = struct.pack("=BBH", _NFPROTO[family], 0, 0)
    body += attribute(1, table.encode() + b"\0") + attribute(2, chain.encode() + b"\0")
    what = f"the rules of the nftables chain {family} {table} {chain}"
    return len(told(what, lambda: ask(NETFILTER, _NFT_GETRULE, DUMP, body), NFT_ABSENT) or ())


def nft_table_exists(family: str, table: str, ask: Ask = ask) -> bool:
    """Whether nf_tables has the table. IoFailure (code 5) when unknown."""
    body = struct.pack("=BBH", _NFPROTO[family], 0, 0) + attribute(1, table.encode() + b"\0")
    what = f"the nftables table {family} {table}"
    return told(what, lambda: ask(NETFILTER, _NFT_GETTABLE, 0, body), NFT_ABSENT) is not None


@understood("the generation of the nftables ruleset")
def nft_generation(ask: Ask = ask) -> int:
    """The number of the ruleset, another after every transaction; 0 without nf_tables. IoFailure (code 5)."""
    what, body = "the generation of the nftables ruleset", struct.pack("=BBH", 0, 0, 0)
    answers = told(what, lambda: ask(NETFILTER, _NFT_GETGEN, 0, body), NFT_ABSENT)
    return struct.unpack(">I", attributes(answers[0].body[4:])[1])[0] if answers else 0


@understood("the nftables tables")
def nft_tables(ask: Ask = ask) -> set[tuple[str, str]]:
    """(family, name) of every table of inet, ip and ip6; none where the kernel has no nf_tables. IoFailure (code 5)."""
    body = struct.pack("=BBH", 0, 0, 0)
    messages = told("the nftables tables", lambda: ask(NETFILTER, _NFT_GETTABLE, DUMP, body), NFT_ABSENT) or []
    names = {number: name for name, number in _NFPROTO.items()}
    return {
        (names[message.body[0]], attributes(message.body[4:]).get(1, b"")[:-1].decode("utf-8", "replace"))
        for message in messages
        if message.body[0] in names
    }
