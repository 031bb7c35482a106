"""What a disk holds after a power loss: the recorded calls of a process, replayed up to any moment, less what was lost.

The model is that of a journaling file system (ext4, xfs, btrfs): changes of folders reach the disk in their order, and
all those before a sync of any file with it; what was written to a file since its own last sync is there or not, sector by
sector, as is each change of its length. What a process wrote through a memory map (the log's index) never counts.
"""

from __future__ import annotations

import os
import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    import random
    from collections.abc import Iterable, Iterator

CALLS = (
    *("openat", "pwrite64", "write", "ftruncate", "fsync", "fdatasync", "fallocate"),
    *("rename", "link", "unlink", "mkdir"),
)
_SECTOR = 512


class Operation(NamedTuple):
    """One change: of a folder (create, rename, link, unlink, mkdir), or of a file (write, length, sync)."""

    kind: str
    path: str
    other: str = ""
    offset: int = 0
    data: bytes = b""


def operations(trace: str, folder: str) -> list[Operation]:
    """What a trace of strace (-y -xx) tells of a folder, in order."""
    with open(trace, encoding="ascii", errors="replace") as file:
        found = [_operation(line) for line in file]
    inside = [one for one in found if one is not None and one.path.startswith(folder)]
    return list(_placed(one for one in inside if not one.path.endswith("-shm")))


def _placed(found: Iterable[Operation]) -> Iterator[Operation]:
    """With the offsets of those writes that go on where the one before ended."""
    ends: dict[str, int] = {}
    for one in found:
        if one.kind == "create":
            ends[one.path] = 0
        elif one.kind == "append":
            offset = ends.get(one.path, 0)
            ends[one.path] = offset + len(one.data)
            one = one._replace(kind="write", offset=offset)
        yield one


def _operation(line: str) -> Operation | None:
    match = re.match(r"(?:\d+\s+)?(\w+)\((.*)\)\s+= (-?\d+)", line)
    if match is None or match[3].startswith("-"):
        return None
    name, arguments = match[1], match[2]
    texts = [bytes.fromhex(text.replace("\\x", "")) for text in re.findall(r'"((?:\\x[0-9a-f]{2})*)"', arguments)]
    paths = [text.decode("utf-8", "replace") for text in texts]
    descriptor = re.match(r"\d+<([^>]*)>", arguments)
    path = bytes.fromhex(descriptor[1].replace("\\x", "")).decode() if descriptor and "\\x" in descriptor[1] else ""
    path = path or (descriptor[1] if descriptor else "")
    numbers = [int(number) for number in re.findall(r"(?:^|, )(\d+)(?=,|$)", arguments)]
    if name == "openat":
        return Operation("create", paths[0]) if "O_CREAT" in arguments else None
    if name == "mkdir":
        return Operation("mkdir", paths[0])
    if name == "unlink":
        return Operation("unlink", paths[0])
    if name in ("rename", "link"):
        return Operation(name, paths[0], paths[1])
    if name in ("fsync", "fdatasync"):
        return Operation("sync", path)
    if name == "pwrite64":
        return Operation("write", path, offset=numbers[-1], data=texts[0])
    if name == "write":
        return Operation("append", path, data=texts[0][: int(match[3])])
    if name == "ftruncate":
        return Operation("length", path, offset=numbers[-1])
    return None


class _File:
    def __init__(self) -> None:
        self.synced = bytearray()
        self.changes: list[Operation] = []

    def sync(self) -> None:
        self.synced = self.after(lambda _: True)
        self.changes = []

    def after(self, is_kept: object) -> bytearray:
        """The content with those changes, sector by sector, for which is_kept(…) is true."""
        content = bytearray(self.synced)
        assert callable(is_kept)
        for change in self.changes:
            if change.kind == "length":
                if is_kept(change):
                    content = content[: change.offset].ljust(change.offset, b"\0")
                continue
            for start in range(0, len(change.data), _SECTOR):
                if is_kept(change):
                    piece, place = change.data[start : start + _SECTOR], change.offset + start
                    content.extend(bytes(max(0, place + len(piece) - len(content))))
                    content[place : place + len(piece)] = piece
        return content


class Disk:
    """A folder on a disk. `after_power_loss` is what could be found at the next boot."""

    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.names: dict[str, _File] = {}
        self._durable: list[dict[str, _File]] = [{}]
        """What the folder may look like on the disk: as at the last sync, and after each change since."""

    def apply(self, operation: Operation) -> None:
        """One more operation was carried out."""
        kind, path = operation.kind, operation.path
        if kind == "sync":
            if path in self.names:
                self.names[path].sync()
            self._durable = [dict(self.names)]
        elif kind in ("write", "length"):
            if path in self.names:
                self.names[path].changes.append(operation)
        elif kind == "mkdir":
            pass  # folders are there at the next boot, or are made again
        else:
            self._change_folder(operation)
            self._durable.append(dict(self.names))

    def _change_folder(self, operation: Operation) -> None:
        if operation.kind == "create":
            self.names.setdefault(operation.path, _File())
        elif operation.kind == "unlink":
            self.names.pop(operation.path, None)
        elif operation.path in self.names:
            self.names[operation.other] = self.names[operation.path]
            if operation.kind == "rename":
                del self.names[operation.path]

    def after_power_loss(self, target: str, chance: random.Random, share: float) -> None:
        """Write what is found to the folder `target`; of what was not synced, about `share` got through."""
        names = self.names if share == 1 else chance.choice(self._durable)
        for path, file in names.items():
            content = file.after(lambda _: chance.random() < share)
            place = target + path[len(self.folder) :]
            os.makedirs(os.path.dirname(place), mode=0o700, exist_ok=True)
            with open(place, "wb") as found:
                os.fchmod(found.fileno(), 0o600)
                found.write(content)
