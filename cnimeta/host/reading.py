"""A read of the host has three answers: there, not there, and unknown; unknown is never taken for not there.

Not there is what the kernel says in so many words (ENOENT, or that it lacks the family or module). A passing failure is
tried again, any other is raised: whoever asks must not act on what nobody knows.
"""

from __future__ import annotations

import errno
import os
import stat
import time

from cnimeta.errors import IoFailure

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Container
    from typing import TypeVar

    T = TypeVar("T")

PASSING = (errno.EINTR, errno.EAGAIN, errno.ENOBUFS)
NOT_HERE = (errno.ENOENT, errno.ENOTDIR, errno.EACCES, errno.ELOOP, errno.ENAMETOOLONG)
"""What says that a folder of a PATH has no such program: any other failure leaves it open."""
_SETTING_BYTES = (4096, 1 << 18)
"""Room for nearly every setting; for a list of every second port."""
_ATTEMPTS = 8
_FIRST_WAIT_S = 0.0005


def retried(attempt: Callable[[], T]) -> T:
    """What `attempt` gives, which may be made several times: 64 ms of waiting at most. Raises its last OSError."""
    wait_s = _FIRST_WAIT_S
    for left in range(_ATTEMPTS - 1, -1, -1):
        try:
            return attempt()
        except OSError as error:
            if error.errno not in PASSING or not left:
                raise
        time.sleep(wait_s)
        wait_s *= 2
    raise AssertionError("unreachable")


def told(what: str, attempt: Callable[[], T], absent: Container[int | None] = (errno.ENOENT,)) -> T | None:
    """What `attempt` gives; None when it fails with an errno of `absent`.

    IoFailure (code 5), naming `what`, for any other.
    """
    try:
        return attempt()
    except OSError as error:
        if error.errno in absent:
            return None
        raise IoFailure(f"cannot read {what}: {error.strerror or error}") from None


def read_file(path: str) -> bytes | None:
    """The content of a file, one of the kernel's as a rule; None when there is none. IoFailure (code 5)."""
    return told(path, lambda: retried(lambda: _content(path)))


def read_setting(path: str) -> bytes:
    """The value of a setting under /proc/sys, read in one call: the kernel cuts what has no room in it, within a number
    too, and gives nothing to a second one. Raises OSError.
    """
    data = b""
    for size in _SETTING_BYTES:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            data = os.read(descriptor, size)
        finally:
            os.close(descriptor)
        if len(data) < size:
            break
    return data


def read_plain(path: str, most_bytes: int) -> bytes:
    """The content of a plain file that somebody keeps by hand. Nothing is waited for: a FIFO, a device, a folder and a
    file that is longer are an OSError.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    with open(descriptor, "rb", buffering=0) as file:
        found = os.fstat(descriptor)
        if not stat.S_ISREG(found.st_mode):
            raise OSError(errno.EINVAL, "it is no plain file", path)
        if found.st_size > most_bytes:
            raise OSError(errno.EFBIG, f"it is longer than {most_bytes} bytes", path)
        return file.read()


def _content(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        return file.read()
