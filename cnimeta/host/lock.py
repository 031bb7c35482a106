"""The lock between all processes of the node that change the state: `filelock` on a file of its own.

The lock file is never written, renamed or removed, so every process locks the same inode; the kernel drops the lock
when its holder dies, however it dies. The first try is the flock that filelock would do, on the same file and without
filelock's import of 40 ms; filelock does the waiting. Waiting polls (filelock cannot block with a deadline), from 1 ms
up to 50 ms with jitter, so that hundreds of waiting processes neither wake together nor use the processor up.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time

from cnimeta.errors import StateUnusable, TryAgainLater

TYPE_CHECKING = False
if TYPE_CHECKING:
    from filelock import BaseFileLock

_FIRST_WAIT_S = 0.001
_LONGEST_WAIT_S = 0.05


class NodeLock:
    """Lock on the file `path` (made 0600, its folder 0700), waiting at most `timeout_s` seconds."""

    def __init__(self, path: str, timeout_s: float = 10) -> None:
        self.path = path
        self.timeout_s = timeout_s

    def held(self) -> _Held:
        """A `with` block under the lock. TryAgainLater (11) after the deadline, StateUnusable (104) when the file
        cannot be opened.
        """
        return _Held(self.path, self.timeout_s)


class _Held:
    def __init__(self, path: str, timeout_s: float) -> None:
        self._path = path
        self._timeout_s = timeout_s
        self._descriptor = -1
        self._lock: BaseFileLock | None = None

    def __enter__(self) -> None:
        try:
            os.makedirs(os.path.dirname(self._path), mode=0o700, exist_ok=True)
            self._descriptor = _try_once(self._path)
            if self._descriptor < 0:
                self._lock = self._wait()
        except OSError as error:
            raise StateUnusable(
                f"the lock {self._path} cannot be used: {error.strerror or error}; check dataDir and its file system"
            ) from None

    def __exit__(self, *_: object) -> None:
        if self._descriptor >= 0:
            os.close(self._descriptor)  # the kernel drops the lock with it
            self._descriptor = -1
        elif self._lock is not None:
            self._lock.release()
            self._lock = None

    def _wait(self) -> BaseFileLock:
        from filelock import FileLock, Timeout

        deadline = time.monotonic() + self._timeout_s
        wait_s = _FIRST_WAIT_S
        lock = FileLock(self._path, mode=0o600, thread_local=False)
        while True:
            try:
                lock.acquire(blocking=False)
            except Timeout:
                if time.monotonic() >= deadline:
                    raise TryAgainLater(
                        f"the lock {self._path} was not had within {self._timeout_s:g} s: another process holds it"
                    ) from None
            else:
                return lock
            time.sleep(wait_s * (0.5 + os.urandom(1)[0] / 256))
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def _try_once(path: str) -> int:
    """A descriptor that holds the lock, -1 when another one does."""
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        if error.errno not in (errno.EAGAIN, errno.EACCES):
            raise
        return -1
    return descriptor
