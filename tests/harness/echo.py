"""Servers in a container that answer everyone the same, and clients that ask them."""

from __future__ import annotations

import contextlib
import socket
import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cnimeta.testing.netns import Namespace


@contextlib.contextmanager
def echoing(container: Namespace, ports: list[str], answer: bytes) -> Iterator[None]:
    """Answer `answer` to everyone on the ports ("80/tcp") of a container, on IPv4 and IPv6."""
    sockets = []
    with container.entered():
        for port in ports:
            number, _, protocol = port.partition("/")
            kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
            sockets.append(socket.socket(socket.AF_INET6, kind))
            sockets[-1].setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
            sockets[-1].bind(("::", int(number)))
    threads = [threading.Thread(target=_answer, args=(listener, answer), daemon=True) for listener in sockets]
    for listener in sockets:
        if listener.type == socket.SOCK_STREAM:
            listener.listen()
    for thread in threads:
        thread.start()
    yield
    for listener, thread in zip(sockets, threads, strict=True):
        with contextlib.suppress(OSError):
            listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join(5)


def _answer(listener: socket.socket, answer: bytes) -> None:
    with contextlib.suppress(OSError):
        while True:
            if listener.type == socket.SOCK_STREAM:
                connection, _ = listener.accept()
                with connection:
                    connection.sendall(answer)
            else:
                data, peer = listener.recvfrom(100)
                if not data:  # shut down
                    return
                listener.sendto(answer, peer)


def ask(address: str, port: int, protocol: str) -> bytes:
    """What the other side says; empty when nobody answers."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(family, kind) as channel:
        channel.settimeout(3)
        try:
            channel.connect((address, port))
            if protocol == "udp":
                channel.send(b"?")
            return channel.recv(100)
        except OSError:
            return b""
