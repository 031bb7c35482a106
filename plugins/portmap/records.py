"""portmap's record of an attachment: what is in the kernel for it, so that DEL needs no other source.

One JSON file per attachment in `<dataDir>/portmap/`, written before the first rule and removed after the last. The name
is made of digests: it starts with the container's, so an attachment whose network was renamed is found without reading.
"""

from __future__ import annotations

import os

from cnimeta.errors import CniError, StateUnusable
from cnimeta.host.digest import sha512_hex
from cnimeta.host.nftables.values import Element
from cnimeta.namedtuple import NamedTuple
from cnimeta.spec.fields import Fields
from cnimeta.spec.jsonio import dumps, loads_object
from cnimeta_plugins.portmap.nft_rules import Group

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cnimeta.host.protocols import Files
    from cnimeta.spec.jsonio import JSON

VERSION = 1
_FOLDER = "portmap"
_SUFFIX = ".json"


class Record(NamedTuple):
    """One attachment. `conf` is the network configuration of its ADD, for `repair`."""

    network: str
    container_id: str
    ifname: str
    netns: str
    boot_id: str
    backend: str
    second: bool = False
    """iptables: the attachment is not the first of its container on the network (see iptables_rules)."""
    groups: tuple[Group, ...] = ()
    conditions: tuple[str, ...] = ()
    """nftables: the names of its conditional chains."""
    udp: tuple[tuple[int, int, int, str], ...] = ()
    """(family, first port, last port, host address or empty) of its UDP mappings, for conntrack."""
    conf: JSON = None

    @property
    def key(self) -> tuple[str, str, str]:
        """(network, container ID, ifname)"""
        return self.network, self.container_id, self.ifname

    @property
    def name(self) -> str:
        """The attachment for a message."""
        return f"container {self.container_id} interface {self.ifname} network {self.network}"


class Records:
    """The records under one dataDir. Raises StateUnusable (code 104) when the folder cannot be used."""

    def __init__(self, data_dir: str, files: Files, log: Callable[[str], None]) -> None:
        self.folder = os.path.join(data_dir, _FOLDER)
        self._files = files
        self._log = log

    def load(self, network: str, container_id: str, ifname: str) -> Record | None:
        """The attachment's record; None when there is none. A damaged one is reported and counts as none."""
        return self._read(file_name(network, container_id, ifname))

    def exists(self, network: str, container_id: str, ifname: str) -> bool:
        """Whether the attachment has a record, readable or not."""
        try:
            return self._files.read(os.path.join(self.folder, file_name(network, container_id, ifname))) is not None
        except OSError as error:
            raise self._unusable(error) from None

    def store(self, record: Record) -> None:
        """Write, whole or not at all. After another boot a record is dead anyway, so nothing waits for the disk."""
        try:
            self._files.write(os.path.join(self.folder, file_name(*record.key)), encode(record))
        except OSError as error:
            raise self._unusable(error) from None

    def forget(self, record_key: tuple[str, str, str]) -> None:
        """Remove; missing is fine."""
        try:
            self._files.remove(os.path.join(self.folder, file_name(*record_key)))
        except OSError as error:
            raise self._unusable(error) from None

    def of_container(self, container_id: str) -> Iterator[Record]:
        """The records of one container, whatever the network; the folder's names are listed, the others not read."""
        prefix = _digest(container_id)
        for name in self._names():
            if name.startswith(prefix):
                record = self._read(name)
                if record is not None and record.container_id == container_id:
                    yield record

    def every(self) -> Iterator[Record]:
        """All that can be read."""
        for name in self._names():
            record = self._read(name)
            if record is not None:
                yield record

    def usable(self) -> None:
        """Raise StateUnusable unless records can be written."""
        probe = os.path.join(self.folder, f"probe-{os.getpid()}")
        try:
            self._files.write(probe, b"")
            self._files.remove(probe)
        except OSError as error:
            raise self._unusable(error) from None

    def _names(self) -> list[str]:
        try:
            return [name for name in self._files.names(self.folder) if name.endswith(_SUFFIX)]
        except OSError as error:
            raise self._unusable(error) from None

    def _read(self, name: str) -> Record | None:
        path = os.path.join(self.folder, name)
        try:
            data = self._files.read(path)
            return None if data is None else decode(data)
        except CniError as error:
            self._log(f"portmap: the record {path} is damaged and will be rebuilt from the kernel: {error.msg}")
            return None
        except OSError as error:
            raise self._unusable(error) from None

    def _unusable(self, error: OSError) -> StateUnusable:
        return StateUnusable(f"$.dataDir: cannot use {self.folder}: {error.strerror or error}")


def file_name(network: str, container_id: str, ifname: str) -> str:
    """The name of an attachment's file."""
    return f"{_digest(container_id)}-{_digest(f'{network}/{ifname}')}{_SUFFIX}"


def _digest(text: str) -> str:
    return sha512_hex(text)[:24]


def encode(record: Record) -> bytes:
    """The file's content."""
    body: dict[str, JSON] = {"version": VERSION, **record._asdict()}
    return dumps(body).encode()


def decode(data: bytes) -> Record:
    """Read a file's content; a later version's too, as far as it has these keys. Raises CniError."""
    fields = Fields(loads_object(data, "the record"))
    return Record(
        fields.text("network"),
        fields.text("container_id"),
        fields.text("ifname"),
        fields.text("netns"),
        fields.text("boot_id"),
        fields.text("backend"),
        fields.boolean("second"),
        tuple(_group(item) for item in fields.items("groups")),
        tuple(fields.texts("conditions")),
        tuple(_flow(item) for item in fields.items("udp")),
        fields.get("conf"),
    )


def _group(item: JSON) -> Group:
    claim, elements = _row(item, 2)
    if not isinstance(elements, list):
        raise CniError("a group's elements are not an array")
    return Group(_element(claim), tuple(_element(element) for element in elements))


def _element(item: JSON) -> Element:
    name, key, value, _ = _row(item, 4)
    return Element(str(name), str(key), str(value))


def _flow(item: JSON) -> tuple[int, int, int, str]:
    family, first, last, where = _row(item, 4)
    if not isinstance(family, int) or not isinstance(first, int) or not isinstance(last, int):
        raise CniError("a UDP mapping is not of whole numbers")
    return family, first, last, str(where)


def _row(item: JSON, length: int) -> list[JSON]:
    if not isinstance(item, list) or len(item) != length:
        raise CniError(f"an array of {length} was expected")
    return item
