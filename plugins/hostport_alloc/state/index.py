"""The bitmap index: which host ports are held, and what was released lately. Pure: states in, states out.

The records are the truth and the index is a summary of them that costs the same to read at any number of records. It
also is a write-ahead log of one entry: `last` names the record that the index's own commit was made for, so a kill
between the two writes is seen by the next command, which looks at that one record and not at all of them:

    reserve   index (bits set, last = reserve R), then record R    R missing: the bits are taken back
    release   index (bits cleared, last = release R), then R goes  R present: its removal is completed

File: `cnimeta-hostports VERSION`, one line of JSON, 8 KiB of bits per protocol, the quarantine (20 bytes an entry), the
remembered ports of Pods (a JSON line each), and the CRC-32 of all before it.
"""

from __future__ import annotations

import struct
from binascii import crc32

from cnimeta.errors import CniError, HostPortConflict, shown
from cnimeta.namedtuple import NamedTuple
from cnimeta.spec.fields import Fields
from cnimeta.spec.ip import parse_ip
from cnimeta.spec.jsonio import dumps, loads, loads_object
from cnimeta_plugins.hostport_alloc.allocate.allocator import Held
from cnimeta_plugins.hostport_alloc.allocate.expose import PROTOCOLS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from cnimeta.spec.jsonio import JSON
    from cnimeta_plugins.hostport_alloc.allocate.allocator import Ports, Preferred
    from cnimeta_plugins.hostport_alloc.allocate.expose import Explicit
    from cnimeta_plugins.hostport_alloc.state.record import Pod, Record

VERSION = 1
MAGIC = b"cnimeta-hostports "
_BITS_BYTES = 8192
_ENTRY = struct.Struct("<ddHBx")  # time of release, end of quarantine, port, protocol
_CRC_BYTES = 9
QUARANTINE_MAX = 2048
"""Entries kept, so that the file stays small; the oldest are let go first. It takes 68 released ports a second, every
second, to shorten a quarantine of 30 seconds.
"""
STICKY_MAX_BYTES = 128 * 1024
"""Room for the ports of about a thousand Pods; the oldest are forgotten first."""


class DamagedIndex(Exception):
    """The file is not an index: empty, cut off or altered."""


class NewerIndex(Exception):
    """The file was written by a later version."""

    def __init__(self, version: int) -> None:
        super().__init__(f"index format version {version}, this version reads up to {VERSION}")
        self.version = version


class Pin(NamedTuple):
    """A port whose holder is kept by name: explicit ones (several may share a port on different addresses), and those
    of lost records.
    """

    protocol: str
    port: int
    host_ip: str
    holder: str
    """The name of the holder's record file."""


class Last(NamedTuple):
    """The record that the index was last written for."""

    verb: str
    """reserve or release"""
    name: str
    token: str
    held: tuple[tuple[str, int], ...]
    """(protocol, port) it was given, or held before."""


class Index(NamedTuple):
    """One generation of the index."""

    generation: int = 0
    boot_id: str = ""
    bits: Ports = {}  # noqa: RUF012 - never changed in place
    pins: tuple[Pin, ...] = ()
    quarantine: tuple[Held, ...] = ()
    sticky: bytes = b"\n"
    """JSON lines [namespace, name, until, [[container port, protocol, range, host port], ...]], oldest first."""
    last: Last | None = None


# --- the file --------------------------------------------------------------------------------------------


def encode(index: Index) -> bytes:
    """The file's content."""
    quarantine = b"".join(
        _ENTRY.pack(held.released, held.until, held.port, PROTOCOLS.index(held.protocol)) for held in index.quarantine
    )
    head = dumps(
        {
            "generation": index.generation,
            "bootID": index.boot_id,
            "pins": [[pin.protocol, pin.port, pin.host_ip, pin.holder] for pin in index.pins],
            "last": None if index.last is None else {**index.last._asdict()},
            "quarantineBytes": len(quarantine),
            "stickyBytes": len(index.sticky),
        }
    )
    body = b"%s%d\n%s\n%s%s%s" % (
        MAGIC,
        VERSION,
        head.encode(),
        b"".join(index.bits.get(protocol, 0).to_bytes(_BITS_BYTES, "little") for protocol in PROTOCOLS),
        quarantine,
        index.sticky,
    )
    return body + b"%08x\n" % crc32(body)


class Sealed(NamedTuple):
    """A file's content with its checksum verified, not yet read in full."""

    generation: int
    head: Fields
    tail: bytes


def verify(data: bytes) -> Sealed:
    """Check a file's content. Raises DamagedIndex or NewerIndex.

    A file of every version ends with this checksum: or a damaged digit would pass for a later version.
    """
    first, _, rest = data.partition(b"\n")
    version = first.removeprefix(MAGIC)
    if first == version or not version.isdigit() or len(version) > 9:
        raise DamagedIndex("it does not begin like an index")
    if data[-_CRC_BYTES:] != b"%08x\n" % crc32(data[:-_CRC_BYTES]):
        raise DamagedIndex("its checksum does not match")
    if int(version) > VERSION:
        raise NewerIndex(int(version))
    head, _, tail = rest[:-_CRC_BYTES].partition(b"\n")
    try:
        fields = Fields(loads_object(head, "the index"))
        return Sealed(fields.integer("generation", 0, 2**63) or 0, fields, tail)
    except CniError as error:
        raise DamagedIndex(error.msg) from None


def decode(data: bytes) -> Index:
    """Read a file's content. Raises DamagedIndex or NewerIndex."""
    return unseal(verify(data))


def unseal(sealed: Sealed) -> Index:
    """Read the rest of a verified file. Raises DamagedIndex."""
    try:
        return _read(sealed)
    except (CniError, ValueError, IndexError, TypeError, struct.error) as error:
        raise DamagedIndex(str(error)) from None


def _read(sealed: Sealed) -> Index:
    head, tail = sealed.head, sealed.tail
    start = _BITS_BYTES * len(PROTOCOLS)
    middle = start + (head.integer("quarantineBytes", 0, len(tail)) or 0)
    end = middle + (head.integer("stickyBytes", 0, len(tail)) or 0)
    if end != len(tail):
        raise ValueError("its parts are not as long as it says")
    last = head.object("last")
    return Index(
        generation=sealed.generation,
        boot_id=head.text("bootID"),
        bits={
            protocol: int.from_bytes(tail[place * _BITS_BYTES : (place + 1) * _BITS_BYTES], "little")
            for place, protocol in enumerate(PROTOCOLS)
        },
        pins=tuple(Pin(*pin) for pin in head.items("pins") if isinstance(pin, list)),
        quarantine=tuple(
            Held(PROTOCOLS[protocol], port, released, until)
            for released, until, port, protocol in _ENTRY.iter_unpack(tail[start:middle])
        ),
        sticky=tail[middle:end],
        last=Last(
            last.text("verb"),
            last.text("name"),
            last.text("token"),
            tuple((held[0], held[1]) for held in last.items("held") if isinstance(held, list)),
        )
        if head.has("last")
        else None,
    )


# --- holding and freeing ---------------------------------------------------------------------------------


def pins_of(record: Record, holder: str) -> tuple[Pin, ...]:
    """The pins of a record: its explicit ports, and all ports of a salvaged one."""
    pins = [Pin(port.protocol, port.host_port, port.host_ip, holder) for port in record.explicit]
    if record.salvaged:
        pins += [Pin(port.protocol, port.host_port, port.host_ip, holder) for port in record.ports]
    return tuple(pins)


def hold(index: Index, record: Record, holder: str) -> Index:
    """With the record's ports held."""
    own = record.held
    numbers = {port for _, port in own}
    return _with_bits(index, own)._replace(
        pins=(*(pin for pin in index.pins if pin.holder != holder), *pins_of(record, holder)),
        quarantine=tuple(
            held for held in index.quarantine if held.port not in numbers or (held.protocol, held.port) not in own
        ),
    )


def pin(index: Index, pins: Iterable[Pin]) -> Index:
    """With ports held by name."""
    added = tuple(pins)
    return _with_bits(index, [(pin.protocol, pin.port) for pin in added])._replace(pins=(*index.pins, *added))


def free(index: Index, held: Iterable[tuple[str, int]], holder: str) -> Index:
    """With these ports free, except those that another holder's pin still names."""
    pins = tuple(pin for pin in index.pins if pin.holder != holder)
    own = {(pin.protocol, pin.port) for pin in index.pins if pin.holder == holder}
    kept = {(pin.protocol, pin.port) for pin in pins}
    bits = dict(index.bits)
    for protocol, port in own.union(held) - kept:
        bits[protocol] = bits.get(protocol, 0) & ~(1 << port)
    return index._replace(bits=bits, pins=pins)


def _with_bits(index: Index, held: Iterable[tuple[str, int]]) -> Index:
    bits = dict(index.bits)
    for protocol, port in held:
        bits[protocol] = bits.get(protocol, 0) | 1 << port
    return index._replace(bits=bits)


def refuse_conflicts(index: Index, explicit: Iterable[Explicit]) -> None:
    """Raise HostPortConflict (100) when an explicit mapping's port is held: by a random pick, or by another explicit
    mapping on an overlapping address (an unspecified address overlaps every one of its family).
    """
    for wanted in explicit:
        if not index.bits.get(wanted.protocol, 0) >> wanted.host_port & 1:
            continue
        pins = [pin for pin in index.pins if (pin.protocol, pin.port) == (wanted.protocol, wanted.host_port)]
        rivals = [pin for pin in pins if overlap(pin.host_ip, wanted.host_ip)]
        if pins and not rivals:
            continue
        owner = f"container {shown(rivals[0].holder.split(':')[0])}" if rivals else "a randomly chosen port"
        raise HostPortConflict(
            f"host port {wanted.host_port}/{wanted.protocol}, asked for explicitly, is held by {owner}:"
            " keep explicit ports outside the ranges, or wait until it is released"
        )


def overlap(one: str, other: str) -> bool:
    """Whether two listening addresses share traffic; empty stands for all of both families."""
    if not one or not other:
        return True
    first, second = parse_ip(one), parse_ip(other)
    return first.family == second.family and (first == second or first.is_unspecified or second.is_unspecified)


# --- quarantine and memory -------------------------------------------------------------------------------


def quarantined(index: Index, boottime: float) -> tuple[Held, ...]:
    """The entries still in force, oldest release first."""
    return tuple(held for held in index.quarantine if held.until > boottime)


def quarantine(index: Index, record: Record, boottime: float, seconds: float) -> Index:
    """With the record's chosen ports in quarantine; expired entries are dropped on the way."""
    kept = quarantined(index, boottime)
    if seconds > 0:
        kept += tuple(Held(port.protocol, port.host_port, boottime, boottime + seconds) for port in record.ports)
    return index._replace(quarantine=kept[-QUARANTINE_MAX:])


def remember(index: Index, record: Record, until: float) -> Index:
    """With the record's ports remembered for its Pod until `until` (seconds since the epoch)."""
    if record.pod is None or not record.ports:
        return index
    ports: list[JSON] = [[port.container_port, port.protocol, port.range, port.host_port] for port in record.ports]
    start = _line_start(record.pod)
    line = start + f"{dumps(until)},{dumps(ports)}]\n".encode()
    sticky = _without_line(index.sticky, start) + line[1:]
    if len(sticky) > STICKY_MAX_BYTES:
        sticky = sticky[sticky.index(b"\n", len(sticky) - STICKY_MAX_BYTES) :]
    return index._replace(sticky=sticky)


def recall(index: Index, pod: Pod | None, now: float) -> Preferred:
    """The ports remembered for a Pod of this namespace and name. Only this store's own memory is ever asked."""
    if pod is None:
        return {}
    place = index.sticky.find(_line_start(pod))
    if place < 0:
        return {}
    entry = loads(index.sticky[place + 1 : index.sticky.index(b"\n", place + 1)])
    if not isinstance(entry, list) or not isinstance(entry[3], list) or not entry[2] > now:
        return {}
    return {(port[0], port[1], port[2]): port[3] for port in entry[3]}


def _line_start(pod: Pod) -> bytes:
    return f"\n[{dumps(pod.namespace)},{dumps(pod.name)},".encode()


def _without_line(lines: bytes, start: bytes) -> bytes:
    place = lines.find(start)
    return lines if place < 0 else lines[:place] + lines[lines.index(b"\n", place + 1) :]
