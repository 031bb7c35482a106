"""What can wait until the answer is out: closing the sockets to the packet filter.

The kernel ends a deletion of nf_tables' objects with an RCU grace period, and whoever closes a netfilter socket of that
network namespace meanwhile sleeps until it is over, 8-20 ms (nft_rcv_nl_event; it holds the lock of all transactions
while it sleeps). So nothing is closed on the way of a command: sockets are kept here, used again, and closed when the
runtime has its answer, by which time the grace period is over.

Only a process that serves one command keeps anything: `begin` says that it does. Elsewhere a socket is closed at once.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

_GRACE_PERIOD_S = 0.05
_NULL = "/dev/null"
_kept: dict[tuple[int, int, int], list[socket]] = {}
"""By place: (protocol, device and inode of the network namespace)."""
_retired: list[socket] = []
_keeping: list[bool] = []
_removed: list[bool] = []


def begin() -> None:
    """Keep sockets from here on; `close_all` or `leave` ends it."""
    _keeping.append(True)


def expect_wait() -> None:
    """Something was deleted: closing takes as long as a grace period."""
    _removed.append(True)


def place(protocol: int) -> tuple[int, int, int] | None:
    """Where a socket of this protocol that is made now belongs; None when none is kept."""
    if not _keeping:
        return None
    here = os.stat("/proc/thread-self/ns/net")
    return (protocol, here.st_dev, here.st_ino)


def take(where: tuple[int, int, int] | None) -> socket | None:
    """A kept socket of this place that nobody uses, if there is one."""
    try:
        return _kept[where].pop() if where is not None else None
    except (KeyError, IndexError):
        return None


def give(where: tuple[int, int, int] | None, link: socket) -> None:
    """A socket that is not needed any more."""
    if where is None:
        link.close()
    else:
        _kept.setdefault(where, []).append(link)


def retire(where: tuple[int, int, int] | None, link: socket) -> None:
    """A socket that must not be used again: answers to what failed may be under way."""
    if where is None:
        link.close()
    else:
        _retired.append(link)


def close_all() -> None:
    """Close what was kept, which may take as long as a grace period. For a process that is not waited for."""
    _keeping.clear()
    for links in (_retired, *_kept.values()):
        for link in links:
            link.close()
    _retired.clear()
    _kept.clear()


def leave(streams: tuple[int, ...]) -> None:
    """Leave what was kept to a child that closes it later, if that takes long, so that this process can end at once.

    `streams` are the descriptors that the runtime reads until everybody has closed them: they are /dev/null then. Where
    no process can be made, this one does the waiting.
    """
    if not _removed or not (_retired or any(_kept.values())):
        return
    nowhere = os.open(_NULL, os.O_RDWR | os.O_CLOEXEC)
    for stream in streams:
        os.dup2(nowhere, stream)
    try:
        child = os.fork()
    except OSError:
        return
    if child == 0:
        try:
            os.chdir("/")
            time.sleep(_GRACE_PERIOD_S)
        finally:
            os._exit(0)
