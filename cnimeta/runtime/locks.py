"""Who may work on what at the same time: one caller per attachment, and nobody else while a network is collected.

libcni has no locks; it leaves this to the runtime (spec §2: no parallel operations on one container, GC not together
with ADD and DEL). Here it is one file with open-file-description locks on single bytes: every attachment has a byte
(ADD, DEL, CHECK hold it alone), and so has every network (those share it, GC holds it alone). The file is never
written, renamed or removed, and the kernel frees the locks of a process that dies.
"""

from __future__ import annotations

import contextlib
import fcntl
import functools
import os
import struct
import time
from binascii import crc32
from typing import TYPE_CHECKING

from cnimeta.errors import IoFailure, TryAgainLater
from cnimeta.host.waiting import had_by

if TYPE_CHECKING:
    from collections.abc import Iterator

NAME = "cnimeta-run.lock"
_NETWORKS = 1 << 32
"""Where the networks' bytes begin, after those of the attachments."""


class Locks:
    """The locks in `folder`.

    TryAgainLater (11) when one cannot be acquired within `timeout_s`, IoFailure (5) without the file.
    """

    def __init__(self, folder: str, timeout_s: float) -> None:
        self.path = os.path.join(folder, NAME)
        self.timeout_s = timeout_s

    @contextlib.contextmanager
    def attachment(self, network: str, container_id: str, ifname: str) -> Iterator[None]:
        """Alone with one attachment, its network not being collected."""
        key = crc32(f"{network}/{container_id}/{ifname}".encode())  # one of 2^32 shared by chance: somebody waits
        with self._held((fcntl.F_RDLCK, _network(network)), (fcntl.F_WRLCK, key)):
            yield

    @contextlib.contextmanager
    def network(self, network: str) -> Iterator[None]:
        """Alone with a network."""
        with self._held((fcntl.F_WRLCK, _network(network))):
            yield

    @contextlib.contextmanager
    def _held(self, *wanted: tuple[int, int]) -> Iterator[None]:
        try:
            os.makedirs(os.path.dirname(self.path), mode=0o700, exist_ok=True)
            fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        except OSError as error:
            raise IoFailure(f"the lock {self.path} cannot be used: {error.strerror or error}") from None
        try:
            deadline = time.monotonic() + self.timeout_s
            for kind, offset in wanted:
                if not had_by(deadline, functools.partial(_locked, fd, kind, offset)):
                    raise TryAgainLater(
                        f"another process has been working on this for {self.timeout_s:g} s (lock {self.path})"
                    )
            yield
        finally:
            os.close(fd)  # frees what was had


def _locked(fd: int, kind: int, offset: int) -> bool:
    """Whether the byte could be locked, now."""
    request = struct.pack("@hhqqi4x", kind, os.SEEK_SET, offset, 1, 0)
    try:
        fcntl.fcntl(fd, fcntl.F_OFD_SETLK, request)
    except (BlockingIOError, PermissionError):  # EAGAIN or EACCES, says fcntl(2)
        return False
    return True


def _network(name: str) -> int:
    return _NETWORKS + crc32(name.encode())
