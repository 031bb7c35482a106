"""One SQLite database of a plugin: transactions with a bounded wait, migrations, damage, reboots, full disks.

Journal: WAL with `synchronous=NORMAL`. After a kill at any instruction, and after power loss, the database is
consistent (https://www.sqlite.org/wal.html); what power loss may take is the last transactions, and what those
described is gone with the boot.

What SQLite does not promise is added here:

- A log file that was lost or cut off is valid to SQLite, and its transactions are silently gone. Each transaction is
  counted in the database and, once committed, in a file beside it: a database behind that file has lost transactions.
- A database that is damaged, lost, or not given by the disk in some part, is moved aside, kept, and a new one filled
  from what can be read of it and from what the owner of the contents knows from elsewhere (`Contents.gather`). No
  database ever begins empty without that look.
- A database that was replaced or migrated is noticed at the next transaction, also by processes that have it open.
- Contents belong to a boot: the first command after another boot says so to their owner.
"""

from __future__ import annotations

import os
import time

from cnimeta.errors import CniError, StateUnusable, TryAgainLater, shown
from cnimeta.host import afterwards
from cnimeta.host.owned import NotOurs, own_file, own_folder
from cnimeta.store.engine import sqlite as _sqlite3
from cnimeta.store.folder import hindrance, is_full, is_partly_unreadable, is_there
from cnimeta.store.left import Left, leave, of_parents, take
from cnimeta.store.locks import OwnLock
from cnimeta.store.making import DAMAGED, LOG_SUFFIX, Maker
from cnimeta.store.sequence import Sequence
from cnimeta.store.sql import (
    BUSY,
    CANTOPEN,
    FULL,
    IOERR,
    PROTOCOL,
    begin,
    begin_writing,
    code_of,
    connect,
    enter_boot,
    is_damage,
    is_unread,
    judged,
    keep_writers_out,
    meta,
    migrate,
    next_sequence,
    roll_back,
    sequence_of,
    version,
)
from cnimeta.store.values import Damage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from cnimeta.store.values import Connection, Contents

    T = TypeVar("T")

FILE = "cnimeta.db"

_ATTEMPTS = 5
_POLL_S = 0.13
"""So long SQLite waits by itself, asking every 1 to 25 ms. Later it would ask ten times a second only, and starve."""
_NOT_FOR_THIS, _UNTOUCHED, _GIVEN_UP = range(3)
"""The room set aside for a full disk: whether this piece of work may have it, and whether it has."""


class LaterVersion(StateUnusable):
    """The database was written by a later version; only what every version allows may be done."""


class _Changed(Exception):
    """The file that is open is no longer the database, or another version has changed its tables."""


class Database:
    """The database in `folder`, which is made (0700) when missing and has to be this user's alone.

    Raises TryAgainLater (code 11) when it is not free within `timeout_s`, StateUnusable (code 104) when the file system
    or the folder's owner stand in the way.
    """

    def __init__(
        self, folder: str, contents: Contents, boot_id: str, log: Callable[[str], None], timeout_s: float = 10
    ) -> None:
        self.folder = folder
        self.path = os.path.join(folder, FILE)
        self.contents = contents
        self.boot_id = boot_id
        self.log = log
        self.timeout_s = timeout_s
        self.later = 0
        """The version of a database that is later than this code's; 0 otherwise."""
        self._sequence = Sequence(os.path.join(folder, "sequence"), log)
        self._maker = Maker(self.path, contents, self._sequence, boot_id, log)
        self._connection: Connection | None = None
        self._inode: tuple[int, int] | None = None
        self._version = 0
        self._process = 0
        self._copy: Connection | None = None
        self._reserve = _NOT_FOR_THIS

    # --- what callers do -------------------------------------------------------------------------------

    def write(self, work: Callable[[Connection], T], *, tolerant: bool = False) -> T:
        """Run `work` in a transaction: all of it or nothing. It may be run again, so it changes the database only.

        `tolerant`, for what removes: also on a database of a later version, which otherwise raises LaterVersion (104),
        and on a full disk with the room that was set aside. What `work` raises is raised; a constraint of the schema's,
        as sqlite's IntegrityError.
        """

        def transaction(connection: Connection) -> T:
            self._refuse_later(tolerant=tolerant)
            return self._in_transaction(connection, work)

        self._reserve = _UNTOUCHED if tolerant else _NOT_FOR_THIS
        result = self._served(transaction)
        if self._reserve == _GIVEN_UP:
            self._set_aside_again()
        return result

    def read(self, work: Callable[[Connection], T], *, tolerant: bool = False) -> T:
        """Run `work` on one snapshot; nobody waits for it. Served from a copy where the disk takes no writes.

        `tolerant`: as in `write`.
        """

        def snapshot(connection: Connection) -> T:
            self._refuse_later(tolerant=tolerant)
            connection.execute("BEGIN")
            try:
                self._refuse_changed(connection)
                return work(connection)
            finally:
                roll_back(connection)

        try:
            self._reserve = _NOT_FOR_THIS
            return self._served(snapshot)
        except (LaterVersion, NotOurs):
            raise
        except StateUnusable as error:
            copy = self._copied(error.msg)
            if copy is None:
                raise
            self._refuse_later(tolerant=tolerant)
            try:
                return work(copy)
            except (Damage, _sqlite3.Error):
                raise error from None

    def exists(self) -> bool:
        """Whether there is a database, or a sign that there was one. StateUnusable when that cannot be told."""
        signs = (self.path, self._sequence.path, self.path + LOG_SUFFIX, self.path + DAMAGED)
        try:
            return any(is_there(path) for path in signs)
        except OSError as error:
            raise self._unusable(error) from None

    def problems(self, *, quick: bool = False) -> list[str]:
        """What SQLite's own check finds; every page is read. `quick`: without the indices' content."""
        pragma = "quick_check" if quick else "integrity_check"
        rows = self.read(lambda connection: connection.execute(f"PRAGMA {pragma}(20)").fetchall(), tolerant=True)
        return [f"{self.path}: {row[0]}" for row in rows if row[0] != "ok"]

    # --- one piece of work -----------------------------------------------------------------------------

    def _served(self, work: Callable[[Connection], T]) -> T:
        """Run `work` on the open database; what stands in its way is put right where it can be, and it is run again."""
        failure: Exception | None = None
        deadline = time.monotonic() + self.timeout_s
        attempts = 0
        while attempts < _ATTEMPTS:
            try:
                if failure is not None:
                    self._mend(failure)
                return work(self._opened())
            except (_Changed, Damage, OSError) as error:
                failure = error
            except (_sqlite3.Error, MemoryError) as error:
                if isinstance(error, _sqlite3.IntegrityError) and not is_damage(error):
                    raise
                is_busy = code_of(error) in (BUSY, PROTOCOL)
                if is_busy and time.monotonic() < deadline:
                    continue
                failure = error
            attempts += 1
        raise self._unusable(failure)

    def _mend(self, failure: Exception) -> None:
        """Put right what failed, or raise what callers are told."""
        code = code_of(failure)
        if isinstance(failure, _Changed) or (code == CANTOPEN and own_file(self.path) is None):
            self._forget()  # in the latter case another command has just moved it aside, and makes a new one
        elif is_damage(failure) or self._is_unreadable(failure):
            if self.later:
                raise self._unusable(failure)
            self._replace(str(failure))
        elif (code in (FULL, IOERR, CANTOPEN) or isinstance(failure, OSError)) and self._give_up_reserve():
            self._forget()
        else:
            raise self._unusable(failure)

    def _is_unreadable(self, failure: Exception) -> bool:
        """Whether the disk has lost a part of the database for good. One that gives nothing may yet come back."""
        if not is_unread(failure):
            return False
        self._forget()
        return any(is_partly_unreadable(path) for path in (self.path, self.path + LOG_SUFFIX))

    def _in_transaction(self, connection: Connection, work: Callable[[Connection], T]) -> T:
        begin_writing(connection)
        try:
            self._refuse_changed(connection)
            result = work(connection)
            number = next_sequence(connection)
            connection.execute("COMMIT")
        except BaseException:
            roll_back(connection)
            raise
        if own_file(self.path) != self._inode:
            raise _Changed  # it was committed to a database that was being replaced
        self._sequence.write(number)
        return result

    def _refuse_changed(self, connection: Connection) -> None:
        if own_file(self.path) != self._inode or version(connection) != self._version:
            raise _Changed

    def _refuse_later(self, *, tolerant: bool) -> None:
        if self.later and not tolerant:
            raise LaterVersion(
                f"{self.path} was written by a later version (format version {self.later}, this version reads up to"
                f" {self.contents.schema.version}): install that version, or drain the node and remove the folder"
            )

    # --- opening ---------------------------------------------------------------------------------------

    def _opened(self) -> Connection:
        """The connection of this process; one never crosses a fork."""
        if self._connection is not None and self._process == os.getpid():
            return self._connection
        self._forget()
        own_folder(self.folder)
        self._maker.refuse_foreign()
        self._inode = own_file(self.path)
        if self._inode is None:
            self._create()
            self._inode = own_file(self.path)
        self._process = os.getpid()
        left = take(self.path, self._inode)
        self._connection = connection = connect(self.path, _POLL_S) if left is None else left.connection
        self._version = judged(connection, self.contents.schema.version) if left is None else left.version
        if own_file(self.path) != self._inode:
            raise _Changed
        self._prepare(connection)
        if self._maker.is_unfinished():
            with self._lock().held():
                if own_file(self.path) == self._inode:
                    self._maker.finish()
        self._maker.keep_reserve()
        return connection

    def _prepare(self, connection: Connection) -> None:
        known = self.contents.schema.version
        self.later = self._version if self._version > known else 0
        if self.later:
            return
        if self._version < known:
            self._in_transaction(connection, lambda _: migrate(connection, self.contents.schema))
            self._version = known
        noted = self._sequence.read()  # before the database's own: others go on meanwhile
        if meta(connection, "boot") != self.boot_id:
            self._in_transaction(connection, lambda _: enter_boot(connection, self.contents, self.boot_id, noted or 0))
        elif noted is None:
            raise Damage("how many transactions it should have is not known")
        elif noted > sequence_of(connection):
            raise Damage(f"its last {noted - sequence_of(connection)} transactions are lost")

    def _forget(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and self._process != os.getpid():
            of_parents.append(connection)
            connection = None
        try:
            if connection is not None:
                connection.close()
        except (_sqlite3.Error, MemoryError):
            pass  # what was committed stays so; the next command does what a close does

    def __del__(self) -> None:
        """Close it, unless it is another process's, or this one answers and ends, or answers again."""
        if self._connection is not None and afterwards.holding():
            leave(self.path, Left(self._connection, self._process, self._inode, self._version))
            self._connection = None
        self._forget()
        if self._copy is not None:
            self._copy.close()

    # --- making a database, and another one in place of a damaged one ----------------------------------

    def _lock(self) -> OwnLock:
        folder = f"{self.folder}/locks"
        return OwnLock(folder, f"{folder}/database", self.timeout_s, "database")

    def _create(self) -> None:
        with self._lock().held():
            if own_file(self.path) is None:
                self._maker.make()

    def _replace(self, why: str) -> None:
        """Move the damaged database aside and make another. Writers are kept out meanwhile, as far as it still can."""
        with self._lock().held():
            if own_file(self.path) == self._inode:
                self.log(f"state: {self.path} is damaged ({why}): kept as {FILE}{DAMAGED}-…, made anew")
                if self._connection is not None:
                    keep_writers_out(self._connection)
                self._maker.move_aside()
            self._forget()
            if own_file(self.path) is None:
                self._maker.make()

    # --- disks that are full, or take no writes ----------------------------------------------------------

    def _give_up_reserve(self) -> bool:
        """Make room on a full disk; False when there is none to be made, or the disk is not full."""
        made = self._reserve == _UNTOUCHED and is_full(self.folder) and self._maker.drop_reserve()
        self._reserve = _GIVEN_UP if made else self._reserve
        return made

    def _set_aside_again(self) -> None:
        """Put the log away, and set aside what that leaves before somebody else takes it."""
        try:
            if self._connection is not None:
                self._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
        except (_sqlite3.Error, MemoryError):
            pass
        self._forget()
        self._maker.keep_reserve(0)

    def _copied(self, why: str) -> Connection | None:
        """The database in memory, for a disk that takes no writes; None when it cannot be read."""
        from cnimeta.store.copy import in_memory

        if self._copy is None:
            self._forget()
            try:
                self._copy = self._as_it_would_be(in_memory(self.path, self.path + LOG_SUFFIX))
            except (OSError, CniError, Damage, _sqlite3.Error, MemoryError) as error:
                self.log(f"state: nor can {self.path} be read: {error}")
                return None
            self.log(f"{why}; read from a copy")
        return self._copy

    def _as_it_would_be(self, connection: Connection) -> Connection:
        """The copy, migrated and in this boot."""
        known = self.contents.schema.version
        if own_file(self.path) is None:
            begin(connection, self.contents.schema, self.boot_id, 1)
            self.contents.fill(connection, None, self.contents.gather())
        found = judged(connection, known)
        self.later = found if found > known else 0
        if not self.later:
            migrate(connection, self.contents.schema)
            enter_boot(connection, self.contents, self.boot_id, 0)
        return connection

    # --- errors ----------------------------------------------------------------------------------------

    def _unusable(self, failure: Exception | None) -> CniError:
        if code_of(failure or Damage()) in (BUSY, PROTOCOL):
            return TryAgainLater(
                f"{self.path} was not free within {self.timeout_s:g} s: another command writes to it; this one, process"
                f" {os.getpid()}, gave up"
            )
        where, why = self.path, str(failure) or type(failure).__name__
        if isinstance(failure, OSError):
            where, why = failure.filename or where, failure.strerror or why
        elif code_of(failure or Damage()):
            why += hindrance(self.folder)
        return StateUnusable(
            f"state: {where}: {why}; check dataDir {shown(self.folder)}: it must be a folder of root's on a writable"
            " file system with free space"
        )
