"""The lock that every legacy iptables program takes."""

from __future__ import annotations

import os
import time

from cnimeta.errors import IoFailure, TryAgainLater
from cnimeta.host.waiting import flocked, had_by
from cnimeta.observe import notes

LOCK_FILE = "/run/xtables.lock"
"""XTABLES_LOCKFILE of iptables' build."""

_LONGEST_WAIT_S = 0.016  # programs hold it for a few milliseconds


class XtablesLock:
    """The xtables lock, held for a `with` block, so that what was read is still so when it is changed.

    Raises TryAgainLater (code 11) when another holder keeps it longer than `timeout_s`. Not re-entrant.
    """

    def __init__(self, path: str = LOCK_FILE, timeout_s: float = 10.0) -> None:
        self.path = path
        self.timeout_s = timeout_s
        self._fd = -1

    def __enter__(self) -> None:
        try:
            fd = os.open(self.path, os.O_RDONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            raise IoFailure(f"the xtables lock {self.path} cannot be opened: {error.strerror}") from None
        try:
            if not flocked(fd) and not self._waited(fd):
                raise TryAgainLater(
                    f"the xtables lock {self.path} could not be acquired within {self.timeout_s:g} s: another program"
                    " has it"
                )
        except OSError as error:
            os.close(fd)
            raise IoFailure(f"the xtables lock {self.path} cannot be had: {error.strerror}") from None
        except BaseException:
            os.close(fd)
            raise
        self._fd = fd

    def _waited(self, fd: int) -> bool:
        began = notes.moment()
        try:
            return had_by(time.monotonic() + self.timeout_s, lambda: flocked(fd), _LONGEST_WAIT_S)
        finally:
            notes.waited("xtables", began)

    def __exit__(self, *_: object) -> None:
        fd, self._fd = self._fd, -1
        if fd >= 0:  # not when it could not be had again after a program used it
            os.close(fd)
