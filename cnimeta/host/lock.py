"""The lock between all processes of the node that change the state: `filelock` on a file of its own.

The lock file is never written, renamed or removed, so every process locks the same inode; the kernel drops the lock
when its holder dies, however it dies. The first try is the flock that filelock would do, on the same file and without
filelock's import of 40 ms; while one waits, filelock tries.
"""

from __future__ import annotations

import os
import time

from cnimeta.errors import StateUnusable, TryAgainLater
from cnimeta.host.lifeline import locks
from cnimeta.host.waiting import flocked
from cnimeta.observe import notes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from filelock import BaseFileLock

_POLL_S = 0.02
"""How often filelock asks, with jitter: those that wait together do not ask together."""


class NodeLock:
    """Lock on the file `path` (made 0600, its folder 0700), waiting at most `timeout_s` seconds.

    kind: what metrics call it.
    """

    def __init__(self, path: str, timeout_s: float = 10, kind: str = "attachment") -> None:
        self.path = path
        self.timeout_s = timeout_s
        self._kind = kind

    def held(self) -> _Held:
        """A `with` block under the lock. TryAgainLater (11) after the deadline, StateUnusable (104) when the file
        cannot be opened.
        """
        return _Held(self.path, self.timeout_s, self._kind)


class _Held:
    def __init__(self, path: str, timeout_s: float, kind: str) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._kind = kind
        self._descriptor = -1
        self._shared = -1
        self._lock: BaseFileLock | None = None

    def __enter__(self) -> None:
        try:
            try:
                self._descriptor = _try_once(self._path)
            except FileNotFoundError:
                os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
                self._descriptor = _try_once(self._path)
            self._shared = self._descriptor
            if self._descriptor < 0:
                began = notes.moment()
                try:
                    self._lock = self._wait()
                finally:
                    notes.waited(self._kind, began)
                self._shared = self._of_filelock()
            if self._shared >= 0:
                locks.append(self._shared)
        except OSError as error:
            raise StateUnusable(
                f"the lock {self._path} cannot be used: {error.strerror or error}; check dataDir and its file system"
            ) from None

    def __exit__(self, *_: object) -> None:
        if self._shared in locks:
            locks.remove(self._shared)
        if self._descriptor >= 0:
            os.close(self._descriptor)  # the kernel drops the lock with it
            self._descriptor = -1
        elif self._lock is not None:
            self._lock.release()
            self._lock = None

    def _wait(self) -> BaseFileLock:
        from filelock import FileLock, Timeout

        deadline = time.monotonic() + self._timeout_s
        while True:
            lock = FileLock(self._path, mode=0o600, thread_local=False)
            left_s = max(0.0, deadline - time.monotonic())
            try:
                lock.acquire(timeout=left_s, poll_interval=_POLL_S * (0.5 + os.urandom(1)[0] / 256))
            except Timeout:
                raise TryAgainLater(
                    f"the lock {self._path} could not be acquired within {self._timeout_s:g} s: another process has it"
                ) from None
            except FileNotFoundError:  # removed between filelock's look at it and its opening it
                if time.monotonic() >= deadline:
                    raise
                continue
            if self._is_held_at_path():
                return lock
            lock.release()

    def _of_filelock(self) -> int:
        try:
            return _descriptor_of(self._path)
        except OSError:  # unknown: its programs go without the lock
            return -1

    def _is_held_at_path(self) -> bool:
        """Whether nobody can lock what is at the path now: some releases of filelock remove it when they let go."""
        try:
            descriptor = os.open(self._path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        try:
            return not flocked(descriptor)
        finally:
            os.close(descriptor)


def _try_once(path: str) -> int:
    """A descriptor that holds the lock, -1 when another one does.

    A file that was removed since it was opened is no lock any more: the next one would lock another file.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        had = False
        try:
            had = flocked(descriptor)
            if not had or _is_at(descriptor, path):
                return descriptor if had else -1
            had = False
        finally:
            if not had:
                os.close(descriptor)


def _descriptor_of(path: str) -> int:
    """The descriptor of this process that leads to the file, which filelock does not tell; -1 when it is not found."""
    found = os.stat(path)
    for name in os.listdir("/proc/self/fd"):
        try:
            if os.path.samestat(os.fstat(int(name)), found):
                return int(name)
        except OSError:  # unknown: the one that lists them is closed by now
            continue
    return -1


def _is_at(descriptor: int, path: str) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False
