"""Closing late: what is slow to close, and changes nothing any more, is closed after the answer is out.

The kernel works off what a netfilter socket has deleted while that socket closes, for 8-20 ms (a grace period of RCU).
The runtime need not wait for that. So the processes that serve an invocation and then end, or another one (`begin`),
hold such descriptors until they end; everywhere else they are closed at once.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Held(Protocol):
        """A socket, say."""

        def fileno(self) -> int:
            """Its descriptor."""
            ...


_held: list[Held] | None = None
_slow = False
_awaited = True
_GRACE_PERIOD_S = 0.05
_DESCRIPTORS_MAX = 1 << 16


def begin(*, awaited: bool = True) -> None:
    """This process answers and ends, or answers another one: from now on, hold what is closed late.

    awaited: somebody waits for its end.
    """
    global _held, _awaited
    _held, _awaited = _held or [], awaited


def holding() -> bool:
    """Whether this process holds what is closed late."""
    return _held is not None


def may_linger() -> bool:
    """Whether this process ends soon, and nobody waits until it has."""
    return _held is not None and not _awaited


def hold(thing: Held) -> None:
    """Something to be closed with the process, which goes on using it. It is slow only after `expect_wait`."""
    if _held is not None:
        _held.append(thing)


def count() -> int:
    """How many things are held."""
    return len(_held or ())


def expect_wait() -> None:
    """Something was deleted: to close any of what is held takes a grace period now."""
    global _slow  # noqa: PLW0603 - it is about this process
    _slow = True


def leave(*streams: int) -> None:
    """The answer is out, and this process is about to end by `os._exit`: let a child close what is slow, if any.

    The last to close a descriptor is who waits. The child keeps nothing else open: who reads our output sees its end;
    `streams` are such descriptors, which are given up before, so that nobody waits for the child to begin. It closes
    nothing before the grace period is over: the kernel would keep every other transaction waiting with it. Where it
    cannot be had, this process waits itself.
    """
    if not _held or not _slow:
        return
    nowhere = os.open("/dev/null", os.O_RDWR | os.O_CLOEXEC)
    for stream in streams:
        os.dup2(nowhere, stream)
    try:
        child = os.fork()
    except OSError:  # refused: this process waits itself
        return
    if child == 0:
        try:
            at = 0
            for kept in sorted(thing.fileno() for thing in _held):
                os.closerange(at, kept)
                at = kept + 1
            os.closerange(at, _DESCRIPTORS_MAX)
            linger()
        finally:
            os._exit(0)


def linger() -> None:
    """As `leave`, in a process that nobody waits for: be there until what it closes by ending holds up nobody."""
    if _held and _slow:
        time.sleep(_GRACE_PERIOD_S)
