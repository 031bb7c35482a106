"""The record of one attachment: everything DEL, CHECK, GC and repair need, with no other source of knowledge.

One JSON document per attachment (network, container ID, ifname): `{"version":1,"crc":N,"record":{...}}`, where crc is
the CRC-32 of the record's compact JSON. Unknown keys are ignored, so a later minor change can be read; a change that
an older reader must not act on gets a new version number. Pure.
"""

from __future__ import annotations

from binascii import crc32

from cnimeta.errors import CniError
from cnimeta.namedtuple import NamedTuple
from cnimeta.spec.fields import Fields
from cnimeta.spec.jsonio import dumps, loads_object
from cnimeta_plugins.hostport_alloc.allocate.expose import PROTOCOLS, Explicit

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Literal, TypeAlias

    from cnimeta.spec.jsonio import JSON

    Phase: TypeAlias = Literal["reserved", "mapped", "releasing"]
    Key: TypeAlias = tuple[str, str, str]
    """(network, container ID, ifname), as `Attachment.key`."""

VERSION = 1
PHASES = ("reserved", "mapped", "releasing")
ANNOTATION_STATES = ("none", "pending", "done")
_PORT_MAX = 65535


class DamagedRecord(Exception):
    """The document is not a record: empty, cut off, altered, or of a shape no version has."""


class NewerRecord(Exception):
    """The document was written by a later version. `record` is what this version understands of it, if anything."""

    def __init__(self, version: int, record: Record | None) -> None:
        super().__init__(f"record format version {version}, this version reads up to {VERSION}")
        self.version = version
        self.record = record


class Pod(NamedTuple):
    """The Pod an attachment belongs to, as CNI_ARGS named it."""

    namespace: str
    name: str
    uid: str = ""


class Port(NamedTuple):
    """One container port and the host port chosen for it. `protocol` is one of expose.PROTOCOLS."""

    container_port: int
    protocol: str
    host_port: int
    range: str
    host_ip: str = ""
    """Where the mapping listens; empty for every address of the node."""


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
    boot_id: str = ""
    """The boot it was made in; after another boot its rules and namespace are gone and its ports are free."""
    token: str = ""
    """Tells this reservation from an earlier or later one with the same key; set by Store.reserve."""
    created: float = 0.0
    """Seconds since the epoch."""
    phase: str = "reserved"
    """reserved: ports are held, rules may or may not exist; mapped: ADD is done; releasing: DEL has begun."""
    pod: Pod | None = None
    ports: tuple[Port, ...] = ()
    explicit: tuple[Explicit, ...] = ()
    annotation: Annotation = Annotation()
    undo: JSON = None
    """What the verbs need on DEL: the delegates' complete configurations as run, in order."""
    salvaged: bool = False
    """Rebuilt from kernel rules after the document was lost: `undo`, `pod` and `netns` are unknown."""

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


def encode(record: Record) -> bytes:
    """The document for `record`."""
    body: dict[str, JSON] = {
        "network": record.network,
        "containerID": record.container_id,
        "ifname": record.ifname,
        "netns": record.netns,
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
    }
    text = dumps(body)
    return f'{{"version":{VERSION},"crc":{crc32(text.encode())},"record":{text}}}\n'.encode()


def decode(data: bytes) -> Record:
    """Read a document. Raises DamagedRecord, or NewerRecord with as much as could be understood."""
    try:
        fields = Fields(loads_object(data, "the record"))
        version = fields.integer("version", 1, 2**31)
        body = fields.object("record")
        if version is not None and version > VERSION:
            raise NewerRecord(version, _tolerant(body))
        if version is None or fields.get("crc") != crc32(dumps(body.raw).encode()):
            raise DamagedRecord("its checksum does not match")
        return _read(body)
    except CniError as error:
        raise DamagedRecord(error.msg) from None


def _tolerant(body: Fields) -> Record | None:
    try:
        return _read(body)
    except CniError:
        return None


def _read(body: Fields) -> Record:
    created = body.get("created")
    pod = body.object("pod")
    annotation = body.object("annotation")
    return Record(
        network=body.text("network"),
        container_id=body.text("containerID"),
        ifname=body.text("ifname"),
        netns=body.text("netns"),
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
