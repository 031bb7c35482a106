"""`make bench`: run every benchmark and write docs/benchmarks.md.

A benchmark is a module of SECTIONS with `TITLE`, `NOTE` (what is measured and how, one paragraph) and `measure() ->
list[Row]`; one with a table of its own has `section() -> str`. Each section is kept in build/bench as soon as it is
measured, with its date and load, and the page is made of them: `benchmarks.py NAME …` measures some of them anew, and
RESUME=1 only those that are missing. QUICK=1: few runs of small sizes into build/bench-quick, to see that all works.
"""

from __future__ import annotations

import datetime as dt
import importlib
import os
import platform
import sys
import time
from pathlib import Path

from common import BUILT, QUICK, ROOT, Row, reference

SECTIONS = ("speed", "where", "sizes", "path", "hostport_alloc", "state", "bandwidth", "startup")
DOCUMENT = BUILT / "benchmarks.md" if QUICK else ROOT / "docs" / "benchmarks.md"
HEAD = """# Benchmarks

What the plugins cost a node, measured beside the reference plugins of the CNI project (written in Go) on one machine,
by `make bench`: {machine}. The reference is release {reference}.

How to read it:

- A *ratio* is our time divided by the reference's in the same row: 0.1 x is a tenth, 2 x is twice as long.
- A *bar* is what the project asks of itself; where a ratio is above its bar, that is work to be done.
- Times are of whole processes, from start to end, as a runtime sees them; where it says so, processor time alone.
- A namespace is made for each measurement; the machine's own network is not touched.
- Each section says when it was measured, and the machine's load average before and after: on {cpus} processors, times
  on the clock say little when that is much above {cpus}.
"""


def machine() -> str:
    """The machine in one line, without anything that names it."""
    cpus = len(os.sched_getaffinity(0))
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    return f"{cpus} CPUs ({platform.machine()}), {memory_gib:.0f} GiB, {system}, Python {platform.python_version()}"


def section(name: str) -> str:
    """One benchmark's part of the document, with when it was measured under its heading."""
    module = importlib.import_module(name)
    print(f"{name} ...", end=" ", flush=True)
    started, load = time.monotonic(), os.getloadavg()[0]
    text = module.section() if hasattr(module, "section") else table(module.TITLE, module.NOTE, module.measure())
    took_s = time.monotonic() - started
    print(f"{took_s:.0f} s")
    heading, _, rest = text.partition("\n")
    now, loads = dt.datetime.now(tz=dt.UTC), f"{load:.1f} before, {os.getloadavg()[0]:.1f} after"
    said = f"Measured {now:%Y-%m-%d %H:%M} UTC in {took_s:.0f} s, load average {loads}."
    return f"{heading}\n\n*{said}*\n{rest}"


def table(title: str, note: str, rows: list[Row]) -> str:
    """Rows beside the reference, or beside our own figure in another case."""
    lines = [
        f"## {title}",
        "",
        note.strip(),
        "",
        "| what | cnimeta | reference | ratio | bar |",
        "|---|---|---|---|---|",
    ]
    for row in rows:
        beside = "" if row.reference is None else f"{row.reference:,.1f} {row.unit}"
        ratio = "" if not row.reference or row.unit == "%" else f"{row.ours / row.reference:.2g} x"
        unit = "x" if row.reference else row.unit
        bar = "" if row.bar is None else f"{row.bar:g} {unit}"
        lines.append(f"| {row.what} | {row.ours:,.1f} {row.unit} | {beside} | {ratio} | {bar} |")
    return "\n".join(lines) + "\n"


def main() -> int:
    """Run the benchmarks named on the command line, or all of them; write the page from all that are measured."""
    unknown = set(sys.argv[1:]) - set(SECTIONS)
    if unknown:
        print(f"no such benchmark: {', '.join(sorted(unknown))} (there are {', '.join(SECTIONS)})", file=sys.stderr)
        return 2
    sys.path.insert(0, str(Path(__file__).parent))
    BUILT.mkdir(parents=True, exist_ok=True)
    kept = {name: BUILT / f"{name}.md" for name in SECTIONS}
    resumed = os.environ.get("RESUME") == "1"
    for name in sys.argv[1:] or [name for name in SECTIONS if not (resumed and kept[name].exists())]:
        kept[name].write_text(section(name), encoding="utf-8")
    there = [path.read_text(encoding="utf-8") for path in kept.values() if path.exists()]
    cpus = len(os.sched_getaffinity(0))
    head = HEAD.format(machine=machine(), reference=reference(), cpus=cpus)
    text = "\n".join([head, *there])
    if len(there) == len(kept):
        DOCUMENT.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
