"""What a release has is whole, and the same bytes each time."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from source_copy import ROOT

from cnimeta import __version__

pytestmark = [pytest.mark.project, pytest.mark.timeout(900)]


def dist(folder: Path, umask: int) -> dict[str, bytes]:
    environ = {**os.environ, "SOURCE_DATE_EPOCH": "1700000000"}
    command = [sys.executable, str(ROOT / "scripts" / "dist.py"), str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environ, umask=umask)
    assert done.returncode == 0, done.stderr
    return {Path(line).name: Path(line).read_bytes() for line in done.stdout.splitlines()}


def test_two_builds_of_a_release_are_the_same_bytes(tmp_path: Path) -> None:
    first, second = dist(tmp_path / "one", 0o022), dist(tmp_path / "two", 0o077)
    assert sorted(first) == sorted(second)
    assert [name for name in first if first[name] != second[name]] == []
    kinds = {name.rpartition("-")[2] if name.endswith(".whl") else name for name in first}
    assert kinds > {f"cnimeta-{__version__}.tar.gz", f"cnimeta-{__version__}.cdx.json", "any.whl"}
    assert len(first) == 4
    with tarfile.open(tmp_path / "one" / f"cnimeta-{__version__}.tar.gz") as tar:
        names = {name.partition("/")[2] for name in tar.getnames()}
    assert {"LICENSE", "cnimeta/agent/launch.c", "plugins/portmap/main.py", "cnimeta/py.typed"} <= names
    bill = json.loads(first[f"cnimeta-{__version__}.cdx.json"])
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.5")
    found = {one["name"]: one for one in bill["components"]}
    assert {"filelock", "kubernetes", "pyroute2", "python-iptables", "pyyaml"} <= set(found)
    assert all(one["version"] and one["properties"] for one in found.values())


def test_the_runtime_lock_pins_what_the_development_lock_pins() -> None:
    def pinned(name: str) -> set[str]:
        lines = (ROOT / name).read_text().splitlines()
        return {line.split()[0] for line in lines if "==" in line}

    assert pinned("requirements.lock") <= pinned("requirements-dev.lock")
    assert "--hash=sha256:" in (ROOT / "requirements.lock").read_text()
