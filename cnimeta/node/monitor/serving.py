"""`/metrics` and `/healthz` over HTTP, on a TCP address or a unix socket, for Prometheus and for probes.

Each request is answered by a process of its own, which ends: what it reads and imports for that takes no memory in
between, and a client that takes its time holds up nobody.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import stat
from typing import TYPE_CHECKING

from cnimeta.errors import IoFailure, shown

if TYPE_CHECKING:
    from collections.abc import Callable

    from cnimeta.node.monitor.address import Place

_CLIENT_S = 10
_CLIENTS_MAX = 8
"""At once; others are turned away."""
_BACKLOG = 64


class Server:
    """A socket that listens. `text` gives the metrics. Raises IoFailure (code 5)."""

    def __init__(self, place: Place, text: Callable[[], str]) -> None:
        self._text = text
        self._children: set[int] = set()
        try:
            self._listener = _bound(place)
        except OSError as error:
            where = place if isinstance(place, str) else f"{place[0]}:{place[1]}"
            raise IoFailure(f"cannot listen on {shown(where)}: {error.strerror or error}") from None
        self._listener.setblocking(False)

    @property
    def address(self) -> str:
        """Where it listens."""
        found = self._listener.getsockname()
        if isinstance(found, str):
            return found
        return f"[{found[0]}]:{found[1]}" if ":" in found[0] else f"{found[0]}:{found[1]}"

    def serve(self, wait_s: float, before: Callable[[], None]) -> None:
        """Requests, if any come in that time. `before`: done once before they are answered."""
        ready = select.select([self._listener], [], [], wait_s)[0]
        self._reap()
        if ready:
            before()
            self._take()

    def _take(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:  # nobody more, or none for the moment
                return
            with connection:
                if len(self._children) < _CLIENTS_MAX:
                    self._fork(connection)

    def _fork(self, connection: socket.socket) -> None:
        try:
            child = os.fork()
        except OSError:  # refused: the client is, too
            return
        if child:
            self._children.add(child)
            return
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(_CLIENT_S)
            self._listener.close()
            _answer(connection, self._text)
        finally:
            os._exit(0)

    def _reap(self) -> None:
        for child in tuple(self._children):
            if os.waitpid(child, os.WNOHANG)[0]:
                self._children.discard(child)


def _answer(connection: socket.socket, text: Callable[[], str]) -> None:
    """Serve one request."""
    from http.server import BaseHTTPRequestHandler

    class Handler(BaseHTTPRequestHandler):
        server_version = "cnimeta"
        sys_version = ""

        def do_GET(self) -> None:
            path = self.path.partition("?")[0]
            if path == "/healthz":
                return self._say(200, "ok\n")
            if path != "/metrics":
                return self._say(404, "/metrics and /healthz are served\n")
            try:
                found = text()
            except Exception as error:  # noqa: BLE001 - a scrape that fails must be seen; the next one may succeed
                return self._say(500, f"{type(error).__name__}: {error}\n")
            return self._say(200, found)

        do_HEAD = do_GET  # noqa: N815 - the library's name

        def _say(self, status: int, body: str) -> None:
            content = body.encode("utf-8", "replace")
            self.send_response(status)
            self.send_header("Content-Type", "text/plain; version=0.0.4; charset=utf-8")
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

        def address_string(self) -> str:
            return "a client"  # of a unix socket there is no address

        def log_message(self, *_: object) -> None:
            """Who scrapes is of no interest."""

    connection.setblocking(True)
    Handler(connection, ("", 0), None)  # type: ignore[arg-type]  # it asks nothing of its server


def _bound(place: Place) -> socket.socket:
    if isinstance(place, str):
        _remove_left_socket(place)
        listener = socket.socket(socket.AF_UNIX)
        umask = os.umask(0o177)
        try:
            listener.bind(place)
        finally:
            os.umask(umask)
        listener.listen(_BACKLOG)
        return listener
    family = socket.AF_INET6 if ":" in place[0] else socket.AF_INET
    return socket.create_server(place, family=family, backlog=_BACKLOG)


def _remove_left_socket(path: str) -> None:
    """What an earlier process left there; nothing else."""
    try:
        if stat.S_ISSOCK(os.lstat(path).st_mode):
            os.unlink(path)
    except FileNotFoundError:
        pass
