"""The agent's side: keeping workers ready.

Workers are forked ahead and wait for connections themselves; each serves one and ends, and is replaced as soon as it
has taken one. While none is free the agent takes the connections: it greets each at once, so that no launcher doubts
that somebody is there, and forks a worker for it.
"""

from __future__ import annotations

import gc
import os
import select
import signal
import time
from typing import TYPE_CHECKING, NamedTuple

from cnimeta.agent.pages import take, tell, told
from cnimeta.agent.systemd import Manager
from cnimeta.agent.wire import REFUSED, Broken, Probed
from cnimeta.agent.worker import SHORT, Service, accepted, greet, rehearse, serve
from cnimeta.errors import shown

if TYPE_CHECKING:
    import socket
    from collections.abc import Callable, Sequence

    from cnimeta.agent.listening import Listening

WORKERS = 4
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What `serve` returns for. To be blocked from when the socket is there: it is removed at the end."""
_LOOK_S = 1.0
_SETTLED_S = 1.0
_MOST = 256
"""Workers alive at once. Beyond that, launchers work alone."""
_REPORT_BYTES = 512  # less than PIPE_BUF: a report is written whole or not at all
_FAILED = 3


class Job(NamedTuple):
    """Something to do every `seconds` in a process of its own, never twice at once."""

    name: str
    seconds: float
    run: Callable[[], None]
    lasting: bool = False
    """It begins with the agent and ends with it. When it ends by itself, it is started anew after `seconds`."""


class Agent:
    """Serves on a socket that listens, until SIGTERM or SIGINT."""

    def __init__(
        self,
        listening: Listening,
        service: Service,
        *,
        jobs: Sequence[Job] = (),
        workers: int = WORKERS,
        manager: Manager | None = None,
    ) -> None:
        self._listener = listening.socket
        self._service = service
        self._jobs = jobs
        self._workers = workers
        self._manager = manager or Manager()
        self._due = {job.name: time.monotonic() + (0 if job.lasting else job.seconds) for job in jobs}
        self._idle: set[int] = set()
        self._children: dict[int, str] = {}
        """What each child is about, by process ID."""
        self._waiting: list[socket.socket] = []
        """Greeted, and without a worker yet."""
        self._retired, self._keep = os.pipe()
        self._reports, self._report = os.pipe()
        self._woken, self._wake = os.pipe()
        self._rehearsed = -1
        """Where the rehearsal tells, while it lasts."""
        self._pages = b""
        for descriptor in (self._reports, self._report, self._woken, self._wake):
            os.set_blocking(descriptor, False)
        self._ended = ""
        self._may_fork = 0.0

    def serve(self) -> bool:
        """True when it is to be started again, on the same socket: the installation has changed, or SIGHUP came.

        Invocations that run then run to their end.
        """
        signal.set_wakeup_fd(self._wake, warn_on_full_buffer=False)
        for number in ENDING:
            signal.signal(number, self._end)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # whoever started this may have blocked some
        self._fill()
        self._rehearse()
        self._manager.ready()
        looked = time.monotonic()
        while not self._ended:
            self._turn()
            if time.monotonic() - looked >= _LOOK_S:
                looked = time.monotonic()
                self._manager.alive()
                self._start_jobs(looked)
                if not self._service.code.is_the_same():
                    self._outlast_change()
        again = self._ended == "SIGHUP"
        said = "starting again" if again else "ending"
        self._service.log.info(said, signal=self._ended, children=len(self._children))
        (self._manager.reloading if again else self._manager.stopping)()
        self._retire()
        for connection in self._waiting:
            connection.close()
        return again

    def _rehearse(self) -> None:
        """Have a process find out which memory serving takes. Workers that are there by then go without."""
        self._rehearsed, told_to = os.pipe()
        os.set_blocking(self._rehearsed, False)
        job = Job("the rehearsal", 0, lambda: tell(told_to, lambda: rehearse(self._service)))
        self._forked(job.name, lambda: self._do(job))
        os.close(told_to)

    def _learn(self) -> None:
        """Take what the rehearsal has told, and what it comes to when that is all."""
        try:
            more = os.read(self._rehearsed, 1 << 16)
        except BlockingIOError:
            return
        self._pages += more
        if not more:
            os.close(self._rehearsed)
            self._rehearsed = -1
            self._service = self._service._replace(pages=told(self._pages))

    def _retire(self) -> None:
        """Let the workers that wait end."""
        keep, self._keep = self._keep, -1
        if keep >= 0:
            os.close(keep)

    def _end(self, number: int, _: object) -> None:
        self._ended = signal.Signals(number).name

    def _turn(self) -> None:
        """Wait for something to do, and do it."""
        poller = select.poll()
        for descriptor in (self._reports, self._woken, self._rehearsed):
            if descriptor >= 0:
                poller.register(descriptor, select.POLLIN)
        if not self._idle:
            poller.register(self._listener, select.POLLIN)
        ready = {found for found, _ in poller.poll(_LOOK_S * 1000)}
        _drained(self._woken)
        if self._rehearsed in ready:
            self._learn()
        self._hear(_drained(self._reports))
        self._reap()
        if self._listener.fileno() in ready and not self._ended:
            self._take()
        self._fill()

    def _hear(self, reports: bytes) -> None:
        for line in reports.decode("utf-8", "replace").splitlines():
            pid, _, about = line.partition(" ")
            self._idle.discard(int(pid))
            if int(pid) in self._children:
                self._children[int(pid)] = about

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            about = self._children.pop(pid, "a process of an earlier agent")
            if pid in self._idle:
                self._idle.discard(pid)
                self._may_fork = time.monotonic() + _LOOK_S  # one that cannot even wait is not made again at once
            if status:
                killed = os.waitstatus_to_exitcode(status) == -signal.SIGKILL
                log = self._service.log.warning if killed else self._service.log.error
                log(f"process {pid} ({about}) was ended by {_cause(status)}")

    def _fill(self) -> None:
        """Have a worker for each connection that waits, and some that wait themselves."""
        while self._waiting:
            with self._waiting.pop(0) as connection:
                if not self._fork(connection):
                    _refuse(connection)
            self._take()
        while len(self._idle) < self._workers and not self._ended and time.monotonic() >= self._may_fork:
            if not self._fork(None):
                self._may_fork = time.monotonic() + _LOOK_S

    def _take(self) -> None:
        """Greet all who have connected."""
        while True:
            try:
                connection, _ = self._listener.accept()
            except BlockingIOError:
                return
            except OSError as error:
                if error.errno in SHORT:
                    self._service.log(f"cannot accept a connection: {error.strerror}")
                    time.sleep(_LOOK_S / 10)
                return
            if greet(connection):
                self._waiting.append(connection)
            else:
                connection.close()

    def _fork(self, connection: socket.socket | None) -> bool:
        """Make a worker: for this connection, or to wait for one."""
        if len(self._children) >= _MOST:
            return False
        pid = self._forked("a worker", lambda: self._work(connection))
        if pid and connection is None:
            self._idle.add(pid)
        return bool(pid)

    def _forked(self, about: str, run: Callable[[], None]) -> int:
        """A child's process ID; 0 when there can be none."""
        try:
            pid = os.fork()
        except OSError as error:
            self._service.log(f"cannot fork: {error.strerror}")
            return 0
        if pid:
            self._children[pid] = about
            return pid
        status = _FAILED
        try:
            signal.set_wakeup_fd(-1)
            for number in (signal.SIGCHLD, *ENDING):
                signal.signal(number, signal.SIG_DFL)
            for descriptor in (self._keep, self._reports, self._woken, self._wake, self._rehearsed):
                if descriptor >= 0:
                    os.close(descriptor)
            for other in self._waiting:
                other.close()
            run()
            status = 0
        except Exception as error:  # noqa: BLE001 - somebody has to be told
            self._service.log(f"process {os.getpid()} failed: {type(error).__name__}: {shown(str(error))}")
        finally:
            os._exit(status)

    def _work(self, connection: socket.socket | None) -> None:
        """A worker's life."""
        gc.disable()  # it ends before it would be worth its while
        service = self._service._replace(log=self._service.log.kept())
        if connection is None:
            take(service.pages)
            connection = accepted(self._listener, self._retired)
            if connection is None:
                return
            self._tell("a worker that was asked")
            if not greet(connection):
                return
        os.close(self._retired)
        self._listener.close()
        try:
            serve(connection, service, self._tell)
        except Probed:
            pass
        except (OSError, Broken) as error:
            service.log(f"a launcher was not served: {error}")

    def _tell(self, about: str) -> None:
        _write(self._report, f"{os.getpid()} {about}"[: _REPORT_BYTES - 1] + "\n")

    def _start_jobs(self, now: float) -> None:
        for job in self._jobs:
            if now >= self._due[job.name] and job.name not in self._children.values():
                self._due[job.name] = now + job.seconds
                self._forked(job.name, lambda job=job: self._do(job))  # type: ignore[misc]

    def _do(self, job: Job) -> None:
        self._listener.close()
        os.close(self._report)
        if job.lasting:
            _end_with(self._retired)
        else:
            os.close(self._retired)
        job.run()

    def _outlast_change(self) -> None:
        """Refuse everybody until the installation changes no more, and then ask to be started again."""
        self._service.log.info("the installation has changed: starting again")
        self._retire()
        since = time.monotonic()
        while not self._ended:
            self._manager.alive()
            if not self._service.code.is_settled():
                since = time.monotonic()
            if time.monotonic() - since >= _SETTLED_S:
                self._ended = "SIGHUP"
                return
            if select.select([self._listener], [], [], _SETTLED_S / 10)[0]:
                try:
                    connection, _ = self._listener.accept()
                except OSError:
                    time.sleep(_SETTLED_S / 10)
                    continue
                _refuse(connection)
                connection.close()


def _end_with(retired: int) -> None:
    """End this process when the agent does, or is about to start again. What it does must stand being killed."""
    from threading import Thread

    def wait() -> None:
        os.read(retired, 1)  # nothing is ever written to it
        os._exit(0)

    Thread(target=wait, daemon=True).start()


def _refuse(connection: socket.socket) -> None:
    try:
        connection.send(REFUSED)
    except OSError:
        pass


def _cause(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGKILL:
        return "SIGKILL: its launcher went away, or it was killed"
    return signal.Signals(-code).name if code < 0 else f"a failure ({code})"


def _drained(descriptor: int) -> bytes:
    try:
        return os.read(descriptor, 1 << 16)
    except BlockingIOError:
        return b""


def _write(descriptor: int, line: str) -> None:
    try:
        os.write(descriptor, line.encode("utf-8", "backslashreplace"))
    except OSError:
        pass
