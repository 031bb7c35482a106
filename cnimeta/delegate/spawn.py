"""Running a plugin executable: stdin fed, stdout collected, stderr passed through, a deadline kept."""

from __future__ import annotations

import errno
import os
import time

from cnimeta.errors import DelegateFailed, shown
from cnimeta.host.process import TooMuch, TooSlow, run

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cnimeta.host.values import Completed

_BUSY_RETRIES = 5
_BUSY_WAIT_S = 0.2  # a plugin being replaced: "text file busy" passes when the copy is done
_STDERR = 2
_MOST_STDERR_BYTES = 1 << 16
_MOST_BYTES = 16 << 20  # a plugin that babbles must not take the node's memory


class ProcessExec:
    """The PluginExec that starts a process per call. What it writes to stderr goes where ours goes.

    keep_stderr: it goes there when the plugin has ended, and is in what `run` returns, for the message of an error.
    """

    def __init__(self, timeout_s: float | None = None, *, keep_stderr: bool = False) -> None:
        self.timeout_s = timeout_s
        self.keep_stderr = keep_stderr

    def run(self, path: str, environ: Mapping[str, str], stdin: bytes) -> Completed:
        """Run `path` to its end. Raises DelegateFailed (code 105) when it cannot be started, is too slow or babbles."""
        for attempt in range(_BUSY_RETRIES + 1):
            try:
                if self.keep_stderr:
                    return self._kept(path, environ, stdin)
                return run([path], environ, stdin, self.timeout_s, most_bytes=_MOST_BYTES)
            except (TooSlow, TooMuch) as error:
                raise DelegateFailed(f"plugin {shown(path)} {error}") from None
            except OSError as error:
                if error.errno != errno.ETXTBSY or attempt == _BUSY_RETRIES:
                    raise DelegateFailed(f"failed to run plugin {shown(path)}: {error.strerror or error}") from None
                time.sleep(_BUSY_WAIT_S)
            except ValueError as error:  # a NUL byte in a path or a variable
                raise DelegateFailed(f"failed to run plugin {shown(path)}: {error}") from None
        raise AssertionError("unreachable")

    def _kept(self, path: str, environ: Mapping[str, str], stdin: bytes) -> Completed:
        """A file in memory takes stderr: of a pipe, whoever the plugin leaves behind would hold the other end."""
        kept = os.memfd_create("stderr")
        try:
            done = run([path], environ, stdin, self.timeout_s, most_bytes=_MOST_BYTES, stderr=kept)
            return done._replace(stderr=os.pread(kept, _MOST_STDERR_BYTES, 0))
        finally:
            os.lseek(kept, 0, os.SEEK_SET)
            while chunk := os.read(kept, _MOST_STDERR_BYTES):
                _to_stderr(chunk)
            os.close(kept)


def _to_stderr(chunk: bytes) -> None:
    try:
        os.write(_STDERR, chunk)
    except OSError:  # refused: nobody reads
        pass
