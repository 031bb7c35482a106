"""Forked commands under strace: which system calls they make on a folder, and one of them killed, failed or slowed.

The commands run in a fork of this process, where everything is imported already, so that their calls are the same each
time and thousands of cases take minutes. strace attaches before the command begins.
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

if TYPE_CHECKING:
    from collections.abc import Callable

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
    given = ",".join(f"?{name}" for name in {*names, "newfstatat"})  # ?: architectures have not all of them
    outcome = run(command, f"trace={given}", trace)
    counts: dict[str, int] = {}
    found, inside = [], False
    with open(trace, encoding="utf-8", errors="replace") as file:
        for line in file:
            match = re.match(r"(?:\d+\s+)?(\w+)\(", line)
            if match is None:
                continue
            counts[match[1]] = counts.get(match[1], 0) + 1
            if BEGIN in line or END in line:
                inside = BEGIN in line
            elif inside and match[1] in names:
                found.append((Call(match[1], counts[match[1]]), line))
    return outcome, found


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


def run(
    command: Callable[[], dict], trace: str, output: str, inject: str = "", *, hexadecimal: bool = False
) -> Outcome:
    """Run a command in a fork under strace."""
    gate_read, gate = os.pipe()
    answer_read, answer = os.pipe()
    child = os.fork()
    if child == 0:
        _serve(command, gate_read, answer)
    os.close(gate_read)
    os.close(answer)
    shape = ("-xx", "-s", "1000000") if hexadecimal else ("-s", "0")
    options = ["-qqq", "-y", *shape, "-o", output, "-e", trace, *(["-e", inject] if inject else [])]
    with subprocess.Popen(["strace", *options, "-p", str(child)], stderr=subprocess.DEVNULL):
        deadline = time.monotonic() + _LIMIT_S
        try:
            while not _is_traced(child):
                assert time.monotonic() < deadline, "strace did not attach"
                time.sleep(0.001)
            os.write(gate, b"x")
            text = _read_all(answer_read, deadline)
        except BaseException:
            os.kill(child, signal.SIGKILL)
            raise
        finally:
            os.close(gate)
            os.close(answer_read)
    status = os.waitpid(child, 0)[1]
    ended = os.WEXITSTATUS(status) if os.WIFEXITED(status) else 0
    return Outcome(os.WTERMSIG(status) if os.WIFSIGNALED(status) else 0, json.loads(text) if text else None, ended)


def _serve(command: Callable[[], dict], gate: int, answer: int) -> None:
    """Never returns."""
    try:
        os.readv(gate, [bytearray(1)])  # a call that no command makes: whether it is counted is up to chance
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
