"""Making a database, and another one in place of a damaged one, so that a kill at any moment leaves one or the other.

A new one is made under another name and linked into place whole. A damaged one is renamed before; until its contents
are in the new one it is called `.damaged`, so whoever comes after a kill goes on from there, and after that it is kept
under its date for people to look at, the last few of them.
"""

from __future__ import annotations

import os

from cnimeta.host.owned import own_file
from cnimeta.observe import notes
from cnimeta.store.engine import sqlite as _sqlite3
from cnimeta.store.folder import is_there, unlink
from cnimeta.store.rescue import tolerant
from cnimeta.store.sql import begin, connect, is_unread, meta

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cnimeta.store.sequence import Sequence
    from cnimeta.store.values import Connection, Contents

LOG_SUFFIX, INDEX_SUFFIX, JOURNAL_SUFFIX = "-wal", "-shm", "-journal"
DAMAGED = ".damaged"

_NEW = ".new"
_KEPT = 4
"""So many damaged databases are kept."""
_AHEAD = 1000
"""A command that has the old database open may note some more transactions of that: the new one counts from beyond."""
_RESERVE_BYTES = 512 * 1024
_SPARE_BYTES = 4096
_ROOMY_BYTES = 16 * 1024 * 1024


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
        self.reserve = os.path.join(os.path.dirname(path), "reserve")
        """Room that is given up when a disk is full, for what frees space to be written all the same."""

    def refuse_foreign(self) -> None:
        """Raise NotOurs (code 104) for a file that SQLite would open and that is not our own."""
        for suffix in ("", LOG_SUFFIX, INDEX_SUFFIX, JOURNAL_SUFFIX):
            own_file(self.path + suffix)

    def move_aside(self) -> None:
        """Rename what is there, so that it is taken over by the next `make`.

        The database goes first: without a log beside it, whoever opens it meanwhile would take it for a whole one.
        """
        notes.count("cnimeta_repairs_total", what="database")
        damaged = self.path + DAMAGED
        if is_there(self.path):
            self._keep_damaged()  # one that is taken over already: its maker was killed
            os.rename(self.path, damaged)
        for suffix in (LOG_SUFFIX, JOURNAL_SUFFIX):
            if is_there(damaged + suffix):
                unlink(self.path + suffix)  # made by a command that opened the old one by its old name
            elif is_there(self.path + suffix):
                os.rename(self.path + suffix, damaged + suffix)
        unlink(self.path + INDEX_SUFFIX)

    def make(self) -> None:
        """Make the database under another name, and link it into place whole."""
        from cnimeta.host.files import sync_folder

        self.move_aside()  # a log without its database must not be taken for the new one's
        gathered = self.contents.gather()
        temporary = self.path + _NEW
        try:
            self._clear(temporary)
            self._fill(temporary, gathered)
            os.link(temporary, self.path)
        finally:
            self._clear(temporary)
        sync_folder(os.path.dirname(self.path))
        self._keep_damaged()

    def _fill(self, path: str, gathered: object) -> None:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
        old = self._damaged_one()
        new = connect(path)
        try:
            if str(new.execute("PRAGMA journal_mode=WAL").fetchone()[0]).lower() != "wal":
                self.log(f"state: {self.path}: the file system cannot share memory, so commands wait for each other")
            number = max(self.sequence.read() or 0, _last_of(old)) + _AHEAD
            new.execute("BEGIN IMMEDIATE")
            begin(new, self.contents.schema, self.boot_id, number)
            self.contents.fill(new, old, gathered)
            new.execute("COMMIT")
        finally:
            new.close()
            if old is not None:
                old.close()
        if not self.sequence.write(number):
            raise OSError(f"{self.sequence.path} cannot be written")

    def _clear(self, path: str) -> None:
        for suffix in ("", LOG_SUFFIX, INDEX_SUFFIX, JOURNAL_SUFFIX):
            unlink(path + suffix)

    def _damaged_one(self) -> Connection | None:
        """What is being replaced, to be read as far as it can be."""
        path = self.path + DAMAGED
        if not is_there(path):
            return None
        for suffix in ("", LOG_SUFFIX, INDEX_SUFFIX, JOURNAL_SUFFIX):
            own_file(path + suffix)
        try:
            return _opened(path)
        except _sqlite3.DatabaseError as error:
            failure = error
        if is_unread(failure):
            try:
                found = _opened(path, without_log=True)
                self.log(f"state: the log of {path} cannot be read: what it had is lost")
                return found
            except _sqlite3.DatabaseError as error:
                failure = error
        self.log(f"state: nothing can be read of {path}: {failure}")
        return None

    def _keep_damaged(self) -> None:
        """Its contents are in the new one now; people may want to look at it."""
        path = self.path + DAMAGED
        kept = sorted(_kept(path))
        number = kept[-1] + 1 if kept else 1
        for suffix in ("", LOG_SUFFIX, JOURNAL_SUFFIX):
            if is_there(path + suffix):
                os.rename(path + suffix, f"{path}-{number}{suffix}")
        unlink(path + INDEX_SUFFIX)
        for old in [found for found in kept if found <= number - _KEPT]:
            self._clear(f"{path}-{old}")

    def is_unfinished(self) -> bool:
        """Whether a maker was killed when the database was in place and not all put away."""
        return is_there(self.path + DAMAGED) or is_there(self.path + _NEW)

    def finish(self) -> None:
        """Put away what is left."""
        self._clear(self.path + _NEW)
        self._keep_damaged()

    def keep_reserve(self, plenty: int = _ROOMY_BYTES) -> None:
        """Set room aside, while there is plenty; otherwise none."""
        if is_there(self.reserve):
            return
        room = os.statvfs(os.path.dirname(self.path))
        free = room.f_bavail * room.f_frsize
        if free < plenty:
            return
        try:
            descriptor = os.open(self.reserve, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            try:
                os.posix_fallocate(descriptor, 0, min(_RESERVE_BYTES, free - _SPARE_BYTES))
            finally:
                os.close(descriptor)
        except (OSError, ValueError):  # refused: goes without room set aside
            self.drop_reserve()

    def drop_reserve(self) -> bool:
        """Give the room up; False when there is none, or the disk takes no change at all."""
        try:
            os.unlink(self.reserve)
        except OSError:  # refused: there is no room to give up
            return False
        return True


def _opened(path: str, *, without_log: bool = False) -> Connection:
    """A damaged database, of which something at least can be read. Raises sqlite's DatabaseError."""
    old = tolerant(connect(path, without_log=without_log))
    try:
        old.execute("SELECT count(*) FROM sqlite_master").fetchone()
    except BaseException:
        old.close()
        raise
    return old


def _last_of(old: Connection | None) -> int:
    """The last transaction of a damaged database, as far as that can be told."""
    try:
        found = meta(old, "sequence") if old is not None else 0
    except _sqlite3.Error:
        return 0
    return found if isinstance(found, int) and 0 <= found < 1 << 50 else 0


def _kept(path: str) -> list[int]:
    """The numbers of the damaged databases that are kept."""
    folder, name = os.path.split(path)
    ends = [found[len(name) + 1 :] for found in os.listdir(folder) if found.startswith(f"{name}-")]
    return [int(end) for end in ends if end.isdigit()]
