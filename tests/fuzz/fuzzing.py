"""Fuzz targets with coverage guidance (atheris, on libFuzzer): `python tests/fuzz/fuzzing.py --minutes 10 [TARGET …]`.

Each target runs in a process of its own with an equal share of the time, 1 GiB of memory, and a corpus that is kept in
`--corpus` from run to run. What is found is printed, shrunk to the input that shows it; put it into
`tests/fuzz/found/TARGET-NAME` when it is mended, and every run of the tests feeds it again.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

HERE = Path(__file__).resolve().parent
_RSS_MB = 1024
_LENGTH_MAX = 4096


class Outcome(NamedTuple):
    """What a run came to: how many inputs, how much of the code they reached, and what was found, if anything."""

    inputs: int
    covered: int
    finding: str
    crash: Path | None


def fuzz(target: str, corpus: Path, *limits: str) -> Outcome:
    """One target, with libFuzzer's own options as limits: `-runs=N`, `-max_total_time=SECONDS`, `-seed=N`."""
    corpus.mkdir(parents=True, exist_ok=True)
    artifacts = corpus / "found-"
    options = [f"-rss_limit_mb={_RSS_MB}", f"-max_len={_LENGTH_MAX}", "-timeout=60", "-print_final_stats=1"]
    command = [sys.executable, __file__, "--target", target, f"-artifact_prefix={artifacts}", *options, *limits]
    done = subprocess.run([*command, str(corpus)], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    crash = next(iter(sorted(corpus.glob("found-*"))), None)
    numbers = re.findall(r"cov: (\d+)", said)
    inputs = re.search(r"number_of_executed_units: (\d+)", said)
    finding = "" if done.returncode == 0 else f"{done.stderr[-1500:]}\n{done.stdout[-4000:]}"
    return Outcome(int(inputs[1]) if inputs else 0, int(numbers[-1]) if numbers else 0, finding, crash)


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--corpus", default=str(HERE.parents[1] / ".fuzz"), help="(%(default)s)")
    parser.add_argument("names", nargs="*", metavar="TARGET")
    args = parser.parse_args()
    from fuzz_targets import TARGETS

    names, wrong = args.names or list(TARGETS), 0
    seconds = max(1, int(60 * args.minutes / len(names)))
    for name in names:
        found = fuzz(name, Path(args.corpus) / name, f"-max_total_time={seconds}")
        print(f"{name}: {found.inputs} inputs, {found.covered} edges{f', FOUND: {found.crash}' * bool(found.finding)}")
        if found.finding:
            wrong += 1
            print(found.finding)
    return 1 if wrong else 0


def _in_target(name: str) -> None:
    """Never returns: libFuzzer ends the process."""
    import atheris

    with atheris.instrument_imports(include=["cnimeta", "cnimeta_plugins"]):
        import fuzz_targets as targets
    target = targets.warmed(targets.EVERY if name == "every" else targets.TARGETS[name])
    folder = Path(sys.argv[-1])
    for number, seed in enumerate(target.seeds):
        (folder / f"seed-{number}").write_bytes(seed)
    words = folder.with_name(f"{folder.name}.words")
    words.write_text(
        "".join('"' + "".join(f"\\x{byte:02x}" for byte in word.encode()) + '"\n' for word in target.words)
    )
    options = [sys.argv[0], f"-dict={words}", *sys.argv[3:]] if target.words else [sys.argv[0], *sys.argv[3:]]
    atheris.Setup(options, target.feed if name == "every" else lambda data: targets.bounded(target, data))
    atheris.Fuzz()


if __name__ == "__main__":
    sys.path.insert(0, str(HERE))
    if sys.argv[1:2] == ["--target"]:
        _in_target(sys.argv[2])
    sys.exit(main())
