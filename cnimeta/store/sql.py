"""What SQLite is told, and what its answers mean: connections, versions, the table `meta` that every database has."""

from __future__ import annotations

import os
from binascii import crc32

from cnimeta.observe import notes
from cnimeta.store.engine import sqlite as _sqlite3
from cnimeta.store.values import Damage

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.store.values import Connection, Contents, Schema

_PRIMARY_CODE = 0xFF
BUSY, NOMEM, IOERR, CORRUPT, FULL, CANTOPEN, PROTOCOL, NOTADB = 5, 7, 10, 11, 13, 14, 15, 26
"""https://www.sqlite.org/rescode.html"""
_UNREAD = (IOERR | 1 << 8, IOERR | 33 << 8)
"""SQLITE_IOERR_READ; SQLITE_IOERR_CORRUPTFS, for EIO."""
_CUT_OFF = IOERR | 2 << 8
"""SQLITE_IOERR_SHORT_READ: the file, or the log, ends before what others that have it open know to be there."""
_OPEN = (
    "PRAGMA synchronous=NORMAL",
    "PRAGMA temp_store=MEMORY",
    "PRAGMA trusted_schema=OFF",
    "PRAGMA cell_size_check=ON",
)


_WAIT_S = 0.001
"""What took less was no wait for another command."""

# --- connections -----------------------------------------------------------------------------------------


def connect(path: str, timeout_s: float = 10, *, without_log: bool = False) -> Connection:
    """Open a database; nothing is read yet. A missing one is an error: SQLite would make an empty one in its place.

    `without_log`: to read what its file has, for a log that cannot be read.
    """
    name = f"file://{quote(os.path.abspath(path))}?{'immutable=1' if without_log else 'mode=rw'}"
    connection = _sqlite3.connect(name, timeout=timeout_s, isolation_level=None, uri=True)
    try:
        for statement in _OPEN:
            connection.execute(statement)
    except BaseException:
        connection.close()  # or the traceback would keep it, and its locks
        raise
    return connection


def quote(path: str) -> str:
    """A path as part of a URI."""
    plain = range(ord("!"), 0x7F)
    return "".join(chr(one) if one in plain and one not in b"%?#" else f"%{one:02x}" for one in os.fsencode(path))


def roll_back(connection: Connection) -> None:
    """End a transaction without a trace; SQLite has done so already after some failures."""
    try:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    except (_sqlite3.Error, MemoryError):
        pass


def code_of(error: BaseException) -> int:
    """SQLite's primary result code; 0 for an error that is not SQLite's."""
    if isinstance(error, MemoryError):
        return NOMEM
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & _PRIMARY_CODE


def is_unread(error: BaseException) -> bool:
    """Whether the disk did not give a page."""
    return getattr(error, "sqlite_errorcode", 0) in _UNREAD


def is_damage(error: BaseException) -> bool:
    """Whether an error means that the file is not what was written."""
    if isinstance(error, Damage) or code_of(error) in (CORRUPT, NOTADB):
        return True
    if getattr(error, "sqlite_errorcode", 0) == _CUT_OFF:
        return True
    # The module's own error, without a code, for text that is not UTF-8: we have written none.
    return isinstance(error, _sqlite3.OperationalError) and not hasattr(error, "sqlite_errorcode")


# --- versions, and the table `meta` ------------------------------------------------------------------------


def begin_writing(connection: Connection) -> None:
    """Begin a transaction that writes, when no other command is at one: SQLite waits for that."""
    began = notes.moment()
    try:
        connection.execute("BEGIN IMMEDIATE")
    finally:
        notes.waited("database", began, _WAIT_S)


def keep_writers_out(connection: Connection) -> None:
    """The same as far as a damaged database lets it; raises only where another command writes."""
    try:
        begin_writing(connection)
    except _sqlite3.Error as error:
        if code_of(error) == BUSY:
            raise


def begin(connection: Connection, schema: Schema, boot_id: str, sequence: int) -> None:
    """Make the tables of a new database."""
    connection.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID")
    set_meta(connection, "boot", boot_id)
    set_meta(connection, "sequence", sequence)
    migrate(connection, schema)


def migrate(connection: Connection, schema: Schema) -> None:
    """Take the tables to the version of this code, step by step; a later version's are left alone."""
    found = version(connection)
    if found >= schema.version:
        return
    for step in schema.steps[found:]:
        for statement in step:
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version={schema.version}")
    set_seal(connection)


def enter_boot(connection: Connection, contents: Contents, boot_id: str, noted: int) -> None:
    """Tell the owner of the contents when they are of another boot. After power loss, `noted` can be ahead."""
    if meta(connection, "boot") != boot_id:
        contents.new_boot(connection)
        set_meta(connection, "boot", boot_id)
        set_meta(connection, "sequence", max(noted, sequence_of(connection)))
        set_seal(connection)


def version(connection: Connection) -> int:
    """The version of the tables; 0 when there are none."""
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def judged(connection: Connection, known: int) -> int:
    """The version of a database. Raises Damage when version, tables or boot are not what was written.

    The seal in `meta` covers them; every later version has it too. Where both it and a later version number are
    wrong for us, the number is believed: nobody but that version may then make the database anew.
    """
    found = version(connection)
    try:
        sealed = meta(connection, "seal")
        if sealed == _seal(connection, found):
            return found
        if found > known and sealed != _seal(connection, known):
            return found
    except _sqlite3.OperationalError as error:
        if code_of(error) != 1:  # SQLITE_ERROR: there is no table `meta`
            raise
    raise Damage("its version, boot or tables are not what was written" if found else "it has no contents")


def set_seal(connection: Connection) -> None:
    """Write the checksum over what is not under another one."""
    set_meta(connection, "seal", _seal(connection, version(connection)))


def _seal(connection: Connection, number: int) -> int:
    tables = connection.execute("SELECT rootpage, sql FROM sqlite_master ORDER BY rowid").fetchall()
    return crc32(repr((number, meta(connection, "boot"), tables)).encode())


def meta(connection: Connection, key: str) -> str | int | None:
    """One value of the table `meta`."""
    row = connection.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
    return None if row is None else row[0]


def set_meta(connection: Connection, key: str, value: str | int) -> None:
    """Write a value of the table `meta`."""
    connection.execute("INSERT OR REPLACE INTO meta VALUES (?, ?)", (key, value))


def sequence_of(connection: Connection) -> int:
    """How many transactions there were."""
    found = meta(connection, "sequence")
    if not isinstance(found, int) or not 0 <= found < 1 << 60:
        raise Damage("the number of its transactions is none")
    return found


def next_sequence(connection: Connection) -> int:
    """Count this transaction."""
    number = sequence_of(connection) + 1
    set_meta(connection, "sequence", number)
    return number
