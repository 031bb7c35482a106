"""The number of the last transaction that was committed, in a file beside the database.

SQLite takes a database whose log was lost or cut off for a sound one, with the last transactions silently gone. This
number, written after each commit and only ever forward, tells. Nothing waits for the disk: after power loss it may be
behind, as the database may be, and then the boot is another one.
"""

from __future__ import annotations

import os
from binascii import crc32

from cnimeta.errors import StateUnusable
from cnimeta.host.owned import own_open

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_DIGITS = 18
_BYTES = _DIGITS + 1 + 8
_READS = 3  # one that meets a write can see half of it


class Sequence:
    """The number in the file `path`: digits, and their checksum."""

    def __init__(self, path: str, log: Callable[[str], None]) -> None:
        self.path = path
        self.log = log

    def read(self) -> int | None:
        """The last transaction that is known to have been committed; None when it is not known.

        Raises OSError, NotOurs (code 104) when the file cannot be read.
        """
        try:
            descriptor = own_open(self.path, os.O_RDONLY)
        except FileNotFoundError:
            return None
        try:
            return _read(descriptor)
        finally:
            os.close(descriptor)

    def write(self, number: int) -> bool:
        """Only forward: another command may have been quicker. A failure is logged, and False: the commit stands."""
        try:
            descriptor = own_open(self.path, os.O_RDWR | os.O_CREAT)
            try:
                now = _read(descriptor)
                if now is None or now < number:
                    os.pwrite(descriptor, _encode(number), 0)
            finally:
                os.close(descriptor)
        except (OSError, StateUnusable) as error:
            self.log(f"state: {self.path} cannot be written: {error}")
            return False
        return True


def _read(descriptor: int) -> int | None:
    for _ in range(_READS):
        text = os.pread(descriptor, _BYTES + 1, 0)
        digits = text[:_DIGITS]
        if digits.isdigit() and text == _encode(int(digits)):
            return int(digits)
    return None


def _encode(number: int) -> bytes:
    digits = b"%0*d" % (_DIGITS, number)
    return b"%s %08x" % (digits, crc32(digits))
