"""Where the state's files lie under dataDir, and the names of records. Pure.

hostports.0, hostports.1   the index; generations alternate, so the one before is always at hand
records/NAME.json          one record per attachment
pending/NAME               empty: the record's annotation is still to be delivered
rebuild                    empty: make the index anew from the records; every version honours it
lock                       locked, never written
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta_plugins.hostport_alloc.state.record import Key

_SUFFIX = ".json"
_NAME_MAX_BYTES = 200  # of the 255 a file system gives; temporary files add to it
_LONG = "long:"


class Layout:
    """The paths under one dataDir."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.slots = (f"{folder}/hostports.0", f"{folder}/hostports.1")
        self.records = f"{folder}/records"
        self.pending = f"{folder}/pending"
        self.rebuild = f"{folder}/rebuild"

    def record(self, name: str) -> str:
        """The file of a record."""
        return f"{self.records}/{name}{_SUFFIX}"

    def mark(self, name: str) -> str:
        """The mark of a record with a pending annotation."""
        return f"{self.pending}/{name}"


def name_of(key: Key) -> str:
    """The name of a key's record: `container:ifname:network`, from which a person (and recovery) can read the key.

    The parts cannot contain a colon. Very long ones are replaced by a digest, at the price of that readability.
    """
    network, container_id, ifname = key
    name = f"{container_id}:{ifname}:{network}"
    if len(name.encode("utf-8", "surrogateescape")) <= _NAME_MAX_BYTES:
        return name
    from hashlib import sha256

    return _LONG + sha256(name.encode("utf-8", "surrogateescape")).hexdigest()


def key_of(name: str) -> Key | None:
    """The key in a record's name; None for a digest and for a foreign file."""
    parts = name.split(":")
    return (parts[2], parts[0], parts[1]) if len(parts) == 3 and all(parts) else None


def record_names(files: list[str]) -> list[str]:
    """The names of the records among the files of the folder."""
    return [name[: -len(_SUFFIX)] for name in files if name.endswith(_SUFFIX)]
