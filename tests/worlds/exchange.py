"""Cells of traffic and how they end: servers that say where one has come and as whom, and callers, on one loop."""

from __future__ import annotations

import contextlib
import errno
import selectors
import socket
import time
from dataclasses import dataclass
from typing import Any

import sctp

_PATIENCE_S, _SILENCE_S = 4.0, 0.3


@dataclass(frozen=True)
class Cell:
    """One connection attempt: `caller` is `client`, `node` or a container ID."""

    caller: str
    address: str
    port: int
    protocol: str
    source: str = ""
    """The address that the caller takes for its own; empty for the kernel's choice."""

    def __str__(self) -> str:
        by = f" as {self.source}" if self.source else ""
        return f"{self.caller}{by} -> {self.address} port {self.port}/{self.protocol}"


@dataclass(frozen=True)
class Outcome:
    """Who answers, `c1:80` (empty: nobody), and the source that it sees: `node`, `caller`; empty: it does not matter."""

    who: str = ""
    source: str = ""


def _place(address: str, port: int = 0) -> tuple[Any, ...]:
    """A socket's address, with the interface of one like `fe80::1%eth0` in this namespace."""
    head, _, interface = address.partition("%")
    return (head, port, 0, socket.if_nametoindex(interface)) if interface else (head, port)


class Exchange:
    """Servers and callers on one loop. A server answers with its place and the address that it sees."""

    def __init__(self) -> None:
        self.loop = selectors.DefaultSelector()
        self.outcomes: dict[Cell, Outcome] = {}
        self.open: list[socket.socket] = []
        self._raw: set[tuple[str, str]] = set()
        """The places and addresses that receive SCTP."""
        self._inits: dict[int, Cell] = {}
        """The cells of SCTP by the source port of their INIT."""

    def __enter__(self) -> Exchange:
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.open:
            one.close()
        self.loop.close()

    def serve(self, place: str, protocol: str, port: int, address: str = "::") -> None:
        """Listen, in the namespace this process is in."""
        if protocol == "sctp":
            self._receive(place, address)
            return
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        server = socket.socket(family, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        server.setblocking(False)
        server.bind(_place(address, port))
        if protocol == "tcp":
            server.listen(256)
        self.open.append(server)
        self.loop.register(server, selectors.EVENT_READ, (f"serve {protocol}", f"{place}:{port}"))

    def _receive(self, place: str, address: str) -> None:
        """Take every SCTP packet that arrives at a place, or at an address of it."""
        families = (socket.AF_INET, socket.AF_INET6) if address == "::" else (socket.AF_INET6,)
        for family in families if (place, address) not in self._raw else ():
            channel = socket.socket(family, socket.SOCK_RAW, sctp.PROTOCOL)
            channel.setblocking(False)
            if address != "::":
                channel.bind(_place(address))
            self.open.append(channel)
            self.loop.register(channel, selectors.EVENT_READ, (f"receive {int(family)}", place))
        self._raw.add((place, address))

    def _send(self, cell: Cell) -> None:
        """An INIT, whose source port is the cell's alone."""
        port = 20000 + len(self._inits)
        self._inits[port] = cell
        self.outcomes[cell] = Outcome()
        family = socket.AF_INET6 if ":" in cell.address else socket.AF_INET
        with socket.socket(family, socket.SOCK_RAW, sctp.PROTOCOL) as channel:
            if cell.source:
                channel.bind((cell.source, 0))
            with contextlib.suppress(OSError):
                channel.sendto(sctp.init_from(port, cell.port), _place(cell.address))

    def call(self, cell: Cell) -> None:
        """Begin a call, in the namespace this process is in."""
        if cell.protocol == "sctp":
            self._send(cell)
            return
        family = socket.AF_INET6 if ":" in cell.address else socket.AF_INET
        channel = socket.socket(family, socket.SOCK_STREAM if cell.protocol == "tcp" else socket.SOCK_DGRAM)
        channel.setblocking(False)
        if cell.source:
            channel.bind((cell.source, 0))
        self.open.append(channel)
        self.outcomes[cell] = Outcome()
        refused = channel.connect_ex(_place(cell.address, cell.port))
        if refused in (0, errno.EINPROGRESS):
            with contextlib.suppress(OSError):
                if cell.protocol == "udp":
                    channel.send(b"?")
            self.loop.register(channel, selectors.EVENT_READ, ("call", cell))

    def run(self, awaited: set[Cell], silence_s: float = _SILENCE_S) -> None:
        """Until all awaited have answered, and then until nothing has happened for a moment."""
        calls = {cell for key in self.loop.get_map().values() for what, cell in [key.data] if what == "call"}
        end = time.monotonic() + _PATIENCE_S
        while (calls or self._inits) and time.monotonic() < end:
            events = self.loop.select(silence_s)
            if not events and not awaited & calls:
                return
            for key, _ in events:
                what, about = key.data
                if what.startswith("receive"):
                    self._arrived(key.fileobj, int(what.split()[1]), about)
                elif what == "call":
                    self.loop.unregister(key.fileobj)
                    calls.discard(about)
                    self._finish(key.fileobj, about)
                else:
                    self._answer(key.fileobj, what, about)

    def _arrived(self, channel: Any, family: int, place: str) -> None:
        packet, peer = channel.recvfrom(2048)
        source, port = sctp.ports_of(packet, family)
        cell = self._inits.get(source)
        if cell is not None:
            self.outcomes[cell] = Outcome(f"{place}:{port}", peer[0])

    def _finish(self, channel: Any, cell: Cell) -> None:
        try:
            who, _, source = channel.recv(200).decode().partition(" ")
        except OSError:
            return
        self.outcomes[cell] = Outcome(who, source.removeprefix("::ffff:"))

    def _answer(self, server: Any, what: str, place: str) -> None:
        with contextlib.suppress(OSError):
            if what == "serve udp":
                _, peer = server.recvfrom(100)
                server.sendto(f"{place} {peer[0]}".encode(), peer)
            else:
                connection, peer = server.accept()
                connection.sendall(f"{place} {peer[0]}".encode())
                connection.close()
