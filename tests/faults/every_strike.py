"""Every strike of every setting, once; `make faults` calls it. An interrupted run goes on where it was.

every_strike.py [--setting NAME …] [--jobs N] [--notes FILE] [--seed N]

A line in the notes for each strike. They are of one state of the code: another one begins anew.
"""

from __future__ import annotations

import argparse
import collections
import functools
import hashlib
import json
import multiprocessing
import os
import random
import sys
import time
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
sys.path[:0] = [str(HERE), str(HERE.parent / "harness")]

from fault_settings import SETTINGS, VERBS  # noqa: E402
from sandbox import Failed, inside  # noqa: E402
from stage import preload  # noqa: E402
from strikes import Attack  # noqa: E402

from cnimeta.plugin.registry import installed  # noqa: E402

LIMIT_S = 12 * 3600


def code() -> str:
    """A digest of the code that is struck."""
    found = hashlib.sha256()
    for folder in ("cnimeta", "plugins"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            found.update(path.read_bytes())
    return found.hexdigest()[:16]


def done(notes: Path) -> list[dict]:
    """What the notes have of this code."""
    found = []
    if notes.exists():
        for line in notes.read_text(encoding="utf-8").splitlines():
            try:
                note = json.loads(line)
            except ValueError:  # cut off by the end of the run that wrote it
                continue
            if note["code"] == code():
                found.append(note)
    return found


def attack(name: str, verb: str, notes: str, skipped: set[str]) -> int:
    """Strikes on one verb of one setting, noted one by one; how many there are, with those from earlier."""
    made = Attack(SETTINGS[name], installed(), 0, name)  # no sample
    every = made.strikes(verb)
    own = {"code": code(), "setting": name, "verb": verb}
    with open(notes, "a", encoding="utf-8", buffering=1) as file:
        seen = 0
        for strike in made.taken([strike for strike in every if str(strike) not in skipped]):
            file.write(json.dumps({**own, "strike": str(strike), "findings": made.findings[seen:]}) + "\n")
            seen = len(made.findings)
        file.write(
            json.dumps({**own, "answers": made.answers, "of": len(every), "findings": made.findings[seen:]}) + "\n"
        )
    return len(every)


def job(task: tuple[str, str], notes: str) -> str:
    """One verb of one setting; what went wrong with the run itself, if anything."""
    name, verb = task
    skipped = {note["strike"] for note in done(Path(notes)) if note["setting"] == name and "strike" in note}
    try:
        number = inside(functools.partial(attack, name, verb, notes, skipped), LIMIT_S)
    except Failed as error:
        return f"{name}, {verb}: {error}"
    print(f"{time.strftime('%H:%M:%S')} {name}, {verb}: {number} strikes", flush=True)
    return ""


def main() -> int:
    """0 when every strike was made and nothing found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--setting", action="append", choices=list(SETTINGS), help="only this one; can be repeated")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--notes", default=str(ROOT / "build" / "faults.jsonl"))
    parser.add_argument("--seed", type=int, default=0, help="of the order")
    options = parser.parse_args()
    Path(options.notes).parent.mkdir(parents=True, exist_ok=True)
    tasks = [(name, verb) for name in options.setting or SETTINGS for verb in VERBS]
    random.Random(options.seed).shuffle(tasks)
    preload()
    with multiprocessing.get_context("fork").Pool(options.jobs, maxtasksperchild=1) as pool:
        broken = [said for said in pool.imap_unordered(functools.partial(job, notes=options.notes), tasks, 1) if said]
    return told(done(Path(options.notes)), broken)


def told(notes: list[dict], broken: list[str]) -> int:
    """Print what there is; 1 where that is not all, or something was found."""
    cases: dict[str, set] = collections.defaultdict(set)
    for note in notes:
        if "strike" in note:
            cases[note["setting"]].add(note["strike"])
    for name, strikes in sorted(cases.items()):
        print(f"{name}: {len(strikes)} strikes")
    found = [f"{note['setting']}: {finding}" for note in notes for finding in note["findings"]]
    print(f"{sum(map(len, cases.values()))} strikes in all, {len(found)} findings")
    print(*found, *broken, sep="\n")
    return bool(found or broken)


if __name__ == "__main__":
    sys.exit(main())
