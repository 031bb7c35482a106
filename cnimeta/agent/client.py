"""The launcher's side, in Python: hand the invocation to the agent, if there is one. Imports next to nothing."""

from __future__ import annotations

import os
import sys
from _socket import (
    AF_UNIX,
    MSG_NOSIGNAL,
    SCM_RIGHTS,
    SHUT_RD,
    SO_PEERCRED,
    SOCK_CLOEXEC,
    SOCK_STREAM,
    SOL_SOCKET,
    socket,
)

from cnimeta.agent.wire import (
    ACCEPTED,
    ANSWER,
    CREDENTIALS,
    HELLO,
    LENGTH,
    PATIENCE_S,
    REQUEST,
    SOCKET,
    VARIABLE,
    WAITING,
    Broken,
    identity,
    receive,
)

_LOOK_S = 1.0
_IN_PROCESS = ("", "VERSION")
_PLACES = ("/proc/self/ns/net", "/proc/self/ns/mnt", ".", "/")
_LOST = b'{"cniVersion":"1.1.0","code":5,"msg":"the cnimeta agent ended before it answered"}\n'

ALONE = ["alone"]
"""The arguments with which the native launcher, which has asked the agent in vain, starts this one."""


def hand_over(plugin: str) -> None:
    """Let the agent serve this invocation and exit with its answer. Returns when there is none, or it refuses.

    The agent has to be root's or of this user. Once it has accepted, nothing is done here: not even when it dies, since
    what it has done by then is not known. The runtime's DEL takes that back.
    """
    if os.environ.get("CNI_COMMAND", "") in _IN_PROCESS or sys.argv[1:] == ALONE:
        return
    connection = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC)
    lifeline: list[int] = []
    try:
        _ask(connection, _connect(connection), plugin, lifeline)
    except (OSError, Broken):
        connection.close()
        for descriptor in lifeline:
            os.close(descriptor)
        return
    status, answer = _outcome(connection)
    try:
        while answer:
            answer = answer[_written(answer) :]
    except OSError:
        status = status or 1
    sys.exit(status)


def _outcome(connection: socket) -> tuple[int, bytes]:
    """What an agent that has accepted says in the end: exit status and stdout."""
    try:
        connection.settimeout(None)
        status, length = ANSWER.unpack(receive(connection, ANSWER.size))
        return status, receive(connection, length)
    except (OSError, Broken):
        return 1, _LOST


def _connect(connection: socket) -> int:
    """The process ID of the agent. Raises OSError or Broken."""
    path = os.environ.get(VARIABLE) or SOCKET
    if None in (sys.stdin, sys.stdout, sys.stderr):
        raise Broken("one that is closed cannot be handed over")
    folder = os.lstat(os.path.dirname(path))
    if folder.st_uid not in (0, os.geteuid()) or folder.st_mode & 0o170022 != 0o040000:
        raise Broken("others may put a socket there")
    connection.settimeout(_LOOK_S)
    connection.connect(path)
    agent, owner, _ = CREDENTIALS.unpack(connection.getsockopt(SOL_SOCKET, SO_PEERCRED, CREDENTIALS.size))
    if owner not in (0, os.geteuid()):
        raise Broken("another user's")
    return int(agent)


def _ask(connection: socket, agent: int, plugin: str, lifeline: list[int]) -> None:
    """Until it has accepted. Our end of the pipe, which closes with this process, is left in `lifeline`."""
    if _heard(connection, agent, len(HELLO)) != HELLO:
        raise Broken("another protocol")
    send(connection, identity(sys.modules["cnimeta"].__path__[0], plugin), lifeline)
    connection.settimeout(_LOOK_S)  # all of it is there: from here on, only what the agent says can tell
    answer = WAITING
    try:
        while answer == WAITING:
            answer = _heard(connection, agent, 1)
    except OSError:
        connection.shutdown(SHUT_RD)  # from here on it cannot accept; it may have done so just before
        connection.setblocking(False)
        while answer == WAITING:
            answer = connection.recv(1)
    if answer != ACCEPTED:
        raise Broken("refused")


def send(connection: socket, name: bytes, lifeline: list[int]) -> None:
    """Send the request of this process, for the plugin of that identity. Raises OSError."""
    environ = b"\0".join(key + b"=" + value for key, value in os.environb.items())
    umask = os.umask(0)
    os.umask(umask)
    opened = [os.open(place, os.O_RDONLY | os.O_CLOEXEC) for place in _PLACES]
    theirs, ours = os.pipe2(os.O_CLOEXEC)
    lifeline.append(ours)
    packed = b"".join(LENGTH.pack(descriptor) for descriptor in (*opened, 0, 2, theirs))
    request = REQUEST.pack(HELLO, umask, len(name), len(environ)) + name + environ
    sent = connection.sendmsg([request], [(SOL_SOCKET, SCM_RIGHTS, packed)], MSG_NOSIGNAL)
    for descriptor in (*opened, theirs):
        os.close(descriptor)
    connection.settimeout(PATIENCE_S)
    while sent < len(request):
        sent += connection.send(request[sent:], MSG_NOSIGNAL)


def _heard(connection: socket, agent: int, count: int) -> bytes:
    """The agent's next word. Raises TimeoutError when it is stopped, or takes much too long."""
    for _ in range(PATIENCE_S):
        try:
            return receive(connection, count)
        except TimeoutError:
            if _is_stopped(agent):
                break
    raise TimeoutError


def _is_stopped(pid: int) -> bool:
    """Whether the process is known to be stopped."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2][:1] in (b"T", b"t")
    except OSError:
        return False


def _written(answer: bytes) -> int:
    try:
        return os.write(1, answer)
    except BlockingIOError:  # a pipe that the reader made non-blocking
        import select

        select.select((), (1,), ())
        return 0
