"""`cnimeta run` on scripted plugin executables: options, cnitool's variables, output, errors and exit statuses."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from typing import TYPE_CHECKING, Any

import pytest

from cnimeta.cli.main import main
from cnimeta.cli.run import default_container_id
from cnimeta.testing.noop import Received, received, steer, write_noop

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    Processes = Callable[[int, Sequence[str]], list[subprocess.CompletedProcess[str]]]

pytestmark = pytest.mark.runtime

RESULT = {"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.2/24"}]}
COMMAND = (sys.executable, "-m", "cnimeta.cli.main")
ALL_VARIABLES = ("CNI_PATH", "NETCONFPATH", "CAP_ARGS", "CNI_ARGS", "CNI_IFNAME")


class Bench:
    """A folder with two plugins, a list that names them, and a cache."""

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.capsys = capsys
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.first = write_noop(str(self.bin), "first", {"ADD": {"result": RESULT}})
        self.second = write_noop(str(self.bin), "second")
        plugins = [{"type": "first"}, {"type": "second", "capabilities": {"portMappings": True}}]
        self.conflist = folder / "net.d" / "10-net.conflist"
        self.conflist.parent.mkdir()
        self.write({"cniVersion": "1.0.0", "name": "net", "plugins": plugins})

    def write(self, document: Any) -> None:
        text = document if isinstance(document, str) else json.dumps(document)
        self.conflist.write_text(text, encoding="utf-8")

    def run(self, verb: str, *options: str, netns: str = "/run/netns/x") -> tuple[int, str]:
        """Exit status and stdout, with every place given."""
        places = ["--conflist", str(self.conflist), "--bin-dir", str(self.bin), "--cache-dir", str(self.folder / "cni")]
        return self.raw("run", verb, *places, *(["--netns", netns] if netns else []), *options)

    def words(self, verb: str) -> list[str]:
        """The words for a process of its own."""
        places = ["--conflist", str(self.conflist), "--bin-dir", str(self.bin), "--cache-dir", str(self.folder / "cni")]
        return ["run", verb, *places, "--netns", "/run/netns/x"]

    def raw(self, *words: str) -> tuple[int, str]:
        status = main(words)
        return status, self.capsys.readouterr().out

    def fails(self, verb: str, *options: str, netns: str = "/run/netns/x", wanted: int = 1) -> dict[str, Any]:
        """The error that is printed, with the exit status that is wanted."""
        status, out = self.run(verb, *options, netns=netns)
        assert status == wanted
        error: dict[str, Any] = json.loads(out)
        return error

    def verbs(self) -> Sequence[str]:
        return [call.verb for call in received(self.first)]

    def last(self) -> Received:
        return received(self.second)[-1]


@pytest.fixture
def processes() -> Processes:
    """Several cnimeta processes at the same time, to their end."""

    def start(count: int, words: Sequence[str]) -> list[subprocess.CompletedProcess[str]]:
        pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        started = [subprocess.Popen([*COMMAND, *words], **pipes) for _ in range(count)]
        ended = [process.communicate(timeout=60) for process in started]
        return [
            subprocess.CompletedProcess(process.args, process.returncode, *streams)
            for process, streams in zip(started, ended, strict=True)
        ]

    return start


@pytest.fixture
def bench(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Bench:
    for name in ALL_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    return Bench(tmp_path, capsys)


def test_the_result_is_printed_as_cnitool_does_when_add_succeeds(bench: Bench) -> None:
    status, out = bench.run("add")
    assert status == 0
    assert json.loads(out) == RESULT
    assert out == json.dumps(json.loads(out), indent=4) + "\n"


def test_nothing_is_printed_when_another_verb_succeeds(bench: Bench) -> None:
    bench.run("add")
    for verb, options in (("check", []), ("status", []), ("gc", ["--valid", "x,eth0"]), ("del", [])):
        assert bench.run(verb, *options) == (0, "")


def test_the_container_id_is_cnitools_when_none_is_given(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    # printf /run/netns/x | sha512sum
    assert default_container_id("/run/netns/x") == "cnitool-55e2cecc95014b0f7fc4"
    monkeypatch.chdir("/run")
    for spelled in ("/run/netns/x", "netns/x", "/run//netns/./x", "//run/netns/y/../x"):
        bench.run("add", netns=spelled)
        environ = bench.last().environ
        assert environ["CNI_CONTAINERID"] == "cnitool-55e2cecc95014b0f7fc4"
        assert environ["CNI_NETNS"] == "/run/netns/x"


def test_options_reach_the_plugins_when_they_are_given(bench: Bench) -> None:
    mappings = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]
    bench.run(
        "add", "--container-id", "c1", "--ifname", "net1", "--args", "A=1;B=2", "--bin-dir", "/other",
        "--capability-args", json.dumps({"portMappings": mappings, "mac": "unasked"}),
    )  # fmt: skip
    call = bench.last()
    assert call.environ == {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_NETNS": "/run/netns/x",
        "CNI_IFNAME": "net1",
        "CNI_ARGS": "A=1;B=2",
        "CNI_PATH": f"{bench.bin}:/other",
    }
    assert call.conf["runtimeConfig"] == {"portMappings": mappings}
    assert (bench.folder / "cni" / "results" / "net-c1-net1").exists()


def test_cnitools_variables_count_when_the_options_are_left_out(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CNI_PATH", f"/other:{bench.bin}")
    monkeypatch.setenv("NETCONFPATH", str(bench.conflist.parent))
    monkeypatch.setenv("CAP_ARGS", '{"portMappings": []}')
    monkeypatch.setenv("CNI_ARGS", "K=V")
    monkeypatch.setenv("CNI_IFNAME", "net7")
    places = ["--name", "net", "--cache-dir", str(bench.folder / "cni"), "--netns", "/run/netns/x"]
    assert bench.raw("run", "add", *places)[0] == 0
    call = bench.last()
    assert call.environ["CNI_PATH"] == f"/other:{bench.bin}"
    assert (call.environ["CNI_ARGS"], call.environ["CNI_IFNAME"]) == ("K=V", "net7")
    assert call.conf["runtimeConfig"] == {"portMappings": []}


def test_what_each_plugin_supports_is_printed_when_versions_are_asked_for(bench: Bench) -> None:
    steer(bench.second, {"supportedVersions": ["1.0.0"]})
    status, out = bench.run("version", netns="")
    assert status == 0
    assert json.loads(out)["plugins"]["second"] == ["1.0.0"]
    steer(bench.second, {"supportedVersions": ["0.4.0"]})
    assert bench.fails("version", netns="")["msg"] == 'plugin second does not support 1.0.0, only "0.4.0"'


@pytest.mark.parametrize(
    ("options", "netns", "message"),
    [
        ([], "", "--netns is missing"),
        (["--container-id", "c1"], "", "ADD needs the path of the container's network namespace"),
        (["--container-id", "a/b"], "/x", "CNI_CONTAINERID"),
        (["--ifname", "a b"], "/x", "CNI_IFNAME"),
        (["--args", "novalue"], "/x", "CNI_ARGS: invalid pair"),
        (["--capability-args", "{"], "/x", "--capability-args is not valid JSON"),
        (["--capability-args", "[]"], "/x", "--capability-args must be a JSON object, got an array"),
    ],
)
def test_code_4_and_status_2_name_the_option_when_it_is_wrong(
    bench: Bench, options: list[str], netns: str, message: str
) -> None:
    error = bench.fails("add", *options, netns=netns, wanted=2)
    assert error["code"] == 4
    assert message in error["msg"]
    assert bench.verbs() == []


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("", 6),
        ("{", 6),
        ('{"name": "net"}', 7),
        ('{"name": "a/b", "plugins": [{"type": "x"}]}', 7),
        ('{"cniVersion": "3.0.0", "name": "net", "plugins": [{"type": "x"}]}', 1),
    ],
)
def test_the_file_is_named_when_the_configuration_is_wrong(bench: Bench, text: str, code: int) -> None:
    bench.write(text)
    for verb in ("add", "del", "check", "status", "version"):
        error = bench.fails(verb)
        assert error["code"] == code
        assert error["msg"].startswith(f"{bench.conflist}: ")


def test_the_plugins_error_comes_out_when_it_fails(bench: Bench) -> None:
    steer(bench.second, {"ADD": {"code": 11, "msg": "no port left"}})
    error = bench.fails("add")
    assert error == {"cniVersion": "1.0.0", "code": 11, "msg": "plugin second failed ADD: no port left"}
    assert bench.verbs() == ["ADD", "DEL"]


def test_the_chain_stays_when_it_is_told_not_to_undo(bench: Bench) -> None:
    steer(bench.second, {"ADD": {"code": 11, "msg": "no"}})
    bench.fails("add", "--no-undo")
    assert bench.verbs() == ["ADD"]


def test_a_plugin_is_killed_and_undone_when_it_is_too_slow(bench: Bench) -> None:
    steer(bench.second, {"ADD": {"sleep": 30}})
    started = time.monotonic()
    error = bench.fails("add", "--timeout", "0.5")
    assert time.monotonic() - started < 10
    assert error["code"] == 105
    assert error["msg"].endswith('second" did not answer within 0.5 s')
    assert bench.verbs() == ["ADD", "DEL"]
    assert bench.last().verb == "DEL"


def test_there_is_no_bound_when_the_timeout_is_0(bench: Bench) -> None:
    steer(bench.second, {"ADD": {"sleep": 0.1}})
    assert bench.run("add", "--timeout", "0")[0] == 0


@pytest.mark.parametrize("answer", [{"stdout": "", "exit": 3}, {"stdout": "Killed", "exit": 137}, {"stdout": "[1]"}])
def test_code_105_or_6_comes_out_when_a_plugin_answers_nonsense(bench: Bench, answer: dict[str, Any]) -> None:
    steer(bench.second, {"ADD": answer})
    error = bench.fails("add")
    assert error["code"] in (6, 105)
    assert "second" in error["msg"]
    assert bench.verbs() == ["ADD", "DEL"]


def test_the_plugins_words_pass_through_when_it_writes_to_stderr(bench: Bench, processes: Processes) -> None:
    steer(bench.second, {"ADD": {"stderr": "a remark\n"}})
    (done,) = processes(1, bench.words("add"))
    assert done.stderr == "a remark\n"
    assert json.loads(done.stdout) == RESULT


def test_nothing_happens_when_gc_is_not_told_what_is_valid(bench: Bench) -> None:
    bench.run("add")
    error = bench.fails("gc", netns="", wanted=2)
    assert error["code"] == 4
    assert "--valid ID,IFNAME" in error["msg"]
    assert bench.fails("gc", "--valid", "c1", netns="", wanted=2)["msg"] == "--valid c1: write CONTAINER_ID,IFNAME"
    assert bench.verbs() == ["ADD"]


def test_status_1_comes_out_when_a_plugin_and_not_an_option_fails_with_code_4(bench: Bench) -> None:
    steer(bench.second, {"ADD": {"code": 4, "msg": "CNI_ARGS: no such key"}})
    assert bench.fails("add")["code"] == 4


def test_code_5_names_the_folder_when_the_cache_cannot_be_written(bench: Bench) -> None:
    (bench.folder / "cni").write_text("in the way")
    error = bench.fails("add")
    assert error["code"] == 5
    assert f"{bench.folder}/cni/" in error["msg"]
    assert bench.verbs() == []


@pytest.mark.parametrize(
    "words",
    [
        ["run"],
        ["run", "add"],
        ["run", "nonsense", "--name", "x"],
        ["run", "add", "--name", "x", "--conflist", "y"],
        ["run", "add", "--name", "x", "--timeout", "-1"],
        ["run", "add", "--name", "x", "--timeout", "nan"],
        ["run", "gc", "--name", "x", "--valid", "a,b", "--none-valid"],
        ["nonsense"],
        [],
    ],
)
def test_status_2_and_the_usage_come_out_when_the_words_are_wrong(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(words)
    assert caught.value.code == 2
    assert "usage: cnimeta" in capsys.readouterr().err


def test_only_one_works_when_many_add_the_same_container(bench: Bench, processes: Processes) -> None:
    steer(bench.first, {"ADD": {"result": RESULT, "sleep": 0.05}})
    started = time.monotonic()
    assert [done.returncode for done in processes(8, bench.words("add"))] == [0] * 8
    assert time.monotonic() - started > 8 * 0.05
    assert bench.verbs() == ["ADD"] * 8
    assert os.listdir(bench.folder / "cni" / "results") == ["net-cnitool-55e2cecc95014b0f7fc4-eth0"]


def test_the_chain_is_undone_when_ctrl_c_ends_add(bench: Bench) -> None:
    steer(bench.second, {"ADD": {"sleep": 30}})
    process = subprocess.Popen(
        [*COMMAND, *bench.words("add")],
        stdout=subprocess.PIPE,
        text=True,
        # Tests run in the background have SIGINT ignored, and children inherit that.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    deadline = time.monotonic() + 20
    while not received(bench.second) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    assert process.communicate(timeout=20)[0] == ""
    assert process.returncode == 130
    assert bench.verbs() == ["ADD", "DEL"]
    assert [call.verb for call in received(bench.second)] == ["ADD", "DEL"]


def test_the_next_caller_gets_the_lock_when_one_was_killed(bench: Bench) -> None:
    steer(bench.second, {"ADD": {"sleep": 3}})
    process = subprocess.Popen([*COMMAND, *bench.words("add")], stdout=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 20
    while not received(bench.second) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.kill()
    process.communicate(timeout=20)
    assert bench.run("del") == (0, "")
    assert bench.verbs() == ["ADD", "DEL"]
