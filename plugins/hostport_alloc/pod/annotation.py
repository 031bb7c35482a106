"""The Pod's annotations: what is written, and how it gets there.

One PATCH on `pods/status`, a merge patch with the Pod's uid and no read before it: no resourceVersion, so nobody else's
write can make it fail; the uid makes it fail when the Pod was replaced by another of the same name; merge-patch creates
the annotations' map when there is none; and the sub-resource is what a node's own credentials may patch.
"""

from __future__ import annotations

from cnimeta.errors import CniError, PodMismatch, legible, shown
from cnimeta.host.values import PodApiError
from cnimeta.namedtuple import NamedTuple
from cnimeta.observe import notes
from cnimeta.spec.fields import Fields
from cnimeta.spec.ip import parse_ip
from cnimeta.spec.jsonio import dumps
from cnimeta_plugins.hostport_alloc.state.record import Annotation

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from cnimeta.host.protocols import Clock, PodApi
    from cnimeta.spec.jsonio import JSON
    from cnimeta_plugins.hostport_alloc.state.record import Pod, Record
    from cnimeta_plugins.hostport_alloc.state.store import Store

PORTS_ANNOTATION = "cnimeta.io/hostports"
CONTAINER_ANNOTATION = "cnimeta.io/hostports-container"

_CONFIG_SOURCE = "kubernetes.io/config.source"
_CONFIG_MIRROR = "kubernetes.io/config.mirror"
_STATIC_UID_LENGTH = 32  # kubelet makes a static Pod's UID from an MD5 sum; the API server's UIDs have dashes

_FIRST_WAIT_S = 0.1
_LONGEST_WAIT_S = 1.0
_UNANSWERED_ATTEMPTS = 2
"""With policy `deferred`, a server that does not answer, or refuses the credentials, is left alone after so many."""


def is_static(uid: str, annotations: Fields) -> bool:
    """Whether the Pod comes from the kubelet's own files: its mirror in the API has another UID, if it is there."""
    source = annotations.get(_CONFIG_SOURCE)
    if source is not None:
        return source != "api" or annotations.has(_CONFIG_MIRROR)
    return len(uid) == _STATIC_UID_LENGTH and "-" not in uid


def port_entries(record: Record, addresses: Sequence[str], families: Iterable[int]) -> list[dict[str, JSON]]:
    """What the annotation says: one object per exposed port and host address of a family the container has."""
    usable = [address for address in addresses if parse_ip(address).family in set(families)]
    entries: list[dict[str, JSON]] = []
    for port in record.ports:
        for address in _advertised(port.host_ip, usable):
            entries.append(
                {
                    "containerPort": port.container_port,
                    "protocol": port.protocol.upper(),
                    "hostIP": address,
                    "hostPort": port.host_port,
                    "range": port.range,
                }
            )
    return entries


def _advertised(host_ip: str, usable: Sequence[str]) -> Sequence[str]:
    if not host_ip:
        return usable or ("",)
    wanted = parse_ip(host_ip)
    if not wanted.is_unspecified:
        return (host_ip,)
    return [address for address in usable if parse_ip(address).family == wanted.family] or ("",)


def patch_for(record: Record, entries: Sequence[Mapping[str, JSON]], *, static: bool) -> dict[str, JSON]:
    """The merge patch. A static Pod's UID is not its mirror's, so its patch carries none."""
    annotations: JSON = {
        PORTS_ANNOTATION: dumps([{**entry} for entry in entries]),
        CONTAINER_ANNOTATION: record.container_id,
    }
    uid = record.pod.uid if record.pod is not None and not static else ""
    return {"metadata": {**({"uid": uid} if uid else {}), "annotations": annotations}}


class Deadline:
    """Seconds left of a total, by a clock that never steps."""

    def __init__(self, clock: Clock, total_s: float) -> None:
        self.clock = clock
        self.total_s = total_s
        self._end = clock.boottime() + total_s

    def left(self) -> float:
        """Seconds left; not above zero when it has passed."""
        return self._end - self.clock.boottime()

    def attempt_s(self) -> float:
        """How long one request may take: a third of the whole, so that one lost packet leaves time for a retry."""
        return min(self.left(), max(1.0, self.total_s / 3))


def attempt(
    api: PodApi, pod: Pod, deadline: Deadline, *, static: bool, patient: bool, request: Callable[[float], None]
) -> str:
    """Make `request(timeout_s)` of `api` until it succeeds, within the deadline.

    Returns "" or why it was not made. Raises PodMismatch (103) when the Pod is gone or was replaced.
    """
    wait_s, unanswered = _FIRST_WAIT_S, 0
    while True:
        try:
            api.sign_in(deadline.left())  # the share of one attempt is for the network: credentials are loaded once
            request(deadline.attempt_s())
            return ""
        except PodApiError as error:
            if _is_mismatch(error, static):
                raise PodMismatch(
                    f"Pod {shown(f'{pod.namespace}/{pod.name}')} is not the one of this ADD: {error}"
                ) from error
            unanswered += error.status in (0, 401)
            if not _may_pass(error) or (unanswered >= _UNANSWERED_ATTEMPTS and not patient):
                return _explained(error)
            wait_s = max(wait_s, error.retry_after_s)
            if deadline.left() <= wait_s:
                return f"{_explained(error)} (gave up after {deadline.total_s:g} s)"
            deadline.clock.sleep(wait_s)
            wait_s = min(2 * wait_s, _LONGEST_WAIT_S)


def _is_mismatch(error: PodApiError, static: bool) -> bool:
    """404, or the API server's two ways to refuse a foreign uid: Conflict (a precondition) and Invalid (immutable).

    An ordinary conflict does not name the UID; names of Pods are lower case, so they cannot.
    """
    if error.status == 404:
        return not static
    return error.status in (409, 422) and ("UID" in error.message or "metadata.uid" in error.message)


def _may_pass(error: PodApiError) -> bool:
    if error.status == 0:
        return error.reason != "NoCredentials"
    return error.status in (401, 404, 408, 409, 429) or error.status >= 500


def _explained(error: PodApiError) -> str:
    if error.status == 403:
        return (
            f"{error}; the credentials need the role in deploy/base/rbac.yaml, patch on pods/status, or the node's own"
        )
    return str(error)


def deliver(api: PodApi, record: Record, deadline: Deadline, *, patient: bool) -> Annotation:
    """Send the record's patch. Returns the annotation's new state; raises PodMismatch (103)."""
    pod, patch = record.pod, record.annotation.patch
    if pod is None or not isinstance(patch, dict):
        return Annotation()
    static = not Fields(patch).object("metadata").has("uid")

    def request(timeout_s: float) -> None:
        _require_written(patch, api.patch_status(pod.namespace, pod.name, patch, timeout_s))

    error = attempt(api, pod, deadline, static=static, patient=patient, request=request)
    return Annotation("pending", patch, legible(error)) if error else Annotation("done", patch)


def _require_written(patch: Mapping[str, JSON], answer: Mapping[str, JSON]) -> None:
    """Raise PodApiError unless the Pod of the answer has what was sent: who says 200 has not written by that."""
    sent, found = (Fields(document).object("metadata") for document in (patch, answer))
    try:
        there = found.object("annotations").raw
    except CniError:  # unknown: not written
        there = {}
    if any(there.get(key) != value for key, value in sent.object("annotations").raw.items()):
        raise PodApiError(0, "NotWritten", "the API server answered without the annotations that were sent")
    if sent.has("uid") and found.get("uid") != sent.get("uid"):
        raise PodApiError(0, "NotWritten", "the API server answered with another Pod")


class Delivery(NamedTuple):
    """What became of the pending annotations that were tried."""

    written: int = 0
    dropped: int = 0
    """Of Pods that are gone."""
    failed: int = 0


def deliver_pending(
    store: Store,
    api: PodApi,
    deadline: Deadline,
    limit: int,
    log: Callable[[str], None],
    amended: Callable[[JSON], JSON] = lambda patch: patch,
) -> Delivery:
    """Deliver what earlier commands could not, oldest first; ends at the deadline or when the server fails again.

    `amended`: a patch with what is known by now.
    """
    written = dropped = 0
    for record in store.pending(limit):
        if deadline.left() <= 0:
            break
        record = record._replace(annotation=record.annotation._replace(patch=amended(record.annotation.patch)))
        try:
            state = deliver(api, record, deadline, patient=False)
        except PodMismatch as error:
            state = Annotation("none", None, error.msg)
        try:
            store.settle(record._replace(annotation=state))
        except CniError as error:  # released meanwhile, or the state is unusable: the next command will tell
            log(f"hostport_alloc: annotation of {record.container_id}: {error}")
            continue
        result = {"pending": "deferred", "done": "written"}.get(state.state, "dropped")
        notes.count("cnimeta_annotations_total", result=result)
        if state.state == "pending":
            return Delivery(written, dropped, 1)
        written += state.state == "done"
        dropped += state.state == "none"
    return Delivery(written, dropped)
