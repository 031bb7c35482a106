"""Running host programs: bytes in and out, ends of every kind, deadlines."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

import pytest

from cnimeta.errors import IoFailure, TryAgainLater
from cnimeta.host.process import TooMuch, TooSlow, run, run_program
from cnimeta.host.values import Completed

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit

ENVIRON = {"PATH": os.environ["PATH"]}


def shell(text: str) -> list[str]:
    return ["/bin/sh", "-c", text]


def descriptors() -> set[str]:
    return set(os.listdir("/proc/self/fd"))


def children() -> set[str]:
    found = set()
    for task in os.listdir("/proc/self/task"):
        with open(f"/proc/self/task/{task}/children", encoding="ascii") as file:
            found |= set(file.read().split())
    return found


def test_streams_and_status_are_kept_apart() -> None:
    before = descriptors()
    done = run_program(shell("cat; echo complaint >&2; exit 3"), ENVIRON, b"given")
    assert done == Completed(3, b"given", b"complaint\n")
    assert done.complaint == "complaint"
    assert Completed(3, b"").complaint == "exit status 3"
    assert run_program(shell("kill -KILL $$"), ENVIRON).status == 137
    assert descriptors() <= before


def test_large_streams_do_not_block_each_other() -> None:
    done = run_program(
        shell("head -c 500000 /dev/zero; head -c 500000 /dev/zero >&2; cat"), ENVIRON, b"x" * 500_000, 20
    )
    assert (len(done.stdout), len(done.stderr)) == (1_000_000, 500_000)


def test_input_that_nobody_reads_is_no_error() -> None:
    assert run_program(shell("exec <&-; echo done"), ENVIRON, b"x" * 500_000, 20) == Completed(0, b"done\n")


@pytest.mark.parametrize("text", ["sleep 60", "exec >&- 2>&-; sleep 60", "while :; do echo x; done"])
def test_program_is_killed_at_its_deadline(text: str) -> None:
    before, known, started = descriptors(), children(), time.monotonic()
    with pytest.raises(TryAgainLater, match=r'"/bin/sh" did not answer within 0\.3 s') as caught:
        run_program(shell(f"exec sh -c '{text}'"), ENVIRON, b"", 0.3)
    assert caught.value.code == 11
    assert time.monotonic() - started < 5
    assert descriptors() <= before
    assert children() <= known


def test_program_is_killed_when_it_writes_too_much() -> None:
    before = descriptors()
    with pytest.raises(TooMuch, match="more than 1000 bytes"):
        run(shell("exec cat /dev/zero"), ENVIRON, b"", 20, most_bytes=1000)
    assert run(shell("head -c 1000 /dev/zero"), ENVIRON, b"", 20, most_bytes=1000) == Completed(0, bytes(1000))
    with pytest.raises(TooSlow):
        run(shell("exec sleep 60"), ENVIRON, b"", 0)
    assert descriptors() <= before


def test_program_that_cannot_start_is_an_error_that_names_it(tmp_path: Path) -> None:
    before = descriptors()
    for path, words in ((str(tmp_path / "none"), "No such file"), (str(tmp_path), "Permission denied")):
        with pytest.raises(IoFailure, match=f"failed to run .*{path}.*{words}"):
            run_program([path], ENVIRON)
    assert descriptors() <= before
