"""Reading a damaged database: every row that can still be read, however the damage lies."""

from __future__ import annotations

from cnimeta.namedtuple import NamedTuple
from cnimeta.store.engine import sqlite as _sqlite3

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias

    from cnimeta.store.values import Connection

    Cells: TypeAlias = tuple[object, ...]
else:
    Cells = tuple


class Table(NamedTuple):
    """A table that is read: `by` is one of its indices, and `leads` the column that this begins with."""

    name: str
    columns: tuple[str, ...]
    by: str
    leads: str


def tolerant(connection: Connection) -> Connection:
    """Let text that is no UTF-8 be read too."""
    connection.text_factory = lambda data: data.decode("utf-8", "surrogateescape")
    return connection


def rows(old: Connection, table: Table) -> Iterator[Cells]:
    """(rowid, columns…) of every readable row: from both ends up to the damage, then those that the index names.

    In no order. Where only the first columns can be read, the last one is None.
    """
    everything = f"SELECT rowid, {', '.join(table.columns)} FROM {table.name}"
    seen: set[object] = set()
    for order in ("ASC", "DESC"):
        for row in _until_damage(old, f"{everything} ORDER BY rowid {order}"):
            if row[0] in seen:
                break
            seen.add(row[0])
            yield row
    short = f"SELECT rowid, {', '.join(table.columns[:-1])}, NULL FROM {table.name}"
    for order in ("ASC", "DESC"):
        named = f"SELECT rowid FROM {table.name} INDEXED BY {table.by} ORDER BY {table.leads} {order}"
        for (number,) in list(_until_damage(old, named)):
            if number not in seen:
                seen.add(number)
                found = select(old, f"{everything} WHERE rowid=?", number)
                yield from found or select(old, f"{short} WHERE rowid=?", number)


def select(old: Connection, statement: str, *values: object) -> list[Cells]:
    """The rows of a query up to the damage."""
    return list(_until_damage(old, statement, *values))


def _until_damage(old: Connection, statement: str, *values: object) -> Iterator[Cells]:
    try:
        yield from old.execute(statement, values)
    except _sqlite3.Error:
        return
