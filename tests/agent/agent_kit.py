"""Launchers of every kind, and agents that are none of ours."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnimeta.agent.wire import ACCEPTED, ANSWER, DESCRIPTORS, HELLO, REQUEST, VARIABLE, receive
from cnimeta.cli.install import install

if TYPE_CHECKING:
    from collections.abc import Callable

NAMES = ["portmap", "bandwidth", "hostport_alloc"]
ASKING = ["python", "native"]
REFUSED_BY_SDK = {"CNI_NETNS": "/proc/self/ns/net"}
"""With these no plugin acts: the answer is error 8."""


class Programs:
    """Launchers that work alone, and launchers that ask the agent, in Python and in C."""

    def __init__(self, folder: Path) -> None:
        self.folders = {kind: folder / kind for kind in ("alone", *ASKING)}
        for kind, path in self.folders.items():
            install(str(path), NAMES, agent=kind != "alone", native=kind == "native")

    def start(self, kind: str, plugin: str, verb: str, stdin: bytes, **environ: str) -> subprocess.Popen[bytes]:
        process = self.begin(kind, plugin, verb, **environ)
        assert process.stdin is not None
        process.stdin.write(stdin)
        process.stdin.close()
        process.stdin = None
        return process

    def begin(self, kind: str, plugin: str, verb: str, **environ: str) -> subprocess.Popen[bytes]:
        environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", **environ}
        environ = {"CNI_PATH": str(self.folders[kind]), "PATH": os.environ["PATH"], **environ}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        return subprocess.Popen([str(self.folders[kind] / plugin)], env=environ, **pipes)

    def run(self, kind: str, plugin: str, verb: str, stdin: bytes, **environ: str) -> tuple[int, bytes, bytes]:
        process = self.start(kind, plugin, verb, stdin, **environ)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


def conf(plugin: str, **keys: Any) -> bytes:
    return json.dumps({"cniVersion": "1.1.0", "name": "net", "type": plugin, **keys}).encode()


def code(answer: bytes) -> int:
    """The code of the one error that an answer is."""
    return int(json.loads(answer)["code"])


class Impostor:
    """Something else that listens where an agent would: `act` gets each connection."""

    def __init__(self, folder: Path, act: Callable[[socket.socket], None]) -> None:
        folder.mkdir(mode=0o700)
        self.path = str(folder / "agent.sock")
        self.environ = {VARIABLE: self.path}
        self.asked = 0
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(self.path)
        self._listener.listen()
        self._thread = threading.Thread(target=self._serve, args=(act,))
        self._thread.start()

    def _serve(self, act: Callable[[socket.socket], None]) -> None:
        while True:
            connection, _ = self._listener.accept()
            with connection:
                if self._ended(connection):
                    return
                self.asked += 1
                try:
                    act(connection)
                except OSError:
                    pass

    def _ended(self, connection: socket.socket) -> bool:
        connection.settimeout(0.01)
        try:
            return connection.recv(4, socket.MSG_PEEK) == b"end!"
        except OSError:
            return False
        finally:
            connection.settimeout(20)

    def __enter__(self) -> Impostor:
        return self

    def __exit__(self, *_: object) -> None:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as last:
            last.connect(self.path)
            last.sendall(b"end!")
            self._thread.join(30)
        self._listener.close()


def taken(connection: socket.socket) -> list[int]:
    """Greet, and take the whole request; its descriptors."""
    connection.sendall(HELLO)
    head, descriptors, _, _ = socket.recv_fds(connection, REQUEST.size, DESCRIPTORS)
    _, _, *lengths = REQUEST.unpack(head)
    for length in lengths:
        receive(connection, length)
    return descriptors


def dropped(descriptors: list[int]) -> None:
    for descriptor in descriptors:
        os.close(descriptor)


def answer(status: int, text: bytes) -> bytes:
    """What follows ACCEPTED."""
    return ACCEPTED + ANSWER.pack(status, len(text)) + text
