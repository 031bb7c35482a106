"""A real container runtime, podman with its CNI backend, in the path: nothing of ours is simulated."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.runtime

SCENARIO = Path(__file__).with_name("podman_scenario.py")


@pytest.fixture
def short_path() -> Iterator[Path]:
    """podman refuses a run folder with more than 50 characters."""
    with tempfile.TemporaryDirectory(prefix="cm-") as folder:
        yield Path(folder)


def test_container_is_reachable_and_leaves_nothing_when_podman_runs_the_chain(short_path: Path) -> None:
    scripts = os.path.dirname(sys.executable)
    subprocess.run([f"{scripts}/cnimeta", "install", "--bin-dir", str(short_path / "bin")], check=True)
    played = subprocess.run(
        [
            "unshare",
            "-n",
            "-m",
            "--propagation",
            "private",
            sys.executable,
            str(SCENARIO),
            str(short_path),
            str(short_path / "bin"),
        ],
        check=False,
        capture_output=True,
        text=True,
        env={"PATH": f"{scripts}:/usr/sbin:/usr/bin:/sbin:/bin", "HOME": str(short_path)},
    )
    assert played.returncode == 0, played.stderr
    seen = json.loads(played.stdout)
    assert len(seen["during"]["random"]) == 1, seen["during"]["ports"]
    assert seen["during"]["random"] == ["page\n"]
    assert seen["during"]["explicit"] == "page\n"
    assert "18080" in seen["during"]["rules"]
    assert seen["after"]["ports"] == []
    assert "18080" not in seen["after"]["rules"]
    assert "10.91.0.2" in seen["during"]["rules"]
    assert "10.91.0.2" not in seen["after"]["rules"]
    assert "elements = " not in seen["after"]["rules"].partition("table inet cnimeta_hostports")[2]
