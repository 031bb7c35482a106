"""The record of one attachment: everything DEL, CHECK, GC and repair need, with no other source of knowledge. Pure.

Its document is versioned and checksummed (`cnimeta.store.document`).
"""

from __future__ import annotations

from cnimeta.errors import CniError
from cnimeta.namedtuple import NamedTuple
from cnimeta.store import document
from cnimeta.store.document import Damaged, Later
from cnimeta_plugins.hostport_alloc.allocate.expose import PROTOCOLS, Explicit
from cnimeta_plugins.hostport_alloc.allocate.picks import Port

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal, TypeAlias

    from cnimeta.spec.fields import Fields
    from cnimeta.spec.jsonio import JSON

    Phase: TypeAlias = Literal["reserved", "mapped"]
    Key: TypeAlias = tuple[str, str, str]
    """(network, container ID, ifname), as `Attachment.key`."""

VERSION = 1
PHASES = ("reserved", "mapped")
SALVAGED = "salvaged"
"""The token of a record that was made from port mappings: which reservation they were made for is not known."""
ANNOTATION_STATES = ("none", "pending", "done")
_PORT_MAX = 65535


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
        body, later = document.decode(VERSION, text), None
    except Later as error:
        body, later = error.body, error
    try:
        return _read(body)
    except CniError as error:
        if later is not None:
            raise later from None
        raise Damaged(error.msg) from None


def _read(body: Fields) -> Record:
    created = body.get("created")
    pod = body.object("pod")
    annotation = body.object("annotation")
    return Record(
        network=body.text("network"),
        container_id=body.text("containerID"),
        ifname=body.text("ifname"),
        netns=body.text("netns"),
        netns_id=body.text("netnsID"),
        boot_id=body.text("bootID"),
        token=body.text("token"),
        created=float(created) if isinstance(created, int | float) else 0.0,
        phase=body.choice("phase", PHASES, "reserved"),
        pod=Pod(pod.text("namespace"), pod.text("name"), pod.text("uid")) if body.has("pod") else None,
        ports=tuple(
            Port(
                _port(entry, "containerPort"),
                entry.choice("protocol", PROTOCOLS, "tcp"),
                _port(entry, "hostPort"),
                entry.text("range"),
                entry.text("hostIP"),
            )
            for entry in body.objects("ports")
        ),
        explicit=tuple(
            Explicit(
                host_port=_port(entry, "hostPort"),
                container_port=_port(entry, "containerPort"),
                protocol=entry.choice("protocol", PROTOCOLS, "tcp"),
                host_ip=entry.text("hostIP"),
            )
            for entry in body.objects("explicit")
        ),
        annotation=Annotation(
            annotation.choice("state", ANNOTATION_STATES, "none"), annotation.get("patch"), annotation.text("error")
        ),
        undo=body.get("undo"),
        salvaged=body.boolean("salvaged"),
    )


def _port(entry: Fields, key: str) -> int:
    number = entry.integer(key, 1, _PORT_MAX)
    if number is None:
        raise entry.wrong(key, f"a whole number from 1 to {_PORT_MAX}")
    return number
