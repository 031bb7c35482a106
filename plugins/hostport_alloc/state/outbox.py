"""The outbox of the hook: tables that are there once an attachment was told of, and cost nothing before.

An event is written by the transaction that it is about: `added` with the record that completes an ADD, `removed` by a
trigger on the attachment's end, whatever command or version of this program brings that about.
"""

from __future__ import annotations

from cnimeta.namedtuple import NamedTuple
from cnimeta.store import rescue
from cnimeta.store.sql import set_seal
from cnimeta.store.values import storable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.host.protocols import Clock, Database
    from cnimeta.store.values import Connection
    from cnimeta_plugins.hostport_alloc.state.record import Key, Record

_TABLES = (
    """CREATE TABLE IF NOT EXISTS outbox (
        id INTEGER PRIMARY KEY AUTOINCREMENT,
        subject TEXT NOT NULL, event TEXT NOT NULL, created REAL NOT NULL, body TEXT NOT NULL,
        attempts INTEGER NOT NULL DEFAULT 0, error TEXT NOT NULL DEFAULT ''
    )""",
    """CREATE TABLE IF NOT EXISTS told (
        network TEXT NOT NULL, container_id TEXT NOT NULL, ifname TEXT NOT NULL, body TEXT NOT NULL,
        PRIMARY KEY (network, container_id, ifname)
    ) WITHOUT ROWID""",
    """CREATE TRIGGER IF NOT EXISTS attachments_untold AFTER DELETE ON attachments BEGIN
        INSERT INTO outbox (subject, event, created, body)
            SELECT network || '/' || container_id || '/' || ifname, 'removed',
                CAST(strftime('%s', 'now') AS REAL), body
            FROM told WHERE network=OLD.network AND container_id=OLD.container_id AND ifname=OLD.ifname;
        DELETE FROM told WHERE network=OLD.network AND container_id=OLD.container_id AND ifname=OLD.ifname;
    END""",
)
_ADD = "INSERT INTO outbox (subject, event, created, body) VALUES (?, ?, ?, ?)"
_ORDER = "ORDER BY max(attempts) OVER (PARTITION BY subject), id"
"""What a hook never takes, for whatever is in it, must not keep it from the rest."""
_IS_THERE = "SELECT 1 FROM attachments WHERE network=? AND container_id=? AND ifname=? AND token=?"
_THERE = "SELECT count(*) FROM sqlite_master WHERE type='table' AND name IN ('outbox', 'told')"


class Event(NamedTuple):
    """One event that waits."""

    number: int
    subject: str
    """`network/containerID/ifname`"""
    kind: str
    created: float
    """Seconds since the epoch."""
    body: str


def subject_of(key: Key) -> str:
    """How events name an attachment."""
    return "/".join(storable(*key))


def is_there(connection: Connection) -> bool:
    """Whether anybody was ever told."""
    return bool(connection.execute(_THERE).fetchone()[0] == 2)


def tell(connection: Connection, key: Key, body: str, now: float) -> None:
    """Put `added` into the outbox, and see to it that the attachment's end is told too."""
    _make(connection)
    (text,) = storable(body)
    connection.execute("INSERT OR REPLACE INTO told VALUES (?, ?, ?, ?)", (*storable(*key), text))
    connection.execute(_ADD, (subject_of(key), "added", now, text))


def _make(connection: Connection) -> None:
    """Make the tables, and put them under the database's seal, which tells strange ones from ours."""
    if is_there(connection):
        return
    for statement in _TABLES:
        connection.execute(statement)
    set_seal(connection)


class Outbox:
    """The events that wait. Errors as Store's."""

    def __init__(self, database: Database, clock: Clock) -> None:
        self._database = database
        self._clock = clock

    def waiting(self, limit: int, subject: str = "") -> list[Event]:
        """The oldest events, those of attachments last whose events were refused; of one attachment, with `subject`."""

        def work(connection: Connection) -> list[Event]:
            if not is_there(connection):
                return []
            where, values = ("WHERE subject=? ", (subject,)) if subject else ("", ())
            statement = f"SELECT id, subject, event, created, body FROM outbox {where}{_ORDER} LIMIT ?"
            return [Event(*cells) for cells in connection.execute(statement, (*values, limit)).fetchall()]

        return self._database.read(work, tolerant=True) if self._database.exists() else []

    def count(self) -> int:
        """How many events wait."""

        def work(connection: Connection) -> int:
            return int(connection.execute("SELECT count(*) FROM outbox").fetchone()[0]) if is_there(connection) else 0

        return self._database.read(work, tolerant=True) if self._database.exists() else 0

    def add(self, record: Record, body: str) -> None:
        """Tell of an attachment once more, if it is still what was read."""

        def work(connection: Connection) -> None:
            found = connection.execute(_IS_THERE, storable(*record.key, record.token)).fetchone()
            if found is not None:
                tell(connection, record.key, body, self._clock.now())

        self._database.write(work)

    def settle(self, number: int, refusal: str) -> None:
        """The hook has taken an event, or why not."""

        def work(connection: Connection) -> None:
            if refusal:
                statement = "UPDATE outbox SET attempts=attempts+1, error=? WHERE id=?"
                connection.execute(statement, (*storable(refusal), number))
            else:
                connection.execute("DELETE FROM outbox WHERE id=?", (number,))

        self._database.write(work, tolerant=True)


def end_all(connection: Connection, now: float) -> None:
    """A boot is over: no mapping of it is left."""
    if is_there(connection):
        found = connection.execute("SELECT network, container_id, ifname, body FROM told").fetchall()
        connection.executemany(_ADD, [("/".join(cells[:3]), "removed", now, cells[3]) for cells in found])
        connection.execute("DELETE FROM told")


def take_over(new: Connection, old: Connection, now: float) -> None:
    """What can be read of a damaged database. An attachment that is not in the new one has ended."""
    events = rescue.select(old, "SELECT id, subject, event, created, body, attempts, error FROM outbox ORDER BY id")
    told = rescue.select(old, "SELECT network, container_id, ifname, body FROM told")
    if not events and not told:
        return
    _make(new)
    for cells in events:
        if all(isinstance(cells[place], str) for place in (1, 2, 4, 6)) and isinstance(cells[0], int):
            texts = storable(*(str(cells[place]) for place in (1, 2, 4, 6)))
            created = cells[3] if isinstance(cells[3], float) else now
            new.execute(
                "INSERT OR IGNORE INTO outbox VALUES (?, ?, ?, ?, ?, 0, ?)",
                (cells[0], texts[0], texts[1], created, texts[2], texts[3]),
            )
    for cells in told:
        if all(isinstance(cell, str) for cell in cells):
            *key, body = storable(*(str(cell) for cell in cells))
            found = new.execute("SELECT 1 FROM attachments WHERE network=? AND container_id=? AND ifname=?", tuple(key))
            if found.fetchone() is None:
                new.execute(_ADD, ("/".join(key), "removed", now, body))
            else:
                new.execute("INSERT OR REPLACE INTO told VALUES (?, ?, ?, ?)", (*key, body))
