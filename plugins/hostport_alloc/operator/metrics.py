"""What `cnimeta metrics` tells of host ports: read from the state each time, so right from the first moment on."""

from __future__ import annotations

import os
import re

from cnimeta.errors import DecodingFailure
from cnimeta.observe.metrics import Metric, Sample, counter, gauge
from cnimeta_plugins.hostport_alloc.config import LOCK_TIMEOUT_S, read_settings
from cnimeta_plugins.hostport_alloc.operator.conf import entry_of
from cnimeta_plugins.hostport_alloc.operator.listing import RangeView, entries_of
from cnimeta_plugins.hostport_alloc.operator.overview import counted_by_quota
from cnimeta_plugins.hostport_alloc.operator.own import configurations, in_step, is_kept, ownership
from cnimeta_plugins.hostport_alloc.operator.unserved import made_without
from cnimeta_plugins.hostport_alloc.operator.wrap import is_wrapped
from cnimeta_plugins.hostport_alloc.operator.wrapfile import read_document
from cnimeta_plugins.hostport_alloc.state.store import Occupancy

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cnimeta.spec.jsonio import JSON
    from cnimeta_plugins.hostport_alloc.config import Settings
    from cnimeta_plugins.hostport_alloc.operator.listing import Entry
    from cnimeta_plugins.hostport_alloc.wiring import Wiring

_STATES = ("used", "free", "quarantined", "blocked")
_EXPLICIT = "explicit"


def metrics(wiring: Wiring, net_dir: str) -> Iterator[Metric]:
    """Every metric. Raises CniError when the state or the node cannot be read: unknown is not zero."""
    names = configurations(net_dir) if os.path.isdir(net_dir) else []
    documents = [_document(os.path.join(net_dir, name)) for name in names]
    yield from _configuration(net_dir, [is_wrapped(document) for document in documents])
    confs = [conf for document in documents if (conf := entry_of(document)) is not None]
    if confs:
        yield gauge(
            "cnimeta_containers_unserved",
            "Containers that run and were made by a configuration without hostport_alloc",
            len(made_without(wiring)),
        )
        yield from _ports(wiring, [wiring.on_node(read_settings(conf)) for conf in confs])


def _document(path: str) -> dict[str, JSON]:
    """A file that is no JSON is nobody's network; one that cannot be read may be ours."""
    try:
        return read_document(path)
    except DecodingFailure:
        return {}


def _configuration(net_dir: str, ours: Sequence[bool]) -> Iterator[Metric]:
    first = bool(ours) and ours[0]
    yield gauge(
        "cnimeta_configuration_first", "1 when the first network configuration of the node has hostport_alloc", first
    )
    own = ownership(net_dir)
    if own is not None:
        state, _ = in_step(own)
        yield gauge(
            "cnimeta_configuration_in_step",
            "1 when ours is what the primary's file makes it",
            state == "ok",
        )
        yield gauge("cnimeta_configuration_kept", "1 when a process keeps ours in step", is_kept(own))
        yield counter(
            "cnimeta_configuration_derived_total",
            "How often ours was derived anew: the primary's had changed (stale), or others had removed it (missing)",
            *((("reason", reason),) for reason in ("stale", "missing")),
        )


def _ports(wiring: Wiring, settings: Sequence[Settings]) -> Iterator[Metric]:
    """Of the first configuration's state; the ranges of all."""
    store = wiring.store(settings[0].data_dir, LOCK_TIMEOUT_S, lambda _: None)
    there = store.exists()  # looking makes none
    entries = entries_of(store) if there else []
    occupancy = store.occupancy() if there else Occupancy({}, ())
    blocked = wiring.blocked(lambda _: None, settings[0])
    views = {found.name: RangeView.of(found, occupancy, blocked) for one in settings for found in one.ranges}
    yield Metric(
        "cnimeta_hostports",
        "Host ports of a range by state: used, free, quarantined, blocked by the node itself",
        [
            Sample(view.counts[state], (("range", name), ("state", state)))
            for name, view in views.items()
            for state in _STATES
        ],
    )
    yield Metric(
        "cnimeta_hostport_range_size",
        "Host ports that a range has",
        [Sample(view.counts["size"], (("range", name),)) for name, view in views.items()],
    )
    yield from _counters(tuple(views))
    explicit = sum(entry["range"] == _EXPLICIT for entry in entries)
    yield gauge("cnimeta_hostports_explicit", "Host ports that were asked for by number", explicit)
    yield gauge(
        "cnimeta_hostport_containers", "Containers that have host ports", len({one["containerID"] for one in entries})
    )
    yield from _quotas(settings, entries)
    if any(one.notify is not None for one in settings):
        yield gauge("cnimeta_hook_events_waiting", "Events that the hook has not taken yet", store.outbox.count())
    yield from _pending([entry for entry in entries if entry["annotation"] == "pending"])


def _quotas(settings: Sequence[Settings], entries: Sequence[Entry]) -> Iterator[Metric]:
    """Of the first configuration that has quotas; of each namespace that has Pods with ports, or is named."""
    quotas = next((one.quotas for one in settings if one.quotas is not None), None)
    if quotas is None:
        return
    names = {str(entry["pod"]).partition("/")[0] for entry in entries} - {""}
    names |= {name for name, _ in quotas.namespaces if not name.endswith("*")}
    limits = {name: quotas.of_namespace(name).limit for name in sorted(names)}
    limited = {name: limit for name, limit in limits.items() if limit >= 0}
    yield Metric(
        "cnimeta_hostport_quota_limit",
        "Host ports that the Pods of a namespace may hold at once on this node",
        [Sample(limit, (("namespace", name),)) for name, limit in limited.items()],
    )
    yield Metric(
        "cnimeta_hostport_quota_used",
        "Host ports that they hold",
        [Sample(counted_by_quota(entries, name), (("namespace", name),)) for name in limited],
    )


def _counters(ranges: Sequence[str]) -> Iterator[Metric]:
    """What its verbs count; the values are added from what they report."""
    yield counter(
        "cnimeta_hostport_exhausted_total",
        "ADDs that failed since a range had no port for them",
        *((("range", name),) for name in ranges),
    )
    yield counter(
        "cnimeta_hostport_conflicts_total",
        "Ports that were picked and then found to be mapped by somebody else; others were picked",
        (),
    )
    yield counter(
        "cnimeta_annotations_total",
        "What became of attempts to annotate a Pod: written, deferred, or dropped since the Pod is gone",
        *((("result", result),) for result in ("written", "deferred", "dropped")),
    )
    yield counter(
        "cnimeta_repairs_total",
        "What was made anew: the rules of a container, or the damaged database",
        *((("what", what),) for what in ("rules", "database")),
    )


def _pending(entries: Sequence[Entry]) -> Iterator[Metric]:
    waiting = {(entry["network"], entry["containerID"], entry["ifname"]): entry for entry in entries}
    reasons: dict[str, int] = {}
    for entry in waiting.values():
        reason = _reason(str(entry["annotationError"]))
        reasons[reason] = reasons.get(reason, 0) + 1
    yield gauge("cnimeta_annotations_pending", "Pods whose annotation is still to be written", len(waiting))
    yield Metric(
        "cnimeta_annotations_pending_by_reason",
        "The same by what the last try got: an HTTP status, no_answer, other, or none before the first try",
        [Sample(count, (("reason", reason),)) for reason, count in sorted(reasons.items())],
    )
    oldest = max((int(entry["ageSeconds"]) for entry in waiting.values()), default=0)
    yield gauge("cnimeta_annotations_pending_oldest_seconds", "Age of the oldest attachment among them", oldest)


def _reason(error: str) -> str:
    """One of a few words, so that no error text makes a series of its own."""
    if not error:
        return "none"
    if "no answer" in error:
        return "no_answer"
    status = re.search(r"(?<![:.\d])[45]\d\d(?![\d.])", error)  # no port, and no part of an address
    return status.group() if status else "other"
