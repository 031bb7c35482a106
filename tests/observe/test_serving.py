"""Metrics over HTTP: on TCP and on a unix socket, whoever asks and however long that takes."""

from __future__ import annotations

import http.client
import os
import socket
import threading
from typing import TYPE_CHECKING

import pytest

from cnimeta.errors import InvalidEnvironment, IoFailure, StateUnusable
from cnimeta.node.monitor.address import place_of
from cnimeta.node.monitor.serving import Server

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

pytestmark = pytest.mark.runtime


@pytest.fixture
def serving() -> Iterator[Callable[[str, Callable[[], str]], str]]:
    """Starts a server; the address it has. It serves until the test ends."""
    ended, threads = threading.Event(), []

    def start(address: str, text: Callable[[], str]) -> str:
        server = Server(place_of(address), text)

        def run() -> None:
            while not ended.is_set():
                server.serve(0.05, lambda: None)

        threads.append(threading.Thread(target=run))
        threads[-1].start()
        return server.address

    yield start
    ended.set()
    for thread in threads:
        thread.join()


def get(address: str, path: str, method: str = "GET") -> tuple[int, str]:
    connection = http.client.HTTPConnection("localhost", timeout=20)
    if address.startswith("/"):
        connection.sock = socket.socket(socket.AF_UNIX)
        connection.sock.connect(address)
    else:
        host, _, port = address.rpartition(":")
        connection.sock = socket.create_connection((host.strip("[]"), int(port)), 20)
    connection.request(method, path)
    answer = connection.getresponse()
    found = answer.status, answer.read().decode()
    connection.close()
    return found


@pytest.mark.parametrize("kind", ["127.0.0.1:0", "[::1]:0", "socket"])
def test_metrics_are_served_wherever_it_listens(
    serving: Callable[[str, Callable[[], str]], str], tmp_path: Path, kind: str
) -> None:
    path = str(tmp_path / "metrics.sock")
    if kind == "socket":
        socket.socket(socket.AF_UNIX).bind(path)  # one that was left there
    address = serving(path if kind == "socket" else kind, lambda: "x 1\n")
    assert get(address, "/metrics") == (200, "x 1\n")
    assert get(address, "/metrics?a=b") == (200, "x 1\n")
    assert get(address, "/metrics", "HEAD") == (200, "")
    assert get(address, "/healthz") == (200, "ok\n")
    assert get(address, "/")[0] == 404
    assert get(address, "/metrics", "POST")[0] == 501
    if kind == "socket":
        assert os.stat(path).st_mode & 0o777 == 0o600


def test_a_failure_is_seen_and_the_next_request_is_served(serving: Callable[[str, Callable[[], str]], str]) -> None:
    def text() -> str:
        raise StateUnusable("no state")

    address = serving("127.0.0.1:0", text)
    for _ in range(2):
        assert get(address, "/metrics") == (500, "StateUnusable: no state\n")


def test_others_are_served_when_clients_say_nothing(serving: Callable[[str, Callable[[], str]], str]) -> None:
    address = serving("127.0.0.1:0", lambda: "x 1\n")
    host, _, port = address.rpartition(":")
    silent = [socket.create_connection((host, int(port))) for _ in range(4)]
    assert get(address, "/metrics") == (200, "x 1\n")
    for one in silent:
        one.close()


@pytest.mark.parametrize("address", ["", "x", ":1", "127.0.0.1:", "127.0.0.1:x", "127.0.0.1:65536", "rel/path"])
def test_an_address_that_is_none_is_wrong_usage(address: str) -> None:
    with pytest.raises(InvalidEnvironment):
        place_of(address)


def test_an_address_that_is_taken_is_named(tmp_path: Path) -> None:
    first = Server(place_of("127.0.0.1:0"), lambda: "")
    with pytest.raises(IoFailure, match="cannot listen on"):
        Server(place_of(first.address), lambda: "")
    (tmp_path / "file").write_text("")
    with pytest.raises(IoFailure):
        Server(place_of(str(tmp_path / "file")), lambda: "")
    assert (tmp_path / "file").exists()
