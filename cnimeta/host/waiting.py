"""Waiting for a lock with a deadline, which the kernel's own waiting does not have: by asking again and again.

From 1 ms up to 50 ms apart, with jitter, so that hundreds of waiting processes neither wake together nor use the
processor up.
"""

from __future__ import annotations

import os
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

_FIRST_WAIT_S = 0.001
_LONGEST_WAIT_S = 0.05


def had_by(deadline: float, attempt: Callable[[], bool], longest_wait_s: float = _LONGEST_WAIT_S) -> bool:
    """Whether `attempt` succeeded before `time.monotonic()` reached the deadline. It is made once at least."""
    wait_s = _FIRST_WAIT_S
    while not attempt():
        if time.monotonic() >= deadline:
            return False
        time.sleep(wait_s * (0.5 + os.urandom(1)[0] / 256))
        wait_s = min(2 * wait_s, longest_wait_s)
    return True


def flocked(descriptor: int) -> bool:
    """Whether the file could be locked (flock, exclusive), now. Raises OSError for anything but another holder."""
    import fcntl

    return _locked(descriptor, fcntl.LOCK_EX)


def shared(descriptor: int) -> bool:
    """The same with others who share the lock."""
    import fcntl

    return _locked(descriptor, fcntl.LOCK_SH)


def _locked(descriptor: int, kind: int) -> bool:
    import fcntl

    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, says fcntl(2) of its kin
        return False
    return True
