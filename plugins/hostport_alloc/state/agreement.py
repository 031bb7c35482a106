"""Whether the parts of the database say the same: records, ports, bitmaps, and what lists show. Reads all of it."""

from __future__ import annotations

from cnimeta.errors import shown
from cnimeta_plugins.hostport_alloc.state import listed, rows

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cnimeta.store.values import Connection
    from cnimeta_plugins.hostport_alloc.state.record import Record


def disagreements(connection: Connection, boot_id: str) -> list[str]:
    """Each in words. Raises Damage for what cannot be read."""
    records = {row.id: rows.record_of(row) for row in rows.every(connection)}
    alive = {number: record for number, record in records.items() if record.boot_id == boot_id}
    lines = [*_of_ports(connection, alive), *_of_lists(connection, records)]
    bits, taken = rows.bits(connection), rows.held_bits(connection)
    if bits is None:
        return [*sorted(lines), "the bitmaps are stale; the next command that changes them makes them anew"]
    for one, other, text in ((taken, bits, "is held and has no bit"), (bits, taken, "has a bit and is not held")):
        lines += [
            f"port {port}/{protocol} {text}"
            for protocol in one
            for port in rows.members(one[protocol] & ~other.get(protocol, 0))
        ]
    return sorted(lines)


def _of_ports(connection: Connection, alive: dict[int, Record]) -> Iterator[str]:
    owed = {(number, *place) for number, record in alive.items() for place in rows.places(record)}
    held = set(connection.execute("SELECT attachment, protocol, port, host_ip FROM ports"))
    yield from (f"port {port}/{protocol} has a record and is not held" for _, protocol, port, _ in owed - held)
    yield from (f"port {port}/{protocol} is held and has no record" for _, protocol, port, _ in held - owed)


def _of_lists(connection: Connection, records: dict[int, Record]) -> Iterator[str]:
    there: dict[object, list[tuple[object, ...]]] = {}
    for number, *port in connection.execute(
        "SELECT attachment, host_port, protocol, range, container_port, host_ip FROM exposed ORDER BY attachment, place"
    ):
        there.setdefault(number, []).append(tuple(port))
    columns = {
        row[0]: row[1:] for row in connection.execute(f"SELECT id, {', '.join(listed.COLUMNS)} FROM attachments")
    }
    for number, record in records.items():
        where = shown(record.container_id)
        if columns.get(number) != listed.facts(record):
            yield f"what lists show of container {where} is not what its record says"
        if there.pop(number, []) != listed.exposed(record):
            yield f"the ports that lists show of container {where} are not those of its record"
    if there:
        yield f"lists show ports of {len(there)} attachments that are not there"
