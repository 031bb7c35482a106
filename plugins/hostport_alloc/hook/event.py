"""What a hook is told: one JSON object per event, of version 1. Keys are only added to a version. Pure."""

from __future__ import annotations

from cnimeta.namedtuple import NamedTuple
from cnimeta.spec.jsonio import dumps, loads_object
from cnimeta_plugins.hostport_alloc.allocate.picks import Port
from cnimeta_plugins.hostport_alloc.pod.annotation import port_entries
from cnimeta_plugins.hostport_alloc.state.schema import EXPLICIT

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cnimeta.spec.fields import Fields
    from cnimeta.spec.jsonio import JSON
    from cnimeta_plugins.hostport_alloc.state.record import Record

VERSION = 1


class Notify(NamedTuple):
    """`notify`: who is told, by which of the two ways, and whether ADD waits for it."""

    program: str = ""
    socket: str = ""
    required: bool = False
    timeout_s: float = 5.0


def read_notify(fields: Fields, timeout_s: float) -> Notify:
    """`notify`. Raises InvalidNetworkConfig (code 7)."""
    paths = {key: fields.text(key) for key in ("program", "socket")}
    given = [key for key, path in paths.items() if path]
    for key in given:
        if not paths[key].startswith("/") or "\0" in paths[key]:
            raise fields.wrong(key, "an absolute path")
    if len(given) != 1:
        key = "socket" if given else "program"
        raise fields.wrong(key, "set, or $.notify.socket: one of the two" if not given else "absent beside program")
    required = fields.choice("policy", ("deferred", "required"), "deferred") == "required"
    return Notify(paths["program"], paths["socket"], required, timeout_s)


def with_explicit(record: Record) -> Record:
    """The record with what was asked for by number among its ports."""
    asked = tuple(
        Port(one.container_port, one.protocol, one.host_port, EXPLICIT, one.host_ip) for one in record.explicit
    )
    return record._replace(ports=(*record.ports, *asked))


def mappings(record: Record, addresses: Sequence[str], families: Iterable[int]) -> list[dict[str, JSON]]:
    """Every mapping of an attachment, as the annotation has them."""
    return port_entries(with_explicit(record), addresses, families)


def body_of(record: Record, entries: Sequence[Mapping[str, JSON]]) -> str:
    """What is kept in the outbox of an attachment: what an event has, less what the outbox itself knows."""
    pod: JSON = None
    if record.pod is not None:
        pod = {"namespace": record.pod.namespace, "name": record.pod.name, "uid": record.pod.uid}
    attachment: JSON = {"network": record.network, "containerID": record.container_id, "ifname": record.ifname}
    mapped: list[JSON] = [{**entry} for entry in entries]
    return dumps({"attachment": attachment, "reservation": record.token, "pod": pod, "mappings": mapped})


def rendered(number: int, kind: str, created: float, body: str) -> bytes:
    """One line: the event as it is told."""
    head: dict[str, JSON] = {"version": VERSION, "id": number, "event": kind, "time": round(created, 3)}
    return dumps({**head, **loads_object(body)}).encode() + b"\n"
