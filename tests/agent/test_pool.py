"""How many workers there are, which of them come back, and that a burst queues: nobody works alone while the agent lives."""

from __future__ import annotations

import concurrent.futures
import json
import os
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from agent_kit import ASKING, REFUSED_BY_SDK, Programs, code, conf

from cnimeta.agent.client import send
from cnimeta.agent.pool import CONNECTION, DONE, LISTENER, STALLED_S, TIRED, Greeted, Pool, Worker, handed, say
from cnimeta.agent.wire import ACCEPTED, ANSWER, HELLO, WAITING, identity, receive
from cnimeta.testing.agent import RunningAgent, eventually, forbid_working_alone

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cnimeta.testing.netns import Namespace

BURST = 60
AT_ONCE = max(4, 2 * len(os.sched_getaffinity(0)))


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        yield ours, theirs


# --- decisions ---


def pool_of(count: int, *, idle: int = 0, is_processor_idle: bool = False) -> Pool:
    pool = Pool(4, lambda: is_processor_idle)
    for number in range(count):
        pool.workers[number] = Worker(number, socket.socket(), idle=number < idle)
    return pool


@pytest.mark.unit
@pytest.mark.parametrize(
    ("count", "is_processor_idle", "stalled_s", "expected"),
    [
        (0, False, 0, True),
        (AT_ONCE - 1, False, 0, True),
        (AT_ONCE, False, 0, False),
        (AT_ONCE, True, 0, True),
        (AT_ONCE, False, STALLED_S * 0.9, False),
        (AT_ONCE, False, STALLED_S * 1.1, True),
        (200, True, 0, True),
    ],
)
def test_another_worker_is_wanted_when_processors_idle_or_nothing_moves(
    count: int, is_processor_idle: bool, stalled_s: float, expected: bool
) -> None:
    pool = pool_of(count, is_processor_idle=is_processor_idle)
    pool.moved(100.0)
    assert pool.wants_another(100.0 + stalled_s) is expected


@pytest.mark.unit
def test_worker_waits_itself_unless_enough_do_or_it_is_tired() -> None:
    pool = pool_of(6, idle=3)
    worker = pool.workers[5]
    assert pool.may_wait(worker)
    worker.served = TIRED
    assert not pool.may_wait(worker)
    worker.served = 0
    pool.workers[4].idle = True
    assert not pool.may_wait(worker)
    assert (pool.is_short(), pool.forget(0), pool.forget(0), pool.forget(5)) == (False, True, False, False)
    assert pool_of(3).is_short()


@pytest.mark.unit
def test_what_is_handed_over_arrives_and_words_are_heard(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    worker = Worker(1, ours, idle=True)
    assert worker.heard() is None
    say(theirs, DONE, "x" * 10_000)
    assert worker.heard() == (DONE, "x" * 511)
    with socket.socket() as given:
        assert worker.hand(CONNECTION, given)
        what, arrived = handed(theirs)
        assert what == CONNECTION
        assert arrived is not None
        with arrived:
            assert os.path.samestat(os.fstat(arrived.fileno()), os.fstat(given.fileno()))
        theirs.close()
        assert worker.heard() == (b"", "")
        assert not worker.hand(LISTENER, given)


@pytest.mark.unit
def test_worker_is_handed_nothing_when_the_agent_is_gone(pair: tuple[socket.socket, socket.socket]) -> None:
    ours, theirs = pair
    ours.close()
    say(theirs, DONE)
    assert handed(theirs) == (b"", None)


@pytest.mark.unit
def test_launcher_is_told_to_wait_on_and_forgotten_when_it_has_gone() -> None:
    ours, theirs = socket.socketpair()
    with ours:
        greeted = Greeted(ours, 100)
        assert greeted.is_patient(102)
        assert greeted.is_patient(104)
        assert greeted.is_patient(105)
        assert theirs.recv(8) == WAITING
        theirs.close()
        assert greeted.is_patient(106)
        assert not greeted.is_patient(108)


# --- on the kernel ---


def workers_of(own: RunningAgent) -> set[int]:
    eventually(lambda: len(own.workers()) == 4 and not own.children())
    return set(own.workers())


@pytest.mark.kernel
@pytest.mark.parametrize("kind", ASKING)
def test_worker_serves_again_when_its_invocation_left_nothing(own: RunningAgent, programs: Programs, kind: str) -> None:
    before = workers_of(own)
    for number in range(12):
        environ = {**REFUSED_BY_SDK, "CNI_CONTAINERID": f"-{number}", **own.environ}
        status, out, _ = programs.run(kind, "portmap", "ADD", conf("portmap"), **environ)
        assert (status, f"-{number}" in json.loads(out)["msg"]) == (1, True)
        assert workers_of(own) == before
    assert "was ended" not in own.log.read_text()


LEAVES = """
import os, threading, time
from cnimeta.host.netns import join
from cnimeta.plugin import Plugin

class Leaves(Plugin):
    name = "leaves"
    reusable = {reusable}
    def delete(self, request):
        left = request.conf.fields.text("left")
        if left == "a thread":
            threading.Thread(target=time.sleep, args=(30,), daemon=True).start()
        if left == "a child" and os.fork() == 0:
            time.sleep(1)
            os._exit(0)
        if left == "its namespace":
            join(os.open(request.environ["OTHER"], os.O_RDONLY))
        if left == "an exit":
            raise SystemExit("bye")
"""

SERVING = """
import os, sys
sys.path.insert(0, {folder!r})
from cnimeta.agent.listening import listen
from cnimeta.agent.log import Log
from cnimeta.agent.peer import own_capabilities
from cnimeta.agent.plugins import Code
from cnimeta.agent.server import Agent
from cnimeta.agent.wire import identity
from cnimeta.agent.worker import Service
from leaves import Leaves
listening = listen({path!r})
code = Code([])
code.loaded()
log = Log()
Agent(listening, Service({{identity("here", "leaves:Leaves"): Leaves()}}, code, own_capabilities(), log)).serve()
listening.close()
"""


def asked(path: str, left: str, other: str) -> int:
    """One DEL by a launcher of the test's own; the process that served it."""
    stdin = json.dumps({"cniVersion": "1.0.0", "name": "n", "type": "leaves", "left": left}).encode()
    environ = {"CNI_COMMAND": "DEL", "CNI_CONTAINERID": "c", "CNI_IFNAME": "e", "CNI_PATH": "/x", "OTHER": other}
    child = os.fork()
    if child == 0:
        status = 99
        try:
            reading, writing = os.pipe()
            os.write(writing, stdin)
            os.close(writing)
            os.dup2(reading, 0)
            os.environ.clear()
            os.environ.update(environ)
            with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link:
                link.connect(path)
                assert receive(link, len(HELLO)) == HELLO
                send(link, identity("here", "leaves:Leaves"), [])
                assert receive(link, 1) == ACCEPTED
                status, length = ANSWER.unpack(receive(link, ANSWER.size))
                receive(link, length)
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


@pytest.mark.kernel
@pytest.mark.parametrize(
    ("left", "reusable", "comes_back"),
    [
        ("nothing", True, True),
        ("nothing", False, False),
        ("a thread", True, False),
        ("a child", True, False),
        ("its namespace", True, False),
        ("an exit", True, True),
    ],
)
def test_worker_ends_when_something_is_left_of_an_invocation(
    tmp_path: Path, make_netns: Callable[[str], Namespace], left: str, reusable: bool, comes_back: bool
) -> None:
    """What a plugin leaves in its process is seen by no other invocation."""
    (tmp_path / "leaves.py").write_text(LEAVES.format(reusable=reusable))
    path = str(tmp_path / "run" / "agent.sock")
    program = SERVING.format(folder=str(tmp_path), path=path)
    agent = subprocess.Popen([sys.executable, "-c", program])
    try:
        children = Path(f"/proc/{agent.pid}/task/{agent.pid}/children")
        eventually(lambda: os.path.exists(path) and len(children.read_text().split()) == 4)
        before = set(children.read_text().split())
        other = make_netns("other").path
        assert asked(path, left, other) == (1 if left == "an exit" else 0)
        if comes_back:
            time.sleep(0.3)
            assert set(children.read_text().split()) == before
        else:
            eventually(lambda: len(before & set(children.read_text().split())) == 3)
            eventually(lambda: len(children.read_text().split()) == 4)
    finally:
        agent.terminate()
        assert agent.wait(20) == 0


@pytest.mark.kernel
def test_burst_is_served_by_few_workers_and_nobody_works_alone(
    tmp_path: Path, own: RunningAgent, programs: Programs
) -> None:
    bound = Programs(tmp_path / "bound")
    for kind in ASKING:
        forbid_working_alone(bound.folders[kind] / "portmap")
    workers_of(own)
    environ = {**REFUSED_BY_SDK, **own.environ}
    seen: set[int] = set()
    with concurrent.futures.ThreadPoolExecutor(BURST) as threads:
        started = [
            threads.submit(bound.run, "native", "portmap", "ADD", conf("portmap"), **environ) for _ in range(BURST)
        ]
        while not all(one.done() for one in started):
            seen |= set(own.workers())
            time.sleep(0.005)
    assert [code(one.result()[1]) for one in started] == [8] * BURST
    assert len(seen) < BURST / 2
    workers_of(own)
