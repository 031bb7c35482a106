"""The agent beside launchers that work alone: the same answers, the same effects, the same ends."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cnimeta.agent.wire import VARIABLE
from cnimeta.cli.install import install
from cnimeta.testing.agent import RunningAgent, eventually
from cnimeta.testing.conformance import examine
from cnimeta.testing.conformance.subject import sandbox

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cnimeta.testing.netns import Namespace

pytestmark = pytest.mark.kernel

CNIMETA = str(Path(sys.executable).with_name("cnimeta"))
TESTS = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAgent]:
    made = RunningAgent(tmp_path_factory.mktemp("agent"))
    yield made
    made.close()


class Programs:
    """Launchers that work alone, and launchers that ask the agent."""

    def __init__(self, folder: Path) -> None:
        names = ["portmap", "bandwidth", "hostport_alloc"]
        self.folders = {"alone": folder / "alone", "asking": folder / "asking"}
        for kind, path in self.folders.items():
            install(str(path), names, agent=kind == "asking")

    def start(self, kind: str, plugin: str, verb: str, stdin: bytes, **environ: str) -> subprocess.Popen[bytes]:
        environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", **environ}
        environ = {"CNI_PATH": str(self.folders[kind]), "PATH": os.environ["PATH"], **environ}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
        process = subprocess.Popen([str(self.folders[kind] / plugin)], env=environ, **pipes)
        assert process.stdin is not None
        process.stdin.write(stdin)
        process.stdin.close()
        process.stdin = None
        return process

    def run(self, kind: str, plugin: str, verb: str, stdin: bytes, **environ: str) -> tuple[int, bytes, bytes]:
        process = self.start(kind, plugin, verb, stdin, **environ)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err


@pytest.fixture
def programs(tmp_path: Path) -> Programs:
    return Programs(tmp_path)


def conf(plugin: str, **keys: Any) -> bytes:
    return json.dumps({"cniVersion": "1.1.0", "name": "net", "type": plugin, **keys}).encode()


CASES = [
    ("ADD", b"", {"CNI_NETNS": "/run/netns/none"}),
    ("ADD", b"{", {"CNI_NETNS": "/run/netns/none"}),
    ("ADD", b"{}", {}),
    ("ADD", conf("x", cniVersion="9.9.9"), {"CNI_NETNS": "/run/netns/none"}),
    ("ADD", conf("x"), {"CNI_NETNS": "/run/netns/none", "CNI_CONTAINERID": "../c1"}),
    ("ADD", conf("x"), {"CNI_NETNS": "/proc/self/ns/net"}),
    ("DEL", conf("x", name="no-such-network", dataDir="/run/cnimeta-none"), {"CNI_NETNS": ""}),
    ("CHECK", conf("x"), {"CNI_NETNS": "/run/netns/none", "CNI_ARGS": "A=1;B"}),
    ("STATUS", conf("x", ranges=5, ingressRate="x", portMappings=7), {}),
    ("VERSION", b'{"cniVersion": "1.0.0"}', {}),
    ("NONSENSE", conf("x"), {}),
    ("", b"", {}),
]


@pytest.mark.parametrize("plugin", ["portmap", "bandwidth", "hostport_alloc"])
def test_answers_and_errors_are_the_same_both_ways(programs: Programs, agent: RunningAgent, plugin: str) -> None:
    for verb, stdin, environ in CASES:
        alone = programs.run("alone", plugin, verb, stdin, **environ)
        asking = programs.run("asking", plugin, verb, stdin, **environ, **{VARIABLE: agent.socket})
        assert asking == alone, (verb, stdin)


@pytest.mark.parametrize("plugin", ["portmap", "bandwidth", "hostport_alloc"])
def test_conformance_is_the_same_both_ways(
    programs: Programs, agent: RunningAgent, tmp_path: Path, plugin: str
) -> None:
    asking = tmp_path / "scripts"
    asking.mkdir()
    for name in ("portmap", "bandwidth", "hostport_alloc"):
        script = asking / name
        script.write_text(f"#!/bin/sh\n{VARIABLE}={agent.socket} exec {programs.folders['asking']}/{name}\n")
        script.chmod(0o755)
    found = []
    for folder in (programs.folders["alone"], asking):
        keys = {"type": plugin, "dataDir": str(folder / "data"), "expose": ["80"]}
        with sandbox(str(folder / plugin), keys) as subject:
            found.append([(one.rule, one.outcome) for one in examine(subject)])
    assert found[0] == found[1]
    assert len(found[0]) > 10


def test_kernel_tests_pass_when_the_agent_serves_every_call(agent: RunningAgent) -> None:
    modules = ["hostport_alloc/test_hostport_kernel.py", "hostport_alloc/test_everything_lost.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(TESTS / name) for name in modules)]
    done = subprocess.run(
        command, env={**os.environ, VARIABLE: agent.socket}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


def test_every_caller_gets_its_own_answer_when_many_ask_at_once(programs: Programs, agent: RunningAgent) -> None:
    def ask(number: int) -> bytes:
        environ = {"CNI_NETNS": "/x", "CNI_CONTAINERID": f"-{number}", VARIABLE: agent.socket}
        return programs.run("asking", "portmap", "ADD", conf("portmap"), **environ)[1]

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, range(200)))
    assert [f'"-{number}"' in json.loads(answer)["msg"] for number, answer in enumerate(answers)] == [True] * 200


SLOW_DELEGATE = """#!/bin/sh
cat > /dev/null
env > "$OUT/env"; pwd > "$OUT/pwd"; readlink /proc/self/ns/net > "$OUT/net"; readlink /proc/self/ns/mnt > "$OUT/mnt"
echo "said by the delegate" >&2
echo $$ > "$OUT/pid"; mv "$OUT/pid" "$OUT/started"
exec sleep 30
"""


def end_delegate(out: Path) -> None:
    """It outlives a plugin that is killed, as it does without the agent."""
    os.kill(int((out / "started").read_text()), signal.SIGKILL)


@pytest.fixture
def slow(programs: Programs, tmp_path: Path) -> bytes:
    """A configuration whose delegate takes its time and tells where it runs."""
    path = programs.folders["asking"] / "slow"
    path.write_text(SLOW_DELEGATE)
    path.chmod(0o755)
    delegates = [{"type": "slow"}]
    keys = {"cniVersion": "1.0.0", "delegates": delegates, "dataDir": str(tmp_path / "state")}
    return conf("hostport_alloc", **keys)


def test_work_is_done_where_the_launcher_stands(
    programs: Programs, agent: RunningAgent, slow: bytes, tmp_path: Path, make_netns: Callable[[str], Namespace]
) -> None:
    host, out = make_netns("aghost"), tmp_path / "out"
    out.mkdir()
    environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/run/netns/none"}
    environ |= {"CNI_PATH": str(programs.folders["asking"]), "PATH": os.environ["PATH"], "OUT": str(out)}
    environ |= {VARIABLE: agent.socket, "SOMETHING": "ELSE"}
    program = str(programs.folders["asking"] / "hostport_alloc")
    command = ["ip", "netns", "exec", host.name, program]  # a network and a mount namespace of its own
    with open(tmp_path / "stderr", "wb") as stderr:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": stderr}
        process = subprocess.Popen(command, env=environ, cwd=tmp_path, **pipes)
    assert process.stdin is not None
    process.stdin.write(slow)
    process.stdin.close()
    eventually((out / "started").exists)
    try:
        assert "SOMETHING=ELSE" in (out / "env").read_text()
        assert "CNI_COMMAND=ADD" in (out / "env").read_text()
        assert (out / "pwd").read_text().strip() == str(tmp_path)
        for kind in ("net", "mnt"):
            assert (out / kind).read_text().strip() == os.readlink(f"/proc/{process.pid}/ns/{kind}")
        assert os.readlink(f"/proc/{process.pid}/ns/net") != os.readlink("/proc/self/ns/net")
    finally:
        process.kill()
        process.wait()
        end_delegate(out)
    assert b"said by the delegate" in (tmp_path / "stderr").read_bytes()


def start_slow(programs: Programs, agent: RunningAgent, slow: bytes, out: Path) -> subprocess.Popen[bytes]:
    out.mkdir()
    environ = {"CNI_NETNS": "/run/netns/none", "OUT": str(out), VARIABLE: agent.socket}
    process = programs.start("asking", "hostport_alloc", "ADD", slow, **environ)
    eventually((out / "started").exists)
    return process


def test_work_ends_when_the_launcher_is_killed(
    programs: Programs, agent: RunningAgent, slow: bytes, tmp_path: Path
) -> None:
    process = start_slow(programs, agent, slow, tmp_path / "out")
    assert agent.children()
    process.kill()
    process.wait()
    eventually(lambda: not agent.children(), 5)
    end_delegate(tmp_path / "out")


def test_error_is_told_when_the_work_is_killed(
    programs: Programs, agent: RunningAgent, slow: bytes, tmp_path: Path
) -> None:
    process = start_slow(programs, agent, slow, tmp_path / "out")
    for child in agent.children():
        os.kill(child, signal.SIGKILL)
    assert process.stdout is not None
    assert json.loads(process.stdout.read())["code"] == 5
    assert process.wait(10) == 1
    end_delegate(tmp_path / "out")
    process.communicate()


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RunningAgent]:
    made = RunningAgent(tmp_path / "own")
    yield made
    if made.process.poll() is None:
        made.close()


def same_as_alone(programs: Programs, path: str) -> bool:
    verb, stdin, environ = CASES[3]
    alone = programs.run("alone", "portmap", verb, stdin, **environ)
    return programs.run("asking", "portmap", verb, stdin, **environ, **{VARIABLE: path}) == alone


def test_launcher_works_alone_when_no_agent_answers(programs: Programs, own: RunningAgent, tmp_path: Path) -> None:
    assert same_as_alone(programs, str(tmp_path / "nothing"))
    own.process.send_signal(signal.SIGSTOP)
    assert same_as_alone(programs, own.socket)
    own.process.kill()
    own.process.wait()
    assert os.path.exists(own.socket)
    assert same_as_alone(programs, own.socket)


@pytest.mark.parametrize("words", [b"", b"R", b"X", b"nonsense that is longer"])
def test_launcher_works_alone_when_something_else_answers(programs: Programs, tmp_path: Path, words: bytes) -> None:
    path = str(tmp_path / "other.sock")
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(path)
        listener.listen()
        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            done = pool.submit(same_as_alone, programs, path)
            with listener.accept()[0] as connection:
                connection.sendall(words)
                connection.shutdown(socket.SHUT_WR)
                assert done.result(20)


def test_nothing_happens_when_strangers_talk_to_the_agent(programs: Programs, agent: RunningAgent) -> None:
    for words in (b"", b"GET / HTTP/1.1\r\n\r\n", b"cnimeta-agent 2\n", b"cnimeta-agent 2\n\xff\xff\xff\xffx"):
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as stranger:
            stranger.connect(agent.socket)
            stranger.sendall(words)
    verb, stdin, environ = CASES[3]
    assert programs.run("asking", "portmap", verb, stdin, **environ, **{VARIABLE: agent.socket})[0] == 1
    eventually(lambda: not agent.children(), 10)


def test_socket_is_roots_alone(agent: RunningAgent) -> None:
    assert stat.S_IMODE(os.stat(agent.socket).st_mode) == 0o600
    assert stat.S_IMODE(os.stat(os.path.dirname(agent.socket)).st_mode) == 0o700


def test_second_agent_is_refused_and_a_left_socket_is_replaced(own: RunningAgent) -> None:
    command = [CNIMETA, "agent", "--socket", own.socket, "--deliver", "0"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=30)
    assert (done.returncode, "another agent serves" in done.stderr) == (1, True)
    own.process.kill()
    own.process.wait()
    other = subprocess.Popen(command)
    try:
        eventually(lambda: other.poll() is not None or listens(own.socket))
        assert other.poll() is None
    finally:
        other.terminate()
        assert other.wait(20) == 0


def listens(path: str) -> bool:
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        try:
            probe.connect(path)
        except OSError:
            return False
    return True


def test_agent_ends_when_its_installation_changes(tmp_path: Path) -> None:
    mark, path = tmp_path / "changed", tmp_path / "run" / "agent.sock"
    program = f"""
import os
from cnimeta.agent.server import Agent
Agent({str(path)!r}, {{}}, lambda: not os.path.exists({str(mark)!r})).serve()
"""
    process = subprocess.Popen([sys.executable, "-c", program])
    eventually(path.exists)
    mark.touch()
    assert process.wait(20) == 0
    assert not path.exists()
