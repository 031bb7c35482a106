"""Who asks: the process on the other end of a connection, and whether it may do what the agent would do for it.

The agent works with its own rights. So a process that has fewer (uid 0 without capabilities, or of a user namespace of
its own) would gain by asking; it is refused, and does the work with what it has.
"""

from __future__ import annotations

import ctypes
import os
import struct
from socket import SO_PEERCRED, SOL_SOCKET
from typing import TYPE_CHECKING

from cnimeta.agent.wire import CREDENTIALS

if TYPE_CHECKING:
    from socket import socket

_SO_PEERPIDFD = 77  # Linux 6.5
_CAPABILITY_VERSION_3 = 0x20080522  # linux/capability.h
_LIBC = ctypes.CDLL(None, use_errno=True)
_NAMESPACES = ("user", "pid")  # a process cannot move to another of these


class Peer:
    """The process that made the connection. Raises OSError where it cannot be told."""

    def __init__(self, connection: socket) -> None:
        self._connection = connection
        packed = connection.getsockopt(SOL_SOCKET, SO_PEERCRED, CREDENTIALS.size)
        self.pid, self.uid, _ = CREDENTIALS.unpack(packed)
        """As seen from here; pid 0 when it cannot be seen."""

    def objection(self, needed: int) -> str:
        """What it lacks, of the capabilities `needed` and of our namespaces; empty when it may ask.

        It is pinned meanwhile: a process that ends may leave its number to another one.
        """
        if self.pid == 0:
            return "it is in another PID namespace"
        pinned = _pinned(self._connection, self.pid)
        try:
            for kind in _NAMESPACES:
                theirs, ours = os.stat(f"/proc/{self.pid}/ns/{kind}"), os.stat(f"/proc/self/ns/{kind}")
                if (theirs.st_dev, theirs.st_ino) != (ours.st_dev, ours.st_ino):
                    return f"it is in another {kind} namespace"
            missing = needed & ~_permitted(self.pid)
            if missing:
                return f"it lacks capabilities ({missing:x})"
            return "" if _lives(pinned) else "it has ended"
        finally:
            os.close(pinned)


def own_capabilities() -> int:
    """What this process has, and what programs get that it starts: a bit for each, as capabilities(7) numbers them."""
    with open("/proc/self/status", encoding="utf-8", errors="replace") as file:
        fields = dict(line.split(":\t", 1) for line in file if ":\t" in line)
    return int(fields["CapEff"], 16) | (int(fields["CapBnd"], 16) if os.geteuid() == 0 else 0)


def _permitted(pid: int) -> int:
    """capget(2), which takes 1 µs where /proc takes 40. Raises OSError."""
    data = ctypes.create_string_buffer(24)
    if _LIBC.capget(struct.pack("=Ii", _CAPABILITY_VERSION_3, pid), data) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    _, low, _, _, high, _ = struct.unpack("=6I", data.raw)
    return int(high) << 32 | int(low)


def _pinned(connection: socket, pid: int) -> int:
    """A descriptor of the process."""
    try:
        return connection.getsockopt(SOL_SOCKET, _SO_PEERPIDFD)
    except OSError:  # an older kernel: the process that has the number now
        return os.pidfd_open(pid)


def _lives(pidfd: int) -> bool:
    import select

    poller = select.poll()
    poller.register(pidfd, select.POLLIN)
    return not poller.poll(0)
