"""A folder of state decides what root runs, so it is this user's alone: made so, or refused.

Refused are a folder and files of somebody else's or that others may write to, links, and whatever is no plain file (a
FIFO would be waited for). Nobody else can plant anything once that is so, hence looking before opening is enough.
"""

from __future__ import annotations

import os
import stat

from cnimeta.errors import StateUnusable, shown

_OTHERS_WRITE = 0o022
_UNMAPPED = 65534
"""The owner that the kernel shows in a user namespace for users that it does not have there, root among them."""


class NotOurs(StateUnusable):
    """A folder or file that somebody else made or may change: nothing of it is read."""


def own_folder(folder: str) -> None:
    """Make the folder (0700) where it is missing. Raises NotOurs (code 104) for one that is not this user's alone."""
    if not is_own_folder(folder):
        _make(folder, 0o700)
        is_own_folder(folder)


def is_own_folder(folder: str) -> bool:
    """Whether there is a folder. Raises NotOurs (code 104) for one that is not this user's alone."""
    try:
        found = os.lstat(folder)
    except FileNotFoundError:
        return False
    _refuse(folder, found, stat.S_ISDIR, "a folder")
    for above, found in _above(folder):
        mode = stat.S_IMODE(found.st_mode)
        others_write = mode & stat.S_IWOTH and not mode & stat.S_ISVTX
        if found.st_uid not in (0, os.geteuid(), _UNMAPPED) or others_write:
            raise NotOurs(
                f"{shown(folder)} is not used: whoever may write to {shown(above)} can exchange it (owner"
                f" {found.st_uid}, mode {mode:04o})"
            )
    return True


def _above(folder: str) -> list[tuple[str, os.stat_result]]:
    """What the folder lies in, up to the root, where its links lead."""
    found = []
    above = folder if folder[:1] == "/" and os.path.normpath(folder) == folder else os.path.realpath(folder)
    while above != "/":
        above = os.path.dirname(above)
        there = os.lstat(above)
        if stat.S_ISLNK(there.st_mode):
            return _above(os.path.realpath(folder))
        found.append((above, there))
    return found


def own_file(path: str) -> tuple[int, int] | None:
    """(device, inode) of a file; None when there is none. Raises NotOurs (code 104) for anything but our own file."""
    try:
        found = os.lstat(path)
    except FileNotFoundError:
        return None
    _refuse(path, found, stat.S_ISREG, "a file")
    return found.st_dev, found.st_ino


def own_open(path: str, flags: int) -> int:
    """Open a file without following a link or waiting for anybody. Raises NotOurs (code 104), OSError."""
    own_file(path)  # not only afterwards: a FIFO without a reader gives another error
    descriptor = os.open(path, flags | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK, 0o600)
    try:
        _refuse(path, os.fstat(descriptor), stat.S_ISREG, "a file")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _make(folder: str, mode: int) -> None:
    """With the folders above it, which nobody else may write to either."""
    above = os.path.dirname(folder)
    if above and not os.path.exists(above):  # unknown: making it tells
        _make(above, 0o755)
    try:
        os.mkdir(folder, mode)
    except FileExistsError:
        pass  # another command was quicker


def _refuse(path: str, found: os.stat_result, is_kind: object, kind: str) -> None:
    mode = stat.S_IMODE(found.st_mode)
    right = callable(is_kind) and is_kind(found.st_mode)
    if not right or found.st_uid != os.geteuid() or mode & _OTHERS_WRITE:
        what = "" if right else f"it is not {kind}; "
        raise NotOurs(
            f"{shown(path)} is not used: {what}owner {found.st_uid}, mode {mode:04o}; it must be {kind} of user"
            f" {os.geteuid()} that nobody else may write to"
        )
