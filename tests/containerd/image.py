"""Container images made of Debian's static busybox, so that no registry is needed."""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
_APPLETS = ("sh", "sleep", "httpd", "cat", "echo", "hostname")


def save(path: Path, name: str, entrypoint: list[str], files: Mapping[str, bytes] | None = None) -> None:
    """Write the image `name` as an archive that `ctr images import` reads; `files` are executable."""
    layer = _archive(
        {"bin/busybox": Path("/bin/busybox").read_bytes(), **(files or {})},
        {f"bin/{applet}": "busybox" for applet in _APPLETS},
        ("bin", "www", "www/cgi-bin", "tmp"),
    )
    digest = hashlib.sha256(layer).hexdigest()
    conf = {
        "architecture": _ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {"Entrypoint": entrypoint, "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    path.write_bytes(_archive({"layer.tar": layer, "config.json": _json(conf), "manifest.json": _json(manifest)}))


def _archive(
    files: Mapping[str, bytes], links: Mapping[str, str] | None = None, folders: tuple[str, ...] = ()
) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for folder in folders:
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            archive.addfile(entry, io.BytesIO(data))
        for name, target in (links or {}).items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    return buffer.getvalue()


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
