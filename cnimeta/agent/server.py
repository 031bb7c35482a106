"""The agent's side. Each invocation runs in a process forked for it, in the launcher's namespaces and environment.

So a plugin behaves as in a process of its own: it may change its namespace, its environment and its memory, be killed,
and leave nothing in the agent. What the fork saves is starting Python and importing.
"""

from __future__ import annotations

import fcntl
import os
import select
import signal
import socket
import stat
from typing import TYPE_CHECKING

from cnimeta.agent.wire import (
    ACCEPTED,
    ANSWER,
    CREDENTIALS,
    DESCRIPTORS,
    LENGTH,
    LENGTHS,
    MAGIC,
    REFUSED,
    Broken,
    receive,
)
from cnimeta.errors import IoFailure
from cnimeta.host import afterwards
from cnimeta.host.netns import join
from cnimeta.plugin.dispatch import run, to_stderr

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cnimeta.plugin.base import Plugin

_REQUEST_S = 5.0
_BACKLOG = 128
_LOOK_S = 1.0
_NAME_MAX = 1 << 10


class Agent:
    """Serves the given plugins, by target ("module:Class"), on a unix socket.

    `is_current()` is asked before each invocation: when it says no (the installation was changed), the agent ends and
    launchers work on their own. `idle()` is called about once a second.
    """

    def __init__(
        self,
        path: str,
        plugins: Mapping[str, Callable[[], Plugin]],
        is_current: Callable[[], bool] = lambda: True,
        idle: Callable[[], None] = lambda: None,
    ) -> None:
        self.path = path
        self.plugins = plugins
        self.is_current = is_current
        self.idle = idle
        self._ended = False

    def serve(self) -> None:
        """Until SIGTERM or SIGINT, or until the installation changes. Invocations that run then run to their end."""
        listener = self._listen()
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped by the kernel
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._end)
        try:
            while not self._ended:
                ready, _, _ = select.select([listener], [], [], _LOOK_S)
                if not self.is_current():
                    break
                self.idle()
                if ready:
                    self._accept(listener)
        finally:
            os.unlink(self.path)
            listener.close()

    def _end(self, *_: object) -> None:
        self._ended = True

    def _listen(self) -> socket.socket:
        folder = os.path.dirname(self.path)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if os.stat(folder).st_uid != os.geteuid() or stat.S_IMODE(os.stat(folder).st_mode) & 0o022:
            raise IoFailure(f"{folder} must belong to this user, and nobody else may write to it")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            if _answers(self.path):
                raise IoFailure(f"another agent serves {self.path}")
            listener.bind(self.path)
        except OSError as error:
            listener.close()
            raise IoFailure(f"cannot listen on {self.path}: {error.strerror or error}") from None
        os.chmod(self.path, 0o600)
        listener.listen(_BACKLOG)
        return listener

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except OSError:
            return
        with connection:
            try:
                child = os.fork()
            except OSError:
                return  # the launcher sees the end and works on its own
            if child == 0:
                self._in_child(listener, connection)

    def _in_child(self, listener: socket.socket, connection: socket.socket) -> None:
        """Never returns."""
        try:
            for number in (signal.SIGCHLD, signal.SIGTERM, signal.SIGINT):
                signal.signal(number, signal.SIG_DFL)
            listener.close()
            self._serve_one(connection)
        except (OSError, Broken):
            pass  # nobody is there who could be told
        finally:
            os._exit(0)

    def _serve_one(self, connection: socket.socket) -> None:
        connection.settimeout(_REQUEST_S)
        plugin = self.plugins.get(_greeting(connection))
        if plugin is None or _peer(connection) not in (0, os.geteuid()):
            connection.sendall(REFUSED)
            return
        connection.sendall(ACCEPTED)
        sizes, descriptors, _, _ = socket.recv_fds(connection, LENGTHS.size, DESCRIPTORS)
        if len(sizes) != LENGTHS.size or len(descriptors) != DESCRIPTORS:
            raise Broken("not a launcher")
        environ, stdin = (receive(connection, size) for size in LENGTHS.unpack(sizes))
        connection.settimeout(None)
        *place, lifeline = descriptors
        _take_place(place)
        os.environb.clear()
        os.environb.update(pair.partition(b"=")[::2] for pair in environ.split(b"\0") if pair)
        _die_with(lifeline)
        afterwards.begin()
        outcome = run(plugin(), os.environ, stdin, to_stderr)
        os.close(lifeline)
        answer = outcome.stdout.encode()
        connection.sendall(ANSWER.pack(outcome.status, len(answer)) + answer)


def _answers(path: str) -> bool:
    """Whether an agent listens there. A socket that an agent left when it was killed is removed."""
    probe = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        probe.connect(path)
    except FileNotFoundError:
        return False
    except ConnectionRefusedError:
        os.unlink(path)
        return False
    finally:
        probe.close()
    return True


def _greeting(connection: socket.socket) -> str:
    """The plugin that the launcher names."""
    if receive(connection, len(MAGIC)) != MAGIC:
        raise Broken("not a launcher")
    (length,) = LENGTH.unpack(receive(connection, LENGTH.size))
    return receive(connection, min(length, _NAME_MAX)).decode("ascii", "replace")


def _peer(connection: socket.socket) -> int:
    packed = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, CREDENTIALS.size)
    return int(CREDENTIALS.unpack(packed)[1])


def _take_place(descriptors: list[int]) -> None:
    """Stand where the launcher stands."""
    network, mounts, folder, stderr = descriptors
    for descriptor, kind in ((mounts, "mnt"), (network, "net")):
        own = os.stat(f"/proc/self/ns/{kind}")
        if os.fstat(descriptor).st_ino != own.st_ino:
            join(descriptor)
    os.fchdir(folder)
    nothing = os.open("/dev/null", os.O_RDONLY)
    for source, target in ((nothing, 0), (stderr, 1), (stderr, 2)):
        os.dup2(source, target)
    for descriptor in (*descriptors, nothing):
        os.close(descriptor)


def _die_with(lifeline: int) -> None:
    """Let the kernel kill this process when the launcher goes away, as whoever killed that wanted.

    The pipe is used for nothing else: a signal armed on the connection itself can fire for data already read.
    """
    fcntl.fcntl(lifeline, fcntl.F_SETOWN, os.getpid())
    fcntl.fcntl(lifeline, fcntl.F_SETSIG, signal.SIGKILL)
    fcntl.fcntl(lifeline, fcntl.F_SETFL, fcntl.fcntl(lifeline, fcntl.F_GETFL) | os.O_ASYNC)
    if select.select([lifeline], [], [], 0)[0]:
        raise Broken("the launcher went away")
