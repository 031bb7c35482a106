"""What it costs to start a plugin and answer VERSION, beside the reference's executables."""

from __future__ import annotations

import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from run import Row

from cnimeta.cli.install import install
from cnimeta.launcher import PLUGINS

TITLE = "Start-up: VERSION"
NOTE = """
The whole process, from its start to its end, with an environment of CNI_COMMAND alone: the median of 31 runs, ours and
the reference's in turn. The reference is Debian's containernetworking-plugins.
"""
REFERENCE = Path("/usr/lib/cni")
RUNS = 31


def once_ms(program: str) -> float:
    """One run, in milliseconds."""
    started = time.perf_counter()
    subprocess.run([program], env={"CNI_COMMAND": "VERSION"}, input=b"{}", capture_output=True, check=True)
    return (time.perf_counter() - started) * 1000


def measure() -> list[Row]:
    """One row for each plugin."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        install(folder, sorted(PLUGINS))
        for name in sorted(PLUGINS):
            programs = [str(found) for found in (Path(folder) / name, REFERENCE / name) if found.exists()]
            times: dict[str, list[float]] = {program: [] for program in programs}
            for _ in range(RUNS):
                for program in programs:
                    times[program].append(once_ms(program))
            medians = [statistics.median(found) for found in times.values()]
            rows.append(Row(name, medians[0], medians[1] if len(medians) > 1 else None, "ms"))
    return rows
