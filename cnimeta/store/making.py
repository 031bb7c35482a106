"""Making a database, and another one in place of a damaged one, so that a kill at any moment leaves one or the other.

A new one is made under another name and linked into place whole. A damaged one is renamed before; until its contents
are in the new one it is called `.damaged`, so whoever comes after a kill goes on from there, and after that it is kept
under its date for people to look at.
"""

from __future__ import annotations

import _sqlite3
import os

from cnimeta.store.sql import begin, connect

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cnimeta.store.sequence import Sequence
    from cnimeta.store.sql import Connection, Contents

LOG_SUFFIX, INDEX_SUFFIX = "-wal", "-shm"
DAMAGED = ".damaged"

_NEW = ".new"
_RESERVE_BYTES = 256 * 1024


class Maker:
    """Makes the database at `path`. Whoever calls holds the lock on making it."""

    def __init__(
        self, path: str, contents: Contents, sequence: Sequence, boot_id: str, log: Callable[[str], None]
    ) -> None:
        self.path = path
        self.contents = contents
        self.sequence = sequence
        self.boot_id = boot_id
        self.log = log

    @property
    def reserve(self) -> str:
        """Room that is given up when a disk is full, for what frees space to be written all the same."""
        return os.path.join(os.path.dirname(self.path), "reserve")

    def move_aside(self) -> None:
        """Rename what is there, so that it is taken over by the next `make`."""
        for suffix in (LOG_SUFFIX, ""):  # the log first: a database without it has lost transactions, and that shows
            try:
                os.rename(self.path + suffix, self.path + DAMAGED + suffix)
            except FileNotFoundError:
                continue
        unlink(self.path + INDEX_SUFFIX)

    def make(self, gathered: object) -> None:
        """Make the database under another name, and link it into place whole."""
        if os.path.lexists(self.path + LOG_SUFFIX):
            self.move_aside()  # a log without its database must not be taken for the new one's
        temporary = self.path + _NEW
        for suffix in ("", LOG_SUFFIX, INDEX_SUFFIX, "-journal"):
            unlink(temporary + suffix)
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        noted = self.sequence.read()
        new = connect(temporary)
        old = self._damaged_one()
        try:
            if str(new.execute("PRAGMA journal_mode=WAL").fetchone()[0]).lower() != "wal":
                self.log(f"state: {self.path}: the file system cannot share memory, so commands wait for each other")
            new.execute("BEGIN IMMEDIATE")
            begin(new, self.contents.schema, self.boot_id, noted + 1)
            self.contents.fill(new, old, gathered)
            new.execute("COMMIT")
        finally:
            new.close()
            if old is not None:
                old.close()
        self.sequence.write(noted + 1)
        os.link(temporary, self.path)
        os.unlink(temporary)
        self._keep_damaged()
        self._keep_reserve()

    def _damaged_one(self) -> Connection | None:
        """What is being replaced, to be read as far as it can be."""
        if not os.path.lexists(self.path + DAMAGED):
            return None
        try:
            return connect(self.path + DAMAGED)
        except _sqlite3.DatabaseError as error:
            self.log(f"state: nothing can be read of {self.path}{DAMAGED}: {error}")
            return None

    def _keep_damaged(self) -> None:
        """Its contents are in the new one now; people may want to look at it."""
        try:
            when = int(os.stat(self.path + DAMAGED).st_mtime)
        except FileNotFoundError:
            when = 0
        place = f"{self.path}{DAMAGED}-{when}"
        number = 0
        while os.path.lexists(f"{place}.{number}") or os.path.lexists(f"{place}.{number}{LOG_SUFFIX}"):
            number += 1
        for suffix in ("", LOG_SUFFIX):
            try:
                os.rename(self.path + DAMAGED + suffix, f"{place}.{number}{suffix}")
            except FileNotFoundError:
                continue
        unlink(self.path + DAMAGED + INDEX_SUFFIX)

    def _keep_reserve(self) -> None:
        path = self.reserve
        if os.path.lexists(path):
            return
        try:
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(fd, 0, _RESERVE_BYTES)
            finally:
                os.close(fd)
        except OSError:
            unlink(path)


def unlink(path: str) -> None:
    """Remove; missing is fine."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        pass
