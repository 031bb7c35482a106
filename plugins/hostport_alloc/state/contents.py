"""What is in the database, for `cnimeta.store.Database`: the tables, and where they are had from when they are lost.

Sources, in this order: the rows that can still be read of a damaged database; then the mappings that the port mapper's
records and the kernel's rules have and no record covers, as salvaged records. What was done is logged, a line each.
"""

from __future__ import annotations

import _sqlite3

from cnimeta.errors import shown
from cnimeta_plugins.hostport_alloc.allocate.expose import PROTOCOLS
from cnimeta_plugins.hostport_alloc.allocate.picks import Port
from cnimeta_plugins.hostport_alloc.state import rows
from cnimeta_plugins.hostport_alloc.state.record import Record
from cnimeta_plugins.hostport_alloc.state.schema import SCHEMA

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cnimeta.host.protocols import Clock
    from cnimeta.ports.mapper import MappedPort
    from cnimeta.store.sql import Connection
    from cnimeta_plugins.hostport_alloc.state.record import Key
    from cnimeta_plugins.hostport_alloc.state.rows import Row

_GAP_MAX = 100_000
"""So many row numbers between two readable ends are tried one by one."""


class PortContents:
    """The contents. `mappings` lists what was mapped for hostport_alloc on this node, as others know it."""

    schema = SCHEMA

    def __init__(
        self,
        mappings: Callable[[], Iterable[MappedPort]],
        clock: Clock,
        boot_id: str,
        log: Callable[[str], None],
    ) -> None:
        self.mappings = mappings
        self.clock = clock
        self.boot_id = boot_id
        self.log = log

    def gather(self) -> tuple[MappedPort, ...]:
        """Ask the port mapper; it starts processes, so nobody waits for this."""
        return tuple(self.mappings())

    def fill(self, new: Connection, old: Connection | None, gathered: object) -> None:
        """Put in what the old one still has, then what the others know."""
        if old is not None:
            self._take_over(new, old)
        if isinstance(gathered, tuple):
            self._salvage(new, gathered)
        rows.renew_bits(new)

    def new_boot(self, connection: Connection) -> None:
        """Rules and namespaces are gone: no port is held. Records stay, since delegates may keep leases on disk."""
        connection.execute("DELETE FROM ports")
        connection.execute("DELETE FROM quarantine")
        rows.renew_bits(connection)

    # --- a damaged database ------------------------------------------------------------------------------

    def _take_over(self, new: Connection, old: Connection) -> None:
        taken = lost = 0
        for row in _readable(old):
            record = rows.record_of(_Tolerant(old), row)  # type: ignore[arg-type]
            if rows.find(new, row.key) is None and self._insert(new, record):
                taken += 1
            else:
                lost += 1
        self.log(f"state: {taken} records were read from the damaged database" + (f", {lost} were not" if lost else ""))
        _copy(old, new, "quarantine", 4)
        _copy(old, new, "remembered", 4)

    def _insert(self, new: Connection, record: Record) -> bool:
        """Add a record, less its ports where a record before it has them: a flipped bit can change a number."""
        if record.boot_id != self.boot_id:
            bare = record._replace(ports=(), explicit=())
            rows.insert(new, bare)
            rows.replace_document(new, record)
            return True
        new.execute("SAVEPOINT one")
        try:
            rows.insert(new, record)
        except _sqlite3.IntegrityError as error:
            new.execute("ROLLBACK TO one")
            self.log(f"state: record of container {shown(record.container_id)} is left out: {error}")
            return False
        finally:
            new.execute("RELEASE one")
        return True

    # --- what others know --------------------------------------------------------------------------------

    def _salvage(self, new: Connection, mappings: Iterable[MappedPort]) -> None:
        """Records for mappings that no record of this boot covers."""
        found: dict[Key, list[Port]] = {}
        for one in mappings:
            if one.protocol in PROTOCOLS:
                port = Port(one.container_port, one.protocol, one.host_port, "", one.host_ip)
                found.setdefault((one.network, one.container_id, one.ifname), []).append(port)
        for key, ports in found.items():
            known = rows.find(new, key)
            if known is not None and known.boot_id == self.boot_id:
                continue
            if known is not None:
                rows.delete(new, known)
            record = Record(
                *key,
                boot_id=self.boot_id,
                token="salvaged",  # noqa: S106 - tells a reservation, is no secret
                created=self.clock.now(),
                phase="mapped",
                ports=tuple(ports),
                salvaged=True,
            )
            if self._insert(new, record):
                numbers = ", ".join(f"{port.host_port}/{port.protocol}" for port in ports)
                self.log(f"state: record of container {shown(key[1])} made anew from its port mappings: {numbers}")


class _Tolerant:
    """A connection to a damaged database: what cannot be read is not there."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    def execute(self, statement: str, values: tuple[object, ...] = ()) -> _Rows:
        try:
            return _Rows(self._connection.execute(statement, values).fetchall())
        except _sqlite3.DatabaseError:
            return _Rows([])


class _Rows:
    def __init__(self, found: list[tuple[object, ...]]) -> None:
        self._found = found

    def fetchall(self) -> list[tuple[object, ...]]:
        return self._found


def _readable(old: Connection) -> Iterator[Row]:
    """Every row of attachments that can be read: from both ends up to the damage, then number by number between."""
    seen: set[int] = set()
    ends = [0, 0]
    for end, order in enumerate(("ASC", "DESC")):
        for row in _scan(old, order):
            if row.id in seen:
                break
            seen.add(row.id)
            ends[end] = row.id
            yield row
    first, last = ends
    for number in range(first + 1, min(last, first + _GAP_MAX)):
        if number not in seen:
            for found in _Tolerant(old).execute(f"{_SELECT} WHERE id=?", (number,)).fetchall():
                between = _row(found)
                if between is not None:
                    yield between


_SELECT = "SELECT id, network, container_id, ifname, token, boot_id, document FROM attachments"


def _scan(old: Connection, order: str) -> Iterator[Row]:
    try:
        for found in old.execute(f"{_SELECT} ORDER BY id {order}"):
            row = _row(found)
            if row is not None:
                yield row
    except (_sqlite3.DatabaseError, UnicodeDecodeError):
        return


def _row(found: tuple[object, ...]) -> Row | None:
    """The row, if it has the types of one; the kernel's names tell the rest."""
    number, *texts = found
    if not isinstance(number, int) or not all(isinstance(text, str) and text for text in texts):
        return None
    return rows.Row(*found)  # type: ignore[arg-type]


def _copy(old: Connection, new: Connection, table: str, width: int) -> None:
    found = _Tolerant(old).execute(f"SELECT * FROM {table}").fetchall()
    marks = ", ".join("?" * width)
    for row in found:
        try:
            new.execute(f"INSERT OR IGNORE INTO {table} VALUES ({marks})", row)
        except _sqlite3.DatabaseError:
            continue
