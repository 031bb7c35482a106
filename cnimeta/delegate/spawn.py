"""Running a plugin executable: stdin fed, stdout collected, stderr passed through, a deadline kept."""

from __future__ import annotations

import errno
import os
import select
import time

from cnimeta.errors import DelegateFailed, shown
from cnimeta.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

_SIGKILL, _SIGPIPE = 9, 13  # Linux's numbers; `import signal` brings enum and collections along
_BUSY_RETRIES = 5
_MAX_STDOUT_BYTES = 16 << 20  # a plugin that babbles must not take the node's memory
_BUSY_WAIT_S = 0.2  # a plugin being replaced: "text file busy" passes when the copy is done


class Completed(NamedTuple):
    """How a program ended: its exit status (128 + n for signal n) and its stdout."""

    status: int
    stdout: bytes


class ProcessExec:
    """The PluginExec that starts a process per call (`posix_spawn`: no fork of this interpreter's memory)."""

    def __init__(self, timeout_s: float | None = None) -> None:
        self.timeout_s = timeout_s

    def run(self, path: str, environ: Mapping[str, str], stdin: bytes) -> Completed:
        """Run `path` to its end. Raises DelegateFailed (code 105) when it cannot be started or is too slow."""
        for attempt in range(_BUSY_RETRIES + 1):
            try:
                return _run(path, environ, stdin, self.timeout_s)
            except OSError as error:
                if error.errno != errno.ETXTBSY or attempt == _BUSY_RETRIES:
                    raise DelegateFailed(f"failed to run plugin {shown(path)}: {error.strerror or error}") from None
                time.sleep(_BUSY_WAIT_S)
            except ValueError as error:  # a NUL byte in a path or a variable
                raise DelegateFailed(f"failed to run plugin {shown(path)}: {error}") from None
        raise AssertionError("unreachable")


def _run(path: str, environ: Mapping[str, str], stdin: bytes, timeout_s: float | None) -> Completed:
    child_in, our_in = os.pipe2(os.O_CLOEXEC)
    our_out, child_out = os.pipe2(os.O_CLOEXEC)
    try:
        pid = os.posix_spawn(
            path,
            [path],
            dict(environ),
            file_actions=[(os.POSIX_SPAWN_DUP2, child_in, 0), (os.POSIX_SPAWN_DUP2, child_out, 1)],
            setsigdef=[_SIGPIPE],
        )
    except BaseException:
        os.close(our_in)
        os.close(our_out)
        raise
    finally:
        os.close(child_in)
        os.close(child_out)
    reaped = False
    try:
        stdout = _converse(our_in, our_out, stdin, timeout_s, path)
        status = _wait(pid, timeout_s, path)
        reaped = True
    finally:
        if not reaped:
            os.kill(pid, _SIGKILL)
            os.waitpid(pid, 0)
    return Completed(status, stdout)


def _converse(our_in: int, our_out: int, stdin: bytes, timeout_s: float | None, path: str) -> bytes:
    """Feed and read at once, so that neither side can block the other. Closes both descriptors."""
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    poller = select.poll()
    pending, chunks, received, open_fds = memoryview(stdin), [], 0, {our_in, our_out}
    os.set_blocking(our_in, False)
    poller.register(our_in, select.POLLOUT)
    poller.register(our_out, select.POLLIN)
    try:
        while our_out in open_fds:
            left_ms = None if deadline is None else max(0, int((deadline - time.monotonic()) * 1000))
            events = poller.poll(left_ms)
            if left_ms == 0 or (not events and left_ms is not None):
                raise DelegateFailed(f"plugin {shown(path)} did not answer within {timeout_s} s")
            for fd, _ in events:
                if fd == our_out:
                    chunk = os.read(our_out, 65536)
                    chunks.append(chunk)
                    received += len(chunk)
                    if received > _MAX_STDOUT_BYTES:
                        raise DelegateFailed(f"plugin {shown(path)} wrote more than {_MAX_STDOUT_BYTES} bytes")
                    done = not chunk
                else:
                    try:
                        pending = pending[os.write(our_in, pending) :] if pending else pending
                    except BlockingIOError:
                        continue
                    except BrokenPipeError:  # it need not read its configuration
                        pending = memoryview(b"")
                    done = not pending
                if done:
                    poller.unregister(fd)
                    os.close(fd)
                    open_fds.discard(fd)
    finally:
        for fd in open_fds:
            os.close(fd)
    return b"".join(chunks)


def _wait(pid: int, timeout_s: float | None, path: str) -> int:
    """The exit status; stdout is closed by now, so a program that lingers is given the same time again."""
    if timeout_s is not None:
        deadline = time.monotonic() + timeout_s
        while os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None:
            if time.monotonic() > deadline:
                raise DelegateFailed(f"plugin {shown(path)} did not exit within {timeout_s} s")
            time.sleep(0.001)
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    return code if code >= 0 else 128 - code
