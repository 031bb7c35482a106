"""Quotas held against what is on record, in the transaction that holds more. Loaded where there are quotas."""

from __future__ import annotations

from cnimeta.store.values import storable
from cnimeta_plugins.hostport_alloc.allocate.quotas import UNLIMITED, whose_namespace, whose_pod
from cnimeta_plugins.hostport_alloc.state.schema import EXPLICIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.store.values import Connection
    from cnimeta_plugins.hostport_alloc.allocate.quotas import Quotas
    from cnimeta_plugins.hostport_alloc.state.record import Record

_COUNT = f"""SELECT count(*) FROM attachments JOIN exposed ON exposed.attachment = attachments.id
    WHERE pod_namespace=? AND pod_name<>'' AND boot_id=? AND exposed.range<>'{EXPLICIT}'
    AND NOT (network=? AND container_id=? AND ifname=?)"""
_OF_POD = " AND pod_name=?"
_OF_UID = " AND pod_uid IN ('', ?)"


def refuse_over_quota(connection: Connection, record: Record, asked: int, quotas: Quotas, boot_id: str) -> None:
    """Raise QuotaExceeded (code 11). What counts is what others of this boot hold of ranges; the attachment's own goes.

    An earlier Pod of the same name, still being removed, is another Pod.
    """
    pod = record.pod
    if pod is None:
        return
    values = storable(pod.namespace, boot_id, *record.key)

    def held(more: str, *names: str) -> int:
        (count,) = connection.execute(_COUNT + more, (*values, *storable(*names))).fetchone()
        return int(count)

    if quotas.pod != UNLIMITED:
        used = held(_OF_POD + _OF_UID, pod.name, pod.uid) if pod.uid else held(_OF_POD, pod.name)
        quotas.of_pod.refuse(whose_pod(pod.namespace, pod.name), used, asked)
    quota = quotas.of_namespace(pod.namespace)
    if quota.limit != UNLIMITED:
        quota.refuse(whose_namespace(pod.namespace), held(""), asked)
