"""The number of the last transaction that was committed, in a file beside the database.

SQLite takes a database whose log was lost or cut off for a sound one, with the last transactions silently gone. This
number, written after each commit and only ever forward, tells. Nothing waits for the disk: after power loss it may be
behind, as the database may be, and then the boot is another one.
"""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_DIGITS = 20
_FLAGS = os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK


class Sequence:
    """The number in the file `path`; 0 when there is none that can be read."""

    def __init__(self, path: str, log: Callable[[str], None]) -> None:
        self.path = path
        self.log = log

    def read(self) -> int:
        """The last transaction that is known to have been committed."""
        try:
            fd = os.open(self.path, os.O_RDONLY | _FLAGS)
        except OSError:
            return 0
        try:
            text = os.read(fd, _DIGITS + 1)
        except OSError:
            return 0
        finally:
            os.close(fd)
        return int(text) if len(text) == _DIGITS and text.isdigit() else 0

    def write(self, number: int) -> None:
        """Only forward: another command may have been quicker. A failure is logged; the transaction stands."""
        if self.read() >= number:
            return
        try:
            fd = os.open(self.path, os.O_WRONLY | os.O_CREAT | _FLAGS, 0o600)
            try:
                os.pwrite(fd, b"%0*d" % (_DIGITS, number), 0)
            finally:
                os.close(fd)
        except OSError as error:
            self.log(f"state: {self.path} cannot be written: {error.strerror}")
