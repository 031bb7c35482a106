"""The long run: soaks one after the other until the time is up. `make soak MINUTES=60` calls it.

run.py --minutes 60 [--seed 1] [--jobs 4] [--shorten 300] [--steps '[(…)]']
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import secrets
import sys
import time
from collections import Counter
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).parent
sys.path += [str(HERE.parent / "harness"), str(HERE.parent / "faults")]

import soak_hunt  # noqa: E402
from stage import preload  # noqa: E402
from steps import read  # noqa: E402

from cnimeta.agent import native  # noqa: E402

ROUND = 8000
"""Steps drawn for one node before the next is made; a third of them make no sense when their turn comes."""


class Sum(NamedTuple):
    """What was served, by kind of step and by verb and answer; and how many soaks found something."""

    kinds: Counter[str]
    codes: Counter[str]
    failed: int


def one(job: int, seed: str, until: float, shorten_s: float) -> Sum:
    """Soaks until then."""
    number = failed = 0
    kinds: Counter[str] = Counter()
    codes: Counter[str] = Counter()
    while time.monotonic() < until:
        number += 1
        name = f"{seed}-{job}-{number}"
        report = soak_hunt.run(soak_hunt.seeded(name, ROUND), until - time.monotonic())
        kinds.update(report.kinds)
        codes.update(report.codes)
        print(f"{time.strftime('%H:%M')} {name}: {report.served} steps, {kinds.total()} of this job", flush=True)
        if report.finding:
            failed += 1
            print(f"{name}, step {len(report.failed)}: {report.finding}", flush=True)
            if shorten_s:
                print(soak_hunt.told(name, report, shorten_s), flush=True)
    return Sum(kinds, codes, failed)


def main() -> int:
    """0 when nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", default=str(secrets.randbelow(10**6)))
    parser.add_argument("--jobs", type=int, default=2 * (os.cpu_count() or 1), help="nodes at once (%(default)s)")
    parser.add_argument("--shorten", type=float, default=300, metavar="SECONDS", help="for each finding (%(default)s)")
    parser.add_argument("--steps", default="")
    options = parser.parse_args()
    if options.steps:
        report = soak_hunt.run(read(options.steps), 600)
        print(report.finding or "nothing found")
        return bool(report.finding)
    preload()
    native.program()
    until = time.monotonic() + options.minutes * 60
    with multiprocessing.get_context("fork").Pool(options.jobs) as pool:
        jobs = [(job, options.seed, until, options.shorten) for job in range(options.jobs)]
        found = pool.starmap(one, jobs)
    for what in ("kinds", "codes"):
        counts = sum((getattr(each, what) for each in found), Counter())
        print(", ".join(f"{name} {count}" for name, count in sorted(counts.items())))
    failed = sum(each.failed for each in found)
    print(f"seed {options.seed}: {sum(each.kinds.total() for each in found)} steps, {failed} findings")
    return bool(failed)


if __name__ == "__main__":
    sys.exit(main())
