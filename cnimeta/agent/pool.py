"""The agent's side of its workers: who waits, who works, and when there is to be another one.

A burst queues: a few workers for each processor serve many invocations one after the other, in less time than as many
forks as there are invocations would take. Another one is made while a processor is idle, as when all workers wait for
slow delegates, and when none has come back for a while.
"""

from __future__ import annotations

import os
import socket
from typing import TYPE_CHECKING

from cnimeta.agent.wire import WAITING

if TYPE_CHECKING:
    from collections.abc import Callable

TIRED = 1000
"""Invocations that one worker serves at most: what it may have leaked ends with it."""
STALLED_S = 0.3
"""So long nobody is served before another worker is made, however busy the processors are."""
_TOLD_S = 3.0
"""How often a launcher is told to wait on: well within its patience (wire.PATIENCE_S)."""

# What a worker says, with a few words of what it is about:
TAKEN, LASTING, LEAVING, DONE = b"t", b"s", b"l", b"d"
"""It has taken a connection; it serves it and will be back; it serves it and then ends; it is back."""
# What it is handed, with a descriptor:
LISTENER, CONNECTION = b"w", b"c"
"""Where to wait; somebody who has been greeted."""
_WORD_BYTES = 512


class Worker:
    """One that may come back. `link` is the agent's end of a socket pair; when it closes, an idle worker ends."""

    def __init__(self, pid: int, link: socket.socket, *, idle: bool) -> None:
        self.pid = pid
        self.link = link
        self.idle = idle
        self.served = 0
        link.setblocking(False)

    def hand(self, what: bytes, given: socket.socket) -> bool:
        """Give it something to do. False when it is not there any more."""
        try:
            socket.send_fds(self.link, [what], [given.fileno()])
        except OSError:
            return False
        return True

    def heard(self) -> tuple[bytes, str] | None:
        """The next of its words, and what it is about. None when there is none yet; empty ones when it has ended."""
        try:
            said = self.link.recv(_WORD_BYTES)
        except BlockingIOError:
            return None
        except OSError:
            return b"", ""
        return said[:1], said[1:].decode("utf-8", "replace")


def say(link: socket.socket, word: bytes, about: str = "") -> None:
    """A worker's word to the agent. One that has been killed hears nothing, and the work goes on."""
    try:
        link.send(word + about.encode("utf-8", "backslashreplace")[: _WORD_BYTES - 1])
    except OSError:
        pass


def handed(link: socket.socket) -> tuple[bytes, socket.socket | None]:
    """Wait for what the agent hands to a worker; None when it needs this one no more, or has ended."""
    try:
        what, descriptors, _, _ = socket.recv_fds(link, 1, 1, socket.MSG_CMSG_CLOEXEC)
    except OSError:
        return b"", None
    return what, socket.socket(fileno=descriptors[0]) if descriptors else None


class Greeted:
    """Somebody who has been greeted at `now`, and waits for a worker."""

    def __init__(self, connection: socket.socket, now: float) -> None:
        self.connection = connection
        self._told = now

    def is_patient(self, now: float) -> bool:
        """Whether it waits on, having been told to when it is time. False when it has gone away."""
        if now - self._told < _TOLD_S:
            return True
        self._told = now
        try:
            self.connection.send(WAITING, socket.MSG_DONTWAIT)
        except BlockingIOError:  # it has not even read what it was told before
            pass
        except OSError:
            return False
        return True


class Pool:
    """The workers that may come back, by process ID.

    `kept`: how many of them stay when there is nothing to do. `is_processor_idle`: asked when there may be too few.
    """

    def __init__(self, kept: int, is_processor_idle: Callable[[], bool] | None = None) -> None:
        self.kept = kept
        self.workers: dict[int, Worker] = {}
        self._at_once = max(kept, 2 * len(os.sched_getaffinity(0)))
        self._is_processor_idle = is_processor_idle or is_processor_idle_now
        self._moved = 0.0

    @property
    def idle(self) -> int:
        """How many wait for a connection."""
        return sum(worker.idle for worker in self.workers.values())

    def is_short(self) -> bool:
        """Whether one is missing of those that stay."""
        return len(self.workers) < self.kept

    def moved(self, now: float) -> None:
        """Somebody is being served: a connection was taken, or handed over."""
        self._moved = now

    def wants_another(self, now: float) -> bool:
        """Whether there is to be another one while somebody waits, as all others work."""
        return len(self.workers) < self._at_once or now - self._moved > STALLED_S or self._is_processor_idle()

    def may_wait(self, worker: Worker) -> bool:
        """Whether one that is back is to wait for a connection itself."""
        return worker.served < TIRED and self.idle < self.kept

    def forget(self, pid: int) -> bool:
        """It has ended, or will not be back: give up its link. Whether it was idle."""
        worker = self.workers.pop(pid, None)
        if worker is None:
            return False
        worker.link.close()
        return worker.idle


def is_processor_idle_now() -> bool:
    """Whether no more processes can run than there are processors, this one included. True where nothing tells."""
    try:
        with open("/proc/loadavg", encoding="ascii") as file:
            running = int(file.read().split()[3].partition("/")[0])
    except (OSError, LookupError, ValueError):  # unknown: work that waits is worse than a fork too many
        return True
    return running <= len(os.sched_getaffinity(0))
