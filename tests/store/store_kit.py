"""A small owner of contents for tests of the database, and databases of both kinds."""

from __future__ import annotations

import _sqlite3
import os
from typing import TYPE_CHECKING

from cnimeta.store import rescue
from cnimeta.store.database import Database
from cnimeta.store.values import Schema
from cnimeta.testing.store import MemoryDatabases

if TYPE_CHECKING:
    from collections.abc import Callable

ONE = Schema(
    (
        (
            "CREATE TABLE things (name TEXT PRIMARY KEY, value TEXT)",
            "CREATE INDEX things_value ON things (value)",
        ),
    )
)
TWO = Schema((*ONE.steps, ("ALTER TABLE things ADD COLUMN more TEXT NOT NULL DEFAULT 'more'",)))
_THINGS = rescue.Table("things", ("name", "value"), "things_value", "value")


class Things:
    """Contents: names with values; `known` is what others know of them."""

    def __init__(self, schema: Schema = ONE) -> None:
        self.schema = schema
        self.known: dict[str, str] = {}
        self.gathered = 0
        self.boots = 0

    def gather(self) -> object:
        self.gathered += 1
        return dict(self.known)

    def fill(self, new, old, gathered) -> None:
        found = dict(gathered)
        for _, name, value in rescue.rows(old, _THINGS) if old is not None else ():
            found.setdefault(str(name), str(value))
        new.executemany("INSERT INTO things (name, value) VALUES (?, ?)", sorted(found.items()))

    def new_boot(self, connection) -> None:
        self.boots += 1
        connection.execute("DELETE FROM things WHERE value='of this boot'")


class Place:
    """A folder and the databases in it, real or in memory."""

    def __init__(self, folder: str, kind: str = "real") -> None:
        self.folder = folder
        self.path = f"{folder}/cnimeta.db"
        self.kind = kind
        self.databases = MemoryDatabases()
        self.open: Callable[..., object] = Database if kind == "real" else self.databases
        self.contents = Things()
        self.log: list[str] = []

    def database(self, boot_id: str = "boot", timeout_s: float = 5, contents: Things | None = None):
        """As the next process opens it."""
        return self.open(self.folder, contents or self.contents, boot_id, self.log.append, timeout_s)

    def sql(self, statement: str, *values: object) -> list[tuple]:
        """Past the database."""
        if self.kind == "memory":
            return self.databases.connections[self.folder].execute(statement, values).fetchall()
        connection = _sqlite3.connect(self.path, isolation_level=None)
        try:
            return connection.execute(statement, values).fetchall()
        finally:
            connection.close()

    def names(self) -> list[str]:
        """The files."""
        return sorted(os.listdir(self.folder))


def put(name: str, value: str = "v"):
    return lambda connection: connection.execute(
        "INSERT OR REPLACE INTO things (name, value) VALUES (?, ?)", (name, value)
    )


def everything(connection) -> dict[str, str]:
    return dict(connection.execute("SELECT name, value FROM things").fetchall())
