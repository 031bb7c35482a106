"""What launcher and agent say to each other over a unix socket.

    launcher -> agent   MAGIC, length, plugin ("module:Class")
    agent -> launcher   ACCEPTED, or REFUSED: then the launcher does the work itself
    launcher -> agent   two lengths, the environment (KEY=VALUE, NUL between), the configuration from stdin; with them
                        descriptors of the launcher's network namespace, mount namespace, working directory and stderr,
                        and the reading end of a pipe that is never written to: it ends when the launcher does
    agent -> launcher   exit status, length, stdout

A launcher that goes away ends the work, as a kill of the plugin's own process would.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

SOCKET = "/run/cnimeta/agent.sock"
VARIABLE = "CNIMETA_AGENT"
"""Names another socket, for tests."""

MAGIC = b"cnimeta-agent 2\n"
"""Another protocol has another number here: neither side then goes on."""
ACCEPTED, REFUSED = b"A", b"R"
LENGTH, LENGTHS, ANSWER = struct.Struct("=I"), struct.Struct("=II"), struct.Struct("=iI")
DESCRIPTORS = 5
CREDENTIALS = struct.Struct("=3i")
"""struct ucred: pid, uid, gid."""
LARGEST = 1 << 26


class Broken(Exception):
    """The other side went away or does not speak this protocol."""


def receive(connection: socket, count: int) -> bytes:
    """Exactly `count` bytes. Raises Broken, and OSError after the socket's timeout."""
    if count > LARGEST:
        raise Broken("too long")
    parts = []
    while count:
        part = connection.recv(min(count, 1 << 16))
        if not part:
            raise Broken("the other side went away")
        parts.append(part)
        count -= len(part)
    return b"".join(parts)
