"""How an agent begins, goes on and ends: its socket, its workers, what is used up, what is changed, who asks."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import os
import random
import re
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
from agent_kit import ASKING, REFUSED_BY_SDK, Programs, code, conf

from cnimeta.agent.plugins import Code
from cnimeta.agent.wire import HELLO, REQUEST, VARIABLE
from cnimeta.testing.agent import RunningAgent, eventually, forbid_working_alone

pytestmark = pytest.mark.kernel

CNIMETA = str(Path(sys.executable).with_name("cnimeta"))
ROUNDS = int(os.environ.get("CNIMETA_ROUNDS", "0")) or 400
STRANGERS = int(os.environ.get("CNIMETA_STRANGERS", "0")) or 200


@pytest.fixture(scope="module")
def bound(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    """Launchers that fail when the agent does not serve them."""
    made = Programs(tmp_path_factory.mktemp("bound"))
    for kind in ASKING:
        forbid_working_alone(made.folders[kind] / "portmap")
    return made


def served(programs: Programs, path: str, kind: str = "native") -> bool:
    """Whether the agent served a call, and rightly so."""
    status, out, _ = programs.run(kind, "portmap", "ADD", conf("portmap"), **REFUSED_BY_SDK, **{VARIABLE: path})
    return status == 1 and bool(out) and code(out) == 8


def agent_command(path: str) -> list[str]:
    return [CNIMETA, "agent", "--socket", path, "--deliver", "0"]


def descriptors(pid: int) -> list[str]:
    return sorted(os.readlink(f"/proc/{pid}/fd/{name}") for name in os.listdir(f"/proc/{pid}/fd"))


def processor_s(pid: int) -> float:
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(") ")[2].split()
    except (FileNotFoundError, ProcessLookupError):  # it has ended
        return 0
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


# --- the socket ---


def test_socket_is_roots_alone(agent: RunningAgent) -> None:
    assert os.stat(agent.socket).st_mode & 0o777 == 0o600
    assert os.stat(os.path.dirname(agent.socket)).st_mode & 0o777 == 0o700


def test_second_agent_is_refused_and_a_left_socket_is_replaced(own: RunningAgent, bound: Programs) -> None:
    done = subprocess.run(agent_command(own.socket), capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, "another agent serves" in done.stderr) == (1, True)
    left = os.stat(own.socket)
    own.process.kill()
    own.process.wait()
    other = subprocess.Popen(agent_command(own.socket))
    try:
        eventually(lambda: other.poll() is not None or not os.path.samestat(os.stat(own.socket), left))
        assert other.poll() is None
        assert served(bound, own.socket)
    finally:
        other.terminate()
        assert other.wait(20) == 0
    assert not os.path.exists(own.socket)


def test_one_agent_is_left_when_three_are_started_on_a_left_socket(tmp_path: Path, bound: Programs) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    path = str(folder / "agent.sock")
    for name in ("agent.sock", "agent.sock.123"):
        with socket.socket(socket.AF_UNIX) as left:
            left.bind(str(folder / name))
    started = [subprocess.Popen(agent_command(path), stderr=subprocess.DEVNULL) for _ in range(3)]
    try:
        eventually(lambda: sum(one.poll() is None for one in started) == 1, 60)
        eventually(lambda: served(bound, path))
        eventually(
            lambda: sorted(os.listdir(folder)) == ["agent.sock", "agent.sock.lock"]
        )  # the rehearsal has ended, too
    finally:
        for one in started:
            one.terminate()
    assert sorted(one.wait(20) for one in started) == [0, 1, 1]


def test_file_is_left_alone_when_it_is_where_the_socket_would_be(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    path = folder / "agent.sock"
    path.write_text("precious")
    done = subprocess.run(agent_command(str(path)), capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, "is no socket" in done.stderr, path.read_text()) == (1, True, "precious")


def test_folder_that_others_may_write_to_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(0o777)
    done = subprocess.run(agent_command(str(folder / "s")), capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, "nobody else may write" in done.stderr) == (1, True)


def test_socket_of_another_stays_when_an_agent_ends(own: RunningAgent) -> None:
    os.unlink(own.socket)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(own.socket)
        own.process.terminate()
        assert own.process.wait(20) == 0
        assert os.path.exists(own.socket)


def test_manager_passes_the_socket_and_is_told(tmp_path: Path, bound: Programs) -> None:
    """As systemd does with a socket unit and Type=notify: the socket outlives the agent."""
    folder = tmp_path / "run"
    folder.mkdir(mode=0o700)
    path, told = str(folder / "agent.sock"), str(folder / "notify")
    program = (
        "import os, sys; os.dup2(int(sys.argv[1]), 3); os.environ['LISTEN_PID'] = str(os.getpid());"
        "os.execv(sys.argv[2], sys.argv[2:])"
    )
    with (
        socket.socket(socket.AF_UNIX) as listener,
        socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        listener.bind(path)
        listener.listen()
        manager.bind(told)
        manager.settimeout(30)
        early = pool.submit(served, bound, path)  # waits until the agent that it causes to start is there
        command = [sys.executable, "-c", program, str(listener.fileno())]
        process = subprocess.Popen(
            [*command, *agent_command("/nonexistent/agent.sock")],
            env={**os.environ, "LISTEN_FDS": "1", "NOTIFY_SOCKET": told, "WATCHDOG_USEC": "3000000"},
            pass_fds=[listener.fileno()],
        )
        assert early.result(30)
        said = {manager.recv(100)}
        process.send_signal(signal.SIGHUP)
        assert served(bound, path)
        while not {b"READY=1", b"RELOADING=1", b"WATCHDOG=1"} <= said:
            said.add(manager.recv(100))
        process.terminate()
        assert process.wait(20) == 0
        while b"STOPPING=1" not in said:
            said.add(manager.recv(100))
        assert os.path.exists(path)


# --- going on ---


@pytest.mark.parametrize("kind", ASKING)
def test_no_request_is_lost_when_the_agent_starts_again(own: RunningAgent, bound: Programs, kind: str) -> None:
    """Launchers that cannot work alone are served before, while and after it does."""
    with concurrent.futures.ThreadPoolExecutor(3) as pool:
        asking = []
        for number in range(24):
            if number in (4, 14):
                own.process.send_signal(signal.SIGHUP)
            asking.append(pool.submit(served, bound, own.socket, kind))
            time.sleep(0.05)
        assert [one.result() for one in asking] == [True] * 24
    assert own.process.poll() is None


def test_agent_starts_again_when_its_installation_has_changed(tmp_path: Path) -> None:
    """And refuses who asks meanwhile, so that launchers work alone with the new code."""
    changed, path = tmp_path / "changed.py", str(tmp_path / "run" / "agent.sock")
    changed.write_text("1")
    program = f"""
import os, sys
from cnimeta.agent.listening import listen
from cnimeta.agent.log import Log
from cnimeta.agent.plugins import Code
from cnimeta.agent.server import Agent
from cnimeta.agent.worker import Service
listening = listen({path!r})
code = Code([{str(changed)!r}])
code.loaded()
again = Agent(listening, Service({{}}, code, 0, Log(descriptor=1))).serve()
print("again" if again else "ended", flush=True)
listening.close()
"""
    process = subprocess.Popen([sys.executable, "-uc", program], stdout=subprocess.PIPE)
    assert process.stdout is not None
    eventually(lambda: os.path.exists(path))
    changed.write_text("22")
    eventually(lambda: os.path.exists(path), 1)
    changes, last, again = process.stdout.read().splitlines()
    assert changes == b"cnimeta agent: the installation has changed: starting again"
    assert last.startswith(b"cnimeta agent: starting again signal=SIGHUP")
    assert again == b"again"
    assert process.wait(20) == 0
    assert not os.path.exists(path)


def test_code_is_told_from_changed_code(tmp_path: Path) -> None:
    package = tmp_path / "package"
    package.mkdir()
    source, other = package / "__init__.py", package / "other.py"
    source.write_text("1")
    other.write_text("1")
    found = Code([str(source), str(other)])
    found.loaded()
    assert (found.is_current(), found.is_the_same(), found.is_settled()) == (True, True, False)
    (package / "__pycache__").mkdir()
    assert (found.is_current(), found.is_the_same()) == (True, True)
    replacement = package / "new"
    replacement.write_text("1")
    os.replace(replacement, other)
    assert (found.is_current(), found.is_the_same()) == (False, False)
    found = Code([str(source), str(other)])
    found.loaded()
    source.write_text("in place")
    assert (found.is_the_same(), found.is_settled(), found.is_settled()) == (False, False, True)
    source.unlink()
    assert (found.is_current(), found.is_settled()) == (False, False)


def test_end_of_a_worker_is_told_with_its_cause_and_another_takes_its_place(own: RunningAgent) -> None:
    eventually(lambda: len(own.workers()) == 4)
    victim = own.workers()[0]
    os.kill(victim, signal.SIGSEGV)
    eventually(lambda: f"process {victim} (a worker) was ended by SIGSEGV" in own.log.read_text())
    eventually(lambda: len(own.workers()) == 4 and victim not in own.workers())


def test_workers_end_when_the_agent_is_killed(own: RunningAgent) -> None:
    eventually(lambda: len(own.workers()) == 4)
    workers = own.workers()
    own.process.kill()
    own.process.wait()
    eventually(lambda: not any(os.path.exists(f"/proc/{pid}") for pid in workers), 5)


def test_descendants_hold_no_socket_that_listens(tmp_path: Path, programs: Programs) -> None:
    """After kill -9 nothing answers in the agent's name, whatever it has started that still runs."""
    hanging = tmp_path / "hangs.conf"
    os.mkfifo(hanging)  # `ports deliver` waits for somebody to write its configuration
    own = RunningAgent(tmp_path / "own", "--deliver", "0.1", "--conf", str(hanging))
    busy: list[int] = []
    slow = programs.begin("native", "portmap", "ADD", **REFUSED_BY_SDK, **own.environ)
    eventually(lambda: len(own.workers()) - len(own.children()) == 3)  # one works, and none is being made
    try:
        eventually(lambda: len(own.children()) >= 1)
        time.sleep(1)
        busy = own.children()
        time.sleep(1)
        busy = [pid for pid in own.children() if pid in busy]  # others were just made
        listening = Path("/proc/net/unix").read_text()
        listens_at = rf" 00010000 \S+ \S+ +(\d+) {re.escape(own.socket)}\.\d+$"  # __SO_ACCEPTCON, not an accepted one
        inodes = set(re.findall(listens_at, listening, re.MULTILINE))
        assert inodes
        for pid in busy:
            with contextlib.suppress(FileNotFoundError):
                assert not {f"socket:[{inode}]" for inode in inodes} & set(descriptors(pid))
        own.process.kill()
        own.process.wait()
        eventually(lambda: not listens(own.socket), 5)
        other = RunningAgent(tmp_path / "own")
        eventually(lambda: listens(other.socket))  # the path of the one that was killed is there before
        other.close()
    finally:
        slow.kill()
        slow.communicate()
        for pid in busy:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


def listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


# --- what is used up ---


@pytest.mark.parametrize("started", ["with blocked signals", "with little"])
def test_agent_serves_however_it_was_started(tmp_path: Path, bound: Programs, started: str) -> None:
    under = ["prlimit", "--nofile=64"]
    if started == "with blocked signals":
        blocking = (
            "import os, signal, sys; signal.pthread_sigmask(0, range(1, 32)); os.execv(sys.argv[1], sys.argv[1:])"
        )
        under = [sys.executable, "-c", blocking]
    own = RunningAgent(tmp_path / "own", under=under)
    for _ in range(12):
        assert served(bound, own.socket)
    eventually(lambda: len(own.workers()) == 4 and not own.children())  # all were waited for
    own.close()


def test_processor_is_left_alone_when_no_connection_can_be_accepted(own: RunningAgent, programs: Programs) -> None:
    """No descriptor is to be had: neither the agent nor a worker asks again and again, and launchers are served later."""
    eventually(lambda: len(own.workers()) == 4)
    everybody = [own.process.pid, *own.workers()]
    for pid in everybody:
        subprocess.run(["prlimit", f"--pid={pid}", "--nofile=3:4096"], check=True)
    before = sum(processor_s(pid) for pid in everybody)
    waiting = programs.start("native", "portmap", "ADD", conf("portmap"), **REFUSED_BY_SDK, **own.environ)
    time.sleep(2)
    assert sum(processor_s(pid) for pid in everybody) - before < 1
    for pid in {own.process.pid, *own.workers()}:
        subprocess.run(["prlimit", f"--pid={pid}", "--nofile=4096:4096"], check=False)
    out, _ = waiting.communicate(timeout=30)
    assert code(out) == 8
    eventually(lambda: served(programs, own.socket))


def test_launchers_work_alone_when_the_agent_cannot_fork(tmp_path: Path, programs: Programs, bound: Programs) -> None:
    """It goes on, and forks when it can again: here after as many refusals as were injected."""
    inject = "inject=clone,clone3,fork,vfork:error=EAGAIN:when=1..6"
    under = ["strace", "-o", "/dev/null", "-e", "trace=clone,clone3,fork,vfork", "-e", inject]
    own = RunningAgent(tmp_path / "own", under=under)
    try:
        status, out, _ = programs.run("native", "portmap", "ADD", conf("portmap"), **REFUSED_BY_SDK, **own.environ)
        assert (status, code(out)) == (1, 8)
        eventually(lambda: served(bound, own.socket), 40)
        assert "cannot fork" in own.log.read_text()
    finally:
        (agent,) = own.workers()  # strace's child
        os.kill(agent, signal.SIGTERM)
        own.process.wait(20)


def test_every_launcher_is_served_when_the_processors_are_busy(own: RunningAgent, bound: Programs) -> None:
    """The one second that a launcher used to give the agent was not enough for that."""
    burning = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(12)]
    try:
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda _: served(bound, own.socket), range(48)))
    finally:
        for one in burning:
            one.kill()
            one.wait()
    assert answers == [True] * 48


def pss_kb(pid: int, kind: str = "Pss_Anon") -> int:
    """Its share of memory; of what is no file's, unless told otherwise: files are shared with all Python on the node."""
    text = Path(f"/proc/{pid}/smaps_rollup").read_text()
    return int(re.search(rf"^{kind}:\s+(\d+)", text, re.MULTILINE)[1])  # type: ignore[index]


def test_memory_and_descriptors_stay_the_same_over_many_requests(own: RunningAgent, bound: Programs) -> None:
    """CNIMETA_ROUNDS=10000 for the whole of it."""

    def state() -> tuple[int, list[str]]:
        eventually(lambda: len(own.workers()) == 4 and not own.children())
        eventually(lambda: len(own.processes()) == 5)  # with the one that adds up reports, which begins after a second
        return sum(map(pss_kb, [own.process.pid, *own.processes()])), descriptors(own.process.pid)

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: served(bound, own.socket), range(100)))
        memory, opened = state()
        assert all(pool.map(lambda _: served(bound, own.socket), range(ROUNDS)))
    later, still = state()
    whole = sum(pss_kb(pid, "Pss") for pid in [own.process.pid, *own.workers()])
    print(f"after 100 requests {memory / 1024:.1f} MiB, after {ROUNDS} more {later / 1024:.1f}; PSS {whole / 1024:.1f}")
    assert [re.sub(r"\d+", "", one) for one in still] == [re.sub(r"\d+", "", one) for one in opened]
    assert later < memory * 1.1


# --- who asks ---


def stranger(rng: random.Random, path: str) -> None:
    """Somebody who may connect, and does what no launcher does."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as link, contextlib.suppress(OSError):
        link.settimeout(1)
        link.connect(path)
        kind = rng.randrange(8)
        if kind == 0:
            return
        if kind == 1:
            link.sendall(rng.randbytes(rng.randrange(1, 4000)))
            return
        link.recv(len(HELLO))
        lengths = rng.choice([(0, 0), (62, 5), (0xFFFFFFFF, 0), (10, 0xFFFFFFFF), (1 << 20, 1 << 20)])
        head = REQUEST.pack(HELLO if kind != 2 else b"x" * 16, rng.randrange(1 << 32), *lengths)
        opened = [os.open("/dev/null", os.O_RDONLY) for _ in range(rng.choice([0, 1, 6, 7, 8, 60]))]
        try:
            if kind == 3:
                head = head[: rng.randrange(len(head))]
            socket.send_fds(link, [head], opened)
            link.sendall(rng.randbytes(rng.randrange(200)))
            if kind == 4:
                link.shutdown(socket.SHUT_WR)
            if kind > 5:
                link.recv(1)
        finally:
            for descriptor in opened:
                os.close(descriptor)


def test_good_calls_are_served_while_strangers_do_what_they_like(own: RunningAgent, bound: Programs) -> None:
    """CNIMETA_STRANGERS=10000 for more of them."""
    seed = random.randrange(1 << 32)
    print(f"seed {seed}, {STRANGERS} strangers")
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        strange = [pool.submit(stranger, random.Random(seed + n), own.socket) for n in range(STRANGERS)]
        good = [served(bound, own.socket) for _ in range(20)]
        for one in strange:
            one.result()
    assert good == [True] * 20
    eventually(lambda: not own.children() and len(own.workers()) == 4)
    assert own.process.poll() is None
    log = own.log.read_text()
    assert "Traceback" not in log
    assert "failed" not in log


LESS = {
    "no capability": ["setpriv", "--bounding-set=-all", "--inh-caps=-all"],
    "one capability less": ["setpriv", "--bounding-set=-sys_admin", "--inh-caps=-sys_admin"],
    "a user namespace": ["unshare", "--user", "--map-root-user"],
    "a PID namespace": ["unshare", "--pid", "--fork"],
}


@pytest.mark.parametrize("kind", ASKING)
@pytest.mark.parametrize("less", LESS)
def test_launcher_works_alone_when_it_may_do_less_than_the_agent(
    programs: Programs, own: RunningAgent, tmp_path: Path, kind: str, less: str
) -> None:
    """What the agent would do for it, its plugins and delegates, it could not do itself."""
    marker = tmp_path / "capabilities"
    delegate = tmp_path / "bin" / "deleg"
    delegate.parent.mkdir()
    delegate.write_text(
        f"#!/bin/sh\ncat >/dev/null; grep CapEff /proc/self/status > {marker}; echo '{{\"code\":99}}'; exit 1\n"
    )
    delegate.chmod(0o755)
    tmp_path.chmod(0o755)
    environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/run/netns/none"}
    environ |= {"CNI_PATH": str(delegate.parent), "PATH": os.environ["PATH"], **own.environ}
    stdin = conf("hostport_alloc", delegates=[{"type": "deleg"}], dataDir=str(tmp_path / "state"), expose=["80"])
    command = [*LESS[less], str(programs.folders[kind] / "hostport_alloc")]
    done = subprocess.run(command, env=environ, input=stdin, capture_output=True, check=False, timeout=30)
    assert json.loads(done.stdout)["code"]
    said = own.log.read_text()
    assert ("namespace" if "namespace" in less else "lacks capabilities") in said
    if marker.exists():  # it works alone, with what it has
        full = int(Path("/proc/self/status").read_text().partition("CapEff:\t")[2].split()[0], 16)
        assert "user" in less or "PID" in less or int(marker.read_text().split()[1], 16) < full


def test_root_of_the_launcher_is_where_the_work_is_done(programs: Programs, own: RunningAgent, tmp_path: Path) -> None:
    """A launcher in a chroot, without a /dev: paths mean there what they mean to it."""
    root = tmp_path / "root"
    for name in ("plugins", "state", "usr", "proc", "work", "root", "tmp"):
        (root / name).mkdir(parents=True)
    for name in ("bin", "lib", "lib64"):
        (root / name).symlink_to(f"usr/{name}")
    delegate = root / "plugins" / "told"
    delegate.write_text("#!/bin/sh\npwd > /state/here; exit 1\n")
    delegate.chmod(0o755)
    binds = ["/usr", "/proc", "/work", "/root", "/tmp"]
    script = "; ".join([*(f"mount --rbind {place} {root}{place}" for place in binds), f'exec chroot {root} "$@"'])
    environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/run/netns/none"}
    environ |= {"CNI_PATH": f"/plugins:{programs.folders['native']}", "PATH": os.environ["PATH"], **own.environ}
    stdin = conf("hostport_alloc", delegates=[{"type": "told"}], dataDir="/state/data", expose=["80"])
    command = ["unshare", "--mount", "sh", "-c", script, "-", str(programs.folders["native"] / "hostport_alloc")]
    done = subprocess.run(command, env=environ, input=stdin, capture_output=True, check=False, timeout=60)
    assert json.loads(done.stdout)["code"], done
    assert (root / "state" / "here").exists(), done
    assert (root / "state" / "here").read_text() == "/\n"
    eventually(lambda: own.log.read_text().count("\n") >= 2)  # an answer is logged after it is given
    started, answered = own.log.read_text().splitlines()
    assert started.startswith("cnimeta agent: started ")
    assert answered.startswith('cnimeta agent: error: plugin "told" failed ADD')
