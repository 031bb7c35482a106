"""The long run: soaks one after the other until the time is up. `make soak MINUTES=60` calls it.

run.py --minutes 60 [--seed 1] [--jobs 2] [--steps '[(…)]']
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import secrets
import sys
import time
from pathlib import Path

HERE = Path(__file__).parent
sys.path += [str(HERE.parent / "harness"), str(HERE.parent / "faults")]

import soak_hunt  # noqa: E402
from steps import read  # noqa: E402

ROUND = 5000
"""Steps on one node before the next is made."""


def one(job: int, seed: str, until: float) -> int:
    """Soaks until then; how many found something."""
    number = served = failed = 0
    while time.monotonic() < until:
        number += 1
        name = f"{seed}-{job}-{number}"
        report = soak_hunt.run(soak_hunt.seeded(name, ROUND), until - time.monotonic())
        served += report.served
        print(f"{name}: {report.served} steps, {dict(sorted(report.codes.items()))}", flush=True)
        if report.finding:
            failed += 1
            print(f"{name}, step {len(report.failed)}: {report.finding}", flush=True)
            print(soak_hunt.told(name, report), flush=True)
    print(f"job {job}: {served} steps, {failed} findings", flush=True)
    return failed


def main() -> int:
    """0 when nothing was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--seed", default=str(secrets.randbelow(10**6)))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--steps", default="")
    options = parser.parse_args()
    if options.steps:
        report = soak_hunt.run(read(options.steps), 600)
        print(report.finding or "nothing found")
        return bool(report.finding)
    until = time.monotonic() + options.minutes * 60
    with multiprocessing.get_context("fork").Pool(options.jobs) as pool:
        found = pool.starmap(one, [(job, options.seed, until) for job in range(options.jobs)])
    return bool(sum(found))


if __name__ == "__main__":
    sys.exit(main())
