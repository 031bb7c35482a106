"""Running programs, the host's (`nft`, `iptables-restore`) and plugins: bytes in, status and bytes out, in time.

`posix_spawn` starts them without a copy of this interpreter, each in a process group of its own, which is killed as a
whole: when it is too slow, and when this process dies (see lifeline.py). A program of the host's has this process's
locks; a plugin has not, since what it leaves running would keep them.
"""

from __future__ import annotations

import os
import select
import stat
import time

from cnimeta.errors import IoFailure, TryAgainLater, shown
from cnimeta.host import lifeline as lifelines
from cnimeta.host.lifeline import CHILD_FD, SIGKILL, Lifeline
from cnimeta.host.reading import NOT_HERE
from cnimeta.host.values import Completed

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SIGPIPE = 13
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where host programs are, whatever the runtime passes as PATH (some pass none, some no sbin)."""
_CHUNK_BYTES = 1 << 16
_STDERR = 2


class TooSlow(Exception):
    """A program was not done in time, and was killed."""


class TooMuch(Exception):
    """A program wrote more than it may, and was killed."""


def find_program(name: str, path: str = "") -> str | None:
    """The first executable file `name` in `path` and then in SYSTEM_PATH, or None.

    Raises IoFailure (code 5) where it cannot be told whether there is one.
    """
    for folder in f"{path}:{SYSTEM_PATH}".split(":"):
        candidate = os.path.join(folder, name)
        if folder.startswith("/") and _is_program(candidate):
            return candidate
    return None


def run_program(
    argv: Sequence[str],
    environ: Mapping[str, str],
    stdin: bytes = b"",
    timeout_s: float | None = None,
    most_bytes: int | None = None,
) -> Completed:
    """Run `argv` (the first an absolute path) to its end, whatever its status; stdout and stderr are kept.

    Raises IoFailure (code 5) when it cannot be started or writes more than `most_bytes`, TryAgainLater (code 11) when
    it is not done in time (it is killed in both cases).
    """
    try:
        return run(argv, environ, stdin, timeout_s, keep_stderr=True, most_bytes=most_bytes, locks=lifelines.locks)
    except TooSlow as error:
        raise TryAgainLater(f"{shown(argv[0])} {error}") from None
    except TooMuch as error:
        raise IoFailure(f"{shown(argv[0])} {error}") from None
    except OSError as error:
        raise IoFailure(f"failed to run {shown(argv[0])}: {error.strerror or error}") from None


def run(
    argv: Sequence[str],
    environ: Mapping[str, str],
    stdin: bytes,
    timeout_s: float | None,
    *,
    keep_stderr: bool = False,
    most_bytes: int | None = None,
    stderr: int = _STDERR,
    locks: Sequence[int] = (),
) -> Completed:
    """Run `argv` until it has ended and whoever inherited its output has closed it.

    keep_stderr: else it goes to the descriptor `stderr`, where ours goes as a rule; nobody waits for that to be closed.
    most_bytes: of output. locks: descriptors that it has, too, until it ends. Raises OSError or ValueError when it
    cannot be started, TooSlow, TooMuch.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    lifeline = Lifeline()
    try:
        pid, ours = _start(argv, environ, 2 if keep_stderr else 1, (lifeline.reader, *locks), stderr)
        status = None
        try:
            conversation = _Conversation(ours, stdin, most_bytes)
            lifeline.tie(-pid)
            outputs = conversation.hold(deadline)
            status = _status(pid, deadline)
        except TimeoutError:
            raise TooSlow(f"did not answer within {timeout_s:g} s") from None
        finally:
            if status is None:
                os.killpg(pid, SIGKILL)
                os.waitpid(pid, 0)
    finally:
        lifeline.close()
    return Completed(status, *outputs)


def _is_program(path: str) -> bool:
    try:
        return stat.S_ISREG(os.stat(path).st_mode) and os.access(path, os.X_OK)  # unknown: to start it tells
    except OSError as error:
        if error.errno in NOT_HERE:
            return False
        raise IoFailure(f"cannot look for the program {shown(path)}: {error.strerror or error}") from None


def _start(
    argv: Sequence[str], environ: Mapping[str, str], outputs: int, kept: Sequence[int], stderr: int
) -> tuple[int, list[int]]:
    """The process, and our ends of its stdin, stdout and (with 2 outputs) stderr. `kept`: what it has from CHILD_FD
    downwards.
    """
    ours, theirs = [], []
    try:
        for number in range(outputs + 1):
            ends = os.pipe2(os.O_CLOEXEC)
            theirs.append(ends[number > 0])
            ours.append(ends[number == 0])
        numbered = (*enumerate(theirs), *((CHILD_FD - at, fd) for at, fd in enumerate(kept)))
        actions = [(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in numbered]
        if outputs == 1 and stderr != _STDERR:
            actions.append((os.POSIX_SPAWN_DUP2, stderr, _STDERR))
        pid = os.posix_spawn(argv[0], list(argv), environ, file_actions=actions, setpgroup=0, setsigdef=[SIGPIPE])
    except BaseException:
        for fd in ours:
            os.close(fd)
        raise
    finally:
        for fd in theirs:
            os.close(fd)
    return pid, ours


class _Conversation:
    """Feeding and reading at once, so that neither side can block the other. Closes the descriptors."""

    def __init__(self, ours: list[int], stdin: bytes, most_bytes: int | None) -> None:
        self._stdin = ours[0]
        self._pending = memoryview(stdin)
        self._chunks: dict[int, list[bytes]] = {fd: [] for fd in ours[1:]}
        self._open = set(ours)
        self._room = most_bytes
        self._most_bytes = most_bytes

    def hold(self, deadline: float | None) -> list[bytes]:
        """The outputs. Raises TimeoutError, TooMuch."""
        poller = select.poll()
        try:
            os.set_blocking(self._stdin, False)
            poller.register(self._stdin, select.POLLOUT)
            for fd in self._chunks:
                poller.register(fd, select.POLLIN)
            while self._open - {self._stdin}:
                left_ms = None if deadline is None else max(0, int((deadline - time.monotonic()) * 1000))
                events = poller.poll(left_ms)
                if left_ms is not None and not (left_ms and events):
                    raise TimeoutError
                for fd, _ in events:
                    if self._feed() if fd == self._stdin else self._read(fd):
                        poller.unregister(fd)
                        self._open.discard(fd)
                        os.close(fd)
        finally:
            for fd in self._open:
                os.close(fd)
        return [b"".join(chunks) for chunks in self._chunks.values()]

    def _feed(self) -> bool:
        """Whether that was all, or nobody reads any more: a program need not read its stdin."""
        try:
            self._pending = self._pending[os.write(self._stdin, self._pending) :] if self._pending else self._pending
        except BlockingIOError:
            return False
        except BrokenPipeError:
            return True
        return not self._pending

    def _read(self, fd: int) -> bool:
        """Whether that was the end."""
        chunk = os.read(fd, _CHUNK_BYTES)
        self._chunks[fd].append(chunk)
        if self._room is not None:
            self._room -= len(chunk)
            if self._room < 0:
                raise TooMuch(f"wrote more than {self._most_bytes} bytes")
        return not chunk


def _status(pid: int, deadline: float | None) -> int:
    """How it ended. It has closed its output by now, and may linger. Raises TimeoutError."""
    if deadline is not None and not _ends_by(pid, deadline):
        raise TimeoutError
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code


def _ends_by(pid: int, deadline: float) -> bool:
    try:
        watch = os.pidfd_open(pid)
    except OSError:  # refused: a kernel without pidfd
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True
    try:
        poller = select.poll()
        poller.register(watch, select.POLLIN)
        return bool(poller.poll(max(0, int((deadline - time.monotonic()) * 1000))))
    finally:
        os.close(watch)
