"""Where invocations leave a line each, for who makes metrics and traces of them: a file under /run.

The folder is made by who reads (`cnimeta metrics`, the agent); where there is none, nothing is written. A line costs
some 30 microseconds, when the answer is out. A file that nobody reads stops at MAX_BYTES.

The reader renames the file, and waits for those who are just writing: they hold a shared lock, and look whether the
file still is the one at the path. Whoever comes later writes to another. So no line is lost or read twice, and no
writer waits for anybody.
"""

from __future__ import annotations

import os
import time

from cnimeta.host.owned import own_folder, own_open
from cnimeta.host.waiting import flocked, had_by, shared

MAX_BYTES = 4 << 20
_FILE, _TAKEN = "reports", "reports.taken"
_ATTEMPTS = 3
_WRITER_S = 0.2
"""A writer that takes longer was stopped, and is not waited for."""
_MODE = 0o600


class Spool:
    """The file in a folder. `descriptor`: of the folder, for who may find another one under its name by then."""

    def __init__(self, folder: str, descriptor: int | None = None) -> None:
        self.folder = folder
        self._at = descriptor

    @classmethod
    def made(cls, folder: str) -> Spool:
        """Make the folder, this user's alone, and keep it open. Raises OSError, NotOurs (code 104)."""
        own_folder(folder)
        return cls(folder, os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC))

    def append(self, line: bytes) -> bool:
        """Leave a line, which ends with a newline; False when it could not be left. Never raises."""
        try:
            return any(self._appended(line) for _ in range(_ATTEMPTS))
        except OSError:  # refused: no folder, no room
            return False

    def _appended(self, line: bytes) -> bool:
        path = _FILE if self._at is not None else os.path.join(self.folder, _FILE)
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK
        descriptor = os.open(path, flags, _MODE, dir_fd=self._at)
        try:
            if not shared(descriptor):  # it has just been taken away
                return False
            found = os.fstat(descriptor)
            if not os.path.samestat(found, os.stat(path, dir_fd=self._at)):
                return False
            if found.st_size + len(line) > MAX_BYTES:
                return True  # full: another attempt would not help
            return os.write(descriptor, line) == len(line)
        except FileNotFoundError:
            return False
        finally:
            os.close(descriptor)

    def take(self) -> tuple[str, bytes]:
        """(what it is known by, the lines) of the file, which is kept until `done`; ("", b"") when there are none.

        For one reader at a time. Raises OSError, NotOurs (code 104).
        """
        path, taken = (os.path.join(self.folder, name) for name in (_FILE, _TAKEN))
        if not os.path.lexists(taken):  # unknown: the rename, or the opening, meets the same failure
            try:
                os.rename(path, taken)
            except FileNotFoundError:
                return "", b""
        descriptor = own_open(taken, os.O_RDONLY)
        with open(descriptor, "rb", buffering=0) as file:
            deadline = time.monotonic() + _WRITER_S
            had_by(deadline, lambda: flocked(descriptor))
            found = os.fstat(descriptor)
            return f"{found.st_ino}:{found.st_mtime_ns}:{found.st_size}", file.read(2 * MAX_BYTES)

    def done(self) -> None:
        """What was taken has been made use of."""
        try:
            os.unlink(os.path.join(self.folder, _TAKEN))
        except FileNotFoundError:
            pass
