"""Telling somebody of an event: a program that reads it from stdin, or a server on a unix socket."""

from __future__ import annotations

import os

from cnimeta.errors import CniError, legible

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

_COMPLAINT_MAX = 200
_ANSWER_MAX_BYTES = 4096
_OUTPUT_MAX_BYTES = 1 << 20
"""Of a program: nobody reads it but for the end of a complaint."""
TAKEN = b"ok"
"""How a server says so, in a line."""


class ProgramHook:
    """Hook by a program: the event on its stdin; it has taken it when it ends with status 0."""

    def __init__(self, program: str) -> None:
        self._program = program

    def tell(self, event: bytes, timeout_s: float) -> str:
        """Empty when it was taken, else why not."""
        from cnimeta.host.process import SYSTEM_PATH, run_program

        try:
            done = run_program([self._program], {"PATH": SYSTEM_PATH}, event, timeout_s, _OUTPUT_MAX_BYTES)
        except CniError as error:
            return error.msg
        if done.status == 0:
            return ""
        return legible(f"{self._program} ended with status {done.status}: {done.complaint}", _COMPLAINT_MAX)


class SocketHook:
    """Hook by a server on a unix socket: the event in a line, and a line `ok` when it was taken."""

    def __init__(self, path: str) -> None:
        self._path = path

    def tell(self, event: bytes, timeout_s: float) -> str:
        """Empty when it was taken, else why not."""
        import time
        from _socket import AF_UNIX, SOCK_CLOEXEC, SOCK_STREAM, socket

        end = time.monotonic() + timeout_s
        connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
        try:
            connection.settimeout(timeout_s)
            connection.connect(self._path)
            rest = memoryview(event)
            while rest:
                connection.settimeout(max(end - time.monotonic(), 0.001))
                rest = rest[connection.send(rest) :]
            answer = _line(connection, end)
        except TimeoutError:
            return f"{self._path} did not answer within {timeout_s:g} s"
        except OSError as error:
            return f"{self._path}: {error.strerror or os.strerror(error.errno or 0)}"
        finally:
            connection.close()
        said = legible(answer.decode("utf-8", "replace"), _COMPLAINT_MAX)
        return "" if answer == TAKEN else f"{self._path} says {said or 'nothing'}"


def _line(connection: socket, end: float) -> bytes:
    import time

    data = b""
    while b"\n" not in data and len(data) < _ANSWER_MAX_BYTES:
        connection.settimeout(max(end - time.monotonic(), 0.001))
        more = connection.recv(_ANSWER_MAX_BYTES)
        if not more:
            break
        data += more
    return data.partition(b"\n")[0].strip()
