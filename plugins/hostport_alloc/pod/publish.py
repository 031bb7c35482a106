"""ADD's dealings with the Pod API: reading what the Pod asks for, writing what it got."""

from __future__ import annotations

from cnimeta.errors import AnnotationFailed, CniError, InvalidNetworkConfig, PodMismatch, TryAgainLater, shown
from cnimeta.host.values import PodApiError
from cnimeta.observe import notes
from cnimeta.spec.fields import Fields
from cnimeta_plugins.hostport_alloc.allocate.expose import POD_ANNOTATIONS, pod_annotations
from cnimeta_plugins.hostport_alloc.state.record import Annotation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cnimeta.host.protocols import PodApi
    from cnimeta.plugin.request import Request
    from cnimeta.spec.jsonio import JSON
    from cnimeta.spec.result import Result
    from cnimeta_plugins.hostport_alloc.config import Settings
    from cnimeta_plugins.hostport_alloc.pod.annotation import Deadline, Delivery
    from cnimeta_plugins.hostport_alloc.pod.external import External
    from cnimeta_plugins.hostport_alloc.state.record import Pod, Record
    from cnimeta_plugins.hostport_alloc.state.store import Store
    from cnimeta_plugins.hostport_alloc.wiring import Wiring

OTHERS_LIMIT = 8
OTHERS_BUDGET_S = 1.0
"""An ADD delivers at most so many older annotations, in at most so much time."""


class Publisher:
    """The Pod API as one ADD uses it. Without the `kubernetes` key, or outside Kubernetes, it sends nothing."""

    def __init__(self, wiring: Wiring, request: Request, settings: Settings, pod: Pod | None) -> None:
        self.wiring = wiring
        self.request = request
        self.settings = settings
        self.pod = pod if settings.api is not None else None
        self._annotations = pod_annotations(request.conf.runtime_config)
        self.labels: Mapping[str, JSON] = {}
        """The Pod's, after `annotations`, where a rule of the configuration is about them."""
        self.outside: tuple[str, ...] | None = None
        """The node's external addresses, after `publish`, where they are known."""
        self._api: PodApi | None = None
        self._reachable = False

    @property
    def api(self) -> PodApi:
        """The API, with the configured credentials."""
        if self._api is None:
            self._api = self.wiring.pods(self.settings.api.kubeconfig if self.settings.api is not None else "")
        return self._api

    def require_credentials(self) -> None:
        """With policy `required`, raise InvalidNetworkConfig (code 7) where no Pod could ever be annotated.

        For a call without a Pod, which would not tell: it has nothing to write.
        """
        settings = self.settings.api
        if settings is None or not settings.required:
            return
        try:
            self.api.sign_in(settings.timeout_s)
        except PodApiError as error:
            raise InvalidNetworkConfig(f'{error}, and $.kubernetes.policy is "required"') from None

    def annotations(self) -> Fields:
        """The Pod's annotations: the runtime's word, or with `readPod` and none from the runtime, the API server's."""
        settings = self.settings.api
        given = self.request.conf.runtime_config.has(POD_ANNOTATIONS)
        if settings is None or not settings.read_pod or self.pod is None:
            return self._annotations
        if not given or self.settings.needs_labels:
            metadata = self._read(self.pod, settings.timeout_s)
            self.labels = metadata.object("labels").raw
            if not given:
                self._annotations = metadata.object("annotations")
        return self._annotations

    def _read(self, pod: Pod, timeout_s: float) -> Fields:
        """The Pod's metadata."""
        from cnimeta_plugins.hostport_alloc.pod import annotation

        found: dict[str, JSON] = {}

        def request(attempt_s: float) -> None:
            found.update(self.api.read(pod.namespace, pod.name, attempt_s))

        static = annotation.is_static(pod.uid, self._annotations)
        deadline = annotation.Deadline(self.wiring.clock, timeout_s)
        error = annotation.attempt(self.api, pod, deadline, static=static, patient=True, request=request)
        if error:
            raise TryAgainLater(
                f"cannot read Pod {shown(f'{pod.namespace}/{pod.name}')} to see what it exposes: {error}"
            )
        metadata = Fields(found, "Pod").object("metadata")
        uid = metadata.text("uid")
        if pod.uid and uid != pod.uid and not static:
            raise PodMismatch(
                f"Pod {shown(f'{pod.namespace}/{pod.name}')} is not the one of this ADD: its uid is {shown(uid)},"
                f" K8S_POD_UID is {shown(pod.uid)}"
            )
        return metadata

    def publish(self, record: Record, result: Result) -> Annotation:
        """Annotate the Pod. Raises PodMismatch (103), and with policy `required` AnnotationFailed (102)."""
        settings = self.settings.api
        if settings is None or self.pod is None or not record.ports:
            return Annotation()
        from cnimeta.spec.ip import parse_cidr
        from cnimeta_plugins.hostport_alloc.pod import annotation

        families = {parse_cidr(ip.address).address.family for ip in result.ips}
        addresses = self.settings.host_ips or self.wiring.primary_addresses()
        entries = annotation.port_entries(record, addresses, families)
        static = annotation.is_static(self.pod.uid, self._annotations)
        deadline = annotation.Deadline(self.wiring.clock, settings.timeout_s)
        external, unknown = self.settings.external, False
        if external is not None:
            self.outside = self._outside(external, deadline)
            unknown = self.outside is None
            entries = external.added(entries, self.outside or ())
        patch = annotation.patch_for(record, entries, static=static)
        if unknown:
            state = Annotation("pending", patch, "the node's external address is not known")
        else:
            pending = record._replace(annotation=Annotation("pending", patch))
            state = annotation.deliver(self.api, pending, deadline, patient=settings.required)
        notes.count("cnimeta_annotations_total", result="deferred" if state.state == "pending" else "written")
        if state.state == "pending":
            where = shown(f"{self.pod.namespace}/{self.pod.name}")
            if settings.required:
                raise AnnotationFailed(
                    f'Pod {where} could not be annotated and $.kubernetes.policy is "required": {state.error}'
                )
            self.request.log(f"hostport_alloc: annotation of Pod {where} is deferred: {state.error}")
        self._reachable = state.state == "done"
        return state

    def _outside(self, external: External, deadline: Deadline) -> tuple[str, ...] | None:
        """The node's external addresses; None when they are not known. The Pod's own request keeps its time."""
        from cnimeta_plugins.hostport_alloc.pod.outside import Outside

        outside = Outside(self.wiring, self.settings.data_dir, external, self.request.log)
        return outside.addresses(self.api, deadline)

    def deliver_others(self, store: Store) -> None:
        """Deliver a few annotations of earlier ADDs, when the server has just shown that it answers."""
        if not self._reachable:
            return
        from cnimeta_plugins.hostport_alloc.pod import annotation

        deadline = annotation.Deadline(self.wiring.clock, OTHERS_BUDGET_S)
        deliver_amended(self.wiring, self.settings, store, self.api, deadline, OTHERS_LIMIT, self.request.log)


def deliver_amended(
    wiring: Wiring,
    settings: Settings,
    store: Store,
    api: PodApi,
    deadline: Deadline,
    limit: int,
    log: Callable[[str], None],
    *,
    fresh_s: float | None = None,
) -> Delivery:
    """As `deliver_pending`, with the node's external addresses as they are known. `fresh_s`: when not older than that.

    Nothing is sent while they are not known.
    """
    from cnimeta_plugins.hostport_alloc.pod import annotation

    external = settings.external
    if external is None:
        return annotation.deliver_pending(store, api, deadline, limit, log)
    from cnimeta_plugins.hostport_alloc.pod.outside import FRESH_S, Outside

    outside = Outside(wiring, settings.data_dir, external, log)
    found = outside.addresses(api, deadline, fresh_s=FRESH_S if fresh_s is None else fresh_s)
    if found is None:
        return annotation.Delivery(failed=len(store.pending(1)))

    def amended(patch: JSON) -> JSON:
        return external.amended(patch, found) if isinstance(patch, dict) else patch

    return annotation.deliver_pending(store, api, deadline, limit, log, amended)


def deliver_earlier(wiring: Wiring, request: Request) -> None:
    """GC's part: annotations of earlier ADDs, on a node where no further ADD comes to deliver them. Never fails."""
    from cnimeta_plugins.hostport_alloc.config import read_settings
    from cnimeta_plugins.hostport_alloc.pod import annotation

    try:
        settings = read_settings(request.conf)
        store = wiring.store(settings.data_dir, settings.lock_timeout_s, request.log)
        refreshes = settings.external is not None and settings.external.needs_node
        if settings.api is None or not (refreshes or store.pending(1)):
            return
        deadline = annotation.Deadline(wiring.clock, settings.api.timeout_s)
        api = wiring.pods(settings.api.kubeconfig)
        deliver_amended(wiring, settings, store, api, deadline, OTHERS_LIMIT, request.log, fresh_s=0)
    except CniError as error:
        request.log(f"hostport_alloc: annotations of earlier containers stay pending: {error}")
