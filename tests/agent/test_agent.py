"""The agent beside launchers that work alone: the same answers, the same effects, the same ends."""

from __future__ import annotations

import concurrent.futures
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from agent_kit import ASKING, NAMES, Impostor, Programs, conf

from cnimeta.agent.wire import VARIABLE
from cnimeta.cli.main import main
from cnimeta.testing.agent import RunningAgent, eventually
from cnimeta.testing.conformance import examine
from cnimeta.testing.conformance.subject import sandbox

if TYPE_CHECKING:
    from collections.abc import Callable

    from cnimeta.testing.netns import Namespace

pytestmark = pytest.mark.kernel

TESTS = Path(__file__).parents[1]

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


@pytest.mark.parametrize("plugin", NAMES)
def test_answers_and_errors_are_the_same_every_way(programs: Programs, agent: RunningAgent, plugin: str) -> None:
    for verb, stdin, environ in CASES:
        alone = programs.run("alone", plugin, verb, stdin, **environ)
        for kind in ASKING:
            asking = programs.run(kind, plugin, verb, stdin, **environ, **{VARIABLE: agent.socket})
            assert asking == alone, (kind, verb, stdin)


@pytest.mark.parametrize("plugin", NAMES)
def test_conformance_is_the_same_every_way(
    programs: Programs, agent: RunningAgent, tmp_path: Path, plugin: str
) -> None:
    found = []
    for kind in ("alone", *ASKING):
        folder = tmp_path / kind
        folder.mkdir()
        for name in NAMES:
            script = folder / name
            asked = f"{VARIABLE}={agent.socket} " if kind != "alone" else ""
            script.write_text(f"#!/bin/sh\n{asked}exec {programs.folders[kind]}/{name}\n")
            script.chmod(0o755)
        keys = {"type": plugin, "dataDir": str(folder / "data"), "expose": ["80"]}
        with sandbox(str(folder / plugin), keys) as subject:
            found.append([(one.rule, one.outcome) for one in examine(subject)])
    assert found[1] == found[0]
    assert found[2] == found[0]
    assert len(found[0]) > 10


@pytest.mark.parametrize("native", ["", "1"])
def test_kernel_tests_pass_when_the_agent_serves_every_call(agent: RunningAgent, native: str) -> None:
    modules = ["hostport_alloc/test_hostport_kernel.py", "hostport_alloc/test_everything_lost.py"]
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *(str(TESTS / name) for name in modules)]
    environ = {**os.environ, VARIABLE: agent.socket, "CNIMETA_TEST_NATIVE": native}
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert " passed" in done.stdout


@pytest.mark.parametrize("kind", ASKING)
def test_every_caller_gets_its_own_answer_when_many_ask_at_once(
    programs: Programs, agent: RunningAgent, kind: str
) -> None:
    def ask(number: int) -> bytes:
        environ = {"CNI_NETNS": "/x", "CNI_CONTAINERID": f"-{number}", VARIABLE: agent.socket}
        return programs.run(kind, "portmap", "ADD", conf("portmap"), **environ)[1]

    with concurrent.futures.ThreadPoolExecutor(32) as pool:
        answers = list(pool.map(ask, range(100)))
    assert [f'"-{number}"' in json.loads(answer)["msg"] for number, answer in enumerate(answers)] == [True] * 100


SLOW_DELEGATE = """#!/bin/sh
cat > /dev/null
env > "$OUT/env"; pwd > "$OUT/pwd"; readlink /proc/self/ns/net > "$OUT/net"; readlink /proc/self/ns/mnt > "$OUT/mnt"
echo "said by the delegate" >&2
echo $$ > "$OUT/pid"; mv "$OUT/pid" "$OUT/started"
exec sleep 30
"""


def delegate_ends(out: Path) -> None:
    """With the plugin that has started it, as it does without the agent."""
    path = f"/proc/{(out / 'started').read_text().strip()}"
    eventually(lambda: not os.path.exists(path))


@pytest.fixture
def slow(programs: Programs, tmp_path: Path) -> bytes:
    """A configuration whose delegate takes its time and tells where it runs."""
    for kind in ASKING:
        path = programs.folders[kind] / "slow"
        path.write_text(SLOW_DELEGATE)
        path.chmod(0o755)
    delegates = [{"type": "slow"}]
    keys = {"cniVersion": "1.0.0", "delegates": delegates, "dataDir": str(tmp_path / "state")}
    return conf("hostport_alloc", **keys)


@pytest.mark.parametrize("kind", ASKING)
def test_work_is_done_where_the_launcher_stands(
    programs: Programs,
    agent: RunningAgent,
    slow: bytes,
    tmp_path: Path,
    make_netns: Callable[[str], Namespace],
    kind: str,
) -> None:
    host, out = make_netns("aghost"), tmp_path / "out"
    out.mkdir()
    environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/run/netns/none"}
    environ |= {"CNI_PATH": str(programs.folders[kind]), "PATH": os.environ["PATH"], "OUT": str(out)}
    environ |= {VARIABLE: agent.socket, "SOMETHING": "ELSE"}
    program = str(programs.folders[kind] / "hostport_alloc")
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
        for space in ("net", "mnt"):
            assert (out / space).read_text().strip() == os.readlink(f"/proc/{process.pid}/ns/{space}")
        assert os.readlink(f"/proc/{process.pid}/ns/net") != os.readlink("/proc/self/ns/net")
    finally:
        process.kill()
        process.wait()
        delegate_ends(out)
    assert b"said by the delegate" in (tmp_path / "stderr").read_bytes()


def start_slow(programs: Programs, agent: RunningAgent, slow: bytes, out: Path, kind: str) -> subprocess.Popen[bytes]:
    out.mkdir()
    environ = {"CNI_NETNS": "/run/netns/none", "OUT": str(out), VARIABLE: agent.socket}
    process = programs.start(kind, "hostport_alloc", "ADD", slow, **environ)
    eventually((out / "started").exists)
    return process


@pytest.mark.parametrize("kind", ASKING)
def test_work_ends_when_the_launcher_is_killed(
    programs: Programs, agent: RunningAgent, slow: bytes, tmp_path: Path, kind: str
) -> None:
    process = start_slow(programs, agent, slow, tmp_path / "out", kind)
    assert agent.children()
    process.kill()
    process.wait()
    eventually(lambda: not agent.children(), 5)
    delegate_ends(tmp_path / "out")


@pytest.mark.parametrize("kind", ASKING)
def test_error_is_told_when_the_work_is_killed(
    programs: Programs, agent: RunningAgent, slow: bytes, tmp_path: Path, kind: str
) -> None:
    process = start_slow(programs, agent, slow, tmp_path / "out", kind)
    for child in agent.children():
        os.kill(child, signal.SIGKILL)
    assert process.stdout is not None
    assert json.loads(process.stdout.read())["code"] == 5
    assert process.wait(10) == 1
    delegate_ends(tmp_path / "out")
    process.communicate()


EVERY_VERB = """
import json, sys
from cnimeta.agent.plugins import Served
from cnimeta.plugin.dispatch import run
base, environ = json.loads(sys.argv[1]), json.loads(sys.argv[2])
for plugin in Served(print).plugins.values():
    for verb in ("ADD", "CHECK", "DEL", "GC", "STATUS"):
        before = set(sys.modules)
        conf = json.dumps({**base, "type": plugin.name}).encode()
        outcome = run(plugin, {**environ, "CNI_COMMAND": verb}, conf, lambda _: None)
        assert outcome.status == 0, (plugin.name, verb, outcome.stdout)
        print(plugin.name, verb, *sorted(set(sys.modules) - before))
"""


def test_nothing_is_imported_on_the_way_when_the_agent_has_loaded_its_plugins(
    programs: Programs, make_netns: Callable[[str], Namespace], tmp_path: Path
) -> None:
    host, container = make_netns("aghost"), make_netns("agcont")
    host.veth("v0", container, "eth0")
    base = {
        "cniVersion": "1.1.0", "name": "net", "dataDir": str(tmp_path), "ingressRate": 8_000_000, "ingressBurst": 8_000_000,
        "expose": ["80"], "capabilities": {"portMappings": True}, "cni.dev/valid-attachments": [],
        "runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 81, "protocol": "tcp"}]},
        "prevResult": {
            "cniVersion": "1.1.0", "interfaces": [{"name": "v0"}, {"name": "eth0", "sandbox": container.path}],
            "ips": [{"address": "10.1.0.2/24", "interface": 1}],
        },
    }  # fmt: skip
    environ = {"CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": container.path}
    environ |= {"CNI_PATH": str(programs.folders["alone"]), "PATH": os.environ["PATH"]}
    command = [sys.executable, "-c", EVERY_VERB, json.dumps(base), json.dumps(environ)]
    done = subprocess.run(["ip", "netns", "exec", host.name, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [line.split() for line in done.stdout.splitlines()]
    assert len(lines) == 15
    assert [line for line in lines if len(line) > 2] == [], done.stdout


def test_a_probe_tells_whether_an_agent_answers(
    agent: RunningAgent, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["agent", "--probe", "--socket", agent.socket]) == 0
    greeting = b"HTTP/1.1 400 Bad Request\r\n\r\n"
    with Impostor(tmp_path / "other", lambda connection: connection.sendall(greeting)) as impostor:
        for path, said in ((str(tmp_path / "none.sock"), "No such file"), (impostor.path, "of another protocol")):
            assert main(["agent", "--probe", "--socket", path]) == 1
            assert said in capsys.readouterr().err
