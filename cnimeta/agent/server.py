"""The agent's side: keeping workers ready.

Workers are forked ahead and wait for connections themselves. One that has served an invocation which left nothing
behind comes back; any other ends, and is replaced as soon as that is known. While none is free the agent takes the
connections: it greets each at once, so that no launcher doubts that somebody is there, and hands them to the workers
that come back. `pool` says when there is to be another worker.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import time
from collections import deque
from typing import TYPE_CHECKING, NamedTuple

from cnimeta.agent.pages import Told, take, tell
from cnimeta.agent.pool import CONNECTION, DONE, LASTING, LEAVING, LISTENER, TAKEN, Greeted, Pool, Worker, handed, say
from cnimeta.agent.systemd import Manager
from cnimeta.agent.wire import REFUSED, Broken, Probed
from cnimeta.agent.worker import SHORT, Service, accepted, greet, rehearse, serve
from cnimeta.errors import shown

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cnimeta.agent.listening import Listening

WORKERS = 4
ENDING = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
"""What `serve` returns for. To be blocked from when the socket is there: it is removed at the end."""
_LOOK_S = 1.0
_LOOK_WAITING_S = 0.01
"""How often it is asked whether there is to be another worker while somebody waits for one."""
_SETTLED_S = 1.0
_MOST = 256
"""Processes alive at once. Beyond that, launchers wait."""
_WAITS, _ASKED = "a worker", "a worker that was asked"
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
        self._pool = Pool(workers)
        self._manager = manager or Manager()
        self._due = {job.name: time.monotonic() + (0 if job.lasting else job.seconds) for job in jobs}
        self._children: dict[int, str] = {}
        """What each child is about, by process ID."""
        self._waiting: deque[Greeted] = deque()
        self._retired, self._keep = os.pipe()
        self._woken, self._wake = os.pipe()
        self._folder = f"{listening.path}.rehearsal"
        self._told: Told | None = None
        """The rehearsal, while it lasts."""
        for descriptor in (self._woken, self._wake):
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
        while again and self._waiting and self._fork(self._waiting[0].connection):
            self._waiting.popleft().connection.close()
        self._refuse_all()
        return again

    def _rehearse(self) -> None:
        """Have a process find out which memory serving takes. Workers that are there by then go without."""
        told = self._told = Told()
        job = Job("the rehearsal", 0, lambda: tell(told.teller, lambda: rehearse(self._service, self._folder)))
        self._forked(job.name, lambda: self._do(job))
        told.begun()

    def _learn(self, told: Told) -> None:
        pages = told.heard()
        if pages is not None:
            self._told, self._service = None, self._service._replace(pages=pages)

    def _retire(self) -> None:
        """Let the workers end: those that wait now, the others when they have answered. And lasting jobs."""
        keep, self._keep = self._keep, -1
        if keep >= 0:
            os.close(keep)
        for pid in list(self._pool.workers):
            self._pool.forget(pid)

    def _refuse_all(self) -> None:
        """Have those who wait work alone."""
        while self._waiting:
            with self._waiting.popleft().connection as connection:
                _refuse(connection)

    def _end(self, number: int, _: object) -> None:
        self._ended = signal.Signals(number).name

    def _turn(self) -> None:
        """Wait for something to do, and do it."""
        poller = select.poll()
        poller.register(self._woken, select.POLLIN)
        links = {worker.link.fileno(): worker for worker in self._pool.workers.values()}
        for descriptor in (*links, *([self._told.descriptor] if self._told else ())):
            poller.register(descriptor, select.POLLIN)
        if not self._pool.idle:
            poller.register(self._listener, select.POLLIN)
        ready = {found for found, _ in poller.poll((_LOOK_WAITING_S if self._waiting else _LOOK_S) * 1000)}
        _drain(self._woken)
        if self._told and self._told.descriptor in ready:
            self._learn(self._told)
        for descriptor in ready & links.keys():
            self._hear(links[descriptor])
        self._reap()
        if self._listener.fileno() in ready and not self._ended:
            self._take()
        self._fill()

    def _hear(self, worker: Worker) -> None:
        while (said := worker.heard()) is not None:
            word, about = said
            if word in (TAKEN, LASTING, LEAVING):
                worker.idle = False
                self._pool.moved(time.monotonic())
                self._children[worker.pid] = about or _ASKED
            elif word == DONE:
                worker.served += 1
                self._children[worker.pid] = _WAITS
                self._give(worker)
            if word not in (TAKEN, LASTING, DONE):
                self._pool.forget(worker.pid)
            if worker.pid not in self._pool.workers:
                return

    def _give(self, worker: Worker) -> None:
        """Have one that is back serve who waits, or wait itself, or end."""
        if self._waiting:
            if worker.hand(CONNECTION, self._waiting[0].connection):
                self._waiting.popleft().connection.close()
                self._children[worker.pid] = _ASKED
                return
        elif self._pool.may_wait(worker) and worker.hand(LISTENER, self._listener):
            worker.idle = True
            return
        self._pool.forget(worker.pid)

    def _reap(self) -> None:
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            about = self._children.pop(pid, "a process of an earlier agent")
            if self._pool.forget(pid):
                self._may_fork = time.monotonic() + _LOOK_S  # one that cannot even wait is not made again at once
            if status:
                killed = os.waitstatus_to_exitcode(status) == -signal.SIGKILL
                log = self._service.log.warning if killed else self._service.log.error
                log(f"process {pid} ({about}) was ended by {_cause(status)}")

    def _fill(self) -> None:
        """Have workers for those who wait, as far as the pool wants more, and some that wait themselves."""
        now = time.monotonic()
        while self._waiting and self._pool.wants_another(now) and self._fork(self._waiting[0].connection):
            self._waiting.popleft().connection.close()
            self._pool.moved(now)
        if not self._pool.workers:  # there can be none, and nobody will be back
            self._refuse_all()
        for gone in [waiting for waiting in self._waiting if not waiting.is_patient(now)]:
            self._waiting.remove(gone)
            gone.connection.close()
        while self._pool.is_short() and not self._ended and now >= self._may_fork:
            if not self._fork(None):
                self._may_fork = now + _LOOK_S

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
                self._waiting.append(Greeted(connection, time.monotonic()))
            else:
                connection.close()

    def _fork(self, connection: socket.socket | None) -> bool:
        """Make a worker: for this connection, or to wait for one."""
        if len(self._children) >= _MOST:
            return False
        try:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        except OSError as error:
            self._service.log(f"cannot make a worker: {error.strerror}")
            return False

        def work() -> None:
            ours.close()
            self._work(theirs, connection)

        pid = self._forked(_WAITS if connection is None else _ASKED, work, connection)
        theirs.close()
        if not pid:
            ours.close()
            return False
        self._pool.workers[pid] = Worker(pid, ours, idle=connection is None)
        return True

    def _forked(self, about: str, run: Callable[[], None], connection: socket.socket | None = None) -> int:
        """A child's process ID; 0 when there can be none. Of those who wait, `connection` is left to it."""
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
            for descriptor in (self._woken, self._wake, *([self._told.descriptor] if self._told else ())):
                os.close(descriptor)
            self._retire()  # the ends of these links and of the pipe are the agent's
            for other in self._waiting:
                if other.connection is not connection:
                    other.connection.close()
            run()
            status = 0
        except Exception as error:  # noqa: BLE001 - somebody has to be told
            self._service.log(f"process {os.getpid()} failed: {type(error).__name__}: {shown(str(error))}")
        finally:
            os._exit(status)

    def _work(self, link: socket.socket, connection: socket.socket | None) -> None:
        """A worker's life: it serves as long as nothing of what it has served is left, and it is handed more.

        While it works it has nothing open that listens: should the agent be killed, nobody is to wait for it.
        """
        service = self._service._replace(log=self._service.log.kept())
        os.close(self._retired)
        if connection is None:
            take(service.pages)
            connection = _taken(self._listener, link)
        else:
            self._listener.close()
        while connection is not None:
            with connection:
                if not _served(connection, service, link):
                    return
            say(link, DONE)
            what, given = handed(link)
            connection = given if given is None or what == CONNECTION else _taken(given, link)

    def _start_jobs(self, now: float) -> None:
        for job in self._jobs:
            if now >= self._due[job.name] and job.name not in self._children.values():
                self._due[job.name] = now + job.seconds
                self._forked(job.name, lambda job=job: self._do(job))  # type: ignore[misc]

    def _do(self, job: Job) -> None:
        self._listener.close()
        if job.lasting:
            _end_with(self._retired)
        else:
            os.close(self._retired)
        job.run()

    def _outlast_change(self) -> None:
        """Refuse everybody until the installation changes no more, and then ask to be started again."""
        self._service.log.info("the installation has changed: starting again")
        self._retire()
        self._refuse_all()
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


def _taken(listener: socket.socket, link: socket.socket) -> socket.socket | None:
    """Wait for a connection, and greet it. None when the agent needs this worker no more, or has ended."""
    with listener:
        while (connection := accepted(listener, link.fileno())) is not None:
            if greet(connection):
                say(link, TAKEN)
                return connection
            connection.close()
    return None


def _served(connection: socket.socket, service: Service, link: socket.socket) -> bool:
    """Whether this worker may serve another one."""
    try:
        return serve(connection, service, lambda about, lasting: say(link, LASTING if lasting else LEAVING, about))
    except Probed:
        return True
    except (OSError, Broken) as error:
        service.log(f"a launcher was not served: {error}")
        return False


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


def _drain(descriptor: int) -> None:
    try:
        os.read(descriptor, 1 << 16)
    except BlockingIOError:
        pass
