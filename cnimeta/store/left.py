"""Connections that a command leaves open in its process: for the next command of that process, or to end with it.

The last to close a database puts its log away and waits for the disk, four times. Plugins have no use for that: the log
is put away when it is full.
"""

from __future__ import annotations

import os

from cnimeta.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.store.values import Connection

_open: dict[str, Left] = {}
"""By the path of the database."""
of_parents: list[Connection] = []
"""Connections of the process that this one was forked from: not to be used here, nor closed: that touches its locks."""


class Left(NamedTuple):
    """A connection, of which process, to which file (device, inode), and the version of its tables."""

    connection: Connection
    process: int
    inode: tuple[int, int] | None
    version: int


def leave(path: str, left: Left) -> None:
    """Keep it open."""
    before = _open.pop(path, None)
    for one in (before, left):
        if one is not None and one.process != os.getpid():
            of_parents.append(one.connection)
    if left.process == os.getpid():
        _open[path] = left


def take(path: str, inode: tuple[int, int] | None) -> Left | None:
    """What this very process has left open to this very file; what it has to another one is closed."""
    left = _open.pop(path, None)
    if left is not None and left.process != os.getpid():
        of_parents.append(left.connection)
        return None
    return left if left is not None and left.inode == inode else None
