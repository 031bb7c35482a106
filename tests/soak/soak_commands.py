"""How a soak runs commands: in forks that serve some each, or as launchers that ask an agent. Either can be killed."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import selectors
import signal
import socket
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

from stage import BIN, SYSTEM, environ

from cnimeta.agent.wire import VARIABLE
from cnimeta.plugin.dispatch import run as dispatch
from cnimeta.testing.agent import eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cnimeta.plugin.base import Plugin

NATIVE = "/run/native"
SOCKET = "/run/agent/agent.sock"
LONGEST_S = 180.0
_SERVES = 40
"""Commands of one fork; then another is made."""
_LARGEST = 1 << 20
_LOG = "/run/agent.log"


class Call:
    """What a command is asked: its verb, its container and its configuration."""

    def __init__(self, verb: str, name: str, conf: dict[str, Any]) -> None:
        self.verb, self.name, self.conf = verb, name, conf

    def text(self) -> bytes:
        return json.dumps([self.verb, self.name, self.conf]).encode()


class Forks:
    """Forks of this process, in which nothing has been called yet."""

    def __init__(self, plugin: Callable[[str], Plugin]) -> None:
        self._plugin = plugin
        self._idle: list[_Fork] = []
        gc.collect()
        gc.freeze()  # a fork copies the pages that its collector would write to

    def begin(self, call: Call) -> _Fork:
        """Have a fork begin with it."""
        fork = self._idle.pop() if self._idle else _Fork(self._plugin)
        fork.link.send(call.text())
        return fork

    def give_back(self, fork: _Fork, *, killed: bool = False) -> None:
        """It has answered."""
        if killed or fork.served >= _SERVES:
            fork.end()
        else:
            self._idle.append(fork)

    def renew(self) -> None:
        """What the present ones know of the node is no more so."""
        while self._idle:
            self._idle.pop().end()

    def pids(self) -> set[int]:
        """Those that wait."""
        return {fork.pid for fork in self._idle}


class _Fork:
    """A process that serves one command after the other."""

    by = ""

    def __init__(self, plugin: Callable[[str], Plugin]) -> None:
        self.served = 0
        self.link, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        for end in (self.link, theirs):
            end.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _LARGEST)
        self.pid = os.fork()
        if self.pid == 0:
            try:
                self.link.close()
                os.environ.update(PATH=f"{BIN}:{SYSTEM}")
                while data := theirs.recv(_LARGEST):
                    answer = _served(plugin, *json.loads(data))
                    gc.collect()  # a process of its own would have ended by now, and have nothing open
                    theirs.send(answer)
            finally:
                os._exit(0)
        theirs.close()

    def fileno(self) -> int:
        return self.link.fileno()

    def heard(self) -> bool:
        """Take what is there. True when that is all."""
        self.data = b""
        with contextlib.suppress(ConnectionResetError):  # killed before it had read what it was asked
            self.data = self.link.recv(_LARGEST)
        return True

    def answer(self) -> dict[str, Any] | None:
        """None when it was killed."""
        self.served += 1
        if not self.data:
            self.end()
            return None
        found: dict[str, Any] = json.loads(self.data)
        return found

    def kill(self) -> None:
        os.kill(self.pid, signal.SIGKILL)

    def end(self) -> None:
        self.link.close()  # of which later forks have copies: that alone would not end it
        with contextlib.suppress(ChildProcessError, ProcessLookupError):
            self.kill()
            os.waitpid(self.pid, 0)


def _served(plugin: Callable[[str], Plugin], verb: str, name: str, conf: dict[str, Any]) -> bytes:
    lines: list[str] = []
    try:
        outcome = dispatch(plugin(conf["type"]), environ(verb, name), json.dumps(conf).encode(), lines.append)
        answer = {"status": outcome.status, "stdout": outcome.stdout, "log": lines}
    except BaseException as error:  # noqa: BLE001 - told to the test
        answer = {"status": -1, "stdout": repr(error), "log": lines}
    return json.dumps(answer).encode()


class Launched:
    """A launcher that a runtime would start."""

    by = " by a launcher"

    def __init__(self, call: Call) -> None:
        words = {**environ(call.verb, call.name), VARIABLE: SOCKET}
        self.said = os.memfd_create("stderr")
        self.process = subprocess.Popen(
            [f"{NATIVE}/{call.conf['type']}"],
            env=words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self.said,
        )
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        with contextlib.suppress(BrokenPipeError), self.process.stdin as stdin:
            stdin.write(json.dumps(call.conf).encode())
        self.stdout = self.process.stdout
        self.data = b""

    def fileno(self) -> int:
        return self.stdout.fileno()

    def heard(self) -> bool:
        """As `_Fork.heard`."""
        chunk = os.read(self.fileno(), _LARGEST)
        self.data += chunk
        return not chunk

    def answer(self) -> dict[str, Any] | None:
        """As `_Fork.answer`."""
        status = self.process.wait()
        self.stdout.close()
        lines = os.pread(self.said, _LARGEST, 0).decode("utf-8", "replace").splitlines()
        os.close(self.said)
        if status == -signal.SIGKILL:
            return None
        return {"status": status, "stdout": self.data.decode("utf-8", "replace"), "log": lines}

    def kill(self) -> None:
        self.process.kill()


class Running:
    """A command on its way; `kill_after` some seconds, or not."""

    def __init__(self, process: Any, kill_after: float | None) -> None:
        self.process = process
        self.began = time.monotonic()
        self.kill_at = None if kill_after is None else self.began + kill_after
        self.killed = False
        self.took = 0.0

    def kill(self) -> None:
        self.killed = True
        self.process.kill()


def ended(running: Sequence[Running], between: Callable[[], None]) -> list[dict[str, Any] | None]:
    """The answers of all; None of those that were killed before they gave one. `between`: to do meanwhile."""
    with selectors.DefaultSelector() as waiting:
        for one in running:
            waiting.register(one.process, selectors.EVENT_READ, one)
        between()
        deadline = time.monotonic() + LONGEST_S
        while waiting.get_map():
            now = time.monotonic()
            due = [one for one in running if one.kill_at is not None and not one.killed and not one.took]
            for one in due:
                if one.kill_at is not None and one.kill_at <= now:
                    one.kill()
            nexts = [one.kill_at - now for one in due if one.kill_at is not None and not one.killed]
            for key, _ in waiting.select(max(0.0, min([*nexts, deadline - now]))):
                if key.data.process.heard():
                    key.data.took = time.monotonic() - key.data.began
                    waiting.unregister(key.fileobj)
            if now > deadline:
                raise TimeoutError(f"{len(waiting.get_map())} commands do not end")
    return [one.process.answer() for one in running]


class NodeAgent:
    """The agent, forked with everything imported."""

    def __init__(self) -> None:
        self._words = ["agent", "--socket", SOCKET, "--deliver", "0"]
        self.pid = 0
        self.start()

    def start(self) -> None:
        """Start one; the old one has to be gone."""
        self.pid = os.fork()
        if self.pid == 0:
            try:
                said = os.open(_LOG, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.dup2(said, 1)
                os.dup2(said, 2)
                os.environ.update(PATH=f"{BIN}:{SYSTEM}")
                sys.orig_argv = [sys.executable, "-P", "-m", "cnimeta.cli.main", *self._words]
                from cnimeta.cli.main import main

                main(self._words)
            finally:
                os._exit(0)
        eventually(lambda: os.path.exists(SOCKET))

    def restart(self, choice: int) -> None:
        """One of: killed, told to end, told to start again, killed with the next one late."""
        how = ("kill", "end", "again", "late")[choice % 4]
        if how == "again":
            os.kill(self.pid, signal.SIGHUP)
            return
        os.kill(self.pid, signal.SIGTERM if how == "end" else signal.SIGKILL)
        os.waitpid(self.pid, 0)
        if how == "late":
            time.sleep(0.1)
        with contextlib.suppress(FileNotFoundError):
            os.unlink(SOCKET)  # or what is seen below is the old one's
        self.start()

    def close(self) -> None:
        """End it."""
        os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
