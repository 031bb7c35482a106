"""Looking at the state without changing it: for STATUS, `cnimeta ports` and its check."""

from __future__ import annotations

from cnimeta.namedtuple import NamedTuple
from cnimeta_plugins.hostport_alloc.state import index as state
from cnimeta_plugins.hostport_alloc.state import recovery
from cnimeta_plugins.hostport_alloc.state.disk import LaterVersion
from cnimeta_plugins.hostport_alloc.state.index import Index

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta_plugins.hostport_alloc.allocate.allocator import Held, Ports
    from cnimeta_plugins.hostport_alloc.state.disk import Disk


class Inspection(NamedTuple):
    """The state as found, without the lock and without repairing anything."""

    used: Ports
    quarantined: tuple[Held, ...]
    problems: tuple[str, ...]
    """What is wrong with the files, in words; empty when all is well. The next command that writes repairs it."""
    unusable: str = ""
    """Why ADD would fail with StateUnusable, and no command repairs it; empty when it would not."""


def inspect(disk: Disk) -> Inspection:
    """What is held and what is wrong."""
    try:
        found = disk.found()
        if found.nothing_there and not disk.files.names(disk.layout.records):
            return Inspection({}, (), ())  # never used yet
    except LaterVersion as error:
        return Inspection({}, (), (error.msg,), error.msg)
    except OSError as error:
        text = disk.unusable(error).msg
        return Inspection({}, (), (text,), text)
    index = found.newest
    if index is None or index.boot_id != disk.boot_id:
        return Inspection({}, (), found.problems)
    return Inspection(index.bits, state.quarantined(index, disk.clock.boottime()), found.problems)


def disagreements(disk: Disk) -> tuple[str, ...]:
    """Where records and bitmap differ, in words; what the next command settles by itself is not one."""
    lines: list[str] = []
    try:
        found = disk.found()
    except LaterVersion as error:
        return (error.msg,)
    census = recovery.take_census(disk.files, disk.layout, lines.append)
    index, unfinished = Index(), ""
    if found.newest is not None and found.newest.boot_id == disk.boot_id:
        index, unfinished = disk.settled(found.newest)
    alive = {name: record for name, record in census.without(unfinished).readable.items() if disk.is_alive(record)}
    if alive or not found.nothing_there:
        lines += found.problems
    owed = state.pin(Index(), (pin for pin in index.pins if pin.holder in census.damaged))
    for name, record in alive.items():
        owed = state.hold(owed, record, name)
    for protocol in sorted({*index.bits, *owed.bits}):
        have, should = index.bits.get(protocol, 0), owed.bits.get(protocol, 0)
        lines += [f"port {port}/{protocol} has a record and no bit" for port in recovery.members(should & ~have)]
        lines += [f"port {port}/{protocol} has a bit and no record" for port in recovery.members(have & ~should)]
    return tuple(lines)
