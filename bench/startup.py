"""What it costs to start a plugin and answer VERSION.

python bench/benchmarks.py startup
"""

from __future__ import annotations

import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path

from common import REFERENCE, RUNS, Row

from cnimeta.cli.install import install, interpreter

TITLE = "Start-up: VERSION"
NOTE = """
The whole process, from its start to its end, with an environment of CNI_COMMAND alone: the median of as many runs as
above, all in turn. First beside the same interpreter doing nothing but `import json` (`python -I -S -c 'import json'`),
then beside the reference's executable.
"""
STDIN = b'{"cniVersion":"1.0.0"}'
PLUGINS = ("bandwidth", "hostport_alloc", "portmap")


def once_ms(command: list[str]) -> float:
    """One run, in milliseconds."""
    started = time.perf_counter()
    subprocess.run(
        command, env={"CNI_COMMAND": "VERSION"}, input=b'{"cniVersion":"1.0.0"}', capture_output=True, check=True
    )
    return (time.perf_counter() - started) * 1000


def measure() -> list[Row]:
    """Two rows for each plugin; one for a plugin that the reference does not have."""
    with tempfile.TemporaryDirectory() as folder:
        install(folder, PLUGINS)
        install(f"{folder}/native", PLUGINS, native=True)
        commands = {"json": [interpreter(), "-I", "-S", "-c", "import json"]}
        for name in PLUGINS:
            commands[name] = [str(Path(folder) / name)]
            commands[f"native {name}"] = [f"{folder}/native/{name}"]
            if os.path.exists(f"{REFERENCE}/{name}"):
                commands[f"reference {name}"] = [f"{REFERENCE}/{name}"]
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(RUNS):
            for name, command in commands.items():
                times[name].append(once_ms(command))
    medians = {name: statistics.median(found) for name, found in times.items()}
    rows = [Row(f"{name}, beside `import json`", medians[name], medians["json"], "ms") for name in PLUGINS]
    rows += [
        Row(f"{kind}{name}, beside the reference's", medians[f"{kind}{name}"], medians[f"reference {name}"], "ms", bar)
        for name in PLUGINS
        for kind, bar in (("", 5), ("native ", 0.5))
        if f"reference {name}" in medians
    ]
    return rows
