"""The native launcher: what install writes, VERSION, and its reading of what others say, under sanitizers."""

from __future__ import annotations

import os
import re
import shutil
import socket
import subprocess
from typing import TYPE_CHECKING

import hypothesis
import pytest
from agent_kit import NAMES, REFUSED_BY_SDK, Impostor, Programs, answer, code, conf, dropped, taken
from hypothesis import strategies as st

from cnimeta.agent import native
from cnimeta.agent.wire import ACCEPTED, HELLO, VARIABLE
from cnimeta.cli.install import install, interpreter, launcher_text, uninstall
from cnimeta.cli.main import main
from cnimeta.delegate.inprocess import InProcessExec
from cnimeta.errors import IoFailure
from cnimeta.plugin import launcher
from cnimeta.plugin.registry import installed, load

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.kernel

EXAMPLES = int(os.environ.get("CNIMETA_FUZZ", "0")) or 150
SANITIZED = ("-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all", "-fno-omit-frame-pointer")
BY_IMPOSTOR = b'{"code":77}\n'


def version(path: Path | str, stdin: bytes, **environ: str) -> tuple[int, bytes, bytes]:
    done = subprocess.run(
        [str(path)], env={"CNI_COMMAND": "VERSION", **environ}, input=stdin, capture_output=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


# --- what install writes ---


def test_native_launchers_are_known_as_the_others_are(programs: Programs) -> None:
    for name in NAMES:
        path = str(programs.folders["native"] / name)
        assert launcher.is_launcher(path)
        assert launcher.is_native(path)
        assert launcher.asks_agent(path)
        assert launcher.read_target(path) == launcher.read_target(str(programs.folders["alone"] / name))
    assert not launcher.is_native(str(programs.folders["python"] / "portmap"))
    assert not launcher.is_launcher("/bin/true")


def test_kind_is_kept_until_another_is_asked_for_when_install_runs_again(tmp_path: Path) -> None:
    path = str(tmp_path / "portmap")

    def kinds(**wanted: bool) -> tuple[bool, bool]:
        install(str(tmp_path), ["portmap"], **wanted)
        return launcher.is_native(path), launcher.asks_agent(path)

    assert kinds() == (False, False)
    assert kinds(native=True) == (True, True)
    assert kinds() == (True, True)
    assert install(str(tmp_path), ["portmap"]) == [f"{path}: installed already"]
    assert kinds(native=False) == (False, True)
    assert kinds(native=True) == (True, True)
    assert kinds(agent=False) == (False, False)
    install(str(tmp_path), ["portmap"], native=True)
    assert uninstall(str(tmp_path)) == [f"{path}: removed"]


def test_native_without_agent_is_wrong_usage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["install", "--bin-dir", str(tmp_path), "--native", "--no-agent"])
    assert ended.value.code == 2
    assert "--no-agent excludes" in capsys.readouterr().err


def test_nothing_is_written_when_there_is_no_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    native.program.cache_clear()
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("CC", raising=False)
    with pytest.raises(IoFailure, match=r"no C compiler.*--no-native"):
        install(str(tmp_path / "bin"), ["portmap"], native=True)
    assert os.listdir(tmp_path / "bin") == []


def test_shipped_program_is_taken_when_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = native.program()
    (tmp_path / "launch").write_bytes(made)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert native.program(str(tmp_path / "launch")) == made


def test_delegate_is_served_in_process_when_its_launcher_is_native(programs: Programs) -> None:
    path = str(programs.folders["native"] / "portmap")
    done = InProcessExec(None, print).run(path, {"CNI_COMMAND": "VERSION"}, b"")  # type: ignore[arg-type]
    assert (done.status, b'"1.1.0"' in done.stdout) == (0, True)


def test_settings_that_do_not_fit_are_refused() -> None:
    target = installed()["portmap"]
    with pytest.raises(IoFailure, match="cannot hold its settings"):
        native.render(native.program(), target, load(target), "x" * 40_000, interpreter())


def test_program_is_hardened(programs: Programs) -> None:
    path = str(programs.folders["native"] / "portmap")
    read = subprocess.run(["readelf", "-hld", path], capture_output=True, text=True, check=True).stdout
    assert "DYN (" in read  # loaded at a random address
    assert re.search(r"GNU_STACK(\s+0x\w+){5}\s+RW\s", read, re.DOTALL)  # nothing on the stack is executed
    assert "GNU_RELRO" in read
    assert "BIND_NOW" in read
    assert "INTERP" not in read  # static: nothing is loaded from elsewhere


def test_program_compiles_without_a_warning() -> None:
    assert native.compiled(("-O2", "-Werror", "-pedantic"))


# --- VERSION, and no agent ---

QUERIES = [
    *(b"", b" \n", b'{"cniVersion":"1.0.0"}', b' {\t"cniVersion" : "0.4.0" }\r\n', b'{"cniVersion":"0.3.5.7"}'),
    *(b'{"cniversion":"0.4.0"}', b'{"cniVersion":""}', b'{"cniVersion":"1.0.0","x":1}', b'{"cniVersion":5}'),
    *(b'{"cniVersion":"1.0.0"} x', b'{"cniVersion":"1.\\u0030.0"}', b'{"cniVersion":"a\\"b"}', b"\x0b", b"nonsense"),
    *(b'{"cniVersion":"1.0.0"', b"{}", b"[]", b"\xff", b'{"cniVersion":"1.0.0"}' + b" " * 9000),
    *(b'{"cniVersion":"' + b"1" * 5000 + b'"}', b'{"x":"' + b"y" * 200_000 + b'","cniVersion":"0.4.0"}'),
]


@pytest.mark.parametrize("plugin", NAMES)
def test_version_is_the_same_when_it_is_answered_without_python(programs: Programs, plugin: str) -> None:
    for query in QUERIES:
        expected = version(programs.folders["alone"] / plugin, query)
        assert version(programs.folders["native"] / plugin, query) == expected, query[:60]


def test_version_starts_no_python_and_asks_no_agent(programs: Programs, tmp_path: Path) -> None:
    path = programs.folders["native"] / "portmap"
    log = tmp_path / "calls"
    subprocess.run(
        ["strace", "-f", "-o", str(log), "-e", "trace=execve,connect,socket", str(path)],
        env={"CNI_COMMAND": "VERSION", "PATH": os.environ["PATH"]}, input=b"{}"[:0], capture_output=True, check=True,
    )  # fmt: skip
    assert log.read_text().count("execve(") == 1
    assert "socket(" not in log.read_text()


def test_version_is_pythons_when_the_files_it_comes_from_have_changed(tmp_path: Path) -> None:
    """An upgrade without another `cnimeta install`: the answer is that of the new code."""
    target = installed()["portmap"]
    changed = tmp_path / "changed.py"
    changed.write_text("")
    path = tmp_path / "portmap"
    text = launcher_text(target, agent=True).replace("start(lambda", "print('python'), start(lambda")
    path.write_bytes(
        native.render(native.program(), target._replace(file=str(changed)), load(target), text, interpreter())
    )
    path.chmod(0o755)
    assert b"python" not in version(path, b"")[2]
    changed.write_text("x")
    assert b"python" in version(path, b"")[2]


def test_python_serves_when_a_variable_turns_the_native_one_off(programs: Programs, tmp_path: Path) -> None:
    """And the Python launcher asks the agent itself."""
    with Impostor(tmp_path / "run", lambda connection: connection.sendall(b"R")) as impostor:
        environ = {**REFUSED_BY_SDK, **impostor.environ, "CNIMETA_NATIVE": "0"}
        assert code(programs.run("native", "portmap", "ADD", conf("portmap"), **environ)[1]) == 8
        assert impostor.asked == 1
    text = programs.run("native", "portmap", "VERSION", b"", CNIMETA_NATIVE="0", CNIMETA_DEBUG="1")
    assert text == programs.run("alone", "portmap", "VERSION", b"")


def test_run_by_hand_it_says_what_it_is(programs: Programs) -> None:
    for kind in ("alone", "native"):
        done = subprocess.run([str(programs.folders[kind] / "bandwidth")], env={}, capture_output=True, check=False)
        assert (done.returncode, b"CNI protocol versions supported" in done.stderr) == (0, True)


def test_error_is_one_document_when_the_interpreter_is_gone(tmp_path: Path) -> None:
    target = installed()["portmap"]
    path = tmp_path / "portmap"
    text = launcher_text(target, agent=True)
    path.write_bytes(native.render(native.program(), target, load(target), text, str(tmp_path / "no-python")))
    path.chmod(0o755)
    done = subprocess.run([str(path)], env={"CNI_COMMAND": "ADD"}, input=b"{}", capture_output=True, check=False)
    assert (done.returncode, code(done.stdout)) == (1, 5)
    bare = tmp_path / "bare"
    bare.write_bytes(native.program())
    bare.chmod(0o755)
    assert code(subprocess.run([str(bare)], env={}, capture_output=True, check=False).stdout) == 5


# --- under sanitizers ---


@pytest.fixture(scope="module")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A launcher with sanitizers. What it cannot hand over it would do alone: that says `alone`."""
    folder = tmp_path_factory.mktemp("sanitized")
    target = installed()["portmap"]
    path = folder / "portmap"
    alone = folder / "alone"
    alone.write_text(f"#!/bin/sh\ncat > /dev/null; {shutil.which('printf')} alone\n")
    alone.chmod(0o755)
    path.write_bytes(
        native.render(native.compiled(SANITIZED), target, load(target), launcher_text(target, agent=True), str(alone))
    )
    path.chmod(0o755)
    return str(path)


def clean(done: subprocess.CompletedProcess[bytes]) -> bytes:
    assert b"Sanitizer" not in done.stderr, done.stderr.decode()
    assert b"runtime error" not in done.stderr, done.stderr.decode()
    assert done.returncode >= 0
    return done.stdout


@hypothesis.settings(max_examples=EXAMPLES, deadline=None, database=None)
@hypothesis.given(
    st.one_of(
        st.binary(max_size=64),
        st.text('{}":. \t\n0123456789cniVersion', max_size=80).map(str.encode),
        st.from_regex(rb'\s*\{\s*"cniVersion"\s*:\s*"[0-9.a]{0,40}"\s*\}\s*x?', fullmatch=True),
        st.integers(4090, 4100).map(lambda count: b" " * count + b"{"),
    )
)
def test_query_of_a_version_is_read_safely_whatever_it_is(sanitized: str, query: bytes) -> None:
    environ = {"CNI_COMMAND": "VERSION"}
    out = clean(subprocess.run([sanitized], env=environ, input=query, capture_output=True, check=False))
    assert out == b"alone" or re.fullmatch(rb'\{"cniVersion":"[0-9.]+","supportedVersions":\[.*\]\}\n', out), query


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> tuple[Impostor, list[tuple[bytes, bytes, bool]]]:
    plan: list[tuple[bytes, bytes, bool]] = []

    def act(connection: socket.socket) -> None:
        greeting, words, takes = plan[-1]
        connection.sendall(greeting)
        descriptors = taken(connection) if takes and greeting == b"" else []
        connection.sendall(words)
        connection.shutdown(socket.SHUT_RDWR)
        dropped(descriptors)

    with Impostor(tmp_path_factory.mktemp("hostile") / "run", act) as impostor:
        yield impostor, plan


@hypothesis.settings(max_examples=EXAMPLES, deadline=None, database=None)
@hypothesis.given(
    greeting=st.one_of(st.just(b""), st.just(HELLO), st.binary(max_size=20)),
    words=st.one_of(
        st.binary(max_size=64),
        st.binary(max_size=20).map(lambda tail: ACCEPTED + tail),
        st.binary(max_size=400).map(lambda text: answer(0, text)),
        st.tuples(st.integers(-(2**31), 2**31 - 1), st.integers(0, 30)).map(lambda n: answer(n[0], b"xyz")[: n[1]]),
    ),
    environ=st.dictionaries(st.from_regex("[A-Z]{1,8}", fullmatch=True), st.text("xyz\u00e9", max_size=50), max_size=5),
)
def test_agent_is_heard_safely_whatever_it_says(
    sanitized: str,
    hostile: tuple[Impostor, list[tuple[bytes, bytes, bool]]],
    greeting: bytes,
    words: bytes,
    environ: dict[str, str],
) -> None:
    impostor, plan = hostile
    plan.append((greeting, words, True))
    environ = {**environ, "CNI_COMMAND": "ADD", VARIABLE: impostor.path}
    done = subprocess.run([sanitized], env=environ, input=b"{}", capture_output=True, check=False)
    out = clean(done)
    if greeting == b"" and words.startswith(ACCEPTED):
        assert out != b"alone"  # it was accepted
        length = int.from_bytes(words[5:9], "little") if len(words) >= 9 else 1 << 32
        whole = length <= len(words) - 9
        assert out == words[9 : 9 + length] if whole else code(out) == 5
    elif greeting != HELLO:
        assert out == b"alone"
