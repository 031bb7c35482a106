"""Making the index anew: after a reboot, after damage, and on request. Sources, in this order:

1. the records: every readable one of this boot holds its ports;
2. the kernel's own tagged rules, for records that are lost or cannot be read;
3. the index generation before: ports it holds that no record accounts for stay held by the damaged records, until
   each of these is released. It also keeps the quarantine and the Pods' remembered ports.

Nothing found is never taken for nothing there: what was wrong and what was done about it is logged, a line each.
"""

from __future__ import annotations

from cnimeta.errors import shown
from cnimeta.namedtuple import NamedTuple
from cnimeta_plugins.hostport_alloc.state import index as state
from cnimeta_plugins.hostport_alloc.state import record as records
from cnimeta_plugins.hostport_alloc.state.index import DamagedIndex, Index, Pin
from cnimeta_plugins.hostport_alloc.state.layout import key_of, name_of, record_names
from cnimeta_plugins.hostport_alloc.state.record import DamagedRecord, NewerRecord, Port, Record

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping

    from cnimeta.host.protocols import Files
    from cnimeta_plugins.hostport_alloc.state.index import Sealed
    from cnimeta_plugins.hostport_alloc.state.layout import Layout
    from cnimeta_plugins.hostport_alloc.state.record import Key

STICKY_AFTER_REBOOT_S = 3600.0


class Rule(NamedTuple):
    """One of this project's own port mappings found in the kernel, for recovery."""

    network: str
    container_id: str
    ifname: str
    port: Port

    @property
    def key(self) -> Key:
        """As `Record.key`."""
        return self.network, self.container_id, self.ifname


class Found(NamedTuple):
    """The index as it lies on disk."""

    newest: Index | None
    """The newest readable generation."""
    slot: int
    """Where that one is."""
    problems: tuple[str, ...]
    """What is wrong with the files; a missing one counts."""
    nothing_there: bool = False
    """Both files are missing, as before the first use."""


def read_index(files: Files, layout: Layout) -> Found:
    """Look at both generations and read the newer one. Raises NewerIndex for a file of a later version, OSError."""
    sound: list[tuple[int, int, Sealed]] = []
    problems: list[str] = []
    there = 0
    for slot, path in enumerate(layout.slots):
        data = files.read(path)
        if data is None:
            problems.append(f"{path}: it is missing")
            continue
        there += 1
        try:
            sealed = state.verify(data)
        except DamagedIndex as error:
            problems.append(f"{path}: {error}")
        else:
            sound.append((sealed.generation, slot, sealed))
    while sound:
        _, slot, sealed = sound.pop(sound.index(max(sound, key=_first)))
        try:
            return Found(state.unseal(sealed), slot, tuple(problems))
        except DamagedIndex as error:
            problems.append(f"{layout.slots[slot]}: {error}")
    return Found(None, 1, tuple(problems), there == 0)


def _first(entry: tuple[int, int, Sealed]) -> int:
    return entry[0]


def read_record(files: Files, layout: Layout, name: str) -> Record | None:
    """A record by name; None when there is none. Raises DamagedRecord, NewerRecord, OSError."""
    data = files.read(layout.record(name))
    if data is None:
        return None
    record = records.decode(data)
    if name_of(record.key) != name:
        raise DamagedRecord("it is of another attachment than its name says")
    return record


class Census(NamedTuple):
    """All records, read."""

    readable: Mapping[str, Record]
    """By name, those of a later version included where they could be understood."""
    damaged: tuple[str, ...]
    """Names of those that cannot be read."""

    def without(self, name: str) -> Census:
        """The census less one record."""
        readable = {other: record for other, record in self.readable.items() if other != name}
        return Census(readable, tuple(other for other in self.damaged if other != name))


def take_census(files: Files, layout: Layout, log: Callable[[str], None]) -> Census:
    """Read every record; what cannot be read is logged."""
    readable: dict[str, Record] = {}
    damaged: list[str] = []
    for name in record_names(files.names(layout.records)):
        try:
            record = read_record(files, layout, name)
        except NewerRecord as error:
            record = error.record
            if record is None:
                log(f"state: {layout.record(name)}: {error}")
                damaged.append(name)
        except DamagedRecord as error:
            log(f"state: {layout.record(name)} cannot be read: {error}")
            damaged.append(name)
            continue
        if record is not None:
            readable[name] = record
    return Census(readable, tuple(damaged))


class Rebuild:
    """One making of the index, under the lock."""

    def __init__(
        self, files: Files, layout: Layout, boot_id: str, times: tuple[float, float], log: Callable[[str], None]
    ) -> None:
        """`times`: seconds since the epoch, seconds since boot."""
        self.files = files
        self.layout = layout
        self.boot_id = boot_id
        self.now, self.boottime = times
        self.log = log

    def run(self, base: Index | None, census: Census, rules: Iterable[Rule]) -> Index:
        """The new index. Lost records of which the kernel has rules are written anew, as salvaged ones."""
        same_boot = base is not None and base.boot_id == self.boot_id
        old = base if base is not None else Index()
        index = Index(old.generation, self.boot_id, quarantine=old.quarantine if same_boot else (), sticky=old.sticky)
        for name, record in census.readable.items():
            if record.boot_id == self.boot_id:
                index = state.hold(index, record, name)
            else:
                index = state.remember(index, record, self.now + STICKY_AFTER_REBOOT_S)
        salvaged = self._salvage(census, rules)
        for name, record in salvaged.items():
            self.files.write(self.layout.record(name), records.encode(record))
            index = state.hold(index, record, name)
        lost = [name for name in census.damaged if name not in salvaged]
        if lost and same_boot:
            index = state.pin(index, self._unaccounted(old, index, lost))
        return index

    def _salvage(self, census: Census, rules: Iterable[Rule]) -> dict[str, Record]:
        """Records for the kernel's rules that no readable record of this boot covers, by name."""
        ports: dict[Key, list[Port]] = {}
        for rule in rules:
            ports.setdefault(rule.key, []).append(rule.port)
        found: dict[str, Record] = {}
        for key, mapped in ports.items():
            name = name_of(key)
            known = census.readable.get(name)
            if known is not None and known.boot_id == self.boot_id:
                continue
            found[name] = Record(
                *key, boot_id=self.boot_id, created=self.now, phase="mapped", ports=tuple(mapped), salvaged=True
            )
            numbers = ", ".join(f"{port.host_port}/{port.protocol}" for port in mapped)
            self.log(f"state: record of container {shown(key[1])} made anew from the kernel's rules: {numbers}")
        return found

    def _unaccounted(self, base: Index, index: Index, lost: list[str]) -> list[Pin]:
        """Ports held before that nothing holds now, pinned to every record that may have held them."""
        pins = [
            Pin(protocol, port, "", name)
            for protocol, bits in base.bits.items()
            for port in members(bits & ~index.bits.get(protocol, 0))
            for name in lost
        ]
        if pins:
            numbers = ", ".join(sorted({f"{pin.port}/{pin.protocol}" for pin in pins}))
            self.log(f"state: ports {numbers} stay held until DEL of {', '.join(map(shown, map(_owner, lost)))}")
        return pins


def _owner(name: str) -> str:
    key = key_of(name)
    return key[1] if key is not None else name


def members(ports: int) -> list[int]:
    """The members of a set of ports, ascending."""
    text = bin(ports)[:1:-1]
    found, place = [], text.find("1")
    while place >= 0:
        found.append(place)
        place = text.find("1", place + 1)
    return found
