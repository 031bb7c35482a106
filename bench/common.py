"""What the benchmarks share: how often, beside whom, where pictures go, and one process timed."""

from __future__ import annotations

import os
import re
import resource
import statistics
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cnimeta.testing.netns import Namespace

ROOT = Path(__file__).parents[1]
QUICK = os.environ.get("QUICK") == "1"
RUNS = int(os.environ.get("CNIMETA_BENCH_RUNS", "3" if QUICK else "31"))
"""Of each kind; what takes seconds is run less often."""
REFERENCE = os.environ.get("CNIMETA_REFERENCE", "/usr/lib/cni")
"""The folder of the reference plugins. Other releases than Debian's are compiled from upstream's source."""
BUILT = ROOT / "build" / ("bench-quick" if QUICK else "bench")
PICTURES = BUILT / "pictures" if QUICK else ROOT / "docs" / "pictures"
PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class Row(NamedTuple):
    """One line: what was measured, ours and the reference's figure (None: there is no reference), and the unit.

    bar: what the project asks of itself, as a ratio to the reference; of our own figure where there is no reference.
    """

    what: str
    ours: float
    reference: float | None
    unit: str
    bar: float | None = None


class Spent(NamedTuple):
    """One run: on the clock, and of the processors by the process and all it waited for."""

    wall_ms: float
    cpu_ms: float


def spent(argv: Sequence[str], environ: Mapping[str, str], stdin: bytes = b"", node: Namespace | None = None) -> Spent:
    """One process, in a namespace. Raises SystemExit when it fails."""
    if node is not None:
        with node.entered():
            return spent(argv, environ, stdin)
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    done = subprocess.run(argv, env=environ, input=stdin, capture_output=True, check=False)
    wall_s, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{' '.join(argv)}: {(done.stdout + done.stderr).decode('utf-8', 'replace')[-2000:]}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Spent(wall_s * 1000, cpu_s * 1000)


def middle(times: Iterable[Spent]) -> Spent:
    """The medians."""
    walls, cpus = zip(*times, strict=True)
    return Spent(statistics.median(walls), statistics.median(cpus))


def reference() -> str:
    """Which release the reference is, in its own words."""
    done = subprocess.run([f"{REFERENCE}/portmap"], env={}, capture_output=True, check=False)
    found = re.search(r"plugin v(\d+\.\d+\.\d+)", (done.stdout + done.stderr).decode("utf-8", "replace"))
    made = "Debian's" if REFERENCE == "/usr/lib/cni" else "compiled from upstream's source"
    release = found[1] if found else _packaged()
    return f"{release} ({made})"


def _packaged() -> str:
    words = ["dpkg-query", "-W", "-f", "${Version}", "containernetworking-plugins"]
    done = subprocess.run(words, capture_output=True, text=True, check=False)
    return done.stdout.partition("+")[0] or "of unknown version"
