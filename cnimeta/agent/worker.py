"""One invocation, in a process that was forked for such: in the launcher's place, with the agent's code.

So a plugin behaves as in a process of its own: it may change its namespace, its environment and its memory, be killed,
and leave nothing in the agent. It is forked ahead and waits in `accepted`; what can be done before is done by then.

The process serves another one afterwards if it never had to leave the agent's place, the plugin says that it leaves
nothing behind (`Plugin.reusable`), and nothing is seen to be left. Environment, umask, folder and streams are each
launcher's own in any case, and the plugin is made anew.
"""

from __future__ import annotations

import contextlib
import errno
import os
import select
import socket
import time
from typing import TYPE_CHECKING, NamedTuple

from cnimeta.agent.client import send
from cnimeta.agent.log import Log
from cnimeta.agent.peer import Peer
from cnimeta.agent.rehearsal import Invocation, Stage
from cnimeta.agent.wire import ACCEPTED, ANSWER, DESCRIPTORS, HELLO, REFUSED, REQUEST, Broken, Probed, receive
from cnimeta.errors import CniError, shown
from cnimeta.host import afterwards, netlink
from cnimeta.host.lifeline import is_cut, tie
from cnimeta.host.netns import join, opened
from cnimeta.observe import notes
from cnimeta.plugin import report as reports
from cnimeta.plugin.dispatch import answered

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cnimeta.agent.pages import Range
    from cnimeta.agent.plugins import Code
    from cnimeta.host.spool import Spool
    from cnimeta.plugin.base import Plugin

_REQUEST_S = 5.0
_SHORT_S = 0.1
SHORT = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)
"""What accept says where something is used up: to ask again at once would use the processor up too."""
_WHOLE = socket.MSG_WAITALL | socket.MSG_CMSG_CLOEXEC
_ROOT = "/"
_NETWORK, _MOUNTS = "/proc/self/ns/net", "/proc/self/ns/mnt"
_ONE_THREAD = 3  # links of the folder /proc/self/task: two, and one for each thread
_REFUSED_STDIN = b"""{"cniVersion":"1.1.0","name":"rehearsal","type":"rehearsal","runtimeConfig":{"portMappings":[]},
"prevResult":{"interfaces":[{"name":"eth0","sandbox":"/"}],"ips":[{"address":"192.0.2.1/24","interface":0}]}}"""
_REFUSED_ENVIRON = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "rehearsal",
    "CNI_IFNAME": "eth0",
    "CNI_NETNS": "/proc/self/ns/net",
    "CNI_PATH": "/nonexistent",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=rehearsal",
}
"""An ADD into our own namespace: the SDK refuses it before any plugin acts."""


class Service(NamedTuple):
    """What workers do: the plugins by identity, the files that they were loaded from, who may ask; and the memory that
    it takes, had ahead.
    """

    plugins: Mapping[bytes, Plugin]
    code: Code
    capabilities: int
    """Those that the agent has: who asks must have them."""
    log: Log
    spool: Spool | None = None
    """Where reports are left; None: nobody reads them."""
    traces: bool = False
    """Whether reports become spans: delegates then belong to the invocation's own."""
    pages: tuple[Range, ...] = ()


def accepted(listener: socket.socket, retired: int) -> socket.socket | None:
    """Wait for a connection. None when the agent needs this worker no more, or has ended: `retired` then ends.

    Of all that wait, the kernel wakes one for each connection.
    """
    with select.epoll() as waiting:
        waiting.register(retired, select.EPOLLIN)
        waiting.register(listener, select.EPOLLIN | select.EPOLLEXCLUSIVE)
        while True:
            if any(found == retired for found, _ in waiting.poll()):
                return None
            try:
                return listener.accept()[0]
            except OSError as error:
                if error.errno in SHORT:
                    time.sleep(_SHORT_S)


def greet(connection: socket.socket) -> bool:
    """Say that somebody is there, to root and this user. False to others, who are refused."""
    try:
        welcome = Peer(connection).uid in (0, os.geteuid())
        connection.settimeout(_REQUEST_S)
        connection.sendall(HELLO if welcome else REFUSED)
    except OSError:
        return False
    return welcome


def serve(connection: socket.socket, service: Service, report: Callable[[str, bool], None]) -> bool:
    """Serve who has been greeted. Raises Broken or OSError when it goes away, or asks for nothing that there is.

    True when this process may serve another one. `report` is told what it is about to do, once it is accepted, and
    whether it may come back.
    """
    connection.settimeout(_REQUEST_S)
    objection = Peer(connection).objection(service.capabilities)
    if objection or not service.code.is_current():
        if objection:
            service.log(f"a launcher works alone: {objection}")
        connection.sendall(REFUSED)
        return True
    request = _Request(connection)
    plugin = service.plugins.get(request.identity)
    if plugin is None:
        connection.sendall(REFUSED)
        return False
    here = not request.take_place()
    afterwards.begin(awaited=False)
    notes.begin()
    if service.traces:
        reports.enter_span(os.environ)
    report(request.told(), here and plugin.reusable)
    connection.sendall(ACCEPTED)  # after this nobody else does the work
    connection.settimeout(None)
    outcome = answered(type(plugin), request.stdin)
    os.close(request.lifeline)
    answer = outcome.stdout.encode()
    request.let_go()
    connection.sendall(ANSWER.pack(outcome.status, len(answer)) + answer)
    connection.close()
    _tell(service)
    if here and plugin.reusable and request.left_nothing():
        return True
    afterwards.linger()
    return False


def _tell(service: Service) -> None:
    """The launcher has its answer: what was noted on the way goes into the log, and where metrics are made of it."""
    noted = notes.end()
    body = reports.report(noted, os.environ, reports.AGENT) if noted is not None and service.spool is not None else None
    if body is not None and service.spool is not None:
        service.log.served(body)
        service.spool.append(reports.line(body))


def rehearse(service: Service, folder: str, make_stage: Callable[[str], Stage] = Stage) -> None:
    """Serve requests of our own: every verb of every plugin that names a rehearsal, on a stage if one can be made.

    Changes this process as serving does, several times; it was forked for that. `folder`: the stage's.
    """
    quiet = service._replace(log=Log(descriptor=os.open("/dev/null", os.O_WRONLY | os.O_CLOEXEC)), spool=None)
    try:
        stage: Stage | None = make_stage(folder)
    except (CniError, OSError) as error:
        service.log(f"plugins are not rehearsed: {shown(str(error))}")
        stage = None
    with contextlib.ExitStack() as closing:
        if stage is not None:
            closing.callback(stage.close)
            descriptor = opened(stage.node)
            join(descriptor)
            os.close(descriptor)
        for name, plugin in service.plugins.items():
            told = [Invocation(_REFUSED_ENVIRON, _REFUSED_STDIN)]
            try:
                told += [] if stage is None else stage.invocations(plugin)
                for environ, stdin in told:
                    _serve_ourselves(quiet, name, environ, stdin)
            except Exception as error:  # noqa: BLE001 - somebody's plugin must not keep the others from it
                service.log(f"{plugin.name} is not rehearsed: {type(error).__name__}: {shown(str(error))}")


def _serve_ourselves(service: Service, name: bytes, environ: Mapping[str, str], stdin: bytes) -> None:
    reading, writing = os.pipe()
    os.write(writing, stdin)
    os.close(writing)
    os.dup2(reading, 0)
    os.close(reading)
    os.environ.update(environ)
    ours, theirs = socket.socketpair()
    lifeline: list[int] = []
    with ours, theirs:
        send(ours, name, lifeline)
        serve(theirs, service, lambda *_: None)
    os.close(lifeline[0])


class _Request:
    """All that a launcher sends."""

    def __init__(self, connection: socket.socket) -> None:
        head, descriptors, _, _ = socket.recv_fds(connection, REQUEST.size, DESCRIPTORS, _WHOLE)
        if not head:
            raise Probed("it said nothing")
        if len(head) != REQUEST.size or len(descriptors) != DESCRIPTORS:
            raise Broken("not a launcher")
        hello, self._umask, named, length = REQUEST.unpack(head)
        if hello != HELLO:
            raise Broken("another protocol")
        self.identity = receive(connection, named)
        self._environ = receive(connection, length)
        self._nothing = os.open("/dev/null", os.O_RDWR)  # where the launcher stands, there may be none
        *self._places, self.stdin, self._stderr, self.lifeline = descriptors

    def take_place(self) -> bool:
        """Stand where the launcher stands; from here on its end ends this process, and its environment is ours.

        Whether that is in other namespaces, or under another root, than this process stood.
        """
        network, mounts, folder, root = self._places
        moved = False
        for descriptor, place in ((mounts, _MOUNTS), (network, _NETWORK)):
            if not _is_same(descriptor, place):
                join(descriptor)
                moved = True
        if not _is_same(root, _ROOT):
            os.fchdir(root)
            os.chroot(".")
            moved = True
        os.fchdir(folder)
        os.umask(self._umask)
        os.dup2(self._stderr, 1)
        os.dup2(self._stderr, 2)
        for descriptor in (*self._places, self._stderr):
            os.close(descriptor)
        os.environb.clear()
        os.environb.update(pair.partition(b"=")[::2] for pair in self._environ.split(b"\0") if pair)
        # A pipe of its own: a signal armed on the connection can fire for data already read.
        tie(self.lifeline, os.getpid())
        if is_cut(self.lifeline):
            raise Broken("the launcher went away")
        self._stands = _standing()
        return moved

    def told(self) -> str:
        """What it is about, for the agent's log."""
        words = (os.environ.get(name, "") for name in ("CNI_COMMAND", "CNI_CONTAINERID", "CNI_IFNAME"))
        return " ".join((self.identity.rpartition(b"\0")[2].decode("ascii", "replace"), *(shown(w, 80) for w in words)))

    def let_go(self) -> None:
        """Keep nothing open that somebody waits for the end of."""
        os.close(self.stdin)
        os.dup2(self._nothing, 1)
        os.dup2(self._nothing, 2)
        os.close(self._nothing)

    def left_nothing(self) -> bool:
        """Whether this process is as it was when the request came, as far as can be seen: same namespaces, one thread,
        no child, and of netfilter's sockets only such as wait for the next conversation in this namespace.
        """
        os.chdir(_ROOT)  # or the launcher's folder could not be unmounted
        if self._stands != _standing() or os.stat("/proc/self/task").st_nlink != _ONE_THREAD:
            return False
        try:
            os.waitpid(-1, os.WNOHANG)
        except ChildProcessError:
            return netlink.keeps_only_idle()
        return False


def _standing() -> list[tuple[int, int]]:
    """Which namespaces this process is in."""
    found = [os.stat(place) for place in (_NETWORK, _MOUNTS)]
    return [(one.st_dev, one.st_ino) for one in found]


def _is_same(descriptor: int, path: str) -> bool:
    theirs, ours = os.fstat(descriptor), os.stat(path)
    return (theirs.st_dev, theirs.st_ino) == (ours.st_dev, ours.st_ino)
