"""What launcher and agent say to each other over a unix socket.

    agent -> launcher   HELLO: somebody has the connection. Nothing is sent to an agent that has not shown itself
                        alive: in the queue of one that hangs, the launcher's descriptors would stay open
    launcher -> agent   HELLO, umask, two lengths; which plugin of which installation; the environment (KEY=VALUE, NUL
                        between). With the first byte come the DESCRIPTORS
    agent -> launcher   WAITING, now and then, while every worker is at work
    agent -> launcher   ACCEPTED, when all of that is here and the launcher's place is taken; or REFUSED, or the end
    agent -> launcher   exit status, length, stdout

Until ACCEPTED the launcher may do the work itself at any time: it shuts its receiving side, after which ACCEPTED cannot
be sent. From there on it never does. `launch.c` is the same in C.
"""

from __future__ import annotations

import struct

TYPE_CHECKING = False
if TYPE_CHECKING:
    from _socket import socket

SOCKET = "/run/cnimeta/agent.sock"
VARIABLE = "CNIMETA_AGENT"
"""Names another socket, for tests."""

HELLO = b"cnimeta-agent 4\n"
"""Another protocol has another number here: neither side then goes on."""
ACCEPTED, REFUSED, WAITING = b"A", b"R", b"W"
REQUEST = struct.Struct("=16sIII")
"""HELLO, umask, length of the identity, length of the environment."""
ANSWER = struct.Struct("=iI")
"""Exit status, length of stdout."""
LENGTH = struct.Struct("=I")
DESCRIPTORS = 7
"""The launcher's network namespace, mount namespace, working directory, root, stdin (unread) and stderr, and the
reading end of a pipe that is never written to: it ends when the launcher does.
"""
CREDENTIALS = struct.Struct("=3i")
"""struct ucred: pid, uid, gid."""
LARGEST = 1 << 26
PATIENCE_S = 10
"""How long a launcher waits for each word of an agent that is not stopped. Long, since working alone would add to the
load that makes the agent late.
"""


class Broken(Exception):
    """The other side went away or does not speak this protocol."""


class Probed(Broken):
    """The other side went away without a word: it wanted to see that somebody is there."""


def identity(package_folder: str, plugin: str) -> bytes:
    """Which code a launcher would run: that of an agent of another installation is not the same."""
    return f"{package_folder}\0{plugin}".encode("utf-8", "surrogateescape")


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
