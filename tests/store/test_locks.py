"""The locks of attachments, real and in memory, and what only processes and files can show."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import pytest

from cnimeta.errors import StateUnusable, TryAgainLater
from cnimeta.store.locks import STRIPES, AttachmentLocks
from cnimeta.testing.store import FakeLocks

pytestmark = pytest.mark.unit

KEY, OTHER = ("net", "c1", "eth0"), ("net", "c2", "eth0")

HOLDER = """
import sys, time
from cnimeta.store.locks import AttachmentLocks
with AttachmentLocks(sys.argv[1], 5).of(("net", "c1", "eth0")).held():
    print("held", flush=True)
    time.sleep(60)
"""


class Real:
    def __init__(self, folder: str) -> None:
        self.folder = folder
        self.locks = AttachmentLocks(folder, 0.3)
        self.process = None

    def make_busy(self) -> None:
        self.process = subprocess.Popen([sys.executable, "-c", HOLDER, self.folder], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout.readline() == "held\n"

    def let_go(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.communicate()
            self.process = None


class Fake:
    def __init__(self) -> None:
        self.locks = FakeLocks()

    def make_busy(self) -> None:
        self.locks.busy.add(KEY)

    def let_go(self) -> None:
        self.locks.busy.clear()


@pytest.fixture(params=["real", "fake"])
def kind(request, tmp_path):
    found = Real(str(tmp_path / "state" / "locks")) if request.param == "real" else Fake()
    yield found
    found.let_go()


def test_lock_is_had_again_after_it_was_let_go(kind):
    for lock in (kind.locks.of, kind.locks.try_of, kind.locks.of):
        with lock(KEY).held():
            pass


def test_locks_of_two_attachments_are_held_at_once(kind):
    with kind.locks.of(KEY).held(), kind.locks.try_of(OTHER).held():
        pass


def test_lock_is_let_go_when_the_work_fails(kind):
    with pytest.raises(ValueError, match="work"), kind.locks.of(KEY).held():
        raise ValueError("work")
    with kind.locks.try_of(KEY).held():
        pass


@pytest.mark.parametrize("how", ["of", "try_of"])
def test_lock_that_another_command_has_is_code_11(kind, how):
    kind.make_busy()
    with pytest.raises(TryAgainLater) as raised, getattr(kind.locks, how)(KEY).held():
        pytest.fail("held twice")
    assert raised.value.code == 11
    with kind.locks.try_of(OTHER).held():
        pass
    kind.let_go()
    with kind.locks.try_of(KEY).held():
        pass


def test_waiting_lasts_as_long_as_was_said_and_trying_does_not(tmp_path):
    kind = Real(str(tmp_path / "state" / "locks"))
    kind.make_busy()
    try:
        for lock, low, high in ((kind.locks.try_of, 0, 0.25), (kind.locks.of, 0.3, 5)):
            began = time.monotonic()
            with pytest.raises(TryAgainLater), lock(KEY).held():
                pytest.fail("held twice")
            assert low <= time.monotonic() - began < high
    finally:
        kind.let_go()


def test_renamed_network_meets_at_the_same_lock(tmp_path):
    kind = Real(str(tmp_path / "state" / "locks"))
    kind.make_busy()
    try:
        with pytest.raises(TryAgainLater), kind.locks.try_of(("renamed", *KEY[1:])).held():
            pytest.fail("held twice")
    finally:
        kind.let_go()


def test_number_of_files_is_bounded_and_they_stay(tmp_path):
    locks = AttachmentLocks(str(tmp_path / "state" / "locks"), 1)
    for number in range(3000):
        with locks.of(("net", f"c{number}", "eth0")).held():
            pass
    names = set(os.listdir(locks.folder))
    assert 900 < len(names) <= STRIPES
    assert {os.stat(f"{locks.folder}/{name}").st_mode & 0o777 for name in names} == {0o600}


def test_error_is_code_104_when_the_folder_cannot_be_made(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StateUnusable) as raised, AttachmentLocks(str(tmp_path / "file" / "locks"), 1).of(KEY).held():
        pytest.fail("a lock in a file")
    assert raised.value.code == 104


def test_lock_file_that_was_removed_under_its_holder_still_has_one_holder_at_the_path(tmp_path):
    """Whoever waits for a file that is removed meanwhile must look again: it would hold what nobody else can find."""
    kind = Real(str(tmp_path / "state" / "locks"))
    kind.make_busy()
    (name,) = os.listdir(kind.folder)
    waiter = subprocess.Popen([sys.executable, "-c", HOLDER, kind.folder], stdout=subprocess.PIPE, text=True)
    try:
        time.sleep(0.7)  # it waits for the file that is about to be removed
        os.unlink(f"{kind.folder}/{name}")
        kind.let_go()
        assert waiter.stdout.readline() == "held\n"
        with pytest.raises(TryAgainLater), kind.locks.of(KEY).held():
            pytest.fail("held twice")
    finally:
        waiter.kill()
        waiter.communicate()
        kind.let_go()


def test_lock_file_that_is_removed_between_opening_and_locking_has_one_holder(tmp_path):
    folder = str(tmp_path / "state" / "locks")
    with AttachmentLocks(folder, 1).of(KEY).held():
        pass
    (name,) = os.listdir(folder)
    slowed = ("strace", "-qqq", "-f", "-e", "trace=flock", "-e", "inject=flock:delay_enter=1500000:when=1")
    first = subprocess.Popen(
        [*slowed, sys.executable, "-c", HOLDER, folder], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        deadline = time.monotonic() + 20
        while not opened(first.pid, f"{folder}/{name}"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        os.unlink(f"{folder}/{name}")
        assert first.stdout.readline() == "held\n"
        with pytest.raises(TryAgainLater), AttachmentLocks(folder, 0.2).of(KEY).held():
            pytest.fail("held twice")
    finally:
        for child in children(first.pid):
            os.kill(child, 9)
        first.communicate()


def children(process: int) -> list[int]:
    with open(f"/proc/{process}/task/{process}/children", encoding="ascii") as file:
        return [int(child) for child in file.read().split()]


def opened(process: int, path: str) -> bool:
    for child in children(process):
        for number in os.listdir(f"/proc/{child}/fd"):
            try:
                if os.readlink(f"/proc/{child}/fd/{number}") == path:
                    return True
            except OSError:
                continue
    return False
