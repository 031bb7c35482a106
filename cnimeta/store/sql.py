"""What SQLite is told, and what its answers mean: connections, versions, the table `meta` that every database has.

The C module is imported, not `sqlite3`, which loads `datetime` and more for conversions that nothing here uses.
"""

from __future__ import annotations

import _sqlite3

from cnimeta.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Protocol, TypeAlias

    Connection: TypeAlias = _sqlite3.Connection

    class Contents(Protocol):
        """What is in a database, and where it can be had from when it is lost."""

        schema: Schema

        def gather(self) -> object:
            """What others know of the contents. Called without a lock or a transaction, when they were lost."""
            ...

        def fill(self, new: Connection, old: Connection | None, gathered: object) -> None:
            """Put in what can be read of `old`, a damaged database, and what was gathered."""
            ...

        def new_boot(self, connection: Connection) -> None:
            """Forget what did not outlive the boot."""
            ...


_PRIMARY_CODE = 0xFF
BUSY, LOCKED, CORRUPT, FULL, NOTADB = 5, 6, 11, 13, 26
"""https://www.sqlite.org/rescode.html; the module has them by name from 3.11 on under `sqlite3` only."""
_OPEN = (
    "PRAGMA synchronous=NORMAL",
    "PRAGMA temp_store=MEMORY",
    "PRAGMA trusted_schema=OFF",
    "PRAGMA cell_size_check=ON",
)


class Schema(NamedTuple):
    """The tables. `steps[n]` holds the statements that take version n to n + 1; steps are never changed, only added."""

    steps: tuple[tuple[str, ...], ...]

    @property
    def version(self) -> int:
        """The version that this code reads and writes."""
        return len(self.steps)


def begin(connection: Connection, schema: Schema, boot_id: str, sequence: int) -> None:
    """Make the tables of a new database."""
    connection.execute("CREATE TABLE meta (key TEXT PRIMARY KEY, value) WITHOUT ROWID")
    migrate(connection, schema)
    set_meta(connection, "boot", boot_id)
    set_meta(connection, "sequence", sequence)


def migrate(connection: Connection, schema: Schema) -> None:
    """Take the tables to the version of this code, step by step."""
    for step in schema.steps[version(connection) :]:
        for statement in step:
            connection.execute(statement)
    connection.execute(f"PRAGMA user_version={schema.version}")


def enter_boot(connection: Connection, contents: Contents, boot_id: str) -> None:
    """Tell the owner of the contents when they are of another boot."""
    if meta(connection, "boot") != boot_id:
        contents.new_boot(connection)
        set_meta(connection, "boot", boot_id)


def connect(path: str, timeout_s: float = 10) -> Connection:
    connection = _sqlite3.connect(path, timeout=timeout_s, isolation_level=None)
    for statement in _OPEN:
        connection.execute(statement)
    return connection


def version(connection: Connection) -> int:
    return int(connection.execute("PRAGMA user_version").fetchone()[0])


def meta(connection: Connection, key: str) -> str | int | None:
    row = connection.execute("SELECT value FROM meta WHERE key=?", (key,)).fetchone()
    return None if row is None else row[0]


def set_meta(connection: Connection, key: str, value: str | int) -> None:
    connection.execute(
        "INSERT INTO meta VALUES (?, ?) ON CONFLICT (key) DO UPDATE SET value=excluded.value", (key, value)
    )


def next_sequence(connection: Connection) -> int:
    connection.execute("UPDATE meta SET value=value+1 WHERE key='sequence'")
    return int(meta(connection, "sequence") or 0)


def roll_back(connection: Connection) -> None:
    """End a transaction without a trace; SQLite has done so already after some failures."""
    try:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
    except _sqlite3.DatabaseError:
        pass


def code_of(error: Exception) -> int:
    return int(getattr(error, "sqlite_errorcode", 0) or 0) & _PRIMARY_CODE
