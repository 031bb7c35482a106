"""The node's state on disk: records, the bitmap index, their one lock. See docs/hostport_alloc.md, State.

How the verbs use it, with `key` = attachment.key:

ADD     blocked = eligibility.blocked_ports(...)            # before the lock
        reservation = store.reserve(draft, demand)          # ports held, record on disk, phase "reserved"
        if not reservation.fresh: the same ADD was served before; its ports are unchanged
        ... run delegates and portmap ...
        store.update(record._replace(phase="mapped", undo=..., annotation=...))
        on failure: undo what was run, then store.release(key)
DEL     record = store.load(key)                            # None: nothing was allocated, or DEL was served before
        ... undo from record.undo ...
        store.release(key)                                  # record gone, ports free (quarantined)
CHECK   store.load(key)
GC      for record in store.records(): if its key is not listed: undo, store.release(record.key)
STATUS  store.inspect()
later   for record in store.pending(limit): deliver record.annotation.patch, then store.update(record with "done")
"""

from __future__ import annotations

import errno
import os

from cnimeta.errors import CniError, shown
from cnimeta.namedtuple import NamedTuple
from cnimeta_plugins.hostport_alloc.allocate import allocator
from cnimeta_plugins.hostport_alloc.allocate.allocator import Situation
from cnimeta_plugins.hostport_alloc.state import index as state
from cnimeta_plugins.hostport_alloc.state import inspection
from cnimeta_plugins.hostport_alloc.state.disk import Disk, KernelNeeded, LaterVersion
from cnimeta_plugins.hostport_alloc.state.index import Index, Last
from cnimeta_plugins.hostport_alloc.state.inspection import Inspection as Inspection  # noqa: TC001 - interface
from cnimeta_plugins.hostport_alloc.state.layout import key_of, name_of, record_names
from cnimeta_plugins.hostport_alloc.state.recovery import Rule as Rule  # noqa: TC001 - interface

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
    from typing import TypeVar

    from cnimeta.host.protocols import Clock, Files, Lock
    from cnimeta_plugins.hostport_alloc.allocate.allocator import PortRange, Ports, Preferred
    from cnimeta_plugins.hostport_alloc.allocate.expose import Exposure
    from cnimeta_plugins.hostport_alloc.state.record import Key, Port, Record
    from cnimeta_plugins.hostport_alloc.state.recovery import Found

    T = TypeVar("T")

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT)
_REBUILD_ATTEMPTS = 5


class Superseded(CniError):
    """The record was released, or replaced by another ADD's, while this command worked: undo and give up."""

    code = 11


class Demand(NamedTuple):
    """What ADD asks for, beside the draft record (whose `explicit` mappings are reserved with it)."""

    exposures: tuple[Exposure, ...]
    ranges: Mapping[str, PortRange]
    """Every range an exposure names."""
    blocked: Ports
    """Ports not to be had, from `eligibility.blocked_ports`."""
    probe: Callable[[str, int], bool]
    """probe(protocol, port): whether the port can be bound and listened on right now. Called under the lock."""
    sticky: bool = True
    """Prefer the ports the same Pod had."""


class Reservation(NamedTuple):
    """What `reserve` did. `fresh` is False when the attachment held exactly these ports already."""

    record: Record
    fresh: bool


class Store:
    """Node-wide state under `folder` (made 0700 when missing).

    Errors, from every method: StateUnusable (104) when the files cannot be read or written (nothing was changed
    then), TryAgainLater (11) when the lock is not had in time.
    """

    def __init__(
        self,
        folder: str,
        files: Files,
        lock: Lock,
        clock: Clock,
        boot_id: str,
        log: Callable[[str], None],
        rules: Callable[[], Iterable[Rule]] = tuple,
    ) -> None:
        """`log` gets one line per repair. `rules` lists this project's mappings in the kernel; it is called, without
        the lock, only when files were lost.
        """
        self._disk = Disk(folder, files, clock, boot_id, log)
        self._lock = lock
        self._clock = clock
        self._log = log
        self._rules = rules

    # --- the verbs -------------------------------------------------------------------------------------

    def reserve(self, draft: Record, demand: Demand) -> Reservation:
        """Hold ports for `draft.key` and write its record, with `draft`'s netns, pod, explicit, undo and annotation.

        Repeating it gives the same ports. Exhausted (11): no port free; HostPortConflict (100): an explicit mapping
        is held by another attachment; StateUnusable (104) also when a later version wrote the state.
        """
        token = os.urandom(8).hex()
        return self._locked(lambda index: self._reserve(index, draft._replace(token=token), demand))

    def _reserve(self, index: Index, draft: Record, demand: Demand) -> Reservation:
        name = name_of(draft.key)
        before = self._disk.live(name)
        if before is not None:
            index = state.free(index, before.held, name)
        state.refuse_conflicts(index, draft.explicit)
        ports = self._kept_ports(before, demand)
        if ports is None:
            ports = self._choose(state.hold(index, draft._replace(ports=()), name), draft, before, demand)
        record = draft._replace(
            boot_id=self._disk.boot_id, created=self._clock.now(), phase="reserved", ports=ports, salvaged=False
        )
        fresh = before is None or (before.ports, before.explicit) != (record.ports, record.explicit)
        if fresh:
            held = record.held if before is None else record.held | before.held
            last = Last("reserve", name, record.token, tuple(held))
            self._disk.commit(state.hold(index, record, name)._replace(last=last))
        try:
            self._disk.put(name, record)
        except OSError:
            if before is None:  # the next command takes the bits back when there is no record
                self._disk.try_remove(name)
            raise
        return Reservation(record, fresh)

    @staticmethod
    def _kept_ports(before: Record | None, demand: Demand) -> tuple[Port, ...] | None:
        """The ports of the record before, when they are exactly what is asked for now."""
        if before is None or before.salvaged:
            return None
        wanted = {
            (exposure.port + offset, protocol, exposure.range, exposure.host_ip)
            for exposure in demand.exposures
            for offset in range(exposure.length)
            for protocol in exposure.protocols
        }
        have = {(port.container_port, port.protocol, port.range, port.host_ip) for port in before.ports}
        inside = all(
            port.range in demand.ranges and demand.ranges[port.range].ports >> port.host_port & 1
            for port in before.ports
        )
        return before.ports if wanted == have and inside else None

    def _choose(self, index: Index, draft: Record, before: Record | None, demand: Demand) -> tuple[Port, ...]:
        """Pick until every picked port passes the probe; each that does not is out, so this ends."""
        preferred: Preferred = state.recall(index, draft.pod, self._clock.now()) if demand.sticky else {}
        if before is not None and not before.salvaged:
            preferred = {
                **preferred,
                **{(port.container_port, port.protocol, port.range): port.host_port for port in before.ports},
            }
        blocked = dict(demand.blocked)
        waiting = state.quarantined(index, self._clock.boottime())
        while True:
            ports = allocator.choose(
                demand.exposures, demand.ranges, Situation(index.bits, blocked, waiting), preferred
            )
            refused = [port for port in ports if not demand.probe(port.protocol, port.host_port)]
            if not refused:
                return ports
            for port in refused:
                blocked[port.protocol] = blocked.get(port.protocol, 0) | 1 << port.host_port

    def load(self, key: Key) -> Record | None:
        """The attachment's record, without the lock. A record that was lost to damage comes back `salvaged`, with no
        `undo`. A record of an earlier boot is returned too (delegates may keep leases on disk): see `is_alive`.
        """
        name = name_of(key)
        self._rebuild_if_damaged(name)
        try:
            return self._disk.read(name, key)
        except OSError as error:
            raise self._disk.unusable(error) from None

    def renamed(self, key: Key) -> Record | None:
        """The record of the same container and interface under another network's name, if there is exactly one.

        A container has one interface of a name, so this is the attachment, and its network has another name since.
        """
        try:
            keys = map(key_of, record_names(self._disk.files.names(self._disk.layout.records)))
            found = [other for other in keys if other is not None and other[1:] == key[1:] and other != key]
        except OSError as error:
            raise self._disk.unusable(error) from None
        return self.load(found[0]) if len(found) == 1 else None

    def _rebuild_if_damaged(self, name: str) -> bool:
        """Find out what a damaged record held; False when it is sound. When that fails, what is known must do."""
        try:
            if not self._disk.is_damaged(name):
                return False
            self.rebuild()
        except OSError as error:
            raise self._disk.unusable(error) from None
        except CniError as error:
            self._log(f"state: {error}")
        return True

    def is_alive(self, record: Record) -> bool:
        """Whether the record is of this boot, so that its ports are held and its rules may exist."""
        return self._disk.is_alive(record)

    def update(self, record: Record) -> None:
        """Replace the record of the same key and token; its ports cannot change. Superseded (11) if it is gone."""
        self._locked(lambda _: self._update(record))

    def _update(self, record: Record) -> None:
        name = name_of(record.key)
        now = self._disk.read(name, record.key)
        if now is None or now.token != record.token or now.held != record.held:
            raise Superseded(
                f"container {shown(record.container_id)} was {'deleted' if now is None else 'added anew'} while this"
                " command worked on it; nothing of it was kept"
            )
        self._disk.put(name, record)

    def release(self, key: Key, *, token: str = "", quarantine_s: float = 30, sticky_s: float = 3600) -> Record | None:
        """Forget the attachment and free its ports; None when there was none. With `token`, only that reservation.

        The ports stay in quarantine for `quarantine_s`; the same Pod prefers them for `sticky_s` (0: not). On a full
        disk the record goes and the index with it, to be made anew from the records: space may only come back when
        Pods are deleted.
        """
        self._rebuild_if_damaged(name_of(key))
        try:
            return self._locked(lambda index: self._release(index, key, token, (quarantine_s, sticky_s)))
        except LaterVersion:
            return self._plainly(lambda: self._release_blindly(key, token))

    def _release(self, index: Index, key: Key, token: str, times: tuple[float, float]) -> Record | None:
        name = name_of(key)
        record = self._disk.read(name, key)
        if record is None or (token and record.token != token):
            return None
        held = {*record.held, *((pin.protocol, pin.port) for pin in index.pins if pin.holder == name)}
        if record.salvaged or self.is_alive(record):
            changed = state.free(index, record.held, name)
            changed = state.quarantine(changed, record, self._clock.boottime(), times[0])
            if times[1] > 0:
                changed = state.remember(changed, record, self._clock.now() + times[1])
            last = Last("release", name, record.token, tuple(held))
            try:
                self._disk.commit(changed._replace(last=last))
            except OSError as error:
                if error.errno not in _NO_SPACE:
                    raise
                self._log(f"state: no space to write the index ({error.strerror}); it will be made anew")
                self._disk.drop_index()
        self._disk.remove(name)
        return record

    def _release_blindly(self, key: Key, token: str) -> Record | None:
        """Release with an index of a later version: the record goes, and that version makes its index anew."""
        name = name_of(key)
        record = self._disk.read(name, key)
        if record is None or (token and record.token != token):
            return None
        self._disk.files.write(self._disk.layout.rebuild, b"")
        self._disk.remove(name)
        return record

    # --- looking ---------------------------------------------------------------------------------------

    def records(self) -> Iterator[Record]:
        """Every record, this boot's and earlier ones, without the lock; unreadable ones as `salvaged`. Reads the whole
        folder.
        """
        try:
            for name in record_names(self._disk.files.names(self._disk.layout.records)):
                record = self._disk.read(name, key_of(name))
                if record is not None and record.salvaged and self._rebuild_if_damaged(name):
                    record = self._disk.read(name, key_of(name))
                if record is not None:
                    yield record
        except OSError as error:
            raise self._disk.unusable(error) from None

    def pending(self, limit: int = 16) -> tuple[Record, ...]:
        """Up to `limit` records whose annotation is pending, without the lock. Costs one look when there is none."""
        found: list[Record] = []
        try:
            for name in self._disk.files.names(self._disk.layout.pending):
                if len(found) >= limit:
                    break
                record = self._disk.read(name, None)
                if record is not None and record.annotation.state == "pending" and self.is_alive(record):
                    found.append(record)
                else:
                    self._drop_mark(name)
        except OSError as error:
            raise self._disk.unusable(error) from None
        return tuple(found)

    def _drop_mark(self, name: str) -> None:
        """Remove a mark whose record is gone or settled; judged again under the lock, for marks precede records."""

        def work() -> None:
            record = self._disk.read(name, None)
            if record is None or record.annotation.state != "pending" or not self.is_alive(record):
                self._disk.files.remove(self._disk.layout.mark(name))

        self._plainly(work)

    def inspect(self) -> Inspection:
        """What is held and what is wrong, changing nothing. Works when the state is unusable: it says so."""
        return inspection.inspect(self._disk)

    def disagreements(self) -> tuple[str, ...]:
        """Where records and bitmap differ, in words. Reads every record, under the lock; changes nothing."""
        return self._plainly(lambda: inspection.disagreements(self._disk))

    def rebuild(self) -> None:
        """Make the index anew from the records and, for lost ones, the kernel's rules."""
        rules: tuple[Rule, ...] = ()
        for _ in range(_REBUILD_ATTEMPTS):
            generation = self._plainly(lambda: _generation_of(self._disk.found()))
            rules = tuple(self._rules())
            if self._rebuild(generation, rules):
                return
        # Too busy a node: only rules of records that are still there, unreadable, can be relied on.
        self._rebuild(None, tuple(rule for rule in rules if self._disk.is_damaged(name_of(rule.key))))

    def _rebuild(self, generation: int | None, rules: Sequence[Rule]) -> bool:
        """False, and nothing done, when the index has moved on since the rules were listed: a container deleted since
        would be taken for one whose record was lost.
        """

        def work() -> bool:
            found = self._disk.found()
            if generation is not None and generation != _generation_of(found):
                return False
            self._disk.rebuild(found, rules)
            return True

        return self._plainly(work)

    # --- the lock --------------------------------------------------------------------------------------

    def _plainly(self, work: Callable[[], T]) -> T:
        """Run `work` under the lock."""
        try:
            with self._lock.held():
                return work()
        except OSError as error:
            raise self._disk.unusable(error) from None

    def _locked(self, work: Callable[[Index], T]) -> T:
        """Run `work` on the current index, repaired first if need be."""
        try:
            return self._plainly(lambda: work(self._disk.open(None)))
        except KernelNeeded:
            rules = tuple(self._rules())
            return self._plainly(lambda: work(self._disk.open(rules)))


def _generation_of(found: Found) -> int:
    return found.newest.generation if found.newest is not None else -1
