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

from cnimeta._record import NamedTuple
from cnimeta.errors import CniError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from cnimeta.host.protocols import Clock, Files, Lock
    from cnimeta_plugins.hostport_alloc.allocator import Held, PortRange, Ports
    from cnimeta_plugins.hostport_alloc.expose import Exposure
    from cnimeta_plugins.hostport_alloc.record import Key, Port, Record


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


class Rule(NamedTuple):
    """One of this project's own port mappings found in the kernel, for recovery."""

    network: str
    container_id: str
    ifname: str
    port: Port


class Inspection(NamedTuple):
    """The state as found, without the lock and without repairing anything."""

    used: Ports
    quarantined: tuple[Held, ...]
    problems: tuple[str, ...]
    """What is wrong with the files, in words; empty when all is well. The next command that writes repairs it."""


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
        raise NotImplementedError

    def reserve(self, draft: Record, demand: Demand) -> Reservation:
        """Hold ports for `draft.key` and write its record, with `draft`'s netns, pod, explicit, undo and annotation.

        Repeating it gives the same ports. Exhausted (11): no port free; HostPortConflict (100): an explicit mapping
        is held by another attachment; StateUnusable (104) also when a later version wrote the state.
        """
        raise NotImplementedError

    def load(self, key: Key) -> Record | None:
        """The attachment's record, without the lock. A record that was lost to damage comes back `salvaged`, with no
        `undo`. A record of an earlier boot is returned too (delegates may keep leases on disk): see `is_alive`.
        """
        raise NotImplementedError

    def is_alive(self, record: Record) -> bool:
        """Whether the record is of this boot, so that its ports are held and its rules may exist."""
        raise NotImplementedError

    def update(self, record: Record) -> None:
        """Replace the record of the same key and token; its ports cannot change. Superseded (11) if it is gone."""
        raise NotImplementedError

    def release(self, key: Key, *, token: str = "", quarantine_s: float = 30, sticky_s: float = 3600) -> Record | None:
        """Forget the attachment and free its ports; None when there was none. With `token`, only that reservation.

        The ports stay in quarantine for `quarantine_s`; the same Pod prefers them for `sticky_s` (0: not).
        """
        raise NotImplementedError

    def records(self) -> Iterator[Record]:
        """Every readable record, this boot's and earlier ones, without the lock. Reads the whole folder."""
        raise NotImplementedError

    def pending(self, limit: int = 16) -> tuple[Record, ...]:
        """Up to `limit` records whose annotation is pending, without the lock. Costs one look when there is none."""
        raise NotImplementedError

    def inspect(self) -> Inspection:
        """What is held and what is wrong, changing nothing. Works when the state is unusable: it says so."""
        raise NotImplementedError

    def disagreements(self) -> tuple[str, ...]:
        """Where records and bitmap differ, in words. Reads every record, under the lock; changes nothing."""
        raise NotImplementedError

    def rebuild(self) -> None:
        """Make the index anew from the records and, for lost ones, the kernel's rules."""
        raise NotImplementedError
