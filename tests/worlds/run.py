"""The long run: worlds until the time is up, what was found, and how many ran. `make worlds MINUTES=60` calls it.

run.py --minutes 60 [--kinds rules,traffic] [--backend nftables] [--seed 1] [--jobs 2]
run.py --world 'World(...)' [--kinds reference]     one world, as a failure prints it
run.py --without 21 --minutes 5                     with one fix taken out: whether, and how soon, worlds find that
"""

from __future__ import annotations

import argparse
import collections
import itertools
import multiprocessing
import os
import secrets
import sys
import time
from typing import TYPE_CHECKING, Any

sys.path.append(os.path.join(os.path.dirname(__file__), os.pardir, "harness"))

from allocating import Allocation
from found import FOUND
from hunt import Hunt, fault_of
from kinds import KINDS
from mutants import MUTANTS, without
from shaping import Shaping
from worlds import BACKENDS, read

if TYPE_CHECKING:
    from multiprocessing.queues import Queue

_ROUND_S = 30
"""How long one kind is looked at before the next has its turn."""


def main() -> int:
    """0 when every law held but for the open faults."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--kinds", default=",".join(KINDS))
    parser.add_argument("--backend", choices=BACKENDS, default="")
    parser.add_argument("--seed", type=int, default=secrets.randbelow(2**31))
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--world", help="run one world and print what is wrong with it")
    parser.add_argument("--without", choices=MUTANTS, help="take one fix out, and stop at what is found")
    options = parser.parse_args()
    if options.world:
        return _one(options.world, options.kinds.split(",")[0])
    print(f"seed {options.seed}, {options.jobs} jobs, {options.minutes:g} minutes", flush=True)
    if options.without:
        with without(options.without):
            _hunt(options)
        return 0
    return _hunt(options)


def _hunt(options: Any) -> int:
    context = multiprocessing.get_context("fork")
    answers: Queue[Hunt] = context.Queue()
    workers = [context.Process(target=_work, args=(options, job, answers)) for job in range(options.jobs)]
    for worker in workers:
        worker.start()
    hunts = [answers.get() for _ in workers]
    for worker in workers:
        worker.join()
    return _report(hunts)


def _one(text: str, kind: str) -> int:
    world = read(text, Allocation, Shaping)
    breaches = KINDS[kind].examine(world)
    for breach in breaches:
        fault = fault_of(world, breach)
        print(f"{breach}" + (f"  (open: {fault})" if fault else ""))
    print(f"{len(breaches)} breaches")
    return bool(breaches)


def _work(options: Any, job: int, answers: Queue[Hunt]) -> None:
    hunt = Hunt(only=next((found for found in FOUND if found.fault == options.without), None))
    end = time.monotonic() + options.minutes * 60
    names = [name for name in options.kinds.split(",") for _ in range(KINDS[name].weight)]
    try:
        for turn in itertools.count(job * len(names) // 2):
            if time.monotonic() >= end:
                break
            kind = KINDS[names[turn % len(names)]]
            known = set(hunt.surprises)
            until = min(end, time.monotonic() + _ROUND_S)
            number = options.seed + 1000 * turn + job
            hunt.search(kind.name, kind.worlds(options.backend), kind.examine, 1000, number, until)
            for outline in set(hunt.surprises) - known:
                print(f"FOUND {hunt.surprises[outline]}", flush=True)
            if options.without and hunt.surprises:
                break
    finally:
        answers.put(hunt)


def _report(hunts: list[Hunt]) -> int:
    examples, seconds, tolerated = (collections.Counter[str]() for _ in range(3))
    surprises = {}
    for hunt in hunts:
        examples += hunt.examples
        seconds += hunt.seconds
        tolerated += hunt.tolerated
        surprises |= hunt.surprises
    for kind, count in examples.most_common():
        print(f"{count:6} {kind} ({count / max(seconds[kind], 0.001):.1f} a second and job)")
    print(f"{sum(examples.values()):6} examples")
    for found in FOUND:
        if found.open:
            print(f"  open fault {found.fault}, met {tolerated[found.fault]} times: {found.about}")
    print(f"{len(surprises)} findings that no open fault explains")
    for surprise in surprises.values():
        print(f"- {surprise}")
    return bool(surprises)


if __name__ == "__main__":
    sys.exit(main())
