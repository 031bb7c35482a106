"""ADD: hold ports, run the delegates, map, publish, settle; and take it all back when any of it fails.

The order keeps *rule => record => bit* true at every instruction: ports are held and the record (with everything needed
to undo) is committed before the first delegate runs; the record goes only after the rules have.
"""

from __future__ import annotations

from cnimeta.errors import CniError, HostPortConflict, IoFailure, TryAgainLater, joined
from cnimeta.observe import notes
from cnimeta_plugins.hostport_alloc.allocate.picks import Exhausted
from cnimeta_plugins.hostport_alloc.allocate.ranges import ports_of_all, refuse_reserved
from cnimeta_plugins.hostport_alloc.config import read_settings
from cnimeta_plugins.hostport_alloc.keys import remarks
from cnimeta_plugins.hostport_alloc.pod.publish import Publisher
from cnimeta_plugins.hostport_alloc.state.record import Record
from cnimeta_plugins.hostport_alloc.state.store import Demand
from cnimeta_plugins.hostport_alloc.verbs.steps import call_conf, mappings_of, plan
from cnimeta_plugins.hostport_alloc.verbs.undo import Undo, encode_undo, take_back
from cnimeta_plugins.hostport_alloc.verbs.wanted import pod_of, wanted_by

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.delegate.call import Delegates
    from cnimeta.plugin.request import Request
    from cnimeta.spec.jsonio import JSON
    from cnimeta.spec.result import Result
    from cnimeta_plugins.hostport_alloc.allocate.picks import Preferred
    from cnimeta_plugins.hostport_alloc.config import Settings
    from cnimeta_plugins.hostport_alloc.hook.event import Notify
    from cnimeta_plugins.hostport_alloc.state.record import Annotation
    from cnimeta_plugins.hostport_alloc.state.store import Store
    from cnimeta_plugins.hostport_alloc.verbs.steps import Step
    from cnimeta_plugins.hostport_alloc.wiring import Wiring

_CONFLICT_ATTEMPTS = 4
"""How often ports are picked anew because one turned out to be mapped already."""


def add(wiring: Wiring, request: Request) -> Result:
    """Serve one ADD. No other command works on the attachment meanwhile."""
    settings = read_settings(request.conf)
    adding = Add(wiring, request, settings)
    for text in remarks(request.conf):
        request.log(f"hostport_alloc: {text}")
    with wiring.locks(settings.data_dir, settings.lock_timeout_s).of(request.attachment.key).held():
        return adding.run(wiring.store(settings.data_dir, settings.lock_timeout_s, request.log))


class Add:
    """One ADD. What is wanted is read, and refused, before anything is touched."""

    store: Store

    def __init__(self, wiring: Wiring, request: Request, settings: Settings) -> None:
        self.wiring = wiring
        self.request = request
        self.settings = settings
        conf = request.conf
        self.prev = conf.prev_result if settings.chain.wrapper else conf.require_prev_result()
        self.delegates: Delegates = wiring.delegates(request.environ, request.cni_path, request.log)
        self.pod = pod_of(request)
        self.publisher = Publisher(wiring, request, settings, self.pod)
        if self.pod is None:
            self.publisher.require_credentials()
        annotations = self.publisher.annotations()
        self.wanted = wanted_by(request, settings, annotations, self.publisher.labels)
        steps = plan(conf, settings.chain, settings.portmap, settings.data_dir)
        self.steps = steps if self.wanted else tuple(step for step in steps if not step.own)
        for step in self.steps:  # a plugin that is not installed fails ADD while there is nothing to undo
            self.delegates.locate(step.type, self.delegates.folders)
        self.record = Record(*request.attachment.key)
        self.started: list[Step] = []
        self.avoid: set[int] = set()

    def run(self, store: Store) -> Result:
        """Serve it, under the attachment's lock."""
        self.store = store
        existing = store.load(self.request.attachment.key)
        if existing is not None:
            from cnimeta_plugins.hostport_alloc.verbs.repeat import Repeat

            served = Repeat(self, existing).run()
            if served is not None:
                return served
        if not self.wanted:
            return self._without_ports()
        self._hold()
        settings = self.settings
        try:
            result = self._delegate_and_map()
            annotation = self.publisher.publish(self.record, result)
            self._settle(annotation, self._undo(result), self._event(result))
            if settings.notify is not None and settings.notify.required:
                self._tell(settings.notify)
        except BaseException as error:
            self._roll_back(error)
            raise
        self.publisher.deliver_others(store)
        return result

    # --- hold ------------------------------------------------------------------------------------------

    def _hold(self) -> None:
        settings, wanted = self.settings, self.wanted
        if wanted.exposures and settings.ranges_file:
            settings = self.wiring.on_node(settings)
        ranges = {exposure.range: settings.range(exposure.range) for exposure in wanted.exposures}
        refuse_reserved(ranges.values(), settings.reserved(self.wiring.sockets.ephemeral()))
        if wanted.exposures and settings.reserve_ports:
            self._reserve(settings)
        blocked = self.wiring.set_aside(self.request.log, settings) if wanted.exposures else {}
        for port in self.avoid:
            blocked = {protocol: ports | 1 << port for protocol, ports in blocked.items()}
        netns = self.request.attachment.netns
        draft = Record(
            *self.request.attachment.key,
            netns=netns,
            netns_id=self.wiring.namespaces.identity(netns),
            pod=self.pod,
            explicit=wanted.explicit,
            undo=self._undo(None),
        )
        fixed: Preferred = {}
        if any(found.by_ordinal for found in ranges.values()):
            from cnimeta_plugins.hostport_alloc.allocate.ordinal import by_ordinal

            fixed = by_ordinal(wanted.exposures, ranges, self.pod.name if self.pod is not None else "")
        probe, sticky = self.wiring.probe(), settings.sticky
        demand = Demand(wanted.exposures, ranges, blocked, probe, sticky, fixed, settings.quotas, probe.used)
        try:
            self.record = self.store.hold(draft, demand).record
        except Exhausted as error:
            notes.count("cnimeta_hostport_exhausted_total", range=error.range)
            raise

    def _reserve(self, settings: Settings) -> None:
        """A precaution: where the setting cannot be written, ADD goes on as without."""
        try:
            self.wiring.reservation(settings.data_dir).keep(self.request.conf.name, ports_of_all(settings.ranges))
        except (IoFailure, TryAgainLater) as error:
            self.request.log(f"hostport_alloc: ports are not reserved: {error.msg}")

    def _undo(self, result: Result | None) -> JSON:
        called_with = self.request.environ.get("CNI_ARGS", ""), self.request.environ.get("CNI_PATH", "")
        times = self.settings.quarantine_s, self.settings.sticky_s if self.settings.sticky else 0.0
        here = result is not None and self._is_mapped_here()
        return encode_undo(Undo(self.steps, result, self.request.conf.cni_version, *called_with, *times, here))

    def _is_mapped_here(self) -> bool:
        folders = self.delegates.folders
        return any(step.maps and self.wiring.mapper_here(step.type, folders) is not None for step in self.steps)

    # --- delegate and map ------------------------------------------------------------------------------

    def _without_ports(self) -> Result:
        """Nothing to map: the delegates alone, and no record. DEL then follows the configuration, as libcni does."""
        try:
            result = self._delegate_and_map()
        except BaseException as error:
            _explain(error, take_back(self.wiring, self.delegates, self.started, [], None)[0])
            raise
        return result

    def _delegate_and_map(self) -> Result:
        result = self.prev
        for step in self.steps:
            self.started.append(step)
            if step.maps and self.wanted:
                result = self._map(step, result)
            else:
                result = self.delegates.add(call_conf(step, mappings_of(self.record), result))
        if result is None:
            raise RuntimeError("no step was planned")
        return result

    def _map(self, step: Step, prev: Result | None) -> Result:
        """ADD of the step that maps; it gets other ports when one of them is already mapped."""
        for _ in range(_CONFLICT_ATTEMPTS):
            try:
                return self.delegates.add(call_conf(step, mappings_of(self.record), prev))
            except CniError as error:
                if error.code != HostPortConflict.code or not self._hold_others(step, error):
                    raise
        return self.delegates.add(call_conf(step, mappings_of(self.record), prev))

    def _hold_others(self, step: Step, error: CniError) -> bool:
        """Hold other ports after a conflict; False when none of ours is to blame, so that others would not help."""
        chosen = {port.host_port for port in self.record.ports}
        named = {number for number in _numbers(error.msg) if number in chosen}
        if not named:
            return False
        failed, unmapped = take_back(self.wiring, self.delegates, [step], mappings_of(self.record), None)
        if not unmapped:
            _explain(error, failed)
            return False
        self.avoid |= named
        notes.count("cnimeta_hostport_conflicts_total")
        self.request.log(f"hostport_alloc: {error.msg}; picking other ports")
        self.store.release(self.record.key, token=self.record.token, quarantine_s=0, sticky_s=0)
        self._hold()
        return True

    # --- settle, or take back --------------------------------------------------------------------------

    def _settle(self, annotation: Annotation, undo: JSON, event: str) -> None:
        self.record = self.record._replace(phase="mapped", annotation=annotation, undo=undo)
        self.store.settle(self.record, event)

    def _event(self, result: Result) -> str:
        """What the hook is told, where there is one."""
        if self.settings.notify is None:
            return ""
        from cnimeta_plugins.hostport_alloc.hook.telling import event_of

        return event_of(self.wiring, self.settings, self.record, result, self.publisher.outside)

    def _tell(self, notify: Notify) -> None:
        from cnimeta_plugins.hostport_alloc.hook.telling import tell_now

        tell_now(self.wiring, self.settings.data_dir, notify, self.store, self.record.key, self.request.log)

    def _roll_back(self, error: BaseException) -> None:
        """Undo what was started, in reverse. Ports whose rules could not be removed stay allocated for DEL."""
        mappings = mappings_of(self.record)
        errors, unmapped = take_back(self.wiring, self.delegates, self.started, mappings, None)
        if unmapped:
            mapped = any(step.maps for step in self.started)
            sticky_s = self.settings.sticky_s if self.settings.sticky else 0.0
            try:
                self.store.release(
                    self.record.key,
                    token=self.record.token,
                    quarantine_s=self.settings.quarantine_s if mapped else 0,
                    sticky_s=sticky_s,
                )
            except CniError as failure:
                errors.append(failure)
        _explain(error, errors)


def _explain(error: BaseException, errors: list[CniError]) -> None:
    cleanup = joined(errors)
    if cleanup is not None and isinstance(error, CniError):
        error.details = "; ".join(filter(None, [error.details, f"and undoing it: {cleanup}"]))


def _numbers(text: str) -> set[int]:
    """The whole numbers in a message."""
    digits = "".join(char if char.isascii() and char.isdigit() else " " for char in text)
    return {int(word) for word in digits.split() if len(word) <= 5}
