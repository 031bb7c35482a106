"""Which network namespace a path leads to, and whether one is gone. Cheap to import: every ADD asks.

Paths come and go and are used again (/proc/PID/ns/net after the PID was), and this mount namespace may not show one
that there is; the device and inode of a namespace tell it from every other as long as it lives.
"""

from __future__ import annotations

import errno
import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

_OWN = "/proc/thread-self/ns/net"
_INITIAL_PIDS = "pid:[4026531836]"  # linux/proc_ns.h, PROC_PID_INIT_INO: here every process can be seen
_ENDED = (errno.ENOENT, errno.ESRCH, errno.EINVAL)
"""A process has ended, or is a zombie, whose mounts are gone (EINVAL)."""
_INIT = "1"
"""No container's process; where the node is itself a sandbox, nobody may look at it."""


class HostNamespaces:
    """The Namespaces adapter."""

    def identity(self, path: str) -> str:
        """As `namespace_id`."""
        return namespace_id(path)

    def is_gone(self, path: str, identity: str) -> bool:
        """Whether the namespace that `path` led to is known to be gone. What cannot be told is not gone."""
        if not identity or not path or namespace_id(path) == identity:
            return False
        own = namespace_id(_OWN)
        if not own or own.partition(":")[0] != identity.partition(":")[0]:
            return False  # another device: not comparable
        inode = identity.partition(":")[2]
        try:
            return os.readlink("/proc/self/ns/pid") == _INITIAL_PIDS and not _is_used(inode)
        except OSError:  # unknown: it is taken for alive
            return False


def _is_used(inode: str) -> bool:
    """Whether any process is in the network namespace or sees it mounted. OSError when that cannot be told."""
    link, mounted = f"net:[{inode}]", f" net:[{inode}] "
    seen = set()
    for pid in _processes():
        try:
            if os.readlink(f"/proc/{pid}/ns/net") == link:
                return True
            mounts = os.readlink(f"/proc/{pid}/ns/mnt")
            if mounts in seen:
                continue
            with open(f"/proc/{pid}/mountinfo", encoding="utf-8", errors="replace") as file:
                if mounted in file.read():
                    return True
            seen.add(mounts)
        except OSError as error:
            if error.errno not in _ENDED and pid != _INIT:
                raise
    return False


def _processes() -> Iterator[str]:
    return (name for name in os.listdir("/proc") if name.isdigit())


def namespace_id(path: str) -> str:
    """Which network namespace `path` leads to, as `device:inode`; empty when it leads to none, or cannot be told."""
    try:
        found, own = os.stat(path), os.stat(_OWN)
    except (OSError, ValueError):  # unknown: nobody takes an empty one for another's
        return ""
    return f"{found.st_dev}:{found.st_ino}" if found.st_dev == own.st_dev else ""
