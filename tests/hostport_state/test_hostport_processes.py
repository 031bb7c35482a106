"""Real processes on a real folder: killed at every system call that matters, and hundreds at once."""

from __future__ import annotations

import collections
import json
import os
import re
import stat
import subprocess
import sys

import pytest
from hostport_state_driver import command, demand, key, open_store

from cnimeta.host.files import PosixFiles
from cnimeta_plugins.hostport_alloc.state import index as state
from cnimeta_plugins.hostport_alloc.state.layout import Layout
from cnimeta_plugins.hostport_alloc.state.record import Record

pytestmark = pytest.mark.crash

DRIVER = os.path.join(os.path.dirname(__file__), "hostport_state_driver.py")
SYSCALLS = ("openat", "write", "fsync", "rename", "unlink", "mkdir", "flock")


def driver(*arguments: object, prefix: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [*prefix, sys.executable, "-I", "-B", DRIVER, *map(str, arguments)],
        capture_output=True,
        text=True,
        check=False,
        env={"PATH": os.environ["PATH"]},
    )


def populate(folder: str, verb: str) -> None:
    """Two attachments of others, one released, and the one that the command works on."""
    for container in ("a", "b", "gone"):
        command(folder, "reserve", container)
    command(folder, "release", "gone")
    if verb != "reserve":
        command(folder, "reserve", "target")


def calls_on(folder: str, verb: str, syscall: str, trace: str) -> list[int]:
    """Which of the process's calls of `syscall` (counted from 1) touch the folder."""
    prefix = ("strace", "-f", "-qq", "-y", "-e", f"trace={syscall}", "-o", trace)
    done = driver(folder, verb, "target", prefix=prefix)
    assert done.returncode == 0, done.stderr
    with open(trace, encoding="utf-8", errors="replace") as file:
        lines = [line for line in file if re.search(rf"\b{syscall}\(", line)]
    return [number for number, line in enumerate(lines, 1) if folder in line]


def assert_recovers(folder: str) -> None:
    store = open_store(folder)
    assert store.reserve(Record(*key("next")), demand(1)).record.ports
    assert open_store(folder).disagreements() == ()
    for container in ("a", "b"):
        assert open_store(folder).load(key(container)) is not None
    held = collections.Counter(pair for record in open_store(folder).records() for pair in record.held)
    assert set(held.values()) == {1}
    for record in list(open_store(folder).records()):
        open_store(folder).release(record.key)
    layout = Layout(folder)
    slots = [PosixFiles().read(path) for path in layout.slots]
    newest = max((state.decode(slot or b"") for slot in slots), key=lambda index: index.generation)
    assert not any(newest.bits.values())
    assert os.listdir(layout.records) == []
    assert not os.path.isdir(layout.pending) or os.listdir(layout.pending) == []
    left = set(os.listdir(folder)) - {"hostports.0", "hostports.1", "records", "pending", "lock"}
    assert left <= {".tmp-hostports.0", ".tmp-hostports.1"}, left  # overwritten by the next write


@pytest.mark.parametrize("verb", ["reserve", "update", "release"])
@pytest.mark.parametrize("syscall", SYSCALLS)
def test_next_command_recovers_when_a_process_is_killed_at_a_system_call(tmp_path, verb, syscall):
    folder = str(tmp_path / "dry")
    populate(folder, verb)
    numbers = calls_on(folder, verb, syscall, str(tmp_path / "trace"))
    if syscall not in {"mkdir", "unlink"}:
        assert numbers, "the command never made this call"
    for number in numbers:
        folder = str(tmp_path / f"kill-{number}")
        populate(folder, verb)
        inject = f"inject={syscall}:signal=SIGKILL:when={number}"
        done = driver(folder, verb, "target", prefix=("strace", "-f", "-qq", "-e", f"trace={syscall}", "-e", inject))
        assert done.returncode != 0, f"not killed at {syscall} {number}"
        assert_recovers(folder)


@pytest.mark.parametrize("syscall", ["fsync", "write", "rename", "openat"])
@pytest.mark.parametrize("error", ["EIO", "ENOSPC"])
def test_command_fails_clean_when_a_system_call_fails(tmp_path, syscall, error):
    folder = str(tmp_path / "dry")
    populate(folder, "reserve")
    for number in calls_on(folder, "reserve", syscall, str(tmp_path / "trace")):
        folder = str(tmp_path / f"fail-{number}")
        populate(folder, "reserve")
        inject = f"inject={syscall}:error={error}:when={number}"
        done = driver(
            folder, "reserve", "target", prefix=("strace", "-f", "-qq", "-e", f"trace={syscall}", "-e", inject)
        )
        assert done.returncode != 0
        assert "StateUnusable" in done.stderr
        assert_recovers(folder)


def test_files_are_private_when_made(tmp_path):
    folder = str(tmp_path / "state")
    old = os.umask(0)
    try:
        command(folder, "reserve", "a")
        command(folder, "update", "a")
    finally:
        os.umask(old)
    for path, folders, files in os.walk(folder):
        assert stat.S_IMODE(os.stat(path).st_mode) == 0o700, path
        assert folders or files
        for name in files:
            assert stat.S_IMODE(os.stat(os.path.join(path, name)).st_mode) == 0o600, name


def stress(folder, processes: int, count: int, ports: str, churn: int = 0) -> list[dict]:
    done = driver(folder, "stress", processes, count, ports, churn)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_no_port_is_given_twice_when_hundreds_of_processes_add_at_once(tmp_path):
    answers = stress(tmp_path / "state", 250, 2, "20000-20599")
    ports = [port for answer in answers for port in answer["ports"]]
    assert [answer["error"] for answer in answers if answer["error"]] == []
    assert len(ports) == len(set(ports)) == 500
    assert open_store(str(tmp_path / "state")).disagreements() == ()


def test_exactly_one_add_fails_and_takes_nothing_when_one_port_is_missing(tmp_path):
    answers = stress(tmp_path / "state", 200, 2, "20000-20398")
    ports = [port for answer in answers for port in answer["ports"]]
    failed = [answer for answer in answers if answer["error"]]
    assert len(failed) == 1
    assert failed[0]["error"][0] == 11
    assert "398 used" in failed[0]["error"][1]
    assert failed[0]["ports"] == []
    assert len(ports) == len(set(ports)) == 398
    assert open_store(str(tmp_path / "state")).disagreements() == ()


def test_nothing_is_lost_or_shared_when_adds_and_dels_are_mixed(tmp_path):
    answers = stress(tmp_path / "state", 100, 1, "20000-20149", churn=4)
    ports = [port for answer in answers for port in answer["ports"]]
    assert [answer["error"] for answer in answers if answer["error"]] == []
    assert len(ports) == len(set(ports)) == 100
    store = open_store(str(tmp_path / "state"))
    assert store.disagreements() == ()
    assert sum(bits.bit_count() for bits in store.inspect().used.values()) == 100
