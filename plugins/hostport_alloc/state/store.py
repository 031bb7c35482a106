"""Who holds which host port, and how to undo it: the state of the node as the verbs use it. See docs/hostport_alloc.md.

With `key` = attachment.key, and the attachment's lock (`locks.of(key)`) held by ADD, DEL, GC and repair:

ADD     reservation = store.hold(draft, demand)             # ports held, record written, phase "reserved"
        ... run delegates and portmap ...
        store.settle(record._replace(phase="mapped", undo=..., annotation=...))
        on failure: undo what was run, then store.release(key)
DEL     record = store.load(key)                            # None: nothing was allocated, or DEL was served before
        ... undo from record.undo ...
        store.release(key)                                  # record gone, ports free (quarantined)
CHECK   store.load(key)
GC      for record in store.unlisted(network, keep): undo, store.release(record.key)
STATUS  store.occupancy()
later   for record in store.pending(limit): deliver record.annotation.patch, then store.settle(record with "done")
"""

from __future__ import annotations

import os

from cnimeta.errors import CniError, TryAgainLater, shown
from cnimeta.namedtuple import NamedTuple
from cnimeta.store.values import Damage, storable
from cnimeta_plugins.hostport_alloc.config import QUARANTINE_S, STICKY_S
from cnimeta_plugins.hostport_alloc.state import listed, rows
from cnimeta_plugins.hostport_alloc.state.agreement import disagreements
from cnimeta_plugins.hostport_alloc.state.picking import Demand as Demand
from cnimeta_plugins.hostport_alloc.state.picking import View, choose, kept
from cnimeta_plugins.hostport_alloc.state.record import SALVAGED, Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Sequence

    from cnimeta.host.protocols import Clock, Database
    from cnimeta.store.values import Connection
    from cnimeta_plugins.hostport_alloc.allocate.picks import Preferred, QuarantinedPort
    from cnimeta_plugins.hostport_alloc.allocate.ranges import Ports
    from cnimeta_plugins.hostport_alloc.state.listed import Listed
    from cnimeta_plugins.hostport_alloc.state.outbox import Outbox
    from cnimeta_plugins.hostport_alloc.state.record import Key

_ATTEMPTS = 100  # each that fails means that another command got a port
_CHUNK = 256


class Superseded(CniError):
    """The record was released, or replaced by another ADD's, while this command worked: undo and give up."""

    code = 11


class _Nothing(Exception):
    """There is nothing to do: the transaction is rolled back, and nothing is written."""


class Reservation(NamedTuple):
    """What `hold` did. `fresh` is False when the attachment held exactly these ports already."""

    record: Record
    fresh: bool


class Occupancy(NamedTuple):
    """What is held and what is kept back."""

    used: Ports
    quarantined: tuple[QuarantinedPort, ...]


class Store:
    """The node-wide state in one database.

    Errors, from every method: StateUnusable (104) when it cannot be read or written (nothing was changed then),
    TryAgainLater (11) when it is not free in time.
    """

    def __init__(self, database: Database, clock: Clock, boot_id: str, log: Callable[[str], None]) -> None:
        self._database = database
        self._clock = clock
        self._boot_id = boot_id
        self._log = log

    # --- the verbs -------------------------------------------------------------------------------------

    def hold(self, draft: Record, demand: Demand) -> Reservation:
        """Hold ports for `draft.key` and write its record, with `draft`'s netns, pod, explicit, undo and annotation.

        Repeating it gives the same ports. Exhausted (11): no port free; QuotaExceeded (11 or 7); HostPortConflict
        (100): an explicit mapping is held by another container; StateUnusable (104) also when a later version wrote the
        state. Ports are picked and probed from a snapshot, and the transaction tells whether they are still free.
        """
        draft = draft._replace(
            token=os.urandom(8).hex(),
            boot_id=self._boot_id,
            created=self._clock.now(),
            phase="reserved",
            salvaged=False,
        )
        for _ in range(_ATTEMPTS):
            view = self._database.read(lambda connection: self._view(connection, draft, demand))
            ports = kept(view.before, demand)
            if ports is None:
                ports = choose(view, draft, demand)
            record = draft._replace(ports=ports)
            if self._database.write(lambda connection: self._commit(connection, record, view, demand)):  # noqa: B023
                before = view.before
                fresh = before is None or (before.ports, before.explicit) != (record.ports, record.explicit)
                return Reservation(record, fresh)
        raise TryAgainLater(f"no port could be had in {_ATTEMPTS} attempts: too many other commands ask for ports")

    def _view(self, connection: Connection, draft: Record, demand: Demand) -> View:
        rows.refuse_conflicts(connection, draft.explicit, draft.container_id, draft.netns_id)
        used: Ports = rows.current_bits(connection)
        _refuse_over_quota(connection, draft, demand, self._boot_id)
        row = rows.find(connection, draft.key)
        before = None
        if row is not None and row.boot_id == self._boot_id:
            before = rows.record_of(row)
            used = rows.without_row(connection, used, row, before)
        preferred: Preferred = {}
        if demand.sticky:
            preferred = rows.recall(connection, draft.pod, self._boot_id, self._clock.now())
        if before is not None and not before.salvaged:
            own = {(port.asked, port.protocol, port.range): port.host_port for port in before.ports}
            preferred = {**preferred, **own}
        return View(before, used, rows.quarantined(connection, self._clock.boottime()), preferred)

    def _commit(self, connection: Connection, record: Record, view: View, demand: Demand) -> bool:
        """Write the record; False, and nothing done, when what the pick was made from has changed."""
        rows.refuse_conflicts(connection, record.explicit, record.container_id, record.netns_id)
        row = rows.find(connection, record.key)
        here = row if row is not None and row.boot_id == self._boot_id else None
        if (here.token if here is not None else "") != (view.before.token if view.before is not None else ""):
            return False
        before = rows.bits(connection)
        used: Ports = rows.held_bits(connection) if before is None else before
        if here is not None:
            used = rows.without_row(connection, used, here, rows.record_of(here))
        if any(used.get(port.protocol, 0) >> port.host_port & 1 for port in record.ports):
            return False
        _refuse_over_quota(connection, record, demand, self._boot_id)
        if row is not None:
            rows.delete(connection, row)
        rows.insert(connection, record)
        rows.write_bits(connection, before or {}, rows.with_bits(used, record.held))
        rows.end_quarantine(connection, record.held)
        return True

    def load(self, key: Key) -> Record | None:
        """The attachment's record. One that was lost to damage comes back `salvaged`, with no `undo`. A record of an
        earlier boot is returned too (delegates may keep leases on disk): see `is_alive`.
        """

        def work(connection: Connection) -> Record | None:
            row = rows.find(connection, key)
            return self._record(row) if row is not None else None

        return self._database.read(work, tolerant=True)

    def _record(self, row: rows.Row) -> Record:
        """The record in a row; in a later version's database, what this version can make of it."""
        try:
            return rows.record_of(row)
        except Damage:
            if not self._database.later:
                raise
        return Record(*row.key, boot_id=row.boot_id, token=row.token, phase="mapped", salvaged=True)

    def renamed(self, key: Key) -> Record | None:
        """The record of the same container and interface under another network's name, if there is exactly one.

        A container has one interface of a name, so this is the attachment, and its network has another name since.
        """

        def work(connection: Connection) -> Record | None:
            network, container_id, ifname = storable(*key)
            found = rows.select(connection, "container_id=? AND ifname=? AND network<>?", container_id, ifname, network)
            return self._record(found[0]) if len(found) == 1 else None

        return self._database.read(work, tolerant=True)

    def is_alive(self, record: Record) -> bool:
        """Whether the record is of this boot, so that its ports are held and its rules may exist."""
        return record.boot_id == self._boot_id

    def settle(self, record: Record, event: str = "") -> None:
        """Replace the record of the same key and token; its ports cannot change. Superseded (11) if it is gone.

        `event`: what a hook is told of it, from then on until it ends.
        """

        def work(connection: Connection) -> None:
            row = rows.find(connection, record.key)
            now = rows.record_of(row) if row is not None else None
            if now is None or now.token != record.token or now.held != record.held:
                raise Superseded(
                    f"container {shown(record.container_id)} was {'deleted' if now is None else 'added anew'} while"
                    " this command worked on it; nothing of it was kept"
                )
            rows.replace_document(connection, record)
            if event:
                from cnimeta_plugins.hostport_alloc.state.outbox import tell

                tell(connection, record.key, event, self._clock.now())

        self._database.write(work)

    def release(
        self, key: Key, *, token: str = "", quarantine_s: float = QUARANTINE_S, sticky_s: float = STICKY_S
    ) -> Record | None:
        """Forget the attachment and free its ports; None when there was none. With `token`, only that reservation, or
        a record that was made from its mappings meanwhile.

        The ports stay in quarantine for `quarantine_s`; the same Pod prefers them for `sticky_s` (0: not). Done also
        in a database of a later version, and on a full disk: space may only come back when Pods are deleted.
        """
        if not self._database.exists():
            return None

        def work(connection: Connection) -> Record:
            row = rows.find(connection, key)
            if row is None or (token and row.token not in (token, SALVAGED)):
                raise _Nothing
            record = self._record(row)
            if self._database.later:
                connection.execute("INSERT OR REPLACE INTO meta VALUES ('stale', 1)")
            else:
                self._free(connection, row, record, quarantine_s, sticky_s)
            rows.delete(connection, row)
            return record

        try:
            return self._database.write(work, tolerant=True)
        except _Nothing:
            return None

    def _free(
        self, connection: Connection, row: rows.Row, record: Record, quarantine_s: float, sticky_s: float
    ) -> None:
        if self.is_alive(record):
            before = rows.bits(connection)
            after = rows.without_row(connection, rows.current_bits(connection), row, record)
            rows.write_bits(connection, before or {}, after)
            rows.quarantine(connection, record, self._clock.boottime(), quarantine_s)
        if sticky_s > 0:
            now = self._clock.now()
            rows.remember(connection, record, now + sticky_s, now)

    @property
    def outbox(self) -> Outbox:
        """What the hook is yet to be told."""
        from cnimeta_plugins.hostport_alloc.state.outbox import Outbox

        return Outbox(self._database, self._clock)

    # --- looking ---------------------------------------------------------------------------------------

    def exists(self) -> bool:
        """Whether there is a database, or a sign that there was one. Whatever reads makes one when there is none."""
        return self._database.exists()

    def records(self) -> Iterator[Record]:
        """Every record, this boot's and earlier ones; unreadable ones as `salvaged`. Read in chunks."""
        after = 0
        while True:
            chunk = self._database.read(lambda connection: self._chunk(connection, after), tolerant=True)  # noqa: B023
            yield from (record for _, record in chunk)
            if len(chunk) < _CHUNK:
                return
            after = chunk[-1][0]

    def _chunk(self, connection: Connection, after: int) -> list[tuple[int, Record]]:
        found = rows.select(connection, "id > ? ORDER BY id LIMIT ?", after, _CHUNK)
        return [(row.id, self._record(row)) for row in found]

    def listed(self) -> list[Listed]:
        """Every host port on record, by number: what lists show, without reading a document."""
        now = self._clock.now()

        def work(connection: Connection) -> list[Listed] | None:
            return None if self._database.later else listed.every(connection, self._boot_id, now)

        found = self._database.read(work, tolerant=True)
        if found is None:  # a later version may keep this elsewhere
            found = [port for record in self.records() for port in listed.of(record, self._boot_id, now)]
            found.sort(key=lambda port: port[:2])
        return found

    def printed(self, heads: Sequence[str], most: int | None) -> str | None:
        """The table of every host port, as `printed.table` makes it; None where that does not, or not here."""
        from cnimeta_plugins.hostport_alloc.state import printed

        now = self._clock.now()
        return self._printed(lambda connection: printed.table(connection, self._boot_id, now, heads, most))

    def printed_json(self) -> str | None:
        """The same as `printed.json` makes it."""
        from cnimeta_plugins.hostport_alloc.state import printed

        now = self._clock.now()
        return self._printed(lambda connection: printed.json(connection, self._boot_id, now))

    def _printed(self, work: Callable[[Connection], str | None]) -> str | None:
        """A later version's tables are not known."""
        return self._database.read(lambda connection: None if self._database.later else work(connection), tolerant=True)

    def containers(self) -> list[str]:
        """The IDs of the containers of this boot that have a record."""
        statement = "SELECT DISTINCT container_id FROM attachments WHERE boot_id=?"
        found = self._database.read(
            lambda connection: connection.execute(statement, (self._boot_id,)).fetchall(), tolerant=True
        )
        return [str(container_id) for (container_id,) in found]

    def beginning(self, container: str) -> list[Record]:
        """The records of the containers whose ID begins with this text."""

        def work(connection: Connection) -> list[Record]:
            found = rows.select(connection, "container_id>=? AND substr(container_id, 1, ?)=?", *names)
            return [self._record(row) for row in found]

        (text,) = storable(container)
        names = text, len(text), text
        return self._database.read(work, tolerant=True)

    def unlisted(self, network: str, keep: Collection[tuple[str, str]]) -> list[Record]:
        """The records of a network whose (container ID, ifname) is not in `keep`. Reads no others."""

        def work(connection: Connection) -> list[Record]:
            return [self._record(row) for row in rows.unkept(connection, network, keep)]

        return self._database.read(work, tolerant=True)

    def pending(self, limit: int = 16) -> tuple[Record, ...]:
        """Up to `limit` records of this boot whose annotation is pending, oldest first."""

        def work(connection: Connection) -> tuple[Record, ...]:
            if self._database.later:
                return ()
            condition = "annotation='pending' AND boot_id=? ORDER BY id LIMIT ?"
            return tuple(rows.record_of(row) for row in rows.select(connection, condition, self._boot_id, limit))

        return self._database.read(work, tolerant=True) if self._database.exists() else ()

    def occupancy(self) -> Occupancy:
        """Which ports are held, and which are in quarantine."""

        def work(connection: Connection) -> Occupancy:
            return Occupancy(rows.current_bits(connection), rows.quarantined(connection, self._clock.boottime()))

        return self._database.read(work)

    def try_writing(self) -> None:
        """Raise what ADD would, when nothing can be written: permissions alone do not tell."""
        self._database.write(lambda _: None)

    def problems(self) -> list[str]:
        """What is wrong with the database and where its parts disagree, in words. Reads all of it, changes nothing."""
        return self._database.problems() or self._database.read(self._looked_through)

    def damage(self) -> list[str]:
        """What is wrong with the database's pages, in words: a quicker look, which changes nothing."""
        return self._database.problems(quick=True)

    def _looked_through(self, connection: Connection) -> list[str]:
        try:
            return disagreements(connection, self._boot_id)
        except Damage as error:  # looking mends nothing
            return [str(error)]

    def rebuild(self) -> None:
        """Make ports and bitmaps anew where anything is wrong with them: from records and rules, as after damage.

        While nothing is, nobody waits: it is all read from one snapshot.
        """
        found = self._database.problems()
        if not found and not self._database.read(self._looked_through):
            return

        def work(connection: Connection) -> None:
            if rows.bits(connection) is None:
                rows.renew_bits(connection)
            wrong = [*found] or disagreements(connection, self._boot_id)
            if wrong:
                found.clear()
                raise Damage(wrong[0])

        self._database.write(work)


def _refuse_over_quota(connection: Connection, record: Record, demand: Demand, boot_id: str) -> None:
    if demand.quotas is not None and demand.exposures:
        from cnimeta_plugins.hostport_alloc.state.held import refuse_over_quota

        refuse_over_quota(connection, record, demand.port_count, demand.quotas, boot_id)
