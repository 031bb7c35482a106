"""`cnimeta agent` on a socket of its own, for tests and measurements."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from cnimeta.agent.wire import VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path


class RunningAgent:
    """An agent with its socket under `folder`; launchers installed with `agent=True` find it by `environ`.

    `interpreter`: of another installation of cnimeta than the one that runs the tests.
    """

    def __init__(self, folder: Path, *options: str, interpreter: str = sys.executable) -> None:
        self.socket = str(folder / "run" / "agent.sock")
        self.environ = {VARIABLE: self.socket}
        words = ["-m", "cnimeta.cli.main", "agent", "--socket", self.socket, *(options or ("--deliver", "0"))]
        self.process = subprocess.Popen([interpreter, *words])
        eventually(lambda: os.path.exists(self.socket))

    def children(self) -> list[int]:
        """The processes that serve an invocation now, or do something else than wait for one."""
        with open(f"/proc/{self.process.pid}/task/{self.process.pid}/children", encoding="ascii") as file:
            return [pid for pid in map(int, file.read().split()) if not _waits(pid)]

    def close(self) -> None:
        """End it; AssertionError when it does not end well."""
        self.process.send_signal(signal.SIGCONT)
        self.process.terminate()
        assert self.process.wait(20) == 0
        assert not os.path.exists(self.socket)


def _waits(pid: int) -> bool:
    """Whether a worker still has what it waits with, or has just ended."""
    folder = f"/proc/{pid}/fd"
    try:
        return any(os.readlink(f"{folder}/{name}") == "anon_inode:[eventpoll]" for name in os.listdir(folder))
    except OSError:
        return True


def eventually(true: Callable[[], object], seconds: float = 20) -> None:
    """Wait until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)
