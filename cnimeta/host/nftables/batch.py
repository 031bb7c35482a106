"""A transaction of nf_tables: requests that are made together or not at all, in one datagram.

The kernel works it off before the call returns, so a kill comes before all or after all of it. Every answer names the
request it is about by its sequence number.
"""

from __future__ import annotations

import errno
import os
import struct
from _socket import SO_RCVBUF, SO_SNDBUF, SOL_SOCKET, socket

from cnimeta.host import afterwards
from cnimeta.host.netlink import ACK, ERROR, NETFILTER, Conversation, attribute, messages, request
from cnimeta.host.nftables.wire import BATCH, BATCH_BEGIN, BATCH_END, DELETIONS
from cnimeta.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cnimeta.host.netlink import Connect, Order

_SO_SNDBUFFORCE, _SO_RCVBUFFORCE = 32, 33
_SOL_NETLINK, _NETLINK_CAP_ACK = 270, 10
_ROOM_BYTES = 100_000
"""What a socket's buffers have room for by default, by any kernel's account."""
_ANSWER_BYTES = 1024  # what the kernel charges for one
_BEGIN = 0
_BATCH_GENERATION = 1  # NFNL_BATCH_GENID
_AT_ONCE = 0x40  # MSG_DONTWAIT


class Verdict(NamedTuple):
    """What the kernel said: the errno of the first refusal, 0 for none; the place of the request, -1 for none's."""

    number: int
    place: int = -1


def transact(orders: Sequence[Order], *, keep: bool, since: int = 0, connect: Connect = socket) -> Verdict:
    """Make all of the requests, or none. Without `keep` none is, and the kernel judges them all the same.

    With `since`, a generation of the ruleset, none is made when the ruleset is of another: ERESTART.
    OSError when it is unknown what became of them.
    """
    last = len(orders)
    named = attribute(_BATCH_GENERATION, struct.pack(">I", since)) if since else b""
    parts = [request(_BEGIN, BATCH_BEGIN, 0, BATCH + named)]
    for at, (kind, flags, body) in enumerate(orders, 1):
        parts.append(request(at, kind, flags | (ACK if at == last else 0), body))
    if keep:
        parts.append(request(last + 1, BATCH_END, 0, BATCH))
        if any(kind in DELETIONS for kind, _, _ in orders):
            afterwards.expect_wait()
    data = b"".join(parts)
    with Conversation(NETFILTER, connect) as link:
        _make_room(link, len(data), last)
        link.send(data)
        first = Verdict(0)
        for at, number in _answers(link):
            if number and not first.number:
                first = Verdict(number, at - 1)
            if at == last or (at == _BEGIN and number):
                return first
    if not first.number:
        raise OSError(errno.ENOBUFS, os.strerror(errno.ENOBUFS))
    return first


def _make_room(link: Conversation, size: int, answers: int) -> None:
    link.option(_SOL_NETLINK, _NETLINK_CAP_ACK, 1)  # an answer need not repeat the request
    if size > _ROOM_BYTES:
        link.option(SOL_SOCKET, SO_SNDBUF, size * 2)
        link.option(SOL_SOCKET, _SO_SNDBUFFORCE, size * 2)
    if answers * _ANSWER_BYTES > _ROOM_BYTES:
        link.option(SOL_SOCKET, SO_RCVBUF, answers * _ANSWER_BYTES)
        link.option(SOL_SOCKET, _SO_RCVBUFFORCE, answers * _ANSWER_BYTES)


def _answers(link: Conversation) -> Iterator[tuple[int, int]]:
    """(sequence number, errno) of each answer as it comes, until some turn out to be lost: then those that are left."""
    flags = 0
    while True:
        try:
            data = link.receive(flags)
        except TimeoutError:
            if flags:
                return
            raise
        except OSError as error:
            if error.errno != errno.ENOBUFS:
                raise
            flags = _AT_ONCE
            continue
        for kind, _, sequence, body in messages(data):
            if kind == ERROR:
                yield sequence, -struct.unpack_from("=i", body)[0]
