"""`cnimeta ports list --watch`: what was added, modified and deleted since the last look."""

from __future__ import annotations

import os

from cnimeta.errors import CniError
from cnimeta.store.database import FILE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import TypeAlias

    from cnimeta.host.protocols import Clock
    from cnimeta_plugins.hostport_alloc.operator.listing import Entry

    Change: TypeAlias = tuple[str, Entry]
    """ADDED, MODIFIED or DELETED, and the entry as it is, or was."""

INTERVAL_S = 2.0
_IDENTITY = ("network", "containerID", "ifname", "protocol", "hostPort", "containerPort", "hostIP")
_PASSING = ("ageSeconds",)
_FILES = (FILE, f"{FILE}-wal", "sequence")


def changes(before: Sequence[Entry], after: Sequence[Entry]) -> Iterator[Change]:
    """What leads from one list to the other, deletions first: a number that moves on is free before it is taken."""
    old = {tuple(entry[key] for key in _IDENTITY): entry for entry in before}
    new = {tuple(entry[key] for key in _IDENTITY): entry for entry in after}
    yield from (("DELETED", entry) for key, entry in old.items() if key not in new)
    for key, entry in new.items():
        if key not in old:
            yield "ADDED", entry
        elif _lasting(old[key]) != _lasting(entry):
            yield "MODIFIED", entry


def _lasting(entry: Entry) -> Entry:
    return {key: value for key, value in entry.items() if key not in _PASSING}


def stamp(folder: str) -> tuple[object, ...] | None:
    """What differs once something has been committed to the state in `folder`; None when that cannot be told."""
    found: list[object] = []
    for name in _FILES:
        try:
            status = os.stat(os.path.join(folder, name))
        except FileNotFoundError:
            found.append(None)
        except OSError:
            return None
        else:
            found.append((status.st_ino, status.st_size, status.st_mtime_ns))
    return tuple(found) if any(found) else None


def watch(
    look: Callable[[], list[Entry]],
    stamped: Callable[[], tuple[object, ...] | None],
    show: Callable[[Sequence[Change]], None],
    clock: Clock,
    interval_s: float,
    log: Callable[[str], None],
) -> None:
    """Show what there is, then each change, until interrupted. While nothing is committed, nothing is read.

    A look that fails is told and tried again: what cannot be read has not been deleted. The first one raises.
    """
    seen = stamped()
    before = look()
    show([("ADDED", entry) for entry in before])
    told = ""
    while True:
        clock.sleep(interval_s)
        now = stamped()
        if now is not None and now == seen:
            continue
        try:
            after = look()
        except CniError as error:
            if str(error) != told:
                log(f"cnimeta: {error}")
            told = str(error)
            continue
        found = list(changes(before, after))
        if found:
            show(found)
        seen, before, told = now, after, ""
