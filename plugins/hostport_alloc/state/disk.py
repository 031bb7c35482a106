"""The state's files as one command sees them, under the lock: opened, repaired, written. See state.py for the protocol
between index and records.
"""

from __future__ import annotations

from cnimeta.errors import StateUnusable, shown
from cnimeta_plugins.hostport_alloc.state import index as state
from cnimeta_plugins.hostport_alloc.state import recovery
from cnimeta_plugins.hostport_alloc.state.index import Index, NewerIndex
from cnimeta_plugins.hostport_alloc.state.layout import Layout, key_of
from cnimeta_plugins.hostport_alloc.state.record import DamagedRecord, NewerRecord, Port, Record, encode
from cnimeta_plugins.hostport_alloc.state.recovery import Rebuild

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cnimeta.host.protocols import Clock, Files
    from cnimeta_plugins.hostport_alloc.state.record import Key
    from cnimeta_plugins.hostport_alloc.state.recovery import Found, Rule


class KernelNeeded(Exception):
    """Files were lost: the kernel's rules are needed, and they are never read under the lock."""


class LaterVersion(StateUnusable):
    """A file of a later version is in the way."""


class Disk:
    """The files under one dataDir. Every method may raise OSError; only `read` may be used without the lock."""

    def __init__(self, folder: str, files: Files, clock: Clock, boot_id: str, log: Callable[[str], None]) -> None:
        self.layout = Layout(folder)
        self.files = files
        self.clock = clock
        self.boot_id = boot_id
        self.log = log
        self._slot = 0

    def is_alive(self, record: Record) -> bool:
        """Whether the record is of this boot."""
        return record.boot_id == self.boot_id

    # --- the index -------------------------------------------------------------------------------------

    def found(self) -> Found:
        """The index as it lies there. Raises LaterVersion."""
        try:
            return recovery.read_index(self.files, self.layout)
        except NewerIndex as error:
            raise LaterVersion(
                f"{self.layout.folder} was written by a later version ({error}): install that version, or drain the"
                " node and remove the folder"
            ) from None

    def open(self, rules: Sequence[Rule] | None) -> Index:
        """The index, settled with its last record; made anew after a reboot, after damage, or when it was asked for.

        Raises KernelNeeded when that takes `rules` and they are None.
        """
        found = self.found()
        index = found.newest
        if index is None or found.problems or self.files.read(self.layout.rebuild) is not None:
            return self.rebuild(found, rules)
        self._slot = found.slot
        if index.boot_id != self.boot_id:
            self.log("state: the node was booted anew: all host ports of before are free")
            return self.rebuild(found, rules)
        index, unfinished = self.settled(index)
        if unfinished:
            self.remove(unfinished)
        return index

    def settled(self, index: Index) -> tuple[Index, str]:
        """The index without what a killed command left undone, and the name of what is left of its record, if any."""
        last = index.last
        if last is None:
            return index, ""
        if last.verb == "release":
            return index, last.name if self.files.read(self.layout.record(last.name)) is not None else ""
        try:
            record = recovery.read_record(self.files, self.layout, last.name)
        except (DamagedRecord, NewerRecord):
            return index, ""  # its ports stay held
        if record is None:  # there may be an unfinished file of it
            return state.free(index, last.held, last.name), last.name
        if record.token == last.token:
            return index, ""
        index = state.free(index, last.held, last.name)
        return state.hold(index, record, last.name) if self.is_alive(record) else index, ""

    def rebuild(self, found: Found, rules: Sequence[Rule] | None) -> Index:
        """Make the index anew and write both its generations."""
        lines: list[str] = []
        census = recovery.take_census(self.files, self.layout, lines.append)
        base = found.newest
        rebooted = base is not None and base.boot_id != self.boot_id
        if rules is None and (base is None or census.damaged) and not rebooted:
            raise KernelNeeded
        unused = found.nothing_there and not census.readable and not census.damaged
        for line in () if unused else found.problems:
            self.log(f"state: {line}; the index is made anew from the records")
        for line in lines:
            self.log(line)
        if base is not None and base.last is not None and not found.problems and not rebooted:
            unfinished = self.settled(base)[1]
            if unfinished:
                self.remove(unfinished)
                census = census.without(unfinished)
        times = self.clock.now(), self.clock.boottime()
        work = Rebuild(self.files, self.layout, self.boot_id, times, self.log)
        index = work.run(base, census, rules or ())
        self._slot = found.slot
        index = self.commit(self.commit(index))  # both, or the next command would find one wanting and start over
        self.files.remove(self.layout.rebuild)
        return index

    def commit(self, index: Index) -> Index:
        """Write the next generation over the one before the current."""
        written = index._replace(generation=index.generation + 1)
        slot = 1 - self._slot
        self.files.write(self.layout.slots[slot], state.encode(written))
        self._slot = slot
        return written

    def drop_index(self) -> None:
        """Remove the index, the older generation first, so that the next command makes it anew."""
        for slot in (1 - self._slot, self._slot):
            self.files.remove(self.layout.slots[slot])

    # --- records ---------------------------------------------------------------------------------------

    def is_damaged(self, name: str) -> bool:
        """Whether there is a record of this name that cannot be read."""
        try:
            recovery.read_record(self.files, self.layout, name)
        except DamagedRecord:
            return True
        except NewerRecord:
            return False
        return False

    def live(self, name: str) -> Record | None:
        """The record that holds ports under this name, if any. Raises LaterVersion."""
        try:
            record = recovery.read_record(self.files, self.layout, name)
        except DamagedRecord:
            return self._lost(name, key_of(name))
        except NewerRecord as error:
            raise LaterVersion(
                f"{self.layout.record(name)} was written by a later version ({error}): install that version"
            ) from None
        return record if record is not None and self.is_alive(record) else None

    def read(self, name: str, key: Key | None) -> Record | None:
        """A record however it can be had: of a later version, or unreadable and then known by its key and pins only."""
        try:
            return recovery.read_record(self.files, self.layout, name)
        except DamagedRecord as error:
            self.log(f"state: {self.layout.record(name)} cannot be read: {error}")
        except NewerRecord as error:
            if error.record is not None:
                return error.record
        return self._lost(name, key if key is not None else key_of(name))

    def _lost(self, name: str, key: Key | None) -> Record | None:
        """What is known of an unreadable record. Its container ports are not: the host ports stand in for them."""
        if key is None:
            return None
        try:
            index = self.found().newest
        except LaterVersion:
            index = None
        pins = index.pins if index is not None and index.boot_id == self.boot_id else ()
        ports = tuple(Port(pin.port, pin.protocol, pin.port, "", pin.host_ip) for pin in pins if pin.holder == name)
        return Record(*key, boot_id=self.boot_id, ports=ports, salvaged=True)

    def put(self, name: str, record: Record) -> None:
        """Write a record. The mark of a pending annotation goes before it and is taken away after it."""
        if record.annotation.state == "pending":
            self.files.write(self.layout.mark(name), b"")
        self.files.write(self.layout.record(name), encode(record))
        if record.annotation.state != "pending":
            self.files.remove(self.layout.mark(name))

    def remove(self, name: str) -> None:
        """Remove a record and its mark."""
        self.files.remove(self.layout.record(name))
        self.files.remove(self.layout.mark(name))

    def try_remove(self, name: str) -> None:
        """The same where a failure is already being reported."""
        try:
            self.remove(name)
        except OSError:
            pass

    def unusable(self, error: OSError) -> StateUnusable:
        """What a command answers when the files fail it."""
        where = error.filename or self.layout.folder
        return StateUnusable(
            f"host port state: {where}: {error.strerror or error}; check dataDir {shown(self.layout.folder)}:"
            " it must be a folder of root's on a writable file system with free space"
        )
