"""Which attachments should have their mappings in place, and which have not: what `ports check` and `repair` share.

Mappings that a mapper of this installation makes are held against one reading of the kernel, however many there are.
Those of any other get CHECK through the CNI protocol, with the recorded configuration, result and mappings, one by one.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from cnimeta.errors import CniError
from cnimeta.ports.mapper import Expected
from cnimeta_plugins.hostport_alloc.config import PORTMAP_TYPE
from cnimeta_plugins.hostport_alloc.verbs import steps as calls
from cnimeta_plugins.hostport_alloc.verbs.steps import call_conf, mappings_of, with_check
from cnimeta_plugins.hostport_alloc.verbs.undo import decode_undo, delegates_of, is_gone
from cnimeta_plugins.hostport_alloc.wiring import of_hostport_alloc

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cnimeta.ports.mapper import MappedPort, PortMapper, Repaired
    from cnimeta_plugins.hostport_alloc.state.record import Record
    from cnimeta_plugins.hostport_alloc.state.store import Store
    from cnimeta_plugins.hostport_alloc.verbs.steps import Step
    from cnimeta_plugins.hostport_alloc.verbs.undo import Undo
    from cnimeta_plugins.hostport_alloc.wiring import Wiring


class Standing(NamedTuple):
    """A record, and what ADD did; or why nothing can be expected of it."""

    record: Record
    undo: Undo | None
    why_not: str = ""

    @classmethod
    def of(cls, record: Record, store: Store, wiring: Wiring) -> Standing:
        """Looks at the record, and at the namespace."""
        undo = decode_undo(record.undo)
        why_not = ""
        if not store.is_alive(record):
            why_not = "it is of an earlier boot; DEL or GC has not come"
        elif undo is None:
            why_not = "it does not tell how its ports were mapped"
        elif is_gone(wiring, record):
            why_not = "its namespace is gone; DEL or GC has not come"
        elif record.phase != "mapped":
            why_not = f"ADD is under way or was cut short (phase {record.phase})"
        return cls(record, None if why_not else undo, why_not)


class Comparison:
    """Holds attachments against the host."""

    def __init__(self, wiring: Wiring, data_dir: str, folders: tuple[str, ...], log: Callable[[str], None]) -> None:
        self.wiring = wiring
        self.data_dir = data_dir
        self.folders = folders
        self.log = log
        self.others: Sequence[Repaired] = ()
        """What portmap found of the attachments that it mapped on its own. Known after `errors`."""
        self.mappings: tuple[MappedPort, ...] = ()
        """What is mapped for hostport_alloc, as portmap and the kernel know it. Known after `errors`."""

    def errors(self, standings: Iterable[Standing], *, deep: bool = False) -> list[list[CniError]]:
        """What is wrong of each, in order; nothing of those of which nothing can be expected.

        deep: the delegates that map nothing get CHECK too, one process or more for each.
        """
        standing = list(standings)
        found: list[list[CniError]] = [[] for _ in standing]
        here: dict[str, list[tuple[int, Expected]]] = {PORTMAP_TYPE: []}
        mappers: dict[tuple[str, tuple[str, ...]], PortMapper | None] = {}
        for at, (record, undo, _) in enumerate(standing):
            if undo is None:
                continue
            for step in undo.steps:
                where = step.type, self.folders or undo.folders
                if step.maps and where not in mappers:
                    mappers[where] = self.wiring.mapper_here(*where)
                if step.maps and mappers[where] is not None:
                    here.setdefault(step.type, []).append((at, _expected(record, undo, step)))
                elif step.maps or deep:
                    found[at] += self._checked(record, undo, step)
        for plugin_type, expected in here.items():
            mapper = self.wiring.registered_mapper(plugin_type, self.log)
            if mapper is not None:
                compared = mapper.compare(self.data_dir, self.log, [one for _, one in expected])
                if plugin_type == PORTMAP_TYPE:
                    self.others, self.mappings = compared.others, of_hostport_alloc(compared.mappings)
                for (at, _), error in zip(expected, compared.errors, strict=True):
                    found[at] += [error] if error is not None else []
        return found

    def _checked(self, record: Record, undo: Undo, step: Step) -> Sequence[CniError]:
        delegates = delegates_of(self.wiring, record, undo, os.environ, self.folders, self.log, lost=record.netns)
        try:
            calls.check(delegates, [with_check(step)], mappings_of(record), undo.result)
        except CniError as error:
            return [error]
        return []


def _expected(record: Record, undo: Undo, step: Step) -> Expected:
    return Expected(*record.key, record.netns, call_conf(with_check(step), mappings_of(record), undo.result))
