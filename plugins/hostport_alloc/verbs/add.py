"""ADD: reserve, run the delegates, map, annotate, and take it all back when any of it fails.

The order keeps *rule => record => bit* true at every instruction: ports are held and the record (with everything needed
to undo) is durable before the first delegate runs; the record goes only after the rules have.
"""

from __future__ import annotations

from cnimeta.errors import CniError, HostPortConflict, InvalidNetworkConfig, joined
from cnimeta.spec.version import at_least
from cnimeta_plugins.hostport_alloc.allocate.allocator import refuse_overlap
from cnimeta_plugins.hostport_alloc.allocate.expose import (
    EXPOSE_ANNOTATION,
    Wanted,
    parse_annotation,
    read_mappings,
    union,
)
from cnimeta_plugins.hostport_alloc.pod import publish
from cnimeta_plugins.hostport_alloc.state.record import Pod, Record
from cnimeta_plugins.hostport_alloc.state.store import Demand
from cnimeta_plugins.hostport_alloc.verbs import steps as chain
from cnimeta_plugins.hostport_alloc.verbs.steps import Undo

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cnimeta.delegate.call import Delegates
    from cnimeta.plugin.request import Request
    from cnimeta.spec.fields import Fields
    from cnimeta.spec.jsonio import JSON
    from cnimeta.spec.result import Result
    from cnimeta_plugins.hostport_alloc.config import Settings
    from cnimeta_plugins.hostport_alloc.state.store import Store
    from cnimeta_plugins.hostport_alloc.verbs.steps import Step
    from cnimeta_plugins.hostport_alloc.wiring import Host

_CONFLICT_ATTEMPTS = 4
"""How often ports are picked anew because one turned out to be mapped already."""


def pod_of(request: Request) -> Pod | None:
    """The Pod as CNI_ARGS name it; None outside Kubernetes."""
    args = request.attachment.args
    namespace, name = args.get("K8S_POD_NAMESPACE", ""), args.get("K8S_POD_NAME", "")
    return Pod(namespace, name, args.get("K8S_POD_UID", "")) if namespace and name else None


def wanted_by(request: Request, settings: Settings, annotations: Fields) -> Wanted:
    """The union of what the Pod, the runtime and the configuration ask for. Raises InvalidNetworkConfig (code 7)."""
    names = tuple(found.name for found in settings.ranges)
    given = read_mappings(request.conf.runtime_config, names)
    asked = annotations.text(EXPOSE_ANNOTATION)
    path = f'the Pod\'s annotation "{EXPOSE_ANNOTATION}"'
    exposures = union(parse_annotation(asked, path, names), given.exposures, settings.expose)
    count = sum(exposure.length * len(exposure.protocols) for exposure in exposures)
    if count > settings.max_ports:
        raise InvalidNetworkConfig(
            f"{count} host ports are asked for, $.maxPortsPerPod allows {settings.max_ports}: expose fewer or raise it"
        )
    return given._replace(exposures=exposures)


class Add:
    """One ADD."""

    def __init__(self, host: Host, request: Request, settings: Settings) -> None:
        self.host = host
        self.request = request
        self.settings = settings
        self.store: Store = host.store(settings.data_dir, settings.lock_timeout_s, request.log)
        self.delegates: Delegates = host.delegates(request)
        self.pod = pod_of(request)
        self.record = Record(*request.attachment.key)
        self.started: list[Step] = []
        self.avoid: set[int] = set()

    def run(self) -> Result:
        """Serve it."""
        conf = self.request.conf
        prev = conf.prev_result if self.settings.chain.wrapper else conf.require_prev_result()
        publisher = publish.Publisher(self.host, self.request, self.settings, self.pod)
        wanted = wanted_by(self.request, self.settings, publisher.annotations())
        steps = chain.plan(self.request.conf, self.settings.chain, self.settings.portmap, self.settings.data_dir)
        if not wanted:
            steps = tuple(step for step in steps if not step.own)
        self._refuse_missing(steps)
        existing = self.store.load(self.request.attachment.key)
        if existing is not None:
            served = self._repeated(existing, wanted, steps)
            if served is not None:
                return served
        if not wanted:
            return self._without_ports(steps, prev)
        self._reserve(wanted, steps)
        try:
            result = self._call_all(steps, prev)
            annotation = publisher.publish(self.record, result)
            self.record = self.record._replace(phase="mapped", annotation=annotation, undo=self._undo(steps, result))
            self.store.update(self.record)
        except BaseException as error:
            self._roll_back(error)
            raise
        publisher.deliver_others(self.store)
        return result

    def _refuse_missing(self, steps: tuple[Step, ...]) -> None:
        """A plugin that is not installed fails ADD before anything is done, so there is nothing to undo."""
        for step in steps:
            self.delegates.locate(step.type, self.delegates.folders)

    def _without_ports(self, steps: tuple[Step, ...], prev: Result | None) -> Result:
        """Nothing to map: the delegates alone, and no record. DEL then follows the configuration, as libcni does."""
        try:
            result = self._call_all(steps, prev)
        except BaseException as error:
            self._explain(error, chain.undo(self.delegates, self.started, [], None)[0])
            raise
        return result

    def _undo(self, steps: tuple[Step, ...], result: Result | None) -> JSON:
        called_with = self.request.environ.get("CNI_ARGS", ""), self.request.environ.get("CNI_PATH", "")
        times = self.settings.quarantine_s, self.settings.sticky_s if self.settings.sticky else 0.0
        return chain.encode_undo(Undo(steps, result, self.request.conf.cni_version, *called_with, *times))

    def _reserve(self, wanted: Wanted, steps: tuple[Step, ...]) -> None:
        settings = self.settings
        ranges = {exposure.range: settings.range(exposure.range) for exposure in wanted.exposures}
        if not settings.force_overlap:
            first, last = self.host.sockets.ephemeral()
            reserved = [
                *(("the NodePort range", *span) for span in settings.node_ports.spans),
                ("the ephemeral range net.ipv4.ip_local_port_range", first, last),
            ]
            for name, found in ranges.items():
                refuse_overlap(found, f"$.ranges.{name}", reserved)
        blocked = self.host.blocked(self.request.log) if wanted.exposures else {}
        for port in self.avoid:
            blocked = {protocol: ports | 1 << port for protocol, ports in blocked.items()}
        draft = Record(
            *self.request.attachment.key,
            netns=self.request.attachment.netns,
            pod=self.pod,
            explicit=wanted.explicit,
            undo=self._undo(steps, None),
        )
        demand = Demand(wanted.exposures, ranges, blocked, self.host.sockets.can_listen, settings.sticky)
        self.wanted, self.steps = wanted, steps
        self.record = self.store.reserve(draft, demand).record

    def _call_all(self, steps: tuple[Step, ...], prev: Result | None) -> Result:
        result = prev
        for step in steps:
            self.started.append(step)
            result = self._call(step, result)
        if result is None:
            raise RuntimeError("no step was planned")
        return result

    def _call(self, step: Step, prev: Result | None) -> Result:
        """ADD of one step; the one that maps ports gets other ports when one of them is already mapped."""
        for _ in range(_CONFLICT_ATTEMPTS if step.maps else 0):
            try:
                return self.delegates.add(chain.call_conf(step, chain.mappings_of(self.record), prev))
            except CniError as error:
                if error.code != HostPortConflict.code or not self._pick_others(step, error):
                    raise
        return self.delegates.add(chain.call_conf(step, chain.mappings_of(self.record), prev))

    def _pick_others(self, step: Step, error: CniError) -> bool:
        """Reserve other ports after a conflict; False when none of ours is to blame, so that others would not help."""
        chosen = {port.host_port for port in self.record.ports}
        named = {number for number in _numbers(error.msg) if number in chosen}
        if not named:
            return False
        mappings = chain.mappings_of(self.record)
        failed, unmapped = chain.undo(self.delegates, [step], mappings, None)
        if not unmapped:
            self._explain(error, failed)
            return False
        self.avoid |= named
        self.request.log(f"hostport_alloc: {error.msg}; picking other ports")
        self.store.release(self.record.key, token=self.record.token, quarantine_s=0, sticky_s=0)
        self._reserve(self.wanted, self.steps)
        return True

    def _repeated(self, existing: Record, wanted: Wanted, steps: tuple[Step, ...]) -> Result | None:
        """ADD of an attachment that has a record: answer as before if all is in place, else undo it and go on.

        The ports stay reserved when the same ones are wanted, so ADD gives them again.
        """
        before = chain.decode_undo(existing.undo)
        alive = self.store.is_alive(existing)
        same = alive and _asks_for(existing) == _asks_for_wanted(wanted)
        if same and before is not None and existing.phase == "mapped" and self._in_place(existing, before, steps):
            return before.result
        run = before.steps if before is not None else steps
        errors, unmapped = chain.undo(self.delegates, run, chain.mappings_of(existing), before and before.result)
        failure = joined(errors)
        if failure is not None and alive and not unmapped:
            raise failure
        if not same:
            self.store.release(existing.key, token=existing.token)
        return None

    def _in_place(self, existing: Record, before: Undo, steps: tuple[Step, ...]) -> bool:
        """Whether the attachment is as the first ADD left it: same plan, same namespace, and every CHECK passes.

        Mappings of our own portmap that do not pass are made again, so that the container keeps its address.
        """
        result = before.result
        if (
            not self.settings.chain.wrapper
            or existing.netns != self.request.attachment.netns
            or result is None
            or before.steps != steps
            or not all(at_least(step.version, "0.4.0") for step in steps)
        ):
            return False
        mappings = chain.mappings_of(existing)
        try:
            chain.check(self.delegates, [step for step in steps if not step.own], mappings, result)
            for step in steps:
                if step.own:
                    self._ensure_mapped(step, mappings, result)
        except CniError as error:
            self.request.log(f"hostport_alloc: repeated ADD starts afresh: {error}")
            return False
        return True

    def _ensure_mapped(self, step: Step, mappings: Sequence[JSON], result: Result) -> None:
        try:
            chain.check(self.delegates, [step], mappings, result)
        except CniError:
            errors, _ = chain.undo(self.delegates, [step], mappings, result)
            failure = joined(errors)
            if failure is not None:
                raise failure from None
            self.delegates.add(chain.call_conf(step, mappings, result))

    def _roll_back(self, error: BaseException) -> None:
        """Undo what was started, in reverse. Ports whose rules could not be removed stay allocated for DEL."""
        errors, unmapped = chain.undo(self.delegates, self.started, chain.mappings_of(self.record), None)
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
        self._explain(error, errors)

    @staticmethod
    def _explain(error: BaseException, errors: list[CniError]) -> None:
        cleanup = joined(errors)
        if cleanup is not None and isinstance(error, CniError):
            error.details = "; ".join(filter(None, [error.details, f"and undoing it: {cleanup}"]))


def _numbers(text: str) -> set[int]:
    """The whole numbers in a message."""
    digits = "".join(char if char.isascii() and char.isdigit() else " " for char in text)
    return {int(word) for word in digits.split() if len(word) <= 5}


def _asks_for(record: Record) -> tuple[frozenset[object], frozenset[object]]:
    ports = frozenset((port.container_port, port.protocol, port.range, port.host_ip) for port in record.ports)
    return ports, frozenset(record.explicit)


def _asks_for_wanted(wanted: Wanted) -> tuple[frozenset[object], frozenset[object]]:
    ports = frozenset(
        (exposure.port + offset, protocol, exposure.range, exposure.host_ip)
        for exposure in wanted.exposures
        for offset in range(exposure.length)
        for protocol in exposure.protocols
    )
    return ports, frozenset(wanted.explicit)
