"""Everything that is known of the plugins on this node, as one archive for whoever helps. Changes nothing.

Each item is collected for itself: one that cannot be read is named with its reason, and the others are there.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
import time
from typing import TYPE_CHECKING, NamedTuple

from cnimeta import __version__
from cnimeta.errors import CniError, IoFailure
from cnimeta.node.sysdump.secrets import text_without_secrets, without_secrets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from typing import BinaryIO

    from cnimeta.node.sysdump.items import Item

_ITEM_MAX_BYTES = 32 << 20
_CUT = b"\n(cut off here)\n"


class Collected(NamedTuple):
    """A file of the archive, or why it is not there."""

    name: str
    data: bytes = b""
    missing: str = ""


def collect(
    items: Iterable[Item], tell: Callable[[str], None], most_bytes: int = _ITEM_MAX_BYTES
) -> Iterator[Collected]:
    """Every file of the archive, cut off at `most_bytes`. `tell`: the name of each one, before it is collected."""
    for item in items:
        tell(item.name)
        found = _collected(item)
        yield found if len(found.data) <= most_bytes else found._replace(data=found.data[:most_bytes] + _CUT)


def _collected(item: Item) -> Collected:
    try:
        found = item.read()
    except (CniError, OSError, ValueError) as error:
        return Collected(item.name, missing=str(error))
    if isinstance(found, bytes):
        data = text_without_secrets(found.decode("utf-8", "replace")).encode()
    else:
        data = json.dumps(without_secrets(found), indent=1, ensure_ascii=False).encode("utf-8", "replace")
    return Collected(item.name, data)


def archive(files: Iterable[Collected], top: str, out: BinaryIO) -> list[Collected]:
    """Write the archive, a folder `top`, as tar.gz; what is missing of it. Its manifest.json says so too."""
    missing = []
    names = []
    with tarfile.open(fileobj=out, mode="w:gz", format=tarfile.PAX_FORMAT) as tar:
        for found in files:
            if found.missing:
                missing.append(found)
            else:
                names.append(found.name)
                _add(tar, f"{top}/{found.name}", found.data)
        body = {
            "cnimeta": __version__,
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
            "files": names,
            "missing": [{"file": found.name, "message": found.missing} for found in missing],
        }
        _add(tar, f"{top}/manifest.json", json.dumps(body, indent=1).encode())
    return missing


def _add(tar: tarfile.TarFile, name: str, data: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size, info.mode, info.mtime = len(data), 0o600, int(time.time())
    tar.addfile(info, io.BytesIO(data))


def write(path: str, files: Iterable[Collected], top: str) -> list[Collected]:
    """The archive as a file, for its owner alone, whole or not at all. Raises IoFailure (code 5)."""
    unfinished = f"{path}.tmp-{os.getpid()}"
    try:
        descriptor = os.open(unfinished, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        try:
            with open(descriptor, "wb") as out:
                missing = archive(files, top, out)
            os.rename(unfinished, path)
        except BaseException:
            os.unlink(unfinished)
            raise
    except OSError as error:
        raise IoFailure(f"cannot write {path}: {error.strerror or error}") from None
    return missing
