"""Which records a database that was lost or damaged is made anew from. Pure.

Three sources, in this order of trust: the mappings that the port mapper and the kernel know, for those ports answer
right now; records whose checksum is right; what can be read of the others. Where two containers claim a port, the
better source has it, and the other record goes without.

A database that lost its last transactions still has the records of attachments that were deleted since. The port mapper
has forgotten those, record and rules: they are left out where it is known to be the one that mapped them. Another
plugin of that name may have, whose mappings nobody knows here.
"""

from __future__ import annotations

from cnimeta.errors import shown
from cnimeta.namedtuple import NamedTuple
from cnimeta_plugins.hostport_alloc.allocate.expose import PROTOCOLS, Explicit
from cnimeta_plugins.hostport_alloc.allocate.picks import Port
from cnimeta_plugins.hostport_alloc.state.record import SALVAGED, Record
from cnimeta_plugins.hostport_alloc.state.rows import listening_on, overlap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from cnimeta.ports.mapper import MappedPort
    from cnimeta_plugins.hostport_alloc.state.record import Key

    Log = Callable[[str], None]


class Sources(NamedTuple):
    """What is known."""

    mappings: tuple[MappedPort, ...]
    """Those without a name of an interface tell only that the container has some."""
    readable: tuple[Record, ...]
    """Of any boot."""
    broken: tuple[Record, ...]
    """What the tables still say of records that cannot be read: their keys and ports."""


def merged(sources: Sources, boot_id: str, now: float, log: Log) -> list[Record]:
    """One record per attachment, no port with two holders. Records of earlier boots hold none."""
    claims = _Claims()
    mapped_for = {one.container_id for one in sources.mappings}
    readable = [one for one in sources.readable if one.boot_id != boot_id or not _was_deleted(one, mapped_for, log)]
    found = {record.key: record for record in readable if record.boot_id == boot_id}
    mapped: dict[Key, list[MappedPort]] = {}
    for one in sources.mappings:
        key = one.network, one.container_id, one.ifname
        netns_id = found[key].netns_id if key in found else ""
        if (
            one.ifname
            and one.protocol in PROTOCOLS
            and claims.claim(key, netns_id, one.protocol, one.host_port, one.host_ip)
        ):
            mapped.setdefault(key, []).append(one)
    for key, record in found.items():
        found[key] = _less_claimed(record, claims, log)
    for key, mappings in mapped.items():
        found[key] = _completed(found[key], mappings, log) if key in found else _salvaged(key, mappings, log)
        found[key] = found[key]._replace(boot_id=boot_id, created=found[key].created or now)
    for record in sources.broken:
        rest = _less_claimed(record, claims, _unsaid) if record.boot_id == boot_id else record
        if record.boot_id == boot_id and rest.ports:
            log(f"state: the record of container {shown(record.container_id)} cannot be read; its ports stay held")
            before = found.get(record.key)
            found[record.key] = rest if before is None else _with(before, rest.ports)
    for record in readable:
        found.setdefault(record.key, record)
    return list(found.values())


def _was_deleted(record: Record, mapped_for: Collection[str], log: Log) -> bool:
    """Whether its ports were mapped by the port mapper whose mappings are known, and are not any more."""
    known = record.token == SALVAGED or (isinstance(record.undo, dict) and record.undo.get("mappedHere") is True)
    if not known or record.container_id in mapped_for:
        return False
    log(f"state: the record of container {shown(record.container_id)} is left out: nothing is mapped for it any more")
    return True


def _unsaid(_line: str) -> None:
    """What is known of a record that cannot be read is not worth a line for each port."""


class _Claims:
    """Who has which port, first come first served."""

    def __init__(self) -> None:
        self._holders: dict[tuple[str, int], list[tuple[str, str, str]]] = {}

    def claim(self, key: Key, netns_id: str, protocol: str, port: int, host_ip: str) -> bool:
        """Take it for the attachment's container; False when another one has it."""
        holders = self._holders.setdefault((protocol, port), [])
        container = key[1]
        for holder, namespace, taken in holders:
            same = holder == container or (namespace and namespace == netns_id)
            if not same and overlap(taken, host_ip):
                return False
        holders.append((container, netns_id, host_ip))
        return True


def _less_claimed(record: Record, claims: _Claims, log: Log) -> Record:
    """The record without the ports that another container has."""

    def ours(port: Port | Explicit, *, chosen: bool) -> bool:
        host_ip = listening_on(record, port.host_ip, chosen=chosen)
        return claims.claim(record.key, record.netns_id, port.protocol, port.host_port, host_ip)

    ports = tuple(port for port in record.ports if ours(port, chosen=True))
    explicit = tuple(port for port in record.explicit if ours(port, chosen=False))
    if (len(ports), len(explicit)) == (len(record.ports), len(record.explicit)):
        return record
    kept = record._replace(ports=ports, explicit=explicit)
    for protocol, number in sorted(record.held - kept.held):
        log(f"state: port {number}/{protocol} of container {shown(record.container_id)} is another container's now")
    return kept


def _completed(record: Record, mappings: Sequence[MappedPort], log: Log) -> Record:
    """With the mappings that the record lacks: it is from before they were made."""
    missing = [one for one in mappings if (one.protocol, one.host_port) not in record.held]
    for one in missing:
        number = f"{one.host_port}/{one.protocol}"
        log(f"state: port {number} is mapped for container {shown(one.container_id)} and was not on its record")
    return _with(record, [Port(one.container_port, one.protocol, one.host_port, "", one.host_ip) for one in missing])


def _salvaged(key: Key, mappings: Sequence[MappedPort], log: Log) -> Record:
    """A record of nothing but mappings."""
    numbers = ", ".join(f"{one.host_port}/{one.protocol}" for one in mappings)
    log(f"state: record of container {shown(key[1])} made anew from its port mappings: {numbers}")
    ports = tuple(Port(one.container_port, one.protocol, one.host_port, "", one.host_ip) for one in mappings)
    return Record(*key, token=SALVAGED, phase="mapped", ports=ports, salvaged=True)


def _with(record: Record, ports: Sequence[Port]) -> Record:
    """With ports that it does not tell of, on the very addresses on which they are held."""
    missing = [port for port in ports if (port.protocol, port.host_port) not in record.held]
    if record.salvaged:
        return record._replace(ports=(*record.ports, *missing))
    more = (Explicit(port.host_port, port.container_port, port.protocol, port.host_ip) for port in missing)
    return record._replace(explicit=(*record.explicit, *more))
