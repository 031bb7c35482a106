"""A helper answers, or it is ended in time; it holds nothing of its parent's and does not outlive it."""

from __future__ import annotations

import fcntl
import os
import select
import time
from typing import TYPE_CHECKING

import pytest

from cnimeta.host.helper import Helper, HelperFailed, HelperTooSlow

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.unit


def counting() -> Callable[[bytes], bytes]:
    """Says how often it was asked, and by which process; does what the request asks for."""
    times = 0

    def serve(request: bytes) -> bytes:
        nonlocal times
        times += 1
        if request == b"hang":
            time.sleep(60)
        if request == b"end":
            os._exit(0)
        if request == b"raise":
            raise ValueError("told to nobody")
        if request == b"swell":
            return bytes(1 << 30)
        if request == b"files":
            return " ".join(os.listdir("/proc/self/fd")).encode()
        return f"{times} {os.getpid()} {len(request)}".encode()

    return serve


def is_there(pid: int) -> bool:
    return os.path.exists(f"/proc/{pid}")


def test_one_process_answers_until_it_is_closed() -> None:
    helper = Helper(counting, 1000)
    times, pid, size = helper.ask(b"x" * 300_000, 5).split()
    assert (times, size) == (b"1", b"300000")
    assert helper.ask(b"", 5).split()[:2] == [b"2", pid]
    helper.close()
    assert not is_there(int(pid))
    assert helper.ask(b"", 5).split()[0] == b"1"
    helper.close()


@pytest.mark.parametrize(
    ("request_", "error"),
    [(b"hang", HelperTooSlow), (b"end", HelperFailed), (b"raise", HelperFailed), (b"swell", HelperFailed)],
)
def test_failure_ends_it_and_the_next_request_has_another(request_: bytes, error: type[HelperFailed]) -> None:
    helper = Helper(counting, 1000)
    pid = int(helper.ask(b"", 5).split()[1])
    with pytest.raises(HelperFailed) as caught:
        helper.ask(request_, 0.3 if request_ == b"hang" else 10)
    assert type(caught.value) is error
    assert "told" not in str(caught.value)
    assert not is_there(pid)
    assert helper.ask(b"", 5).split()[0] == b"1"
    helper.close()


def test_answer_has_a_size_limit() -> None:
    helper = Helper(lambda: lambda request: bytes(int(request)), 1000)
    assert len(helper.ask(b"1000", 5)) == 1000
    with pytest.raises(HelperFailed, match="longer than 1000 bytes"):
        helper.ask(b"1001", 5)


def test_it_has_none_of_its_parents_descriptors(tmp_path: Path) -> None:
    with open(tmp_path / "lock", "wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        helper = Helper(counting, 1000)
        assert sorted(map(int, helper.ask(b"files", 5).split()))[:3] == [0, 1, 2]
        assert len(helper.ask(b"files", 5).split()) == 6  # its line, its lifeline, and the folder it lists
    with open(tmp_path / "lock", "wb") as again:
        fcntl.flock(again, fcntl.LOCK_EX | fcntl.LOCK_NB)
    helper.close()


def test_it_ends_with_its_parent() -> None:
    ours, theirs = os.pipe()
    parent = os.fork()
    if parent == 0:
        try:
            helper = Helper(counting, 1000)
            os.write(theirs, helper.ask(b"", 5).split()[1])
            helper.ask(b"hang", 60)
        finally:
            os._exit(1)
    os.close(theirs)
    pid = int(os.read(ours, 20))
    os.close(ours)
    watch = os.pidfd_open(pid)
    os.kill(parent, 9)
    os.waitpid(parent, 0)
    assert select.select([watch], [], [], 10)[0]
    os.close(watch)
