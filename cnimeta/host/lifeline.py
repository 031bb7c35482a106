"""A child that dies with its parent, and with it all that it has started in its process group.

A killed plugin must not leave an `nft` behind that commits after the DEL which follows. PR_SET_PDEATHSIG would have to
be set by the child itself, which `posix_spawn` cannot do and a fork costs milliseconds for; it also hangs on the
parent's thread and is lost over a set-uid exec. A pipe does it: only the parent has its writing end, and the reading
end, which the child keeps, is told to send SIGKILL when the other one closes (fcntl(2), F_SETSIG).

No gap is left between start and `tie`: the child gets its input only afterwards, and nothing that changes the host acts
before it has read that. The kernel closes descriptors in ascending order, so with a lower number than the pipe to its
stdin the signal is there before a cut input could be taken for a whole one.

A child that has asked the kernel for something when it is killed gets it all the same, and is gone only afterwards: an
`nft` may have to wait for its turn. So a program that changes the host has the locks that are held for its work, too,
and whoever comes next finds them taken until it has ended.
"""

from __future__ import annotations

import fcntl
import os

SIGKILL = 9  # importing `signal` costs 1 ms, for enum; the number is the kernel's interface
CHILD_FD = 63
"""Where a child that executes a program has the reading end: shell scripts use the numbers up to 9 as they like."""

locks: list[int] = []
"""The descriptors of the flocks that this process holds, for the host's programs to have below CHILD_FD."""


def tie(reader: int, child: int) -> None:
    """Let `child` die when the other end of the pipe closes; a negative number is a process group. Raises OSError."""
    fcntl.fcntl(reader, fcntl.F_SETOWN, child)
    fcntl.fcntl(reader, fcntl.F_SETSIG, SIGKILL)
    fcntl.fcntl(reader, fcntl.F_SETFL, fcntl.fcntl(reader, fcntl.F_GETFL) | os.O_ASYNC)


def is_cut(reader: int) -> bool:
    """Whether the other end was closed before a signal for that was asked for. Nothing is ever written to it."""
    import select

    return bool(select.select([reader], [], [], 0)[0])


class Lifeline:
    """The pipe, made before the child is and before the pipes to it."""

    def __init__(self) -> None:
        self.reader, self._writer = os.pipe2(os.O_CLOEXEC)

    def tie(self, child: int) -> None:
        """Let `child` die when this process does; a negative number is a process group. Raises OSError."""
        tie(self.reader, child)

    def follow(self, parent: int) -> None:
        """In a forked child: die when `parent` does, or has done so already. Raises OSError."""
        os.close(self._writer)
        self._writer = -1
        self.tie(os.getpid())
        if os.getppid() != parent:
            os.kill(os.getpid(), SIGKILL)

    def close(self) -> None:
        """Let go of a child that has ended; what it has left running may stay."""
        fcntl.fcntl(self.reader, fcntl.F_SETOWN, 0)
        for fd in (self._writer, self.reader):
            os.close(fd)
