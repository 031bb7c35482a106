"""Commands under strace: which system calls they make, and one of them killed, failed, cut short or held.

The commands run in a fork of this process, where everything is imported already, so that their calls are the same each
time and thousands of cases take minutes. strace attaches before the command begins. What strace cannot do is ptrace.py's.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import subprocess
import time
from typing import TYPE_CHECKING, NamedTuple

from ptrace import Tracee

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

CHANGES = (
    *("openat", "pwrite64", "write", "ftruncate", "fsync", "fdatasync", "fallocate", "rename", "link", "unlink"),
    *("mkdir", "fcntl", "flock", "fchmod", "chmod", "fchown"),
)
"""The calls that change files, or what other commands may do."""
READS = ("pread64", "read", "newfstatat", "mmap", "statfs", "getdents64")
_LIMIT_S = 60


class Call(NamedTuple):
    """One system call of a command: the number-th of its name."""

    name: str
    number: int


class Outcome(NamedTuple):
    """What became of a command. `answer` is its own; a CniError as `{"error": [code, message]}`."""

    signal: int
    answer: dict | None
    status: int = 0


BEGIN, END = "/begin-of-command", "/end-of-command"


def bounded(command: Callable[[], dict]) -> Callable[[], dict]:
    """The command between two marks that a trace shows."""

    def run_between() -> dict:
        with contextlib.suppress(FileNotFoundError):
            os.stat(BEGIN)
        try:
            return command()
        finally:
            with contextlib.suppress(FileNotFoundError):
                os.stat(END)

    return run_between


def every_call(
    command: Callable[[], dict], names: tuple[str, ...], trace: str
) -> tuple[Outcome, list[tuple[Call, str]]]:
    """What became of a `bounded` command, and the calls that it makes of these names, each with its line."""
    outcome = run(command, traced({*names, "newfstatat"}), trace)
    return outcome, list(between(trace, names, lambda line: BEGIN in line, lambda line: END in line))


def traced(names: Iterable[str]) -> str:
    """What strace is to trace. ?: architectures have not all of them."""
    return "trace=" + ",".join(f"?{name}" for name in names)


def between(
    trace: str, names: tuple[str, ...], begins: Callable[[str], object], ends: Callable[[str], object]
) -> Iterator[tuple[Call, str]]:
    """The calls of these names in a trace, from the line that `begins` to the one that `ends`, without both."""
    counts: dict[str, int] = {}
    inside = False
    with open(trace, encoding="utf-8", errors="replace") as file:
        for line in file:
            match = re.match(r"(?:\d+\s+)?(\w+)\(", line)
            if match is None:
                continue
            counts[match[1]] = counts.get(match[1], 0) + 1
            if begins(line) or ends(line):
                inside = bool(begins(line))
            elif inside and match[1] in names:
                yield Call(match[1], counts[match[1]]), line.rstrip("\n")


def calls(command: Callable[[], dict], folder: str, names: tuple[str, ...], trace: str) -> list[Call]:
    """The calls that a command makes on the folder."""
    outcome = run(command, f"trace={','.join(names)}", trace)
    assert outcome.answer is not None, outcome
    assert outcome.answer == {"done": True}, outcome
    counts: dict[str, int] = {}
    found = []
    with open(trace, encoding="utf-8", errors="replace") as file:
        for line in file:
            match = re.match(r"(?:\d+\s+)?(\w+)\(", line)
            if match is None or match[1] not in names:
                continue
            counts[match[1]] = counts.get(match[1], 0) + 1
            if folder in line:
                found.append(Call(match[1], counts[match[1]]))
    return found


def struck(command: Callable[[], dict], call: Call, what: str) -> Outcome:
    """Run a command with one call struck: `signal=KILL` before it is carried out, or `error=EIO` in its place."""
    return run(command, f"trace={call.name}", "/dev/null", f"inject={call.name}:{what}:when={call.number}")


def cut(command: Callable[[], dict], call: Call, count: int) -> Outcome:
    """Run a command, one call of which is made for `count` bytes only."""
    with _gated(command) as child:
        tracee = Tracee(child.pid)
        child.start()
        if tracee.until(*call):
            tracee.cut(count)
        tracee.let_go()
        return child.outcome(tracee.ended)


def held(command: Callable[[], dict], call: Call, meanwhile: Callable[[], None]) -> Outcome:
    """Run a command, before one call of which `meanwhile` is called."""
    with _gated(command) as child:
        tracee = Tracee(child.pid)
        child.start()
        if tracee.until(*call):
            meanwhile()
        tracee.let_go()
        return child.outcome(tracee.ended)


def untraced(command: Callable[[], dict], *, becomes_program: bool = False) -> Outcome:
    """Run a command with nothing in its way."""
    with _gated(command, becomes_program=becomes_program) as child:
        child.start()
        return child.outcome()


def run(
    command: Callable[[], dict],
    trace: str,
    output: str,
    inject: str = "",
    *,
    hexadecimal: bool = False,
    becomes_program: bool = False,
) -> Outcome:
    """Run a command in a fork under strace; one that `becomes_program` executes it, and its stdout is the answer."""
    with (
        _gated(command, becomes_program=becomes_program) as child,
        _strace(child.pid, trace, output, inject, hexadecimal),
    ):
        child.start()
        return child.outcome()


@contextlib.contextmanager
def struck_process(pid: int, trace: str, output: str, inject: str = "") -> Iterator[None]:
    """strace on a process that waits in a call, for a `with` block; the block ends when the process does."""
    with _strace(pid, trace, output, inject, hexadecimal=False):
        yield


@contextlib.contextmanager
def _strace(pid: int, trace: str, output: str, inject: str, hexadecimal: bool) -> Iterator[None]:
    shape = ("-xx", "-s", "1000000") if hexadecimal else ("-s", "0")
    kind = "-y" if hexadecimal else "-yy"
    options = ["-qqq", kind, *shape, "-o", output, "-e", trace, *(["-e", inject] if inject else [])]
    with subprocess.Popen(["strace", *options, "-p", str(pid)], stderr=subprocess.DEVNULL) as strace:
        try:
            deadline = time.monotonic() + _LIMIT_S
            while not _is_traced(pid):
                assert time.monotonic() < deadline, "strace did not attach"
                time.sleep(0.001)
            yield
        except BaseException:
            strace.kill()
            raise


class _Child:
    """A fork of this process that waits at a gate for what it is to do."""

    def __init__(self, command: Callable[[], dict], *, becomes_program: bool) -> None:
        self._becomes_program = becomes_program
        gate_read, self._gate = os.pipe()
        self._answer, answer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            _serve(command, gate_read, answer, becomes_program=becomes_program)
        os.close(gate_read)
        os.close(answer)

    def start(self) -> None:
        os.write(self._gate, b"x")

    def outcome(self, status: int | None = None) -> Outcome:
        """What became of it; `status`: how it ended, where that is known."""
        text = _read_all(self._answer, time.monotonic() + _LIMIT_S)
        status = os.waitpid(self.pid, 0)[1] if status is None else status
        self.pid = 0
        ended = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 0
        answer = None
        if self._becomes_program and os.WIFEXITED(status):
            answer = {"status": ended, "stdout": text.decode("utf-8", "replace")}
        elif text and not self._becomes_program:
            answer = json.loads(text)
        return Outcome(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, answer, ended)

    def close(self) -> None:
        os.close(self._gate)
        os.close(self._answer)
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)


@contextlib.contextmanager
def _gated(command: Callable[[], dict], *, becomes_program: bool = False) -> Iterator[_Child]:
    child = _Child(command, becomes_program=becomes_program)
    try:
        yield child
    finally:
        child.close()


def _serve(command: Callable[[], dict], gate: int, answer: int, *, becomes_program: bool) -> None:
    """Never returns."""
    try:
        os.readv(gate, [bytearray(1)])  # a call that no command makes: whether it is counted is up to chance
        if becomes_program:
            os.dup2(answer, 1)
        try:
            found = command()
        except BaseException as error:  # noqa: BLE001 - told to the test
            found = {"crash": f"{type(error).__name__}: {error}"}
        os.write(answer, json.dumps(found).encode())
    finally:
        os._exit(0)


def _is_traced(process: int) -> bool:
    with contextlib.suppress(OSError), open(f"/proc/{process}/status", encoding="ascii") as file:
        return any(line.startswith("TracerPid:") and line.split()[1] != "0" for line in file)
    return False


def _read_all(descriptor: int, deadline: float) -> bytes:
    import select

    chunks = []
    while True:
        left = deadline - time.monotonic()
        assert left > 0, "the command hangs"
        if select.select([descriptor], [], [], left)[0]:
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                return b"".join(chunks)
            chunks.append(chunk)
