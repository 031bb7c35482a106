"""Closing late: what is slow to close, and changes nothing any more, is closed after the answer is out.

The kernel works off what a netfilter socket has deleted while that socket closes, for 8-20 ms (a grace period of RCU).
The runtime need not wait for that. So the processes that serve one invocation and then end (`begin`) hold such
descriptors until they have answered; everywhere else they are closed at once.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol

    class Closable(Protocol):
        """A socket, say."""

        def fileno(self) -> int:
            """Its descriptor."""

        def close(self) -> object:
            """Give it up."""


_held: list[Closable] | None = None
_DESCRIPTORS_MAX = 1 << 16


def begin() -> None:
    """This process answers once and ends: from now on, hold what is closed late."""
    global _held  # noqa: PLW0603 - it is about this process
    _held = []


def close(thing: Closable) -> None:
    """Close it when the answer is out; now, in a process that answers more than once."""
    if _held is None:
        thing.close()
    else:
        _held.append(thing)


def leave() -> None:
    """The answer is out, and this process is about to end by `os._exit`: let a child close what is held, if any.

    The last to close a descriptor is who waits. The child keeps nothing else open: who reads our output sees its end.
    Where it cannot be had, this process waits itself.
    """
    if not _held:
        return
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
        finally:
            os._exit(0)
