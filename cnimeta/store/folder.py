"""What the folder of a database tells: what is in it, and whether its disk is full. Whose it is: cnimeta.host.owned."""

from __future__ import annotations

import os
from errno import EIO

from cnimeta.host.owned import own_open

_PAGE_BYTES = 4096
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


def is_partly_unreadable(path: str) -> bool:
    """Whether the disk gives a part of a file and not another, however often it is asked. False when that is unknown.

    No connection of this process may have it open as a database: see cnimeta.store.copy.
    """
    given = refused = 0
    try:
        descriptor = own_open(path, os.O_RDONLY)
    except OSError:  # unknown: none of it can be had now
        return False
    try:
        for at in range(0, os.fstat(descriptor).st_size, _PAGE_BYTES):
            try:
                os.pread(descriptor, _PAGE_BYTES, at)
                given += 1
            except OSError as error:
                if error.errno != EIO:
                    return False
                refused += 1
    finally:
        os.close(descriptor)
    return bool(given and refused)


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
