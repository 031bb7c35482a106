"""Running a host program (`nft`, `iptables-restore`): arguments and stdin in, status, stdout and stderr out.

`posix_spawn` starts it without a copy of this interpreter. The three streams are memory files, so neither side can
block the other and there is nothing to poll; a pidfd tells the end.
"""

from __future__ import annotations

import os
import select
import time

from cnimeta.errors import IoFailure, TryAgainLater, shown
from cnimeta.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

SIGKILL, SIGPIPE = 9, 13  # importing `signal` costs 1 ms, for enum; the numbers are the kernel's interface
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where host programs are, whatever the runtime passes as PATH (some pass none, some no sbin)."""


class Finished(NamedTuple):
    """How a program ended: its exit status (128 + n for signal n), its stdout and its stderr."""

    status: int
    stdout: bytes
    stderr: bytes

    @property
    def complaint(self) -> str:
        """What stderr says as one printable line, for a message."""
        text = " ".join(self.stderr.decode("utf-8", "replace").split())
        return shown(text, 400)[1:-1] if text else f"exit status {self.status}"


def find_program(name: str, path: str = "") -> str | None:
    """The first executable file `name` in `path` and then in SYSTEM_PATH, or None."""
    for folder in f"{path}:{SYSTEM_PATH}".split(":"):
        candidate = os.path.join(folder, name)
        if folder.startswith("/") and os.access(candidate, os.X_OK) and os.path.isfile(candidate):
            return candidate
    return None


def run_program(
    argv: Sequence[str], environ: Mapping[str, str], stdin: bytes = b"", timeout_s: float | None = None
) -> Finished:
    """Run `argv` (the first an absolute path) to its end, whatever its status.

    Raises IoFailure (code 5) when it cannot be started, TryAgainLater (code 11) when it is not done in time (it is
    killed then).
    """
    files = [os.memfd_create(name, os.MFD_CLOEXEC) for name in ("stdin", "stdout", "stderr")]
    try:
        rest = memoryview(stdin)
        while rest:
            rest = rest[os.write(files[0], rest) :]
        os.lseek(files[0], 0, os.SEEK_SET)
        pid = os.posix_spawn(
            argv[0],
            list(argv),
            dict(environ),
            file_actions=[(os.POSIX_SPAWN_DUP2, fd, number) for number, fd in enumerate(files)],
            setsigdef=[SIGPIPE],
        )
        status = _wait(pid, argv[0], timeout_s)
        return Finished(status, _content(files[1]), _content(files[2]))
    except OSError as error:
        raise IoFailure(f"failed to run {shown(argv[0])}: {error.strerror or error}") from None
    finally:
        for fd in files:
            os.close(fd)


def _wait(pid: int, name: str, timeout_s: float | None) -> int:
    ended = False
    try:
        ended = timeout_s is None or _ends_within(pid, timeout_s)
        if not ended:
            raise TryAgainLater(f"{shown(name)} was not done within {timeout_s:g} s")
    finally:
        if not ended:
            os.kill(pid, SIGKILL)
        code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code


def _ends_within(pid: int, timeout_s: float) -> bool:
    try:
        watch = os.pidfd_open(pid)
    except OSError:  # a kernel without pidfd
        deadline = time.monotonic() + timeout_s
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() > deadline:
                return False
            time.sleep(0.001)
        return True
    try:
        poller = select.poll()
        poller.register(watch, select.POLLIN)
        return bool(poller.poll(int(timeout_s * 1000)))
    finally:
        os.close(watch)


def _content(fd: int) -> bytes:
    return os.pread(fd, os.fstat(fd).st_size, 0)
