"""Doing something inside another network namespace: this thread goes there and comes back."""

from __future__ import annotations

import contextlib
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_CLONE_NEWNET = 0x40000000
_OWN = "/proc/thread-self/ns/net"


def join(descriptor: int) -> None:
    """Go to the namespace (of any kind) of an open /proc/PID/ns file, for good. Raises OSError."""
    import ctypes

    if ctypes.CDLL(None, use_errno=True).setns(descriptor, 0) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), "setns")


@contextlib.contextmanager
def entered(path: str) -> Iterator[None]:
    """Run the block in the namespace at `path`. Raises OSError when it cannot be entered.

    Sockets opened inside keep working on that namespace afterwards. A thread that cannot come back ends the process:
    to go on in a container's namespace would be worse.
    """
    import ctypes

    libc = ctypes.CDLL(None, use_errno=True)
    home = os.open(_OWN, os.O_RDONLY | os.O_CLOEXEC)
    try:
        there = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        try:
            if libc.setns(there, _CLONE_NEWNET) != 0:
                number = ctypes.get_errno()
                raise OSError(number, os.strerror(number), path)
        finally:
            os.close(there)
        try:
            yield
        finally:
            if libc.setns(home, _CLONE_NEWNET) != 0:
                os._exit(70)
    finally:
        os.close(home)


def namespace_id(path: str) -> str:
    """Which network namespace `path` leads to, as `device:inode`; empty when it leads to none, or cannot be told.

    Paths come and go and are used again (/proc/PID/ns/net after the PID was); this tells one namespace from another.
    """
    try:
        found, own = os.stat(path), os.stat(_OWN)
    except (OSError, ValueError):
        return ""
    return f"{found.st_dev}:{found.st_ino}" if found.st_dev == own.st_dev else ""
