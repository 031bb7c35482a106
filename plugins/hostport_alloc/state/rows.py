"""What a transaction does with the rows: attachments, the ports they hold, and the bitmaps that say the same."""

from __future__ import annotations

from binascii import crc32

from cnimeta.errors import HostPortConflict, shown
from cnimeta.namedtuple import NamedTuple
from cnimeta.store.document import Damaged, Later
from cnimeta_plugins.hostport_alloc.allocate.expose import PROTOCOLS
from cnimeta_plugins.hostport_alloc.allocate.picks import Port, QuarantinedPort
from cnimeta_plugins.hostport_alloc.state.record import Record, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cnimeta.store.sql import Connection
    from cnimeta_plugins.hostport_alloc.allocate.expose import Explicit
    from cnimeta_plugins.hostport_alloc.allocate.picks import Preferred
    from cnimeta_plugins.hostport_alloc.allocate.ranges import Ports, PortSet
    from cnimeta_plugins.hostport_alloc.state.record import Key, Pod

BITMAP_BYTES = 8192
REMEMBERED_MAX = 4096
"""Pods whose ports are remembered; those whose time ends first are forgotten first."""

_COLUMNS = "id, network, container_id, ifname, token, boot_id, document"


class Row(NamedTuple):
    """One row of `attachments`."""

    id: int
    network: str
    container_id: str
    ifname: str
    token: str
    boot_id: str
    document: str

    @property
    def key(self) -> Key:
        """(network, container ID, ifname)"""
        return self.network, self.container_id, self.ifname


# --- attachments -----------------------------------------------------------------------------------------


def find(connection: Connection, key: Key) -> Row | None:
    """The row of an attachment."""
    found = connection.execute(
        f"SELECT {_COLUMNS} FROM attachments WHERE network=? AND container_id=? AND ifname=?", _texts(*key)
    ).fetchone()
    return None if found is None else Row(*found)


def select(connection: Connection, condition: str, *values: str | int) -> list[Row]:
    """The rows that meet a condition of ours, written in SQL."""
    found = connection.execute(f"SELECT {_COLUMNS} FROM attachments WHERE {condition}", values)
    return [Row(*row) for row in found.fetchall()]


def record_of(connection: Connection, row: Row) -> Record:
    """The record in a row. One that cannot be read comes back salvaged, with the ports that the tables have."""
    try:
        record = decode(row.document)
        if record.key == row.key and record.token == row.token:
            return record
    except (Damaged, Later):
        pass
    held = connection.execute("SELECT protocol, port, host_ip FROM ports WHERE attachment=?", (row.id,)).fetchall()
    # Its container ports are not known: the host ports stand in for them.
    ports = tuple(Port(port, protocol, port, "", host_ip) for protocol, port, host_ip in held)
    return Record(*row.key, boot_id=row.boot_id, token=row.token, phase="mapped", ports=ports, salvaged=True)


def is_damaged(row: Row) -> bool:
    """Whether the row's document cannot be read."""
    try:
        return decode(row.document).key != row.key
    except Damaged:
        return True
    except Later:
        return False


def insert(connection: Connection, record: Record) -> None:
    """Add a record with the ports it holds. Raises sqlite's IntegrityError when another container holds one."""
    pod = record.pod
    cursor = connection.execute(
        "INSERT INTO attachments (network, container_id, ifname, token, boot_id, pod_namespace, pod_name, annotation,"
        " document) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
        _texts(
            *record.key,
            record.token,
            record.boot_id,
            pod.namespace if pod is not None else "",
            pod.name if pod is not None else "",
            record.annotation.state,
            encode(record),
        ),
    )
    _insert_ports(connection, cursor.lastrowid, record)


def _insert_ports(connection: Connection, number: int | None, record: Record) -> None:
    identity = _texts(record.container_id, record.netns_id)
    connection.executemany(
        "INSERT OR IGNORE INTO ports VALUES (?, ?, ?, ?, ?, ?)",
        [(protocol, port, host_ip, number, *identity) for protocol, port, host_ip in places(record)],
    )


def hold_again(connection: Connection, row: Row) -> None:
    """Make the ports of an attachment anew from its document. Raises sqlite's IntegrityError."""
    connection.execute("DELETE FROM ports WHERE attachment=?", (row.id,))
    _insert_ports(connection, row.id, record_of(connection, row))


def places(record: Record) -> list[tuple[str, int, str]]:
    """(protocol, port, host address) of what a record holds. A chosen number is held on every address."""
    chosen = [(port.protocol, port.host_port, port.host_ip if record.salvaged else "") for port in record.ports]
    return [*chosen, *((port.protocol, port.host_port, port.host_ip) for port in record.explicit)]


def replace_document(connection: Connection, record: Record) -> bool:
    """Write a record whose key, token and ports are as before; False when there is none such."""
    changed = connection.execute(
        "UPDATE attachments SET annotation=?, document=? WHERE network=? AND container_id=? AND ifname=? AND token=?",
        _texts(record.annotation.state, encode(record), *record.key, record.token),
    )
    return changed.rowcount == 1


def delete(connection: Connection, row: Row) -> None:
    """Remove an attachment, and with it what it holds."""
    connection.execute("DELETE FROM attachments WHERE id=?", (row.id,))


def refuse_conflicts(connection: Connection, wanted: Iterable[Explicit], container_id: str, netns_id: str) -> None:
    """Raise HostPortConflict (100) when another container holds an explicit mapping's port."""
    for mapping in wanted:
        held = connection.execute(
            "SELECT host_ip, container_id, netns_id, attachment FROM ports WHERE protocol=? AND port=?",
            (mapping.protocol, mapping.host_port),
        )
        for host_ip, holder, namespace, _ in held.fetchall():
            if holder == container_id or (namespace and namespace == netns_id):
                continue
            if overlap(host_ip, mapping.host_ip):
                raise HostPortConflict(
                    f"host port {mapping.host_port}/{mapping.protocol}, asked for explicitly, is held by container"
                    f" {shown(holder)}: keep explicit ports outside the ranges, or wait until it is released"
                )


def overlap(one: str, other: str) -> bool:
    """Whether two listening addresses share traffic, as the constraint in the schema has it."""
    if not one or not other:
        return True
    unspecified = ("0.0.0.0", "::")  # noqa: S104 - compared, not bound
    return (":" in one) == (":" in other) and (one == other or one in unspecified or other in unspecified)


# --- bitmaps ---------------------------------------------------------------------------------------------


def bits(connection: Connection) -> dict[str, PortSet] | None:
    """The bitmaps; None when they are damaged or marked as stale."""
    if connection.execute("SELECT 1 FROM meta WHERE key='stale'").fetchone() is not None:
        return None
    found = {}
    for protocol, data, checksum in connection.execute("SELECT protocol, bits, crc FROM bitmaps").fetchall():
        if not isinstance(data, bytes) or crc32(data) != checksum:
            return None
        found[str(protocol)] = int.from_bytes(data, "little")
    return found if set(found) == set(PROTOCOLS) else None


def held_bits(connection: Connection) -> dict[str, PortSet]:
    """The same, from the ports that attachments hold."""
    found = {protocol: bytearray(BITMAP_BYTES) for protocol in PROTOCOLS}
    for protocol, port in connection.execute("SELECT protocol, port FROM ports").fetchall():
        found[protocol][port >> 3] |= 1 << (port & 7)
    return {protocol: int.from_bytes(data, "little") for protocol, data in found.items()}


def current_bits(connection: Connection) -> dict[str, PortSet]:
    """The bitmaps, made anew where they have to be."""
    found = bits(connection)
    return held_bits(connection) if found is None else found


def write_bits(connection: Connection, before: Ports, after: Ports) -> None:
    """Write the bitmaps that differ from what is there."""
    for protocol in PROTOCOLS:
        ports = after.get(protocol, 0)
        if before.get(protocol) == ports:
            continue
        data = ports.to_bytes(BITMAP_BYTES, "little")
        connection.execute("INSERT OR REPLACE INTO bitmaps VALUES (?, ?, ?)", (protocol, data, crc32(data)))


def renew_bits(connection: Connection) -> None:
    """Make the bitmaps anew from the ports that attachments hold."""
    write_bits(connection, {}, held_bits(connection))
    connection.execute("DELETE FROM meta WHERE key='stale'")


def with_bits(ports: Ports, held: Iterable[tuple[str, int]]) -> dict[str, PortSet]:
    """With these ports set."""
    found = dict(ports)
    for protocol, port in held:
        found[protocol] = found.get(protocol, 0) | 1 << port
    return found


def without_row(connection: Connection, ports: Ports, row: Row) -> dict[str, PortSet]:
    """Less what this attachment alone holds."""
    found = dict(ports)
    alone = connection.execute(
        "SELECT protocol, port FROM ports AS own WHERE attachment=? AND NOT EXISTS (SELECT 1 FROM ports AS other WHERE"
        " other.protocol=own.protocol AND other.port=own.port AND other.attachment<>own.attachment)",
        (row.id,),
    )
    for protocol, port in alone.fetchall():
        found[protocol] = found.get(protocol, 0) & ~(1 << port)
    return found


# --- quarantine and memory -------------------------------------------------------------------------------


def quarantined(connection: Connection, boottime: float) -> tuple[QuarantinedPort, ...]:
    """The entries in force, oldest release first."""
    found = connection.execute(
        "SELECT protocol, port, released, until FROM quarantine WHERE until > ? ORDER BY released, port", (boottime,)
    )
    return tuple(QuarantinedPort(*row) for row in found.fetchall())


def quarantine(connection: Connection, record: Record, boottime: float, seconds: float) -> None:
    """Keep the record's chosen ports back; entries that are over are dropped on the way."""
    connection.execute("DELETE FROM quarantine WHERE until <= ?", (boottime,))
    if seconds > 0:
        connection.executemany(
            "INSERT OR REPLACE INTO quarantine VALUES (?, ?, ?, ?)",
            [(port.protocol, port.host_port, boottime, boottime + seconds) for port in record.ports],
        )


def end_quarantine(connection: Connection, held: Iterable[tuple[str, int]]) -> None:
    """These ports are held again."""
    connection.executemany("DELETE FROM quarantine WHERE protocol=? AND port=?", list(held))


def remember(connection: Connection, record: Record, until: float, now: float) -> None:
    """Keep the record's ports in mind for its Pod until `until` (seconds since the epoch)."""
    from cnimeta.spec.jsonio import dumps

    if record.pod is None or not record.ports:
        return
    ports = dumps([[port.container_port, port.protocol, port.range, port.host_port] for port in record.ports])
    connection.execute(
        "INSERT OR REPLACE INTO remembered VALUES (?, ?, ?, ?)",
        (*_texts(record.pod.namespace, record.pod.name), until, ports),
    )
    connection.execute("DELETE FROM remembered WHERE until <= ?", (now,))
    surplus = connection.execute("SELECT count(*) FROM remembered").fetchone()[0] - REMEMBERED_MAX
    if surplus > 0:
        connection.execute(
            "DELETE FROM remembered WHERE (namespace, name) IN (SELECT namespace, name FROM remembered ORDER BY until"
            " LIMIT ?)",
            (surplus,),
        )


def recall(connection: Connection, pod: Pod | None, boot_id: str, now: float) -> Preferred:
    """The ports that a Pod of this namespace and name had: remembered, or on a record of an earlier boot."""
    if pod is None:
        return {}
    names = _texts(pod.namespace, pod.name)
    row = connection.execute(
        "SELECT ports FROM remembered WHERE namespace=? AND name=? AND until > ?", (*names, now)
    ).fetchone()
    if row is not None:
        return _remembered(row[0])
    earlier = select(
        connection, "pod_namespace=? AND pod_name=? AND boot_id<>? ORDER BY id DESC LIMIT 1", *names, boot_id
    )
    for row in earlier:
        ports = record_of(connection, row).ports
        return {(port.container_port, port.protocol, port.range): port.host_port for port in ports}
    return {}


def _remembered(text: str) -> Preferred:
    from cnimeta.errors import CniError
    from cnimeta.spec.jsonio import loads

    try:
        entries = loads(text)
    except CniError:
        return {}
    found: dict[tuple[int, str, str], int] = {}
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, list) and len(entry) == 4:
            port, protocol, name, host_port = entry
            if isinstance(port, int) and isinstance(host_port, int):
                found[port, str(protocol), str(name)] = host_port
    return found


def members(ports: PortSet) -> Iterator[int]:
    """The members of a set of ports, ascending."""
    text = bin(ports)[:1:-1]
    place = text.find("1")
    while place >= 0:
        yield place
        place = text.find("1", place + 1)


def _texts(*values: str) -> tuple[str, ...]:
    """Text of others as the database can hold it: without halves of characters."""
    return tuple(value.encode("utf-8", "backslashreplace").decode() for value in values)
