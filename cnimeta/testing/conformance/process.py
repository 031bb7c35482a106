"""Running a subject for a limited time: when that is up, it is killed with everything it started."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Mapping, Sequence

CASE_S = 20.0
"""How long the calls of one case may take together, unless told otherwise."""

_DYING_S = 5.0


class Hung(Exception):
    """A call was not done in time. It has been killed, and so has what it started."""


def run_limited(
    command: Sequence[str], environ: Mapping[str, str], stdin: bytes, timeout_s: float, places: Collection[str]
) -> subprocess.CompletedProcess[bytes]:
    """Run a program to its end, as a runtime waits for it: until nobody holds its stdout any more. Raises Hung.

    `places` are paths of network namespaces in which there is nothing but the subject and its children.
    """
    process = subprocess.Popen(
        command,
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        stdout, stderr = process.communicate(stdin, timeout=max(timeout_s, 0))
    except subprocess.TimeoutExpired:
        raise Hung("it did not end in time, or what it started did not let go of stdout") from None
    finally:
        if process.stdout is not None and not process.stdout.closed:  # not done: out of time, or interrupted
            _kill(process.pid, places)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.communicate(timeout=_DYING_S)
    return subprocess.CompletedProcess(list(command), process.returncode, stdout, stderr)


def _kill(session: int, places: Collection[str]) -> None:
    """Kill until nothing is left: what is killed may just have forked."""
    found = {os.stat(place).st_ino for place in places}
    deadline = time.monotonic() + _DYING_S
    while (victims := _victims(session, found)) and time.monotonic() < deadline:
        for pid in victims:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(0.01)


def _victims(session: int, places: Collection[int]) -> set[int]:
    """What runs in the session or in one of the namespaces, and the children of that wherever they are."""
    parents = dict(_living(session, places))
    found = {pid for pid, (belongs, _) in parents.items() if belongs}
    while more := {pid for pid, (_, parent) in parents.items() if parent in found} - found:
        found |= more
    return found


def _living(session: int, places: Collection[int]) -> Iterator[tuple[int, tuple[bool, int]]]:
    """Every process: (pid, (whether it belongs to the session or a namespace, parent))."""
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            with open(f"/proc/{name}/stat", encoding="utf-8", errors="replace") as file:
                state, parent, _, its_session = file.read().rpartition(")")[2].split()[:4]
            if state == "Z":
                continue
            belongs = int(its_session) == session or os.stat(f"/proc/{name}/ns/net").st_ino in places
        except OSError:
            continue  # it has ended
        yield int(name), (belongs, int(parent))
