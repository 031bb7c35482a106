"""What is in the database, for `cnimeta.store.Database`: the tables, and where they are had from when they are lost."""

from __future__ import annotations

from cnimeta.errors import shown
from cnimeta.store import rescue
from cnimeta.store.document import Damaged, Later
from cnimeta.store.rescue import Table
from cnimeta.store.values import Damage
from cnimeta_plugins.hostport_alloc.allocate.picks import Port
from cnimeta_plugins.hostport_alloc.state import rows
from cnimeta_plugins.hostport_alloc.state.record import Record, decode
from cnimeta_plugins.hostport_alloc.state.salvage import Sources, merged
from cnimeta_plugins.hostport_alloc.state.schema import SCHEMA

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cnimeta.host.protocols import Clock
    from cnimeta.ports.mapper import MappedPort
    from cnimeta.store.rescue import Cells
    from cnimeta.store.values import Connection

_ATTACHMENTS = Table(
    "attachments",
    ("network", "container_id", "ifname", "token", "boot_id", "document"),
    "attachments_container",
    "container_id",
)


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
        """Ask the port mapper; it may start processes."""
        return tuple(self.mappings())

    def fill(self, new: Connection, old: Connection | None, gathered: object) -> None:
        """Put in what the old one still has, and what the others know."""
        readable: list[Record] = []
        broken: list[Record] = []
        for cells in rescue.rows(old, _ATTACHMENTS) if old is not None else ():
            record = _readable(cells)
            if record is not None:
                readable.append(record)
            if old is not None and (record is None or record.key != cells[1:4]):
                broken += _broken(old, cells)
        mappings = gathered if isinstance(gathered, tuple) else ()
        sources = Sources(mappings, tuple(readable), tuple(broken))
        if old is not None:
            self.log(f"state: {len(readable)} records were read from the damaged database")
        for record in merged(sources, self.boot_id, self.clock.now(), self.log):
            self._insert(new, record)
        rows.renew_bits(new)
        if old is not None:
            self._keep_back(new, old)
            from cnimeta_plugins.hostport_alloc.state.outbox import take_over

            take_over(new, old, self.clock.now())

    def new_boot(self, connection: Connection) -> None:
        """Rules and namespaces are gone: no port is held. Records stay, since delegates may keep leases on disk."""
        connection.execute("DELETE FROM ports")
        connection.execute("DELETE FROM quarantine")
        rows.renew_bits(connection)
        from cnimeta_plugins.hostport_alloc.state.outbox import end_all

        end_all(connection, self.clock.now())

    def _insert(self, new: Connection, record: Record) -> None:
        try:
            rows.insert(new, record, bare=record.boot_id != self.boot_id)
        except Damage as error:
            self.log(f"state: container {shown(record.container_id)} goes without its ports: {error}")
            row = rows.find(new, record.key)
            if row is not None:
                rows.delete(new, row)
            rows.insert(new, record._replace(ports=(), explicit=()))

    def _keep_back(self, new: Connection, old: Connection) -> None:
        """Quarantine and memory: what can be read of them."""
        boottime = self.clock.boottime()
        for protocol, port, released, until in rescue.select(old, "SELECT * FROM quarantine"):
            times = isinstance(released, float) and isinstance(until, float)
            if times and rows.is_port(protocol, port) and released <= boottime < until:  # type: ignore[operator]
                new.execute("INSERT OR IGNORE INTO quarantine VALUES (?, ?, ?, ?)", (protocol, port, released, until))
        for namespace, name, until, ports in rescue.select(old, "SELECT * FROM remembered"):
            texts = [str(text).encode("utf-8", "replace").decode() for text in (namespace, name, ports)]
            if isinstance(until, float):
                new.execute("INSERT OR IGNORE INTO remembered VALUES (?, ?, ?, ?)", (*texts[:2], until, texts[2]))


def _readable(cells: Cells) -> Record | None:
    """The record of a row, if its checksum is right: then its key is, whatever the row's columns say."""
    try:
        return decode(cells[-1]) if isinstance(cells[-1], str) else None
    except (Damaged, Later):
        return None


def _broken(old: Connection, cells: Cells) -> list[Record]:
    """What the tables say of a record that cannot be read. Its container ports are not known: the host ports serve."""
    number, *names, _ = cells
    if not all(isinstance(name, str) and name.isprintable() for name in names):
        return []
    network, container_id, ifname, token, boot_id = (str(name).encode("utf-8", "replace").decode() for name in names)
    held = rescue.select(old, "SELECT protocol, port, host_ip FROM ports WHERE attachment=?", number)
    ports = tuple(
        Port(int(str(port)), str(protocol), int(str(port)), "", str(host_ip))
        for protocol, port, host_ip in held
        if rows.is_port(protocol, port)
    )
    key = network, container_id, ifname
    return [Record(*key, boot_id=boot_id, token=token, phase="mapped", ports=ports, salvaged=True)]
