"""`make demo` as a test: the whole path on a real kernel, its end, and its cleaning up when it is cut short."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.kernel

ROOT = Path(__file__).parents[2]


def start(tmp_path: Path) -> subprocess.Popen[str]:
    environ = {**os.environ, "PYTHONPATH": str(ROOT / "examples"), "TMPDIR": str(tmp_path)}
    return subprocess.Popen(
        [sys.executable, "-m", "demo"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environ,
        start_new_session=True,
        preexec_fn=_heed_interrupts,
    )


def _heed_interrupts() -> None:
    """Whoever runs the tests in the background has SIGINT ignored, and children inherit that."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def namespaces_of(output: str) -> set[str]:
    return set(re.findall(r"cnimeta-[a-z0-9-]+-[0-9a-f]{6}\b", output))


def existing() -> set[str]:
    listed = subprocess.run(["ip", "netns", "list"], check=True, capture_output=True, text=True).stdout
    return {line.split()[0] for line in listed.splitlines()}


def test_every_check_of_the_demo_passes_when_it_runs_to_its_end(tmp_path: Path) -> None:
    started = time.monotonic()
    demo = start(tmp_path)
    out, err = demo.communicate(timeout=100)
    assert demo.returncode == 0, out + err
    assert time.monotonic() - started < 60
    assert re.search(r"(\d+) checks passed, 0 failed", out)
    assert len(namespaces_of(out)) >= 4
    assert namespaces_of(out) & existing() == set()
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=lambda number: number.name)
def test_nothing_stays_behind_when_the_demo_is_interrupted_in_the_middle(
    number: signal.Signals, tmp_path: Path
) -> None:
    demo = start(tmp_path)
    assert demo.stdout is not None
    seen = ""
    while "ADD for both" not in seen:
        line = demo.stdout.readline()
        assert line, seen + demo.communicate()[1]
        seen += line
    time.sleep(0.3)
    os.killpg(demo.pid, number)
    out, _ = demo.communicate(timeout=60)
    assert demo.returncode == 130
    assert len(namespaces_of(seen)) >= 4
    assert namespaces_of(seen + out) & existing() == set()
    assert list(tmp_path.iterdir()) == []
