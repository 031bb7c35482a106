"""What `cnimeta ports check` finds: where rules, records, bits and sockets of the node disagree.

Rules are checked through the CNI protocol itself: the recorded portmap configuration gets CHECK, with the recorded
result and mappings. So it works for whichever portmap made them, and needs no API server.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from cnimeta.errors import CniError, IncompatibleVersion
from cnimeta_plugins.hostport_alloc.config import PORTMAP_TYPE
from cnimeta_plugins.hostport_alloc.verbs import steps as calls
from cnimeta_plugins.hostport_alloc.verbs.steps import mappings_of, with_check
from cnimeta_plugins.hostport_alloc.verbs.undo import decode_undo, delegates_of, is_gone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from cnimeta_plugins.hostport_alloc.state.record import Record
    from cnimeta_plugins.hostport_alloc.state.store import Store
    from cnimeta_plugins.hostport_alloc.wiring import Wiring


class Problem(NamedTuple):
    """One disagreement. `kind`: state (the database), record (cannot be acted on), rule, socket."""

    kind: str
    container_id: str
    message: str

    @property
    def body(self) -> dict[str, str]:
        """What `--json` prints."""
        return {"kind": self.kind, "containerID": self.container_id, "message": self.message}


class Audit:
    """The node's records beside what they should have brought about."""

    def __init__(
        self, wiring: Wiring, store: Store, data_dir: str, folders: tuple[str, ...], log: Callable[[str], None]
    ) -> None:
        self.wiring = wiring
        self.data_dir = data_dir
        self.store = store
        self.folders = folders
        self.log = log

    def problems(self) -> Iterator[Problem]:
        """Everything that does not agree."""
        there = self.store.exists()  # looking makes none
        for text in self.store.problems() if there else ():
            yield Problem("state", "", text)
        in_use = set(self.wiring.sockets.in_use())
        held: dict[tuple[str, str, str], frozenset[tuple[str, int]]] = {}
        for record in self.store.records() if there else ():
            held[record.key] = record.held
            yield from self._of_record(record)
            for protocol, port in sorted(record.held & in_use):
                message = (
                    f"host port {port}/{protocol} is also used by a process on the node, which gets no connections"
                )
                yield Problem("socket", record.container_id, message)
        yield from self._unrecorded(held)
        yield from self._of_others({container_id for _, container_id, _ in held})

    def _unrecorded(self, held: Mapping[tuple[str, str, str], frozenset[tuple[str, int]]]) -> Iterator[Problem]:
        """Rules that name no interface may be a foreign plugin's: only those of our networks count."""
        networks = {network for network, _, _ in held}
        by_container: dict[tuple[str, str], set[tuple[str, int]]] = {}
        for (network, container_id, _), ports in held.items():
            by_container.setdefault((network, container_id), set()).update(ports)
        for mapping in self.wiring.mappings(self.data_dir, self.log):
            place, where = (mapping.protocol, mapping.host_port), (mapping.network, mapping.container_id)
            known = held.get((*where, mapping.ifname), ()) if mapping.ifname else by_container.get(where, ())
            if place in known or not (mapping.ifname or not networks or mapping.network in networks):
                continue
            message = f"host port {mapping.host_port}/{mapping.protocol} is mapped and has no record"
            hint = "" if mapping.ifname else "; DEL of the container removes it, if it is not another plugin's"
            yield Problem("rule", mapping.container_id, message + hint)

    def _of_others(self, known: set[str]) -> Iterator[Problem]:
        """What is gone of the mappings that portmap made on its own, without hostport_alloc."""
        mapper = self.wiring.mapper(PORTMAP_TYPE)
        for found in mapper.check(self.data_dir, self.log, known) if mapper is not None else ():
            if found.error:
                yield Problem("rule", found.container_id, found.error)

    def _of_record(self, record: Record) -> Iterator[Problem]:
        undo = decode_undo(record.undo)
        if not self.store.is_alive(record):
            yield Problem("record", record.container_id, "it is of an earlier boot; DEL or GC has not come")
        elif undo is None:
            yield Problem("record", record.container_id, "it does not tell how its ports were mapped")
        elif is_gone(self.wiring, record):
            yield Problem("record", record.container_id, "its namespace is gone; DEL or GC has not come")
        elif record.phase != "mapped":
            yield Problem("record", record.container_id, f"ADD was cut short (phase {record.phase})")
        else:
            delegates = delegates_of(self.wiring, record, undo, os.environ, self.folders, self.log, lost=record.netns)
            for step in undo.steps:
                if not step.maps:
                    continue
                try:
                    calls.check(delegates, [with_check(step)], mappings_of(record), undo.result)
                except CniError as error:
                    unknown = "its rules cannot be checked: " * (error.code == IncompatibleVersion.code)
                    yield Problem("rule", record.container_id, f"{unknown}{error}")
