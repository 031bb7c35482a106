"""What the folder of a database tells: what is in it, and whether its disk is full. Whose it is: cnimeta.host.owned."""

from __future__ import annotations

import os

_SCANT_BYTES = 1024 * 1024


def is_there(path: str) -> bool:
    """Whether there is anything of that name. Raises OSError when that cannot be told."""
    try:
        os.lstat(path)
    except FileNotFoundError:
        return False
    return True


def is_full(folder: str) -> bool:
    """Whether the disk is, or nearly."""
    try:
        found = os.statvfs(folder)
    except OSError:  # unknown: only for a message and for room
        return False
    return found.f_bavail * found.f_frsize < _SCANT_BYTES


def hindrance(folder: str) -> str:
    """What an error of SQLite's may leave open, for a message."""
    try:
        if os.statvfs(folder).f_flag & os.ST_RDONLY:
            return " (the file system is read-only)"
    except OSError:  # unknown: only for a message
        return ""
    return " (the file system is full)" if is_full(folder) else ""


def unlink(path: str) -> None:
    """Remove; missing is fine."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
