"""One SQLite database of a plugin: transactions with a bounded wait, migrations, damage, reboots, full disks.

Journal: WAL with `synchronous=NORMAL`, so that a commit waits for no disk. After a kill at any instruction, and after
power loss, the database is consistent (https://www.sqlite.org/wal.html); what power loss may take is the last
transactions, and what those described is gone with the boot.

What SQLite does not promise is added here:

- A log file that was lost or cut off is valid to SQLite, and its transactions are silently gone. Each transaction is
  counted in the database and, once committed, in a file beside it: a database behind that file has lost transactions.
- A damaged or lost database is moved aside, kept, and a new one filled from what can be read of it and from what the
  owner of the contents knows from elsewhere (`Contents.gather`). No database ever begins empty without that look.
- A database that was replaced is noticed at the next transaction, also by processes that have it open.
- Contents belong to a boot: the first command after another boot says so to their owner.
"""

from __future__ import annotations

import _sqlite3
import os
import stat

from cnimeta.errors import StateUnusable, TryAgainLater, shown
from cnimeta.host.lock import NodeLock
from cnimeta.store.making import DAMAGED, LOG_SUFFIX, Maker, unlink
from cnimeta.store.sequence import Sequence
from cnimeta.store.sql import (
    BUSY,
    CORRUPT,
    FULL,
    LOCKED,
    NOTADB,
    begin,
    code_of,
    connect,
    enter_boot,
    meta,
    migrate,
    next_sequence,
    roll_back,
    set_meta,
    version,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import TypeVar

    from cnimeta.store.sql import Connection, Contents

    T = TypeVar("T")

FILE = "cnimeta.db"

_ATTEMPTS = 4


class LaterVersion(StateUnusable):
    """The database was written by a later version; only what every version allows may be done."""


class _Damage(Exception):
    """The database cannot be relied on."""


class _Replaced(Exception):
    """The file that is open is no longer the database."""


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
        self._inode: tuple[int, int] = (0, 0)
        self._process = 0

    # --- what callers do -------------------------------------------------------------------------------

    def write(self, work: Callable[[Connection], T], *, tolerant: bool = False) -> T:
        """Run `work` in a transaction: all of it or nothing. It may be run again, so it changes the database only.

        `tolerant`: also on a database of a later version. Otherwise that raises LaterVersion (104).
        """

        def transaction(connection: Connection) -> T:
            if self.later and not tolerant:
                raise self._later_version()
            return self._in_transaction(connection, work)

        return self._served(transaction)

    def read(self, work: Callable[[Connection], T], *, tolerant: bool = False) -> T:
        """Run `work` on one snapshot; nobody waits for it. Served from a copy where the disk takes no writes.

        `tolerant`: as in `write`.
        """

        def snapshot(connection: Connection) -> T:
            if self.later and not tolerant:
                raise self._later_version()
            connection.execute("BEGIN")
            try:
                return work(connection)
            finally:
                roll_back(connection)

        try:
            return self._served(snapshot)
        except (LaterVersion, TryAgainLater):
            raise
        except StateUnusable as error:
            copy = self._copied()
            if copy is None:
                raise
            self.log(f"{error.msg}; read from a copy")
            if self.later and not tolerant:
                raise self._later_version() from None
            return work(copy)

    def exists(self) -> bool:
        """Whether there is a database, or a sign that there was one."""
        signs = (self.path, self._sequence.path, self.path + LOG_SUFFIX, self.path + DAMAGED)
        return any(os.path.lexists(path) for path in signs)

    def problems(self) -> list[str]:
        """What SQLite's own check finds; every page is read."""
        rows = self.read(lambda connection: connection.execute("PRAGMA quick_check(20)").fetchall(), tolerant=True)
        return [f"{self.path}: {row[0]}" for row in rows if row[0] != "ok"]

    # --- one piece of work -----------------------------------------------------------------------------

    def _served(self, work: Callable[[Connection], T]) -> T:
        failure: Exception | None = None
        for attempt in range(_ATTEMPTS):
            try:
                return work(self._opened())
            except _Replaced:
                self._forget()
            except _sqlite3.IntegrityError:
                raise  # the schema's own word to its owner
            except (_Damage, _sqlite3.DatabaseError) as error:
                failure = error
                code = code_of(error)
                if isinstance(error, _Damage) or code in (CORRUPT, NOTADB):
                    self._replace(str(error))
                elif code == FULL and attempt < _ATTEMPTS - 1:
                    self._make_room()
                elif code == LOCKED and attempt < _ATTEMPTS - 1:
                    self._forget()
                else:
                    raise self._translated(error) from None
            except OSError as error:
                raise self._unusable(error.filename or self.path, error.strerror or str(error)) from None
        raise self._unusable(self.path, f"it was replaced again and again ({failure})")

    def _in_transaction(self, connection: Connection, work: Callable[[Connection], T]) -> T:
        connection.execute("BEGIN IMMEDIATE")
        try:
            self._refuse_replaced()
            result = work(connection)
            sequence = next_sequence(connection)
            connection.execute("COMMIT")
        except BaseException:
            roll_back(connection)
            raise
        self._sequence.write(sequence)
        return result

    def _refuse_replaced(self) -> None:
        try:
            found = os.stat(self.path)
        except FileNotFoundError:
            raise _Replaced from None
        if (found.st_dev, found.st_ino) != self._inode:
            raise _Replaced

    # --- opening ---------------------------------------------------------------------------------------

    def _opened(self) -> Connection:
        """The connection of this process; one never crosses a fork."""
        if self._connection is not None and self._process == os.getpid():
            return self._connection
        self._connection = None
        self._own_folder()
        for _ in range(_ATTEMPTS):
            inode = self._regular_file()
            if inode is None:
                self._create()
                continue
            connection = connect(self.path, self.timeout_s)
            found = version(connection)
            if self._regular_file() != inode:
                connection.close()
                continue
            self._connection, self._inode, self._process = connection, inode, os.getpid()
            self._prepare(connection, found)
            return connection
        raise _Replaced

    def _prepare(self, connection: Connection, found: int) -> None:
        known = self.contents.schema.version
        self.later = found if found > known else 0
        if self.later:
            return
        if found == 0:
            raise _Damage("it has no contents")
        if found < known:
            self._in_transaction(connection, lambda _: migrate(connection, self.contents.schema))
        if meta(connection, "boot") != self.boot_id:
            self._in_transaction(connection, lambda _: enter_boot(connection, self.contents, self.boot_id))
            return
        noted = self._sequence.read()
        if noted > int(meta(connection, "sequence") or 0):
            self._refill(connection, noted)

    def _refill(self, connection: Connection, noted: int) -> None:
        """Transactions are gone with a lost or damaged log: ask the others what they were about."""
        gathered = self.contents.gather()

        def work(connection: Connection) -> None:
            found = int(meta(connection, "sequence") or 0)
            if found < noted:
                self.log(
                    f"state: {self.path}: the last {noted - found} transactions are lost; made good from the rules"
                )
                self.contents.fill(connection, None, gathered)
                set_meta(connection, "sequence", noted)

        self._in_transaction(connection, work)

    def _own_folder(self) -> None:
        """Make the folder, or refuse one that somebody else may write to: its contents decide what root runs."""
        try:
            found = os.lstat(self.folder)
        except FileNotFoundError:
            os.makedirs(self.folder, mode=0o700, exist_ok=True)
            found = os.lstat(self.folder)
        mode = stat.S_IMODE(found.st_mode)
        if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.geteuid() or mode & 0o022:
            kind = "" if stat.S_ISDIR(found.st_mode) else "no folder, "
            raise StateUnusable(
                f"{shown(self.folder)} is not used: {kind}owner {found.st_uid}, mode {mode:04o}; it must be a folder of"
                f" user {os.geteuid()} that nobody else may write to"
            )

    def _regular_file(self) -> tuple[int, int] | None:
        """(device, inode) of the database, None when there is none."""
        try:
            found = os.lstat(self.path)
        except FileNotFoundError:
            return None
        if not stat.S_ISREG(found.st_mode) or found.st_uid != os.geteuid():
            raise StateUnusable(f"{shown(self.path)} is not used: it is no file of user {os.geteuid()}")
        return found.st_dev, found.st_ino

    def _forget(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None and self._process == os.getpid():
            connection.close()

    # --- making a database, and another one in place of a damaged one ----------------------------------

    def _lock(self) -> NodeLock:
        return NodeLock(os.path.join(self.folder, "locks", "database"), self.timeout_s)

    def _create(self) -> None:
        gathered = self.contents.gather()
        with self._lock().held():
            if not os.path.lexists(self.path):
                self._maker.make(gathered)

    def _replace(self, why: str) -> None:
        """Move the open database aside and make another. Writers are kept out meanwhile, as far as it still can."""
        gathered = self.contents.gather()
        with self._lock().held():
            connection, inode = self._connection, self._inode
            if connection is None or self._process != os.getpid():  # it could not even be opened
                inode = self._regular_file() or (0, 0)
                connection = None
            if inode == self._regular_file() and inode != (0, 0):
                self.log(f"state: {self.path} is damaged ({why}): kept as {FILE}{DAMAGED}-…, made anew")
                if connection is not None:
                    _keep_writers_out(connection)
                self._maker.move_aside()
            self._forget()
            if not os.path.lexists(self.path):
                self._maker.make(gathered)

    # --- disks that are full, or take no writes ----------------------------------------------------------

    def _make_room(self) -> None:
        """Begin the log anew, whose room is then used again, and give up the reserve."""
        unlink(self._maker.reserve)
        if self._connection is not None:
            try:
                self._connection.execute("PRAGMA wal_checkpoint(RESTART)").fetchall()
            except _sqlite3.DatabaseError as error:
                self.log(f"state: {self.path}: {error}")

    def _copied(self) -> Connection | None:
        """The database in memory, for a disk that takes no writes; None when it cannot be read."""
        from cnimeta.store.copy import in_memory

        try:
            connection = in_memory(self.path, self.path + LOG_SUFFIX)
        except FileNotFoundError:
            connection = self._imagined()
        except (OSError, _sqlite3.DatabaseError) as error:
            self.log(f"state: {self.path} cannot be read either: {error}")
            return None
        found = version(connection)
        self.later = found if found > self.contents.schema.version else 0
        return connection

    def _imagined(self) -> Connection:
        """The database that would be made, in memory."""
        connection = _sqlite3.connect(":memory:", isolation_level=None)
        begin(connection, self.contents.schema, self.boot_id, 1)
        self.contents.fill(connection, None, self.contents.gather())
        return connection

    # --- errors ----------------------------------------------------------------------------------------

    def _translated(self, error: Exception) -> StateUnusable | TryAgainLater:
        if code_of(error) == BUSY:
            return TryAgainLater(
                f"{self.path} was not free within {self.timeout_s:g} s: another command writes to it; this one, process"
                f" {os.getpid()}, gave up"
            )
        return self._unusable(self.path, str(error))

    def _unusable(self, where: str, why: str) -> StateUnusable:
        return StateUnusable(
            f"state: {where}: {why}; check dataDir {shown(self.folder)}: it must be a folder of root's on a writable"
            " file system with free space"
        )

    def _later_version(self) -> LaterVersion:
        return LaterVersion(
            f"{self.path} was written by a later version (format version {self.later}, this version reads up to"
            f" {self.contents.schema.version}): install that version, or drain the node and remove the folder"
        )


def _keep_writers_out(connection: Connection) -> None:
    try:
        connection.execute("BEGIN IMMEDIATE")
    except _sqlite3.DatabaseError as error:
        if code_of(error) == BUSY:
            raise
