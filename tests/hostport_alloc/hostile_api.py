"""Servers that are no API server, or a broken one: each speaks TLS with the right certificate and then does as it likes."""

from __future__ import annotations

import gzip
import json
import socket
import ssl
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from cnimeta.testing.certificates import Authority

if TYPE_CHECKING:
    from collections.abc import Callable
    from typing import Self

    Behaviour = Callable[[socket.socket], None]

TOKEN = "s3cr3t-t0k3n-of-a-test"
POD = {"kind": "Pod", "metadata": {"uid": "0a-1b", "annotations": {"kept": "yes"}}}
_LIFE_S = 20.0
"""No server goes on for longer: a client that is not bounded shows by then."""


def http(body: bytes, status: str = "200 OK", *headers: str, length: int | None = None) -> bytes:
    lines = [f"HTTP/1.1 {status}", f"Content-Length: {len(body) if length is None else length}", *headers]
    return "\r\n".join([*lines, "", ""]).encode() + body


def says(data: bytes) -> Behaviour:
    def behave(connection: socket.socket) -> None:
        connection.sendall(data)
        connection.recv(1)

    return behave


def drips(data: bytes, before: bytes = b"", every_s: float = 0.05) -> Behaviour:
    def behave(connection: socket.socket) -> None:
        connection.sendall(before)
        for byte in data:
            connection.sendall(bytes([byte]))
            time.sleep(every_s)

    return behave


def floods(chunk: bytes, before: bytes = b"") -> Behaviour:
    def behave(connection: socket.socket) -> None:
        connection.sendall(before)
        until = time.monotonic() + _LIFE_S
        while time.monotonic() < until:
            connection.sendall(chunk)

    return behave


def waits(connection: socket.socket) -> None:
    connection.recv(1)
    time.sleep(_LIFE_S)


def status_object(message: str, reason: str = "Forbidden") -> bytes:
    return json.dumps({"kind": "Status", "reason": reason, "message": message}).encode()


LONG = b"x" * 65536
NEVER_DONE: dict[str, Behaviour] = {
    "silent": waits,
    "a byte of header now and then": drips(b"HTTP/1.1 200 OK\r\nX-A: " + b"a" * 400),
    "a byte of body now and then": drips(b" " * 400, http(b"", length=400)),
    "chunk by chunk": drips(b"1\r\n \r\n" * 100, b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"),
    "100 Continue for ever": floods(b"HTTP/1.1 100 Continue\r\n\r\n"),
    "promises more than comes": says(http(b"{}", length=1000)),
}
"""They hold up whoever has no deadline."""
NOT_AN_ANSWER: dict[str, Behaviour] = {
    "a body without end": floods(LONG, b"HTTP/1.1 200 OK\r\n\r\n"),
    "chunks without end": floods(
        b"10000\r\n" + LONG + b"\r\n", b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    ),
    "headers without end": floods(b"X-A: b\r\n", b"HTTP/1.1 200 OK\r\n"),
    "a status line without end": floods(LONG),
    "an error body without end": floods(LONG, b"HTTP/1.1 500 No\r\n\r\n"),
    "a page": says(http(b"<html>welcome</html>", "200 OK", "Content-Type: text/html")),
    "nothing": says(http(b"")),
    "no content": says(b"HTTP/1.1 204 No Content\r\n\r\n"),
    "a list": says(http(b"[]")),
    "null": says(http(b"null")),
    "another kind": says(http(json.dumps({**POD, "kind": "Secret"}).encode())),
    "a Pod whose metadata is text": says(http(b'{"kind":"Pod","metadata":"x"}')),
    "a Pod whose annotations are text": says(http(b'{"kind":"Pod","metadata":{"uid":"0a-1b","annotations":"x"}}')),
    "a Pod without what was written": says(http(json.dumps(POD).encode())),
    "compressed": says(http(gzip.compress(b" " * 10_000_000), "200 OK", "Content-Encoding: gzip")),
    "nested": says(http(b"[" * 100_000)),
    "not UTF-8": says(http(b'{"kind":"Pod\xff"}')),
    "a redirect": says(http(b"", "302 Found", "Location: https://127.0.0.1:9/")),
    "a redirect for good": says(http(b"", "308 Permanent Redirect", "Location: http://127.0.0.1:9/")),
    "a number for a reason": says(http(b'{"kind":"Status","reason":7,"message":[1]}', "403 Forbidden")),
    "come back in a million years": says(http(b"{}", "503 No", "Retry-After: " + "9" * 400)),
    "the end": lambda connection: connection.close(),
    "no HTTP": says(b"SSH-2.0-OpenSSH\r\n" * 10),
    "the token again": says(http(status_object(f"Bearer {TOKEN} is not good"), "403 Forbidden")),
    "a megabyte of words": says(http(status_object("w" * 1_000_000), "403 Forbidden")),
    "words for a terminal": says(http(status_object("\x1b[2J\r\n\x07\u202eevil"), "403 Forbidden")),
}
"""They answer, and nothing was written by that."""


class HostileServer:
    """Accepts connections, and leaves each to `behave` after the handshake; to `raw` before it, where that is given."""

    def __init__(self, folder: Path, behave: Behaviour = waits, raw: Behaviour | None = None) -> None:
        self.authority = Authority(folder)
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(self.authority.issue("server", addresses=["127.0.0.1"]))
        self.behave = behave
        self.raw = raw
        self.heard: Callable[[bytes], object] = lambda _: None
        self._listener = socket.create_server(("127.0.0.1", 0))
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self._listener.getsockname()[1]}"

    def kubeconfig(self, path: Path, **user: object) -> str:
        """As PodServer's; `user` is the whole user, a token unless told otherwise."""
        document = {
            "clusters": [{"name": "c", "cluster": {"server": self.url, "certificate-authority": self.authority.path}}],
            "users": [{"name": "u", "user": user or {"token": TOKEN}}],
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "current-context": "x",
        }
        path.write_text(json.dumps(document))
        return str(path)

    def _accept(self) -> None:
        while True:
            try:
                connection, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        try:
            connection.settimeout(_LIFE_S)
            if self.raw is not None:
                self.raw(connection)
                return
            with self._context.wrap_socket(connection, server_side=True) as wrapped:
                self.heard(wrapped.recv(65536))
                self.behave(wrapped)
        except (OSError, ValueError):
            pass  # the client went away
        finally:
            connection.close()

    def close(self) -> None:
        """Stop listening."""
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
