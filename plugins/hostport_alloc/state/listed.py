"""What lists show of attachments, in columns of its own beside the documents: written with them, read without them."""

from __future__ import annotations

from cnimeta.store.values import storable
from cnimeta_plugins.hostport_alloc.state.schema import EXPLICIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator
    from typing import TypeAlias

    from cnimeta.store.values import Connection
    from cnimeta_plugins.hostport_alloc.state.record import Record

    Facts: TypeAlias = tuple[object, ...]
    Exposed: TypeAlias = tuple[int, str, str, int, str]
    """Host port, protocol, range (EXPLICIT for a port that was asked for), container port, host address."""
    Listed: TypeAlias = tuple[int, str, str, int, str, str, str, str, str, str, int, str, str, str]
    """One host port of one attachment: what Exposed has, then Pod (`namespace/name`, or empty), its UID, container ID,
    ifname, network, age in seconds (0 when not known), phase or EARLIER_BOOT, the annotation's state, why it failed.
    """

EARLIER_BOOT = "earlier boot"
"""What stands for the phase of a record whose boot is over."""
COLUMNS = ("pod_namespace", "pod_name", "pod_uid", "phase", "created", "annotation", "annotation_error")
"""What `attachments` has of a record for lists."""

KEYS = (
    *("hostPort", "protocol", "range", "containerPort", "hostIP", "pod", "podUID", "containerID", "ifname", "network"),
    *("ageSeconds", "state", "annotation", "annotationError"),
)
"""The names of what Listed has, as `--json` prints them."""
_FIELDS = (
    *("host_port", "protocol", "range", "container_port", "host_ip"),
    *("CASE pod_name WHEN '' THEN '' ELSE pod_namespace || '/' || pod_name END", "pod_uid"),
    *("container_id", "ifname", "network"),
    "CASE created WHEN 0 THEN 0 ELSE CAST(round(?3 - created) AS INTEGER) END",
    *("CASE boot_id WHEN ?1 THEN phase ELSE ?2 END", "annotation", "annotation_error"),
)
# The index has every column, and the rows of `exposed` come in its order; left alone, SQLite would read documents.
RELATION = f"""SELECT {", ".join(f"{field} AS {key}" for field, key in zip(_FIELDS, KEYS, strict=True))}
    FROM exposed CROSS JOIN attachments INDEXED BY attachments_listed ON attachments.id = exposed.attachment"""
"""Every port, its columns named by KEYS. Values: what `values` makes."""
ORDER = "ORDER BY hostPort, protocol"


def facts(record: Record) -> Facts:
    """The values of COLUMNS."""
    pod, annotation = record.pod, record.annotation
    names = (pod.namespace, pod.name, pod.uid) if pod is not None else ("", "", "")
    return *storable(*names, record.phase), record.created, *storable(annotation.state, annotation.error)


def exposed(record: Record) -> list[Exposed]:
    """What `exposed` has of a record, in order."""
    chosen = [(one.host_port, one.protocol, one.range, one.container_port, one.host_ip) for one in record.ports]
    asked = [(one.host_port, one.protocol, EXPLICIT, one.container_port, one.host_ip) for one in record.explicit]
    return chosen + asked


def insert(connection: Connection, number: int, record: Record) -> None:
    """Add the ports of the attachment with this number."""
    found = [(number, place, *port) for place, port in enumerate(exposed(record))]
    connection.executemany("INSERT INTO exposed VALUES (?, ?, ?, ?, ?, ?, ?)", found)


def values(boot_id: str, now: float) -> tuple[str, str, float]:
    """What RELATION is to be executed with."""
    return boot_id, EARLIER_BOOT, now


def every(connection: Connection, boot_id: str, now: float) -> list[Listed]:
    """Every port, by number."""
    return connection.execute(f"{RELATION} {ORDER}", values(boot_id, now)).fetchall()


def of(record: Record, boot_id: str, now: float) -> Iterator[Listed]:
    """The same from a record, for a database whose columns are not known."""
    pod, annotation = record.pod, record.annotation
    name, uid = (f"{pod.namespace}/{pod.name}", pod.uid) if pod is not None else ("", "")
    age_s = round(now - record.created) if record.created else 0
    state = record.phase if record.boot_id == boot_id else EARLIER_BOOT
    names = record.container_id, record.ifname, record.network
    for port in exposed(record):
        yield (*port, name, uid, *names, age_s, state, annotation.state, annotation.error)
