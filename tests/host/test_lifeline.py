"""Children that die with their parent, and what they have started with them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

import pytest

from cnimeta.errors import TryAgainLater
from cnimeta.host.iptables.legacy import DONE, run_in_child
from cnimeta.host.lock import NodeLock
from cnimeta.host.process import run, run_program

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.unit

ENVIRON = {"PATH": os.environ["PATH"]}
PARENT = (
    "import sys; from cnimeta.host.process import run_program; run_program(sys.argv[1:], {'PATH': '/usr/bin:/bin'})"
)
FORKING = """
import os, sys, time
from cnimeta.host.iptables import legacy
legacy.import_iptc = lambda: None
legacy.run_in_child(lambda: (open(sys.argv[1], "w").write(str(os.getpid())), time.sleep(60)))
"""


def is_alive(pid: int) -> bool:
    """Whether it runs; one that nobody has waited for does not."""
    with (
        contextlib.suppress(FileNotFoundError, ProcessLookupError),
        open(f"/proc/{pid}/stat", encoding="ascii") as file,
    ):
        return file.read().rpartition(") ")[2][0] not in "ZX"
    return False


def soon(done: Callable[[], object]) -> bool:
    deadline = time.monotonic() + 10
    while not done():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.005)
    return True


@contextlib.contextmanager
def started(*argv: str) -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, *argv]) as process:
        try:
            yield process
        finally:
            process.kill()


def pids(*files: Path) -> list[int]:
    assert soon(lambda: all(file.exists() and file.read_text().strip() for file in files))
    return [int(file.read_text()) for file in files]


def test_program_and_what_it_started_die_when_the_caller_is_killed(tmp_path: Path) -> None:
    script = f"echo $$ > {tmp_path}/one; sh -c 'echo $$ > {tmp_path}/two; sleep 60' & wait"
    with started("-c", PARENT, "/bin/sh", "-c", script) as caller:
        found = pids(tmp_path / "one", tmp_path / "two")
        assert all(map(is_alive, found))
        caller.kill()
        caller.wait()
        assert soon(lambda: not any(map(is_alive, found)))


def test_program_gets_no_input_when_its_caller_dies_before_it_is_tied(tmp_path: Path) -> None:
    text = PARENT.replace(
        "run_program(sys",
        "__import__('cnimeta.host.process').host.process.Lifeline.tie = "
        "lambda self, child: __import__('os').kill(__import__('os').getpid(), 9); run_program(sys",
    )
    text = text.replace("'/usr/bin:/bin'}", "'/usr/bin:/bin'}, b'x' * 1000")
    with started("-c", text, "/bin/sh", "-c", f"cat > {tmp_path}/a; mv {tmp_path}/a {tmp_path}/got") as caller:
        assert caller.wait() == -signal.SIGKILL
        assert soon((tmp_path / "got").exists)
        assert (tmp_path / "got").read_bytes() == b""


def test_program_never_takes_cut_input_for_whole_when_its_caller_is_killed(tmp_path: Path) -> None:
    """It reads slowly more than a pipe holds; its end of file would be the sign to act."""
    text = PARENT.replace("'/usr/bin:/bin'}", "'/usr/bin:/bin'}, b'x' * (1 << 20)")
    script = f"echo $$ > {tmp_path}/pid; sleep 0.2; [ $(wc -c) = 0 ] || touch {tmp_path}/acted"
    for _ in range(10):
        with started("-c", text, "/bin/sh", "-c", script) as caller:
            found = pids(tmp_path / "pid")
            caller.kill()
            caller.wait()
            assert soon(lambda: not any(map(is_alive, found)))  # noqa: B023 - called at once
        assert not (tmp_path / "acted").exists()
        (tmp_path / "pid").unlink()


def test_what_a_program_left_running_lives_on_when_it_has_ended(tmp_path: Path) -> None:
    """A delegate may leave a daemon behind, as dhcp's does."""
    script = f"sleep 60 > /dev/null 2>&1 & echo $! > {tmp_path}/pid"
    with started("-c", PARENT, "/bin/sh", "-c", script) as caller:
        assert caller.wait() == 0
    (pid,) = pids(tmp_path / "pid")
    time.sleep(0.1)
    assert is_alive(pid)
    os.kill(pid, signal.SIGKILL)


def test_forked_child_dies_when_its_parent_is_killed(tmp_path: Path) -> None:
    with started("-c", FORKING, str(tmp_path / "pid")) as caller:
        found = pids(tmp_path / "pid")
        caller.kill()
        caller.wait()
        assert soon(lambda: not any(map(is_alive, found)))


def test_children_end_as_ever_when_the_parent_lives() -> None:
    before = set(os.listdir("/proc/self/fd"))
    assert run_program(["/bin/sh", "-c", "cat"], ENVIRON, b"given").stdout == b"given"
    assert run_in_child(lambda: None) == (DONE, "")
    assert set(os.listdir("/proc/self/fd")) == before


HOLDING = """
import sys
from cnimeta.host.lock import NodeLock
from cnimeta.host.process import run_program
with NodeLock(sys.argv[1], 10).held():
    run_program(["/bin/sh", "-c", f"setsid sh -c 'echo > {sys.argv[2]}; sleep 1'"], {"PATH": "/usr/bin:/bin"})
"""


@pytest.mark.parametrize("waited", [False, True])
def test_lock_is_held_until_the_last_program_of_a_killed_holder_is_gone(tmp_path: Path, *, waited: bool) -> None:
    """What a killed program has asked of the kernel is carried out before it is gone. Here it escapes for a second.

    A holder that has waited has the lock by filelock.
    """
    path, sign = str(tmp_path / "locks" / "one"), tmp_path / "sign"
    before = NodeLock(path).held()
    if waited:
        before.__enter__()
    with started("-c", HOLDING, path, str(sign)) as holder:
        if waited:
            time.sleep(0.5)
            before.__exit__()
        assert soon(sign.exists)
        holder.kill()
        holder.wait()
        with pytest.raises(TryAgainLater), NodeLock(path, 0).held():
            pass
        with NodeLock(path, 10).held():
            pass


def test_plugin_leaves_no_lock_behind_in_what_it_leaves_running(tmp_path: Path) -> None:
    path = str(tmp_path / "locks" / "one")
    with NodeLock(path).held():
        done = run(["/bin/sh", "-c", "sleep 30 > /dev/null 2>&1 & echo $!"], ENVIRON, b"", 10)
    with NodeLock(path, 0).held():
        os.kill(int(done.stdout), signal.SIGKILL)
