"""What `cnimeta ports check`, `repair` and `deliver` do, for the whole node.

Rules are checked and rebuilt through the CNI protocol itself: the recorded portmap configuration gets CHECK, or ADD
again, with the recorded result and mappings. So it works for whichever portmap made them, and needs no API server.
"""

from __future__ import annotations

import importlib

from cnimeta.errors import CniError
from cnimeta.namedtuple import NamedTuple
from cnimeta_plugins.hostport_alloc.verbs import steps as chain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cnimeta.delegate.call import Delegates
    from cnimeta_plugins.hostport_alloc.state.record import Record
    from cnimeta_plugins.hostport_alloc.state.store import Store
    from cnimeta_plugins.hostport_alloc.verbs.steps import Step, Undo
    from cnimeta_plugins.hostport_alloc.wiring import Host


_PORTMAP_REPAIR = "cnimeta_plugins.portmap.repair"  # by name: no plugin imports another


class Problem(NamedTuple):
    """One disagreement. `kind`: state (files, bits), record (cannot be acted on), rule, socket."""

    kind: str
    container_id: str
    message: str


class Audit:
    """The node's records beside what they should have brought about."""

    def __init__(
        self, host: Host, store: Store, data_dir: str, folders: tuple[str, ...], log: Callable[[str], None]
    ) -> None:
        self.host = host
        self.data_dir = data_dir
        self.store = store
        self.folders = folders
        self.log = log

    def problems(self) -> Iterator[Problem]:
        """Everything that does not agree."""
        for text in (*self.store.inspect().problems, *self.store.disagreements()):
            yield Problem("state", "", text)
        in_use = set(self.host.sockets.in_use())
        for record in self.store.records():
            yield from self._of_record(record)
            for protocol, port in sorted(record.held & in_use):
                message = (
                    f"host port {port}/{protocol} is also used by a process on the node, which gets no connections"
                )
                yield Problem("socket", record.container_id, message)
        for rule in self.host.portmap_rules(self.data_dir, self.log):
            known = self.store.load((rule.network, rule.container_id, rule.ifname))
            if known is None or (rule.port.protocol, rule.port.host_port) not in known.held:
                message = f"host port {rule.port.host_port}/{rule.port.protocol} is mapped and has no record"
                yield Problem("rule", rule.container_id, message)

    def _of_record(self, record: Record) -> Iterator[Problem]:
        undo = chain.decode_undo(record.undo)
        if not self.store.is_alive(record):
            yield Problem("record", record.container_id, "it is of an earlier boot; DEL or GC has not come")
        elif undo is None:
            yield Problem("record", record.container_id, "it does not tell how its ports were mapped")
        elif record.phase != "mapped":
            yield Problem("record", record.container_id, f"ADD or DEL was cut short (phase {record.phase})")
        else:
            for step in undo.steps:
                if step.maps:
                    try:
                        chain.check(self._delegates(record, undo), [step], chain.mappings_of(record), undo.result)
                    except CniError as error:
                        yield Problem("rule", record.container_id, str(error))

    def repair(self) -> tuple[list[str], list[Problem]]:
        """Rebuild bits and rules from the records. Returns the containers repaired and what could not be."""
        self.store.rebuild()
        repaired: list[str] = []
        failed: list[Problem] = []
        for record in self.store.records():
            undo = chain.decode_undo(record.undo)
            if undo is None or record.phase != "mapped" or not self.store.is_alive(record):
                continue
            for step in undo.steps:
                if step.maps:
                    error = self._map_again(record, undo, step)
                    if error is None:
                        repaired.append(record.container_id)
                    else:
                        failed.append(Problem("rule", record.container_id, str(error)))
        return repaired, failed

    def repair_others(self, done: Sequence[str]) -> tuple[list[str], list[Problem]]:
        """The same for containers that this project's portmap mapped on its own, without hostport_alloc."""
        try:
            portmap = importlib.import_module(_PORTMAP_REPAIR)
        except ImportError:
            return [], []
        results = portmap.repair(self.data_dir, self.log, done)
        failed = [Problem("rule", found.container_id, found.error) for found in results if found.error]
        return [found.container_id for found in results if not found.error], failed

    def _map_again(self, record: Record, undo: Undo, step: Step) -> CniError | None:
        delegates = self._delegates(record, undo)
        mappings = chain.mappings_of(record)
        try:
            try:
                chain.check(delegates, [step], mappings, undo.result)
            except CniError:
                # What is there may be half of it: DEL first, and the port is nobody else's meanwhile.
                chain.undo(delegates, [step], mappings, undo.result)
                delegates.add(chain.call_conf(step, mappings, undo.result))
        except CniError as error:
            return error
        return None

    def release(self, container_id: str) -> tuple[list[str], list[Problem]]:
        """Do for a container what its DEL would have done, when that never comes. Returns its ports and failures.

        Without knowledge of how its ports were mapped, they are not freed: somebody's rules may still be there.
        """
        freed: list[str] = []
        failed: list[Problem] = []
        for record in self.store.records():
            if record.container_id != container_id:
                continue
            undo = chain.decode_undo(record.undo)
            if undo is None:
                failed.append(Problem("record", container_id, "it does not tell how its ports were mapped: use DEL"))
                continue
            delegates = self._delegates(record._replace(netns=""), undo)
            errors, unmapped = chain.undo(delegates, undo.steps, chain.mappings_of(record), undo.result)
            failed += [Problem("rule", container_id, str(error)) for error in errors]
            if unmapped:
                self.store.release(record.key, token=record.token, quarantine_s=undo.quarantine_s, sticky_s=0)
                freed += [f"{port}/{protocol}" for protocol, port in sorted(record.held)]
        return freed, failed

    def _delegates(self, record: Record, undo: Undo) -> Delegates:
        folders = self.folders or tuple(folder for folder in undo.path.split(":") if folder)
        environ = {
            "CNI_CONTAINERID": record.container_id,
            "CNI_IFNAME": record.ifname,
            "CNI_NETNS": record.netns,
            "CNI_ARGS": undo.args,
            "CNI_PATH": ":".join(folders),
        }
        return self.host.delegates_with(environ, folders, self.log)
