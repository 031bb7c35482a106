"""The launcher's side: hand the invocation to the agent, if there is one. Imports next to nothing."""

from __future__ import annotations

import os
import sys
from _socket import AF_UNIX, SCM_RIGHTS, SO_PEERCRED, SOCK_CLOEXEC, SOCK_STREAM, SOL_SOCKET, socket

from cnimeta.agent.wire import (
    ACCEPTED,
    ANSWER,
    CREDENTIALS,
    LENGTH,
    LENGTHS,
    MAGIC,
    SOCKET,
    VARIABLE,
    Broken,
    receive,
)

_HANDSHAKE_S = 1.0
_IN_PROCESS = ("", "VERSION")
_PLACES = ("/proc/self/ns/net", "/proc/self/ns/mnt", ".")
_LOST = b'{"cniVersion":"1.1.0","code":5,"msg":"the cnimeta agent ended before it answered"}\n'


def hand_over(plugin: str) -> None:
    """Let the agent serve this invocation and exit with its answer. Returns when there is none, or it refuses.

    The agent has to be root's or of this user. Once it has accepted, nothing is done here: not even when it dies, since
    what it has done by then is not known. The runtime's DEL takes that back.
    """
    if os.environ.get("CNI_COMMAND", "") in _IN_PROCESS:
        return
    connection = _accepted(plugin)
    if connection is None:
        return
    try:
        status, answer = _served(connection)
    except (OSError, Broken):
        status, answer = 1, _LOST
    try:
        while answer:
            answer = answer[os.write(1, answer) :]
    except OSError:
        status = status or 1
    sys.exit(status)


def _accepted(plugin: str) -> socket | None:
    connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    try:
        connection.settimeout(_HANDSHAKE_S)  # an agent that hangs must not cost more
        connection.connect(os.environ.get(VARIABLE) or SOCKET)
        _, owner, _ = CREDENTIALS.unpack(connection.getsockopt(SOL_SOCKET, SO_PEERCRED, CREDENTIALS.size))
        if owner not in (0, os.geteuid()):
            raise Broken("another user's")
        name = plugin.encode()
        connection.sendall(MAGIC + LENGTH.pack(len(name)) + name)
        if receive(connection, 1) == ACCEPTED:
            connection.settimeout(None)
            return connection
    except (OSError, Broken):
        pass
    connection.close()
    return None


def _served(connection: socket) -> tuple[int, bytes]:
    chunks = []
    while chunk := os.read(0, 1 << 16):
        chunks.append(chunk)
    stdin = b"".join(chunks)
    environ = b"\0".join(key + b"=" + value for key, value in os.environb.items())
    # Descriptors go to an agent that has shown itself alive: in the queue of one that hangs they would stay open.
    places = [os.open(place, os.O_RDONLY | os.O_CLOEXEC) for place in _PLACES]
    lifeline, _ours = os.pipe2(os.O_CLOEXEC)  # our end closes with this process, however that ends
    ancillary = b"".join(LENGTH.pack(descriptor) for descriptor in (*places, 2, lifeline))
    connection.sendmsg([LENGTHS.pack(len(environ), len(stdin))], [(SOL_SOCKET, SCM_RIGHTS, ancillary)])
    for descriptor in (*places, lifeline):
        os.close(descriptor)
    connection.sendall(environ + stdin)
    status, length = ANSWER.unpack(receive(connection, ANSWER.size))
    return status, receive(connection, length)
