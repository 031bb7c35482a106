"""What `cnimeta ports check` finds: where rules, records, bits and sockets of the node disagree."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cnimeta.errors import IncompatibleVersion
from cnimeta_plugins.hostport_alloc.operator.comparison import Comparison, Standing

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

    from cnimeta.errors import CniError
    from cnimeta.ports.mapper import MappedPort
    from cnimeta_plugins.hostport_alloc.state.record import Key
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

    def problems(self, *, deep: bool = False) -> Iterator[Problem]:
        """Everything that does not agree; `deep`: what the delegates that map nothing say of theirs too."""
        there = self.store.exists()  # looking makes none
        for text in self.store.problems() if there else ():
            yield Problem("state", "", text)
        standings = [Standing.of(record, self.store, self.wiring) for record in self.store.records()] if there else []
        comparison = Comparison(self.wiring, self.data_dir, self.folders, self.log)
        for standing, errors in zip(standings, comparison.errors(standings, deep=deep), strict=True):
            yield from _of_record(standing, errors)
        yield from self._of_sockets(standings)
        held = {standing.record.key: standing.record.held for standing in standings}
        yield from self._unrecorded(held, comparison.mappings)
        known = {container_id for _, container_id, _ in held}
        for found in comparison.others:
            if found.error and found.container_id not in known:
                yield Problem("rule", found.container_id, found.error)

    def _of_sockets(self, standings: Sequence[Standing]) -> Iterator[Problem]:
        in_use = set(self.wiring.sockets.in_use())
        for record, _, _ in standings:
            for protocol, port in sorted(record.held & in_use):
                message = (
                    f"host port {port}/{protocol} is also used by a process on the node, which gets no connections"
                )
                yield Problem("socket", record.container_id, message)

    @staticmethod
    def _unrecorded(
        held: Mapping[Key, frozenset[tuple[str, int]]], mappings: Iterable[MappedPort]
    ) -> Iterator[Problem]:
        """Rules that name no interface may be a foreign plugin's: only those of our networks count."""
        networks = {network for network, _, _ in held}
        by_container: dict[tuple[str, str], set[tuple[str, int]]] = {}
        for (network, container_id, _), ports in held.items():
            by_container.setdefault((network, container_id), set()).update(ports)
        for mapping in mappings:
            place, where = (mapping.protocol, mapping.host_port), (mapping.network, mapping.container_id)
            known = held.get((*where, mapping.ifname), ()) if mapping.ifname else by_container.get(where, ())
            if place in known or not (mapping.ifname or not networks or mapping.network in networks):
                continue
            message = f"host port {mapping.host_port}/{mapping.protocol} is mapped and has no record"
            hint = "" if mapping.ifname else "; DEL of the container removes it, if it is not another plugin's"
            yield Problem("rule", mapping.container_id, message + hint)


def _of_record(standing: Standing, errors: Sequence[CniError]) -> Iterator[Problem]:
    container_id = standing.record.container_id
    if standing.why_not:
        yield Problem("record", container_id, standing.why_not)
    for error in errors:
        unknown = "its rules cannot be checked: " * (error.code == IncompatibleVersion.code)
        yield Problem("rule", container_id, f"{unknown}{error}")
