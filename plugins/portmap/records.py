"""portmap's record of an attachment: what is in the kernel for it, so that DEL needs no other source.

One file per attachment in `<dataDir>/portmap/`, written before the first rule and removed after the last. Its name is
made of the digests of container, network and interface, so an attachment whose network was renamed is found without
reading, and so are those of a network that GC is not told to keep.
The document is `{"version":2,"crc":N,"record":{...}}`; crc is the CRC-32 of the compact JSON of `[version, record]`, in
this and in every later version: so a damaged digit never passes for a later version. What is the backend's own stands
under `payload`, and the backend reads it.
"""

from __future__ import annotations

import os
from binascii import crc32
from errno import EFBIG

from cnimeta.errors import CniError, Failures, StateUnusable
from cnimeta.namedtuple import NamedTuple
from cnimeta.spec.fields import Fields
from cnimeta.spec.ip import Cidr, parse_cidr
from cnimeta.spec.jsonio import dumps, loads_object
from cnimeta_plugins.portmap.config import PortMapping, read_mapping
from cnimeta_plugins.portmap.names import SUFFIX, digest, earlier_name, file_name, unkept
from cnimeta_plugins.portmap.notes import Notes
from cnimeta_plugins.portmap.plan import Owner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator
    from typing import Protocol, TypeVar

    from cnimeta.host.protocols import Files, Namespaces
    from cnimeta.spec.ip import Address
    from cnimeta.spec.jsonio import JSON

    T = TypeVar("T")

    class Payload(Protocol):
        """What a backend keeps in a record; immutable, equal by value."""

        def as_json(self) -> JSON:
            """The form in the file."""
            ...


VERSION = 2
_FOLDER = "portmap"


class Record(NamedTuple):
    """One attachment. `conf` is the network configuration of its ADD, for repair."""

    owner: Owner
    netns: str
    boot_id: str
    addresses: tuple[Cidr, ...]
    """The container's, one for each family that is mapped."""
    mappings: tuple[PortMapping, ...]
    backend: str
    payload: Payload | None
    """None when it was not asked for."""
    conf: JSON = None
    interfaces: tuple[str, ...] = ()
    """Towards the container, where localhost has to pass: the present one first, then those of earlier ADDs."""
    netns_id: str = ""
    """Which namespace `netns` led to at ADD, as `device:inode`."""
    waiting: tuple[PortMapping, ...] = ()
    """What of `mappings` another attachment of the container has: see cnimeta_plugins.portmap.sharing."""


class DamagedRecord(CniError):
    """The document is not a record: cut off, altered, or of a shape that no version has."""


class UnknownBackend(CniError):
    """The record names a backend that there is not."""


class NewerRecord(CniError):
    """The document is of a later version. `record` is what this version understands of it, if anything."""

    def __init__(self, msg: str, record: Record | None = None) -> None:
        super().__init__(msg)
        self.record = record


class Found(NamedTuple):
    """What there is for an attachment: its record, if it can be understood, and what is wrong with the file.

    newer: a later version wrote it.
    """

    record: Record | None = None
    problem: str = ""
    newer: bool = False


class Life(NamedTuple):
    """What tells whether a container can be alive: this boot, and which namespaces are gone. Asked only when needed."""

    boot_id: Callable[[], str]
    namespaces: Namespaces

    def is_dead(self, record: Record) -> bool:
        """Whether the container cannot be alive: another boot, or its namespace is gone. Unknown is not dead."""
        return record.boot_id != self.boot_id() or self.namespaces.is_gone(record.netns, record.netns_id)


def no_payload(_backend: str, _payload: JSON) -> None:
    """Reads records without what is the backends' own."""


class Records:
    """The records under one dataDir. Raises StateUnusable (code 104) when the folder cannot be used.

    `read_payload` is called with the name of the backend and the JSON of its payload. It raises UnknownBackend, or
    another CniError for a payload that is damaged.
    """

    def __init__(
        self,
        data_dir: str,
        files: Files,
        log: Callable[[str], None],
        read_payload: Callable[[str, JSON], Payload | None] = no_payload,
    ) -> None:
        self.data_dir = data_dir
        self.folder = os.path.join(data_dir, _FOLDER)
        self._notes = Notes(self.folder, files)
        self._files = files
        self._log = log
        self._read_payload = read_payload

    def find(self, owner: Owner) -> Found:
        """The attachment's record. One that is damaged or of a later version is reported."""
        found = self._find(file_name(owner))
        return self._find(earlier_name(owner)) if found == Found() else found

    def store(self, record: Record) -> None:
        """Write, whole or not at all. After another boot a record is dead anyway, so nothing waits for the disk."""
        try:
            self._files.write(os.path.join(self.folder, file_name(record.owner)), encode(record))
            self._files.remove(os.path.join(self.folder, earlier_name(record.owner)))
        except OSError as error:
            raise self._unusable(error) from None

    def forget(self, owner: Owner, had: Iterable[Cidr] = ()) -> None:
        """Remove; missing is fine. The container's addresses, and those that it may have `had`, are free."""
        self.leave(owner, had)
        try:
            for name in (file_name(owner), earlier_name(owner)):
                self._files.remove(os.path.join(self.folder, name))
        except OSError as error:
            raise self._unusable(error) from None

    def of_container(self, container_id: str, damaged: list[str] | None = None) -> Iterator[Record]:
        """The records of one container, whatever the network; the folder's names are listed, the others not read.

        The files of those that are damaged go to `damaged`.
        """
        prefix = digest(container_id)
        for name in self._names():
            if name.startswith(prefix):
                record = self._noted(name, damaged)
                if record is not None and record.owner.container_id == container_id:
                    yield record

    def _noted(self, name: str, damaged: list[str] | None) -> Record | None:
        found = self._find(name)
        if damaged is not None and found.problem and not found.newer:
            damaged.append(name)
        return found.record

    def drop_damaged(self, name: str) -> None:
        """Remove a file that is still damaged: an ADD may have written it anew."""
        now: list[str] = []
        self._noted(name, now)
        try:
            if now:
                self._notes.leave_addresses((name,), (), ())
                self._files.remove(os.path.join(self.folder, name))
        except OSError as error:
            raise self._unusable(error) from None

    def of_network(
        self, network: str, but: Collection[tuple[str, str]], failures: Failures, damaged: list[str]
    ) -> Iterator[Record]:
        """The records of a network whose (container ID, ifname) is not in `but`. Of others the names alone are read.

        What cannot be read is among the failures, and keeps nobody from the others. The files of damaged ones go to
        `damaged`.
        """
        for record in self._each(unkept(self._names(), network, but), failures, damaged):
            if record.owner.network == network:
                yield record

    def follow(self, holder: Owner, follower: Owner) -> None:
        """Note that `follower` waits for what `holder` has."""
        self._used(lambda: self._notes.follow(holder.container_id, file_name(follower)))

    def take_followers(self, container_ids: Iterable[str]) -> list[Record]:
        """The records that wait for what these containers had; they are not noted any more."""
        names = self._used(lambda: self._notes.take_followers(container_ids))
        found = [self._find(name).record for name in names]
        return [record for record in found if record is not None and record.waiting]

    def take(self, owner: Owner, addresses: Iterable[Address]) -> None:
        """Note that the owner has these container addresses."""
        try:
            for address in addresses:
                self._notes.take_address(address, file_name(owner))
        except OSError as error:
            raise self._unusable(error) from None

    def leave(self, owner: Owner, had: Iterable[Cidr] = (), but: Iterable[Cidr] = ()) -> None:
        """Note that the owner has no container address but some; `had` are those that it may have had."""
        noted = [container.address for container in had], [container.address for container in but]
        names = file_name(owner), earlier_name(owner)
        self._used(lambda: self._notes.leave_addresses(names, *noted))

    def at(self, address: Address) -> Iterator[Record]:
        """The records that have a container address by a note, and say so themselves."""
        for name in self._used(lambda: self._notes.holders(address)):
            record = self._find(name).record
            if record is not None and address in [one.address for one in record.addresses]:
                yield record

    def every(self) -> Iterator[Record]:
        """All that can be understood. At the end StateUnusable (code 104) for those that cannot be read."""
        failures = Failures()
        yield from self.readable(failures)
        failures.raise_any()

    def readable(self, failures: Failures) -> Iterator[Record]:
        """All that can be understood; what cannot be read is among the failures, and keeps nobody from the others."""
        yield from self._each(self._names(), failures)

    def _each(self, names: Iterable[str], failures: Failures, damaged: list[str] | None = None) -> Iterator[Record]:
        for name in names:
            record = None
            with failures:
                record = self._noted(name, damaged)
            if record is not None:
                yield record

    def any(self) -> bool:
        """Whether there is a record at all, one that cannot be understood included."""
        return self._used(lambda: self._files.any_name(self.folder, SUFFIX))

    def usable(self) -> None:
        """Raise StateUnusable unless records can be written."""
        probe = os.path.join(self.folder, "probe")  # always the same: one that cannot be removed is not joined by more
        try:
            self._files.write(probe, b"")
            self._files.remove(probe)
        except FileNotFoundError:  # refused: another STATUS removed it meanwhile, so it had been written
            pass
        except OSError as error:
            raise self._unusable(error) from None

    def _names(self) -> list[str]:
        return [name for name in self._used(lambda: self._files.names(self.folder)) if name.endswith(SUFFIX)]

    def _used(self, work: Callable[[], T]) -> T:
        try:
            return work()
        except OSError as error:
            raise self._unusable(error) from None

    def _find(self, name: str) -> Found:
        path = os.path.join(self.folder, name)
        try:
            data = self._files.read(path)
            if data is None:
                return Found()
            record = decode(data, self._read_payload)
            present = file_name(record.owner)
            if name not in (present, earlier_name(record.owner)):
                raise DamagedRecord("it is of another attachment than its name says")
            if name != present and self._files.any_name(self.folder, present):  # `store` was killed in between
                return Found()
            return Found(record)
        except DamagedRecord as error:
            self._log(f"portmap: the record {path} is damaged: {error.msg}; the kernel's rules tell what there is")
            return Found(problem=error.msg)
        except NewerRecord as error:
            self._log(f"portmap: the record {path} is of a later version: {error.msg}")
            return Found(error.record, error.msg, newer=True)
        except OSError as error:
            if error.errno == EFBIG:  # nothing that was ever written
                self._log(f"portmap: the record {path} is damaged: {error.strerror}; the kernel's rules tell the rest")
                return Found(problem=str(error.strerror))
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> StateUnusable:
        return StateUnusable(f"$.dataDir: cannot use {error.filename or self.folder}: {error.strerror or error}")


# --- the document ----------------------------------------------------------------------------------------


def encode(record: Record) -> bytes:
    """The file's content."""
    owner = record.owner
    body: dict[str, JSON] = {
        "network": owner.network,
        "containerID": owner.container_id,
        "ifname": owner.ifname,
        "netns": record.netns,
        "bootID": record.boot_id,
        "addresses": [address.text for address in record.addresses],
        "mappings": [_mapping_json(mapping) for mapping in record.mappings],
        "backend": record.backend,
        "payload": None if record.payload is None else record.payload.as_json(),
        "conf": record.conf,
        "interfaces": list(record.interfaces),
        "netnsID": record.netns_id,
        "waiting": [_mapping_json(mapping) for mapping in record.waiting],
    }
    text = dumps(body)
    return f'{{"version":{VERSION},"crc":{_checksum(VERSION, text)},"record":{text}}}\n'.encode()


def decode(data: bytes, read_payload: Callable[[str, JSON], Payload | None] = no_payload) -> Record:
    """Read a file's content. Raises DamagedRecord, or NewerRecord with as much as could be understood."""
    try:
        fields = Fields(loads_object(data, "the record"))
        version, body = fields.integer("version", 1, 2**31), fields.object("record")
        if version is None or fields.get("crc") != _checksum(version, dumps(body.raw)):
            raise DamagedRecord("its checksum does not match")
        if version > VERSION:
            raise NewerRecord(f"version {version}, this one reads up to {VERSION}", _understood(body, read_payload))
        if version not in _READERS:
            raise DamagedRecord(f"there never was a version {version}")
        return _READERS[version](body, read_payload)
    except UnknownBackend as error:
        raise NewerRecord(error.msg) from None
    except (DamagedRecord, NewerRecord):
        raise
    except (CniError, ValueError) as error:
        raise DamagedRecord(str(error)) from None


def _checksum(version: int, body: str) -> int:
    return crc32(f"[{version},{body}]".encode())


def _understood(body: Fields, read_payload: Callable[[str, JSON], Payload | None]) -> Record | None:
    try:
        return _READERS[VERSION](body, read_payload)
    except (CniError, ValueError):  # unknown: told as of a later version
        return None


def _read_2(body: Fields, read_payload: Callable[[str, JSON], Payload | None]) -> Record:
    backend = body.text("backend")
    return Record(
        Owner(body.text("network"), body.text("containerID"), body.text("ifname")),
        body.text("netns"),
        body.text("bootID"),
        tuple(parse_cidr(text) for text in body.texts("addresses")),
        tuple(read_mapping(entry) for entry in body.objects("mappings")),
        backend,
        read_payload(backend, body.get("payload")),
        body.get("conf"),
        tuple(body.texts("interfaces")),
        body.text("netnsID"),
        tuple(read_mapping(entry) for entry in body.objects("waiting")),
    )


_READERS = {2: _read_2}
"""By version. The first that was released is 2."""


def _mapping_json(mapping: PortMapping) -> JSON:
    host_ip: dict[str, JSON] = {} if mapping.host_ip is None else {"hostIP": mapping.host_ip.text}
    return {
        "hostPort": mapping.first,
        "endPort": mapping.last,
        "containerPort": mapping.container_port,
        "protocol": mapping.protocol,
        **host_ip,
    }
