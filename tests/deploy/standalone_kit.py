"""Standalone folders for tests: this source tree under a version of its own, with this interpreter behind the command."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from cnimeta import __version__

ROOT = Path(__file__).parents[2]
NAMES = ("bandwidth", "hostport_alloc", "portmap")


def folder_of(place: Path, version: str) -> Path:
    """A folder that `cnimeta upgrade` takes for a standalone one."""
    made = place / version
    for source, name in (("cnimeta", "cnimeta"), ("plugins", "cnimeta_plugins")):
        shutil.copytree(ROOT / source, made / "lib" / name, ignore=shutil.ignore_patterns("__pycache__", "testing"))
    init = made / "lib" / "cnimeta" / "__init__.py"
    init.write_text(init.read_text().replace(__version__, version))
    info = made / "lib" / f"cnimeta-{version}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: cnimeta\nVersion: {version}\n")
    kinds = {"portmap": "Portmap", "bandwidth": "Bandwidth", "hostport_alloc": "HostportAlloc"}
    lines = [f"{name} = cnimeta_plugins.{name}.main:{kind}" for name, kind in kinds.items()]
    (info / "entry_points.txt").write_text("\n".join(["[cnimeta.plugins]", *lines, ""]))
    (made / "bin").mkdir()
    start = made / "bin" / "cnimeta"
    start.write_text(
        f'#!/bin/sh\nhere=$(dirname "$(readlink -f "$0")")\n'
        f'PYTHONPATH="$here/../lib" exec {sys.executable} -P -m cnimeta.cli.main "$@"\n'
    )
    start.chmod(0o755)
    digest = hashlib.sha256(version.encode()).hexdigest()
    (made / "standalone.json").write_text(json.dumps({"version": version, "digest": digest}))
    return made


class Node:
    """Folders of a node. `command` is which installation's command is run."""

    def __init__(self, folder: Path) -> None:
        self.root, self.bin, self.nets, self.data = (folder / name for name in ("versions", "bin", "net.d", "data"))
        self.nets.mkdir(parents=True)
        self.settings = folder / "settings.toml"
        self.settings.write_text(f'[portmap]\ndataDir = "{self.data}"\n')
        conf = {"cniVersion": "1.0.0", "name": "net", "plugins": [{"type": "bridge", "ipam": {"type": "host-local"}}]}
        (self.nets / "10-net.conflist").write_text(json.dumps(conf))

    def words(self, action: str, *more: str) -> list[str]:
        places = ["--root", str(self.root), "--bin-dir", str(self.bin), "--net-dir", str(self.nets)]
        return [action, *more[:1], *places, *more[1:]]

    def run(self, source: Path, action: str, *more: str, check: bool = True) -> subprocess.CompletedProcess[str]:
        command = [str(source / "bin" / "cnimeta"), *self.words(action, *more)]
        environ = {"PATH": os.environ["PATH"], "CNIMETA_CONFIG": str(self.settings)}
        done = subprocess.run(command, check=False, capture_output=True, text=True, env=environ, timeout=300)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def version_of(self, name: str) -> str:
        """Which version a launcher is of; it answers."""
        path = self.bin / name
        done = subprocess.run([path], check=True, capture_output=True, text=True, env={"CNI_COMMAND": "VERSION"})
        assert '"1.1.0"' in done.stdout
        mark = path.read_text().splitlines()[1]
        return mark.partition(str(self.root))[2].split("/")[1]

    def versions(self) -> set[str]:
        return {self.version_of(name) for name in NAMES}
