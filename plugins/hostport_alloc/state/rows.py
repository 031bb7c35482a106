"""What a transaction does with the rows: attachments, the ports they hold, and the bitmaps that say the same."""

from __future__ import annotations

from binascii import crc32
from itertools import filterfalse, repeat

from cnimeta.errors import HostPortConflict, shown
from cnimeta.namedtuple import NamedTuple
from cnimeta.store.document import Damaged, Later
from cnimeta.store.values import Damage, storable
from cnimeta_plugins.hostport_alloc.allocate.expose import PROTOCOLS
from cnimeta_plugins.hostport_alloc.allocate.picks import QuarantinedPort
from cnimeta_plugins.hostport_alloc.allocate.ranges import PORT_MAX
from cnimeta_plugins.hostport_alloc.state import listed
from cnimeta_plugins.hostport_alloc.state.record import Record, decode, encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from cnimeta.store.values import Connection
    from cnimeta_plugins.hostport_alloc.allocate.expose import Explicit
    from cnimeta_plugins.hostport_alloc.allocate.picks import Preferred
    from cnimeta_plugins.hostport_alloc.allocate.ranges import Ports, PortSet
    from cnimeta_plugins.hostport_alloc.state.record import Key, Pod

BITMAP_BYTES = 8192
REMEMBERED_MAX = 4096
"""Pods whose ports are remembered; those whose time ends first are forgotten first."""

_APART, _NEXT = "\x1e", "\x1f"
_KEPT = ("network", "container_id", "ifname", "token", "boot_id", "document")
_INSERT = (
    f"INSERT INTO attachments ({', '.join((*_KEPT, *listed.COLUMNS))})"
    f" VALUES ({', '.join('?' * (len(_KEPT) + len(listed.COLUMNS)))})"
)
_REPLACE = (
    f"UPDATE attachments SET document=?, {', '.join(f'{name}=?' for name in listed.COLUMNS)}"
    " WHERE network=? AND container_id=? AND ifname=? AND token=?"
)
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
    found = select(connection, "network=? AND container_id=? AND ifname=?", *storable(*key))
    return found[0] if found else None


def select(connection: Connection, condition: str, *values: str | int) -> list[Row]:
    """The rows that meet a condition of ours, written in SQL. Raises Damage."""
    found = connection.execute(f"SELECT {_COLUMNS} FROM attachments WHERE {condition}", values)
    return [_row(cells) for cells in found.fetchall()]


def every(connection: Connection) -> Iterator[Row]:
    """All rows, one at a time. Raises Damage."""
    for cells in connection.execute(f"SELECT {_COLUMNS} FROM attachments"):
        yield _row(cells)


def unkept(connection: Connection, network: str, keep: Collection[tuple[str, str]]) -> list[Row]:
    """The rows of a network whose (container ID, ifname) is not in `keep`.

    All the names come as one text, which takes less than so many rows; an interface's, where it is not the usual one.
    """
    usual = next(iter(keep), ("", ""))[1]
    statement = f"""SELECT group_concat(
        CASE ifname WHEN ?2 THEN container_id ELSE container_id || '{_APART}' || ifname END, '{_NEXT}'
    ) FROM attachments WHERE network=?1"""
    (text,) = connection.execute(statement, (network, usual)).fetchone()
    names = text.split(_NEXT) if text is not None else []
    found = [_taken_apart(*one) for one in filterfalse(keep.__contains__, zip(names, repeat(usual)))]
    gone = [find(connection, (network, *one)) for one in found if one not in keep]
    if None in gone:  # a name has one of these characters
        every_name = connection.execute("SELECT container_id, ifname FROM attachments WHERE network=?", (network,))
        gone = [find(connection, (network, *one)) for one in every_name.fetchall() if one not in keep]
    return [row for row in gone if row is not None]


def _taken_apart(container_id: str, usual: str) -> tuple[str, str]:
    name, apart, ifname = container_id.partition(_APART)
    return (name, ifname) if apart else (name, usual)


def _row(cells: tuple[object, ...]) -> Row:
    number, *texts = cells
    if not isinstance(number, int) or not all(isinstance(text, str) for text in texts):
        raise Damage("a row of attachments is none")
    return Row(number, *texts)  # type: ignore[arg-type]


def record_of(row: Row) -> Record:
    """The record in a row. Raises Damage; one of a later version that cannot be read comes back salvaged, bare."""
    try:
        record = decode(row.document)
    except Later:
        return Record(*row.key, boot_id=row.boot_id, token=row.token, phase="mapped", salvaged=True)
    except Damaged as error:
        raise Damage(f"the record of container {shown(row.container_id)} cannot be read: {error}") from None
    if (record.key, record.token, record.boot_id) != (row.key, row.token, row.boot_id):
        raise Damage(f"the record of container {shown(row.container_id)} is another attachment's")
    return record


def insert(connection: Connection, record: Record, *, bare: bool = False) -> None:
    """Add a record with the ports it holds; none when `bare`. Raises Damage when another container holds one."""
    cursor = connection.execute(
        _INSERT, (*storable(*record.key, record.token, record.boot_id, encode(record)), *listed.facts(record))
    )
    listed.insert(connection, cursor.lastrowid or 0, record)
    if bare:
        return
    identity = storable(record.container_id, record.netns_id)
    try:
        connection.executemany(
            "INSERT OR IGNORE INTO ports VALUES (?, ?, ?, ?, ?, ?)",
            [(protocol, port, host_ip, cursor.lastrowid, *identity) for protocol, port, host_ip in places(record)],
        )
    except connection.IntegrityError as error:  # the bitmaps said that they were free
        raise Damage(f"the bitmaps and the ports do not agree: {error}") from None


def places(record: Record) -> list[tuple[str, int, str]]:
    """(protocol, port, host address) of what a record holds."""
    held = [(port, True) for port in record.ports], [(port, False) for port in record.explicit]
    return [
        (port.protocol, port.host_port, listening_on(record, port.host_ip, chosen=chosen))
        for ports in held
        for port, chosen in ports
    ]


def listening_on(record: Record, host_ip: str, *, chosen: bool) -> str:
    """The address on which a port is held. A chosen number is held on every one, unless all that is known is a rule."""
    return "" if chosen and not record.salvaged else host_ip


def replace_document(connection: Connection, record: Record) -> None:
    """Write a record whose key, token and ports are as before."""
    connection.execute(
        _REPLACE, (*storable(encode(record)), *listed.facts(record), *storable(*record.key, record.token))
    )


def delete(connection: Connection, row: Row) -> None:
    """Remove an attachment, and with it what it holds."""
    connection.execute("DELETE FROM attachments WHERE id=?", (row.id,))


def refuse_conflicts(connection: Connection, wanted: Iterable[Explicit], container_id: str, netns_id: str) -> None:
    """Raise HostPortConflict (100) when another container holds an explicit mapping's port."""
    for mapping in wanted:
        held = connection.execute(
            "SELECT host_ip, container_id, netns_id FROM ports WHERE protocol=? AND port=?",
            (mapping.protocol, mapping.host_port),
        )
        for host_ip, holder, namespace in held.fetchall():
            if not isinstance(host_ip, str):
                raise Damage("a row of ports is none")
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
    """The bitmaps; None when they are marked as stale. Raises Damage."""
    if connection.execute("SELECT 1 FROM meta WHERE key='stale'").fetchone() is not None:
        return None
    found = {}
    for protocol, data, checksum in connection.execute("SELECT protocol, bits, crc FROM bitmaps").fetchall():
        if protocol not in PROTOCOLS or not isinstance(data, bytes) or crc32(data) != checksum:
            raise Damage("a bitmap is not what was written")
        found[protocol] = int.from_bytes(data, "little")
    if len(found) != len(PROTOCOLS):
        raise Damage("a bitmap is missing")
    return found


def held_bits(connection: Connection) -> dict[str, PortSet]:
    """The same, from the ports that attachments hold. Raises Damage."""
    found = {protocol: bytearray(BITMAP_BYTES) for protocol in PROTOCOLS}
    for protocol, port in connection.execute("SELECT protocol, port FROM ports").fetchall():
        if not is_port(protocol, port):
            raise Damage("a row of ports is none")
        found[protocol][port >> 3] |= 1 << (port & 7)
    return {protocol: int.from_bytes(data, "little") for protocol, data in found.items()}


def is_port(protocol: object, port: object) -> bool:
    """Whether these are a protocol and a port number."""
    return protocol in PROTOCOLS and isinstance(port, int) and 0 < port <= PORT_MAX


def current_bits(connection: Connection) -> dict[str, PortSet]:
    """The bitmaps, made anew where a later version has marked them as stale. Raises Damage."""
    found = bits(connection)
    return held_bits(connection) if found is None else found


def write_bits(connection: Connection, before: Ports, after: Ports) -> None:
    """Write the bitmaps that differ from what is there. All of them, from `before` empty: then they are not stale."""
    for protocol in PROTOCOLS:
        ports = after.get(protocol, 0)
        if before.get(protocol) == ports:
            continue
        data = ports.to_bytes(BITMAP_BYTES, "little")
        connection.execute("INSERT OR REPLACE INTO bitmaps VALUES (?, ?, ?)", (protocol, data, crc32(data)))
    if not before:
        connection.execute("DELETE FROM meta WHERE key='stale'")


def renew_bits(connection: Connection) -> None:
    """Make the bitmaps anew from the ports that attachments hold."""
    write_bits(connection, {}, held_bits(connection))


def with_bits(ports: Ports, held: Iterable[tuple[str, int]]) -> dict[str, PortSet]:
    """With these ports set."""
    found = dict(ports)
    for protocol, port in held:
        found[protocol] = found.get(protocol, 0) | 1 << port
    return found


def without_row(connection: Connection, ports: Ports, row: Row, record: Record) -> dict[str, PortSet]:
    """Less what this attachment alone holds. Raises Damage when that is not what its record says."""
    own = connection.execute("SELECT protocol, port, host_ip FROM ports WHERE attachment=?", (row.id,)).fetchall()
    if set(own) != set(places(record)):
        raise Damage(f"the ports of container {shown(row.container_id)} are not those of its record")
    found = dict(ports)
    for protocol, port in record.held:
        others = connection.execute(
            "SELECT 1 FROM ports WHERE protocol=? AND port=? AND attachment<>?", (protocol, port, row.id)
        )
        if others.fetchone() is None:
            found[protocol] = found.get(protocol, 0) & ~(1 << port)
    return found


# --- quarantine and memory -------------------------------------------------------------------------------


def quarantined(connection: Connection, boottime: float) -> tuple[QuarantinedPort, ...]:
    """The entries in force, oldest release first."""
    found = connection.execute(
        "SELECT protocol, port, released, until FROM quarantine WHERE until > ? ORDER BY released, port", (boottime,)
    ).fetchall()
    if not all(is_port(*cells[:2]) for cells in found):
        raise Damage("a row of quarantine is none")
    return tuple(QuarantinedPort(*row) for row in found)


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
    ports = dumps([[port.asked, port.protocol, port.range, port.host_port] for port in record.ports])
    connection.execute(
        "INSERT OR REPLACE INTO remembered VALUES (?, ?, ?, ?)",
        (*storable(record.pod.namespace, record.pod.name), until, ports),
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
    names = storable(pod.namespace, pod.name)
    row = connection.execute(
        "SELECT ports FROM remembered WHERE namespace=? AND name=? AND until > ?", (*names, now)
    ).fetchone()
    if row is not None:
        return _remembered(row[0])
    # The index is of Pods with a name, and SQLite has to see that this one has.
    condition = "pod_namespace=? AND pod_name=? AND pod_name<>'' AND boot_id<>? ORDER BY id DESC LIMIT 1"
    earlier = select(connection, condition, *names, boot_id)
    for row in earlier:
        ports = record_of(row).ports
        return {(port.asked, port.protocol, port.range): port.host_port for port in ports}
    return {}


def _remembered(text: str) -> Preferred:
    from cnimeta.errors import CniError
    from cnimeta.spec.jsonio import loads

    try:
        entries = loads(str(text))
    except CniError:  # unknown: a Pod's earlier ports are a wish
        return {}
    found: dict[tuple[int, str, str], int] = {}
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, list) and len(entry) == 4:
            port, protocol, name, host_port = entry
            if isinstance(port, int) and is_port(protocol, host_port):
                found[port, str(protocol), str(name)] = host_port
    return found


def members(ports: PortSet) -> Iterator[int]:
    """The members of a set of ports, ascending."""
    text = bin(ports)[:1:-1]
    place = text.find("1")
    while place >= 0:
        yield place
        place = text.find("1", place + 1)
