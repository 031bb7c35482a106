"""Container images made of Debian's static busybox, so that a test cluster needs no registry."""

from __future__ import annotations

import hashlib
import io
import json
import tarfile
from pathlib import Path

PAUSE, APP = "local.test/pause:1", "local.test/app:1"
_APPLETS = ("sh", "sleep", "httpd", "cat", "echo")


def save(path: Path, name: str, entrypoint: list[str]) -> None:
    """Write the image `name` as an archive that `ctr images import` reads."""
    layer = _archive(
        {"bin/busybox": Path("/bin/busybox").read_bytes()}, {f"bin/{applet}": "busybox" for applet in _APPLETS}
    )
    digest = hashlib.sha256(layer).hexdigest()
    conf = {
        "architecture": "amd64",
        "os": "linux",
        "config": {"Entrypoint": entrypoint, "Env": ["PATH=/bin"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }
    manifest = [{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]
    files = {"layer.tar": layer, "config.json": _json(conf), "manifest.json": _json(manifest)}
    path.write_bytes(_archive(files, {}))


def _archive(files: dict[str, bytes], links: dict[str, str]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for folder in ("bin", "www", "tmp") if links else ():
            entry = tarfile.TarInfo(folder)
            entry.type, entry.mode = tarfile.DIRTYPE, 0o755
            archive.addfile(entry)
        for name, data in files.items():
            entry = tarfile.TarInfo(name)
            entry.size, entry.mode = len(data), 0o755
            archive.addfile(entry, io.BytesIO(data))
        for name, target in links.items():
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = tarfile.SYMTYPE, target
            archive.addfile(entry)
    return buffer.getvalue()


def _json(value: object) -> bytes:
    return json.dumps(value).encode()
