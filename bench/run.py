"""`make bench`: run every benchmark of this folder and write docs/benchmarks.md.

A benchmark is a module `bench/<name>.py` with `TITLE`, `NOTE` (how it is measured, one paragraph) and
`measure() -> list[Row]`; rows with a `reference` get a ratio. One with a table of its own has `section() -> str`. All
figures of one document come from one run.
"""

from __future__ import annotations

import datetime as dt
import importlib
import os
import platform
import sys
import time
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
DOCUMENT = HERE.parent / "docs" / "benchmarks.md"


class Row(NamedTuple):
    """One line: what was measured, ours and the reference's figure (None: there is no reference), and the unit."""

    what: str
    ours: float
    reference: float | None
    unit: str


def machine() -> str:
    """The machine in one line, without anything that names it."""
    cpus = len(os.sched_getaffinity(0))
    memory_gib = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    system = f"{platform.system()} {platform.release().split('-')[0]}"
    return f"{cpus} CPUs ({platform.machine()}), {memory_gib:.0f} GiB, {system}, Python {platform.python_version()}"


def section(name: str) -> str:
    """One benchmark's part of the document."""
    module = importlib.import_module(name)
    print(f"{name} ...", end=" ", flush=True)
    started = time.monotonic()
    if hasattr(module, "section"):
        text: str = module.section()
        print(f"{time.monotonic() - started:.0f} s")
        return text
    rows = module.measure()
    print(f"{time.monotonic() - started:.0f} s")
    lines = [
        f"## {module.TITLE}",
        "",
        module.NOTE.strip(),
        "",
        "| what | cnimeta | reference | ratio |",
        "|---|---|---|---|",
    ]
    for row in rows:
        reference = "" if row.reference is None else f"{row.reference:,.1f} {row.unit}"
        ratio = "" if not row.reference else f"{row.ours / row.reference:.2f}"
        lines.append(f"| {row.what} | {row.ours:,.1f} {row.unit} | {reference} | {ratio} |")
    return "\n".join(lines) + "\n"


def _is_benchmark(path: Path) -> bool:
    text = path.read_text(encoding="utf-8")
    return path.name != "run.py" and any(f"\ndef {word}(" in text for word in ("measure", "section"))


def main() -> int:
    """Run the benchmarks named on the command line, or all of them."""
    sys.path.insert(0, str(HERE))
    sys.modules["run"] = sys.modules["__main__"]  # so that benchmarks get this very Row
    found = sorted(path.stem for path in HERE.glob("*.py") if _is_benchmark(path))
    names = sys.argv[1:] or found
    today = dt.datetime.now(tz=dt.UTC).date()
    head = f"# Benchmarks\n\nWritten by `make bench`, all figures from one run ({today}): {machine()}.\n"
    head += "Ratios below 1 are in our favour where less is better.\n"
    text = "\n".join([head, *(section(name) for name in names)])
    if not sys.argv[1:]:
        DOCUMENT.write_text(text, encoding="utf-8")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
