"""`cnimeta agent` on a socket of its own, for tests and measurements."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from cnimeta.agent.wire import VARIABLE
from cnimeta.observe import notes

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path


class RunningAgent:
    """An agent with its socket under `folder`; launchers installed with `agent=True` find it by `environ`.

    `interpreter`: of another installation of cnimeta than the one that runs the tests. `under`: a command that runs it.
    What it says on stderr is in `log`; what invocations report is in `observed`.
    """

    def __init__(
        self, folder: Path, *options: str, interpreter: str = sys.executable, under: Sequence[str] = ()
    ) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.socket = str(folder / "run" / "agent.sock")
        self.observed = str(folder / "observed")
        self.environ = {VARIABLE: self.socket, notes.VARIABLE: self.observed}
        self.log = folder / "agent.log"
        words = ["-P", "-m", "cnimeta.cli.main", "agent", "--socket", self.socket, *(options or ("--deliver", "0"))]
        with open(self.log, "ab") as log:
            environ = {**os.environ, notes.VARIABLE: self.observed}
            self.process = subprocess.Popen([*under, interpreter, *words], stderr=log, env=environ)
        eventually(lambda: os.path.exists(self.socket))

    def children(self) -> list[int]:
        """The processes that serve an invocation now, or do something else than wait for one."""
        return [pid for pid in self.workers() if not _waits(pid)]

    def workers(self) -> list[int]:
        """The processes that serve invocations, or wait for one."""
        return [pid for pid in self.processes() if not self._watches(pid)]

    def _watches(self, pid: int) -> bool:
        """Whether it is the one that adds up reports: it holds their lock."""
        try:
            return os.path.join(self.observed, "lock") in _open_files(pid)
        except OSError:
            return False

    def processes(self) -> list[int]:
        """All beside the agent itself."""
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children", encoding="ascii") as file:
            return [int(word) for word in file.read().split()]

    def close(self) -> None:
        """End it; AssertionError when it does not end well."""
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        assert self.process.wait(20) == 0
        assert not os.path.exists(self.socket)


def forbid_working_alone(launcher: Path) -> None:
    """Have a launcher of agents, native or not, fail when the agent does not serve it."""
    content = launcher.read_bytes()
    start = b"from cnimeta.plugin.dispatch import start"
    assert b"hand_over" in content
    assert start in content
    launcher.write_bytes(content.replace(start, b"raise SystemExit('served by no agent')".ljust(len(start))))


def _waits(pid: int) -> bool:
    """Whether a worker still has what it waits with, or has just ended."""
    try:
        return "anon_inode:[eventpoll]" in _open_files(pid)
    except OSError:
        return True


def _open_files(pid: int) -> list[str]:
    folder = f"/proc/{pid}/fd"
    return [os.readlink(f"{folder}/{name}") for name in os.listdir(folder)]


def eventually(true: Callable[[], object], seconds: float = 20) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)
