"""A plugin author's records: one JSON document per attachment, with everything that `Database` promises."""

from __future__ import annotations

from cnimeta.errors import CniError, StateUnusable, shown
from cnimeta.namedtuple import NamedTuple
from cnimeta.store import document
from cnimeta.store.database import Database
from cnimeta.store.document import Damaged, Later
from cnimeta.store.locks import AttachmentLocks
from cnimeta.store.locks import Key as Key
from cnimeta.store.rescue import Table, rows
from cnimeta.store.values import Schema, storable

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cnimeta.host import protocols
    from cnimeta.spec.fields import Fields
    from cnimeta.spec.jsonio import JSON
    from cnimeta.spec.netconf import NetConf
    from cnimeta.store.values import Connection

_SCHEMA = Schema(
    (
        (
            """CREATE TABLE records (
                network TEXT NOT NULL, container_id TEXT NOT NULL, ifname TEXT NOT NULL, document TEXT NOT NULL,
                PRIMARY KEY (network, container_id, ifname)
            )""",
            "CREATE INDEX records_container ON records (container_id)",
        ),
    )
)
_TABLE = Table("records", ("network", "container_id", "ifname", "document"), "records_container", "container_id")
_ANY_VERSION = 10**9
_KEY = "network=? AND container_id=? AND ifname=?"


class Stored(NamedTuple):
    """One attachment's record. `body` is None for one that cannot be read any more."""

    key: Key
    body: Fields | None


class Records:
    """The records of one plugin in `folder`, a folder of its own: kept over a reboot and a kill. Power loss may take
    the last changes, as nothing waits for the disk.

        records = Records("/var/lib/cni/example", log=request.log)
        with records.locks.of(request.attachment.key).held():
            records.put(request.attachment.key, {"address": "10.0.0.2"})

    `version` is the version of the documents; one of a later version can be removed and not read. Raises StateUnusable
    (code 104) when the database cannot be used, TryAgainLater (code 11) when it is not free in time,
    InvalidEnvironment (code 4) for text that is not UTF-8.
    """

    def __init__(
        self,
        folder: str,
        *,
        log: Callable[[str], None],
        version: int = 1,
        boot_id: str = "",
        timeout_s: float = 10,
        open_database: Callable[..., protocols.Database] = Database,
        locks: protocols.Locks | None = None,
    ) -> None:
        self._version = version
        self._log = log
        self._database = open_database(folder, _Contents(log), boot_id, log, timeout_s)
        self.locks: protocols.Locks = locks or AttachmentLocks(f"{folder}/locks", timeout_s)

    def put(self, key: Key, body: Mapping[str, JSON]) -> None:
        """Write the record of an attachment, in place of what there was."""
        text = document.encode(self._version, {"key": list(storable(*key)), "body": body})
        self._database.write(
            lambda connection: connection.execute("INSERT OR REPLACE INTO records VALUES (?, ?, ?, ?)", (*key, text))
        )

    def get(self, key: Key) -> Fields | None:
        """The record; None when there is none. StateUnusable (104) for one that cannot be read: it is not gone."""
        found = self._select(_KEY, *key)
        if not found:
            return None
        stored = self._stored(found[0])
        if stored.body is None:
            raise StateUnusable(f"the record of container {shown(key[1])} cannot be read")
        return stored.body

    def remove(self, key: Key) -> None:
        """Remove the record; missing is fine."""
        if self._select(_KEY, *key):
            self._database.write(
                lambda connection: connection.execute(f"DELETE FROM records WHERE {_KEY}", key),
                tolerant=True,
            )

    def of_container(self, container_id: str) -> list[Stored]:
        """Every record of one container."""
        return [self._stored(row) for row in self._select("container_id=?", container_id)]

    def every(self) -> list[Stored]:
        """Every record, by key."""
        return [self._stored(row) for row in self._select("1")]

    def stale(self, conf: NetConf) -> list[Key]:
        """What GC is to free: the keys of the network's records that its list does not name; none without a list.

        Raises DecodingFailure (code 6) for a malformed list: nothing may be freed on the word of half a list.
        """
        valid = conf.valid_attachments()
        if valid is None:
            return []
        return [key for key, _ in self.every() if key[0] == conf.name and key[1:] not in valid]

    def _select(self, condition: str, *values: str) -> list[tuple[str, str, str, str]]:
        storable(*values)
        if not self._database.exists():
            return []
        statement = f"SELECT * FROM records WHERE {condition} ORDER BY network, container_id, ifname"
        found: list[tuple[str, str, str, str]] = self._database.read(
            lambda connection: connection.execute(statement, values).fetchall(), tolerant=True
        )
        return found

    def _stored(self, row: tuple[str, str, str, str]) -> Stored:
        *key, text = row
        try:
            found = document.decode(self._version, text)
            if found.get("key") != key:
                raise Damaged("it is another attachment's")
            return Stored((key[0], key[1], key[2]), found.object("body"))
        except (Damaged, Later, CniError) as error:
            self._log(f"the record of container {shown(key[1])} cannot be read: {error}")
            return Stored((key[0], key[1], key[2]), None)


class _Contents:
    """What the database needs to know: nobody else has these records, so a damaged one gives what can be read of it."""

    schema = _SCHEMA

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log

    def gather(self) -> None:
        """There is no other source."""

    def fill(self, new: Connection, old: Connection | None, _gathered: object) -> None:
        """Take over what is readable."""
        if old is None:
            return
        taken = 0
        for _, *cells in rows(old, _TABLE):
            if all(isinstance(cell, str) for cell in cells):
                *names, text = (str(cell).encode("utf-8", "replace").decode() for cell in cells)
                new.execute("INSERT OR IGNORE INTO records VALUES (?, ?, ?, ?)", (*_key_in(text, names), text))
                taken += 1
        self._log(f"state: {taken} records were read from the damaged database")

    def new_boot(self, connection: Connection) -> None:
        """Records stay."""


def _key_in(text: str, names: list[str]) -> list[str]:
    """The key as the document has it, under its checksum; that of the row where it cannot be read."""
    try:
        found = document.decode(_ANY_VERSION, text).texts("key")
    except (Damaged, CniError):  # unknown: the row's key is right or nobody's
        return names
    return found if len(found) == len(names) else names
