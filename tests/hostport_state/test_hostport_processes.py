"""Hundreds of processes at once on a real folder: no port twice, no error that none deserves, nobody starves."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hostport_state_driver import open_store

pytestmark = pytest.mark.crash

DRIVER = os.path.join(os.path.dirname(__file__), "hostport_state_driver.py")


def race(folder, processes: int, count: int, ports: str, churn: int = 0) -> list[dict]:
    done = subprocess.run(
        [sys.executable, "-I", "-B", DRIVER, *map(str, (folder, processes, count, ports, churn))],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"]},
    )
    assert done.returncode == 0, done.stderr
    answers = json.loads(done.stdout)
    assert [line for answer in answers for line in answer["log"]] == []
    print(f"slowest of {processes}: {max(answer['seconds'] for answer in answers):.2f} s")
    return answers


def test_no_port_is_given_twice_when_hundreds_of_processes_add_at_once(tmp_path):
    answers = race(tmp_path / "state", 250, 2, "20000-20599")
    ports = [port for answer in answers for port in answer["ports"]]
    assert [answer["error"] for answer in answers if answer["error"]] == []
    assert len(ports) == len(set(ports)) == 500
    assert open_store(str(tmp_path / "state")).problems() == []


def test_exactly_one_add_fails_and_takes_nothing_when_one_port_is_missing(tmp_path):
    answers = race(tmp_path / "state", 200, 2, "20000-20398")
    ports = [port for answer in answers for port in answer["ports"]]
    failed = [answer for answer in answers if answer["error"]]
    assert len(failed) == 1
    assert failed[0]["error"][0] == 11
    assert "398 used" in failed[0]["error"][1]
    assert failed[0]["ports"] == []
    assert len(ports) == len(set(ports)) == 398
    assert open_store(str(tmp_path / "state")).problems() == []


def test_nothing_is_lost_or_shared_when_adds_and_dels_are_mixed(tmp_path):
    answers = race(tmp_path / "state", 100, 1, "20000-20149", churn=4)
    ports = [port for answer in answers for port in answer["ports"]]
    assert [answer["error"] for answer in answers if answer["error"]] == []
    assert len(ports) == len(set(ports)) == 100
    store = open_store(str(tmp_path / "state"))
    assert store.problems() == []
    assert sum(bits.bit_count() for bits in store.occupancy().used.values()) == 100


def test_nobody_waits_for_long_when_others_never_pause(tmp_path):
    """Each of 24 processes makes 40 ADDs and DELs without a pause; whoever waits gets its turn."""
    answers = race(tmp_path / "state", 24, 1, "20000-20149", churn=40)
    assert [answer["error"] for answer in answers if answer["error"]] == []
    times = sorted(answer["seconds"] for answer in answers)
    assert times[-1] < 30
