"""The record of one attachment: everything DEL, CHECK, GC and repair need, with no other source of knowledge. Pure.

Its document is versioned and checksummed (`cnimeta.store.document`).
"""

from __future__ import annotations

from cnimeta.namedtuple import NamedTuple
from cnimeta.store import document
from cnimeta.store.document import Damaged, Later
from cnimeta_plugins.hostport_alloc.allocate.expose import PROTOCOLS, Explicit
from cnimeta_plugins.hostport_alloc.allocate.picks import Port
from cnimeta_plugins.hostport_alloc.allocate.ranges import PORT_MAX

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from typing import TypeAlias

    from cnimeta.spec.jsonio import JSON

    Key: TypeAlias = tuple[str, str, str]
    """(network, container ID, ifname), as `Attachment.key`."""

VERSION = 1
PHASES = ("reserved", "mapped")
SALVAGED = "salvaged"
"""The token of a record that was made from port mappings: which reservation they were made for is not known."""
ANNOTATION_STATES = ("none", "pending", "done")


class Pod(NamedTuple):
    """The Pod an attachment belongs to, as CNI_ARGS named it."""

    namespace: str
    name: str
    uid: str = ""


class Annotation(NamedTuple):
    """What is to be written to the Pod, and whether it has been."""

    state: str = "none"
    """none: nothing to write; pending: `patch` must still be delivered; done: it was."""
    patch: JSON = None
    """The body of the PATCH, ready to send."""
    error: str = ""
    """Why the last try failed."""


class Record(NamedTuple):
    """One attachment's ports, and how to undo what ADD did."""

    network: str
    container_id: str
    ifname: str
    netns: str = ""
    netns_id: str = ""
    """The namespace itself, whatever its path: `device:inode`; empty when it is not known."""
    boot_id: str = ""
    """The boot it was made in; after another boot its rules and namespace are gone and its ports are free."""
    token: str = ""
    """Tells this reservation from an earlier or later one with the same key; set by Store.hold."""
    created: float = 0.0
    """Seconds since the epoch."""
    phase: str = "reserved"
    """reserved: ports are held, rules may or may not exist; mapped: ADD is done."""
    pod: Pod | None = None
    ports: tuple[Port, ...] = ()
    explicit: tuple[Explicit, ...] = ()
    annotation: Annotation = Annotation()
    undo: JSON = None
    """What the verbs need on DEL: the delegates' complete configurations as run, in order."""
    salvaged: bool = False
    """Made from what others know after the document was lost: `undo`, `pod` and `netns` are unknown."""

    @property
    def key(self) -> Key:
        """(network, container ID, ifname)"""
        return self.network, self.container_id, self.ifname

    @property
    def held(self) -> frozenset[tuple[str, int]]:
        """Every (protocol, host port) this attachment holds, chosen or explicit."""
        return frozenset(
            [(port.protocol, port.host_port) for port in self.ports]
            + [(port.protocol, port.host_port) for port in self.explicit]
        )


def encode(record: Record) -> str:
    """The document for `record`."""
    return document.encode(
        VERSION,
        {
            "network": record.network,
            "containerID": record.container_id,
            "ifname": record.ifname,
            "netns": record.netns,
            "netnsID": record.netns_id,
            "bootID": record.boot_id,
            "token": record.token,
            "created": record.created,
            "phase": record.phase,
            "pod": None if record.pod is None else {**record.pod._asdict()},
            "ports": [
                {
                    "containerPort": port.container_port,
                    "protocol": port.protocol,
                    "hostPort": port.host_port,
                    "range": port.range,
                    "hostIP": port.host_ip,
                    **({"same": True} if port.same else {}),
                }
                for port in record.ports
            ],
            "explicit": [
                {
                    "containerPort": port.container_port,
                    "protocol": port.protocol,
                    "hostPort": port.host_port,
                    "hostIP": port.host_ip,
                }
                for port in record.explicit
            ],
            "annotation": {**record.annotation._asdict()},
            "undo": record.undo,
            "salvaged": record.salvaged,
        },
    )


def decode(text: str) -> Record:
    """Read a document, a later version's too where it has these keys. Raises Damaged; Later when it has not."""
    try:
        body, later = document.decode(VERSION, text).raw, None
    except Later as error:
        body, later = error.body.raw, error
    try:
        return _read(body)
    except (KeyError, TypeError, ValueError) as error:
        if later is not None:
            raise later from None
        raise Damaged(f"it is no record: {error!r}") from None


# Records are read by the thousand, and what a right checksum covers was written by this module: keys are looked up as
# they are, and the types are checked without the help of `Fields`, which would cost three times as much.


def _read(body: Mapping[str, JSON]) -> Record:
    pod, annotation = body["pod"], _object(body["annotation"])
    return Record(
        _text(body["network"]),
        _text(body["containerID"]),
        _text(body["ifname"]),
        _text(body["netns"]),
        _text(body["netnsID"]),
        _text(body["bootID"]),
        _text(body["token"]),
        _number(body["created"]),
        _choice(body["phase"], PHASES),
        None if pod is None else _pod(_object(pod)),
        tuple([_chosen(_object(entry)) for entry in _array(body["ports"])]),
        tuple([_explicit(_object(entry)) for entry in _array(body["explicit"])]),
        Annotation(_choice(annotation["state"], ANNOTATION_STATES), annotation["patch"], _text(annotation["error"])),
        body["undo"],
        body["salvaged"] is True,
    )


def _pod(entry: Mapping[str, JSON]) -> Pod:
    return Pod(_text(entry["namespace"]), _text(entry["name"]), _text(entry["uid"]))


def _chosen(entry: Mapping[str, JSON]) -> Port:
    return Port(
        _port(entry["containerPort"]),
        _choice(entry["protocol"], PROTOCOLS),
        _port(entry["hostPort"]),
        _text(entry["range"]),
        _text(entry["hostIP"]),
        entry.get("same") is True,
    )


def _explicit(entry: Mapping[str, JSON]) -> Explicit:
    return Explicit(
        _port(entry["hostPort"]),
        _port(entry["containerPort"]),
        _choice(entry["protocol"], PROTOCOLS),
        _text(entry["hostIP"]),
    )


def _text(value: JSON) -> str:
    if not isinstance(value, str):
        raise TypeError(value)
    return value


def _choice(value: JSON, allowed: tuple[str, ...]) -> str:
    if value not in allowed:
        raise ValueError(value)
    return str(value)


def _number(value: JSON) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(value)
    return float(value)


def _port(value: JSON) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value <= PORT_MAX:
        raise ValueError(value)
    return value


def _object(value: JSON) -> Mapping[str, JSON]:
    if not isinstance(value, dict):
        raise TypeError(value)
    return value


def _array(value: JSON) -> Sequence[JSON]:
    if not isinstance(value, list):
        raise TypeError(value)
    return value
