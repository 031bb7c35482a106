"""A short run of the fuzzer, always of the same inputs, and what longer ones found (`make fuzz MINUTES=`)."""

from __future__ import annotations

from pathlib import Path

import fuzz_targets as targets
import fuzzing
import pytest

pytestmark = pytest.mark.unit

FOUND = sorted((Path(__file__).parent / "found").iterdir())
RUNS = 1000


@pytest.mark.parametrize("name", targets.TARGETS)
def test_seeds_are_read_within_their_steps(name: str) -> None:
    target = targets.warmed(targets.TARGETS[name])
    for seed in (*target.seeds, b"", b"\0" * 1000, b"[" * 5000, b"80," * 5000, b"\xff" * 1000):
        targets.bounded(target, seed)


@pytest.mark.parametrize("path", FOUND, ids=lambda path: path.name)
def test_what_was_found_is_mended(path: Path) -> None:
    target = targets.warmed(targets.TARGETS[path.name.partition("-")[0]])
    targets.bounded(target, path.read_bytes())


def test_steps_of_an_input_are_counted() -> None:
    target = targets.Target(lambda data: [len(data) for _ in range(len(data) ** 2)] and None, [])
    targets.bounded(target, b"x" * 10)
    with pytest.raises(targets.TooManySteps):
        targets.bounded(target, b"x" * 2000)


def test_no_input_breaks_a_target_when_some_are_drawn(tmp_path: Path) -> None:
    found = fuzzing.fuzz("every", tmp_path / "corpus", f"-runs={RUNS}", "-seed=1")
    assert found.finding == "", found.crash and found.crash.read_bytes()
    assert found.inputs >= RUNS
    assert found.covered > 500
