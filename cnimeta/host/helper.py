"""Work that may hang or swell, in a child process that is killed at a deadline, with everything it started.

Some waiting has no timeout of its own: name resolution, a program that gives credentials, a peer that sends a byte now
and then. A process can be ended whatever it waits for, and what it may use of memory can be limited. The child is
forked, so what this process has imported costs it nothing; it keeps none of its descriptors (a lock or a socket would
live on in it) and ends with it.
"""

from __future__ import annotations

import os
import time

from cnimeta.host.lifeline import is_cut, tie

TYPE_CHECKING = False
if TYPE_CHECKING:
    import socket
    from collections.abc import Callable
    from typing import NoReturn

_LENGTH_BYTES = 4
_MEMORY_BYTES = 256 << 20
"""More than this process has, of data (RLIMIT_DATA counts what can be written, not what is only reserved)."""
_DESCRIPTORS_MAX = 1 << 20


class HelperFailed(Exception):
    """The helper gave no answer. It is gone; the next request starts another."""


class HelperTooSlow(HelperFailed):
    """The helper was not done in time, and was killed."""


class Helper:
    """A child that answers one request after the other, from the first on until one fails.

    make: called in the child, once; what it returns turns a request into its answer. What that raises ends the child.
    most_bytes: of an answer.
    """

    def __init__(self, make: Callable[[], Callable[[bytes], bytes]], most_bytes: int) -> None:
        self._make = make
        self._most_bytes = most_bytes
        self._owner = os.getpid()
        self._pid = 0
        self._line: socket.socket | None = None
        self._lifeline = -1

    def ask(self, request: bytes, timeout_s: float) -> bytes:
        """The answer. Raises HelperTooSlow, or HelperFailed when it ended, could not be started or answers too much."""
        deadline = time.monotonic() + timeout_s
        try:
            line = self._line or self._start()
            line.settimeout(_left(deadline))
            line.sendall(len(request).to_bytes(_LENGTH_BYTES, "big") + request)
            size = int.from_bytes(_received(line, _LENGTH_BYTES, deadline), "big")
            if size > self._most_bytes:
                raise HelperFailed(f"its answer is longer than {self._most_bytes} bytes")
            return _received(line, size, deadline)
        except TimeoutError:
            self.close()
            raise HelperTooSlow(f"it was not done within {timeout_s:g} s") from None
        except OSError as error:
            self.close()
            raise HelperFailed(error.strerror or str(error)) from None
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the child, and whatever it started that is still in its process group."""
        pid, self._pid = self._pid, 0
        line, self._line = self._line, None
        lifeline, self._lifeline = self._lifeline, -1
        if line is not None:
            line.close()
        if lifeline >= 0:
            os.close(lifeline)
        if pid:
            try:
                os.killpg(pid, 9)
            except OSError:  # refused: it has ended
                pass
            try:
                os.waitpid(pid, 0)
            except ChildProcessError:  # this process leaves its children to the kernel
                pass

    def __del__(self) -> None:
        if os.getpid() == self._owner:  # a fork of ours has a copy of this, and no business with it
            self.close()

    def _start(self) -> socket.socket:
        import socket

        ours, theirs = socket.socketpair()
        watched, self._lifeline = os.pipe2(os.O_CLOEXEC)
        try:
            pid = os.fork()
            if pid == 0:
                _in_child(self._make, theirs, watched)
            self._pid = pid
            self._line = ours
        finally:
            theirs.close()
            os.close(watched)
        try:
            os.setpgid(pid, pid)  # the child does so as well: whoever comes first
        except OSError:  # refused: the child has done so
            pass
        return ours


def _left(deadline: float) -> float:
    """Seconds left. Raises TimeoutError when there are none."""
    left = deadline - time.monotonic()
    if left <= 0:
        raise TimeoutError
    return left


def _received(line: socket.socket, size: int, deadline: float | None) -> bytes:
    """So many bytes. Raises TimeoutError, and HelperFailed when the other side ended."""
    data = bytearray()
    while len(data) < size:
        if deadline is not None:
            line.settimeout(_left(deadline))
        chunk = line.recv(min(size - len(data), 1 << 16))
        if not chunk:
            raise HelperFailed("it ended without an answer")
        data += chunk
    return bytes(data)


def _in_child(make: Callable[[], Callable[[bytes], bytes]], line: socket.socket, lifeline: int) -> NoReturn:
    try:
        _settle(line.fileno(), lifeline)
        serve = make()
        while True:
            size = int.from_bytes(_received(line, _LENGTH_BYTES, None), "big")
            answer = serve(_received(line, size, None))
            line.sendall(len(answer).to_bytes(_LENGTH_BYTES, "big") + answer)
    # then: the end of the child is all that may be told: texts may hold what is secret
    except BaseException:  # noqa: BLE001 - see above
        os._exit(1)


def _settle(line: int, lifeline: int) -> None:
    """Be a process of its own: other descriptors, signals, group; less memory; and an end when the parent ends."""
    import gc
    import resource
    import signal

    gc.freeze()  # nothing of the parent's is collected here: its descriptors have other owners now
    os.setpgid(0, 0)
    for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)
    os.umask(0o077)  # what is written here, by programs it starts too, is nobody else's, whatever the runtime's umask
    nothing = os.open("/dev/null", os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    first = 3
    for kept in sorted((line, lifeline)):
        os.closerange(first, kept)
        first = kept + 1
    os.closerange(first, min(os.sysconf("SC_OPEN_MAX"), _DESCRIPTORS_MAX))
    with open("/proc/self/statm", "rb") as file:
        most = int(file.read().split()[5]) * resource.getpagesize() + _MEMORY_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    tie(lifeline, -os.getpgrp())
    if is_cut(lifeline):
        os._exit(1)
