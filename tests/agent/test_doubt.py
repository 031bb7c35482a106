"""Any doubt before the agent has accepted ends in work done alone, with nothing consumed; nothing is ever done twice.

Both launchers, in Python and in C, meet agents that are none. The work that they do alone is an ADD that the SDK refuses with
code 8 before a plugin acts, and an impostor answers with something else: so every answer says who gave it.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from typing import TYPE_CHECKING

import pytest
from agent_kit import (
    ASKING,
    REFUSED_BY_SDK,
    Impostor,
    Programs,
    answer,
    code,
    conf,
    dropped,
    taken,
)

from cnimeta.agent.wire import ACCEPTED, ANSWER, HELLO, REFUSED, VARIABLE

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cnimeta.testing.agent import RunningAgent

pytestmark = pytest.mark.kernel

ALONE, LOST, INVALID = 8, 5, 7
BY_IMPOSTOR = b'{"code":77}\n'


def asked(programs: Programs, kind: str, path: str, **environ: str) -> tuple[int, bytes, bytes]:
    return programs.run(kind, "portmap", "ADD", conf("portmap"), **REFUSED_BY_SDK, **{VARIABLE: path, **environ})


def end(connection: socket.socket) -> None:
    connection.shutdown(socket.SHUT_RDWR)


def after(step: Callable[[socket.socket], object], words: bytes) -> Callable[[socket.socket], None]:
    def act(connection: socket.socket) -> None:
        descriptors = step(connection)
        connection.sendall(words)
        end(connection)
        dropped(descriptors if isinstance(descriptors, list) else [])

    return act


def nothing(_: socket.socket) -> None:
    pass


DOUBTS = {
    "ends at once": after(nothing, b""),
    "refuses at once": after(nothing, REFUSED),
    "another protocol": after(nothing, b"cnimeta-agent 2\n"),
    "part of a greeting": after(nothing, HELLO[:-1]),
    "something else": after(nothing, b"HTTP/1.1 400 Bad Request\r\n\r\n"),
    "ends after the greeting": after(nothing, HELLO),
    "refuses after the greeting": after(nothing, HELLO + REFUSED),
    "ends with the request": after(taken, b""),
    "refuses the request": after(taken, REFUSED),
    "answers without having accepted": after(taken, answer(0, BY_IMPOSTOR)[1:]),
    "nonsense for a word": after(taken, b"X" * 64),
}


@pytest.mark.parametrize("kind", ASKING)
@pytest.mark.parametrize("doubt", DOUBTS)
def test_launcher_works_alone_when_the_agent_does_not_accept(
    programs: Programs, tmp_path: Path, kind: str, doubt: str
) -> None:
    with Impostor(tmp_path / "run", DOUBTS[doubt]) as impostor:
        status, out, err = asked(programs, kind, impostor.path)
        assert (status, code(out), err) == (1, ALONE, b"")
        assert impostor.asked == 1  # the Python launcher that takes over does not ask again


ENDS = {
    "ends": (b"", LOST),
    "ends within the length": (ANSWER.pack(0, 12)[:-1], LOST),
    "ends within the answer": (ANSWER.pack(0, len(BY_IMPOSTOR)) + BY_IMPOSTOR[:-3], LOST),
    "an answer without end": (ANSWER.pack(0, 0xFFFFFFFF) + BY_IMPOSTOR, LOST),
    "answers": (answer(1, BY_IMPOSTOR)[1:], 77),
    "answers more": (answer(1, BY_IMPOSTOR)[1:] + b"and more", 77),
}


@pytest.mark.parametrize("kind", ASKING)
@pytest.mark.parametrize("words", ENDS)
def test_nothing_is_done_again_when_the_agent_has_accepted(
    programs: Programs, tmp_path: Path, kind: str, words: str
) -> None:
    text, expected = ENDS[words]
    with Impostor(tmp_path / "run", after(taken, ACCEPTED + text)) as impostor:
        status, out, _ = asked(programs, kind, impostor.path)
        assert (status, code(out)) == (1, expected)


@pytest.mark.parametrize("kind", ASKING)
def test_answer_counts_when_all_is_said_before_the_launcher_looks(
    programs: Programs, tmp_path: Path, kind: str
) -> None:
    """The agent accepts, answers and is gone while the launcher still is where it sent the request."""
    with Impostor(tmp_path / "run", after(taken, answer(1, BY_IMPOSTOR))) as impostor:
        for _ in range(30):
            assert code(asked(programs, kind, impostor.path)[1]) == 77


@pytest.mark.parametrize("kind", ASKING)
@pytest.mark.parametrize("call", ["recvfrom", "poll"])
def test_nobody_works_without_stdin_when_a_word_of_the_agent_cannot_be_heard(
    programs: Programs, agent: RunningAgent, kind: str, call: str
) -> None:
    """Once the agent has accepted, its worker has read stdin: a launcher that goes on alone finds it empty (code 6)."""
    environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "PATH": os.environ["PATH"]}
    environ |= {"CNI_PATH": "/nowhere", "CNI_NETNS": "/run/netns/none", **agent.environ}
    for number in (1, 2, 3, 4):
        strike = ["strace", "-qqq", "-o", "/dev/null", "-e", f"inject={call}:error=ENOMEM:when={number}"]
        path = str(programs.folders[kind] / "portmap")
        done = subprocess.run([*strike, path], env=environ, input=conf("portmap"), capture_output=True, check=False)
        assert (done.returncode, code(done.stdout)) in ((1, INVALID), (1, LOST))  # there is no prevResult on stdin


@pytest.mark.parametrize("kind", ASKING)
@pytest.mark.parametrize("late", ["greeting", "acceptance"])
def test_late_agent_is_waited_for_when_it_is_not_stopped(
    programs: Programs, tmp_path: Path, kind: str, late: str
) -> None:
    def act(connection: socket.socket) -> None:
        time.sleep(1.3 if late == "greeting" else 0)
        descriptors = taken(connection)
        time.sleep(1.3 if late == "acceptance" else 0)
        for byte in answer(1, BY_IMPOSTOR):
            connection.sendall(bytes([byte]))
        dropped(descriptors)

    with Impostor(tmp_path / "run", act) as impostor:
        assert code(asked(programs, kind, impostor.path)[1]) == 77


@pytest.mark.parametrize("kind", ASKING)
def test_launcher_works_alone_when_the_agent_is_stopped_or_gone(
    programs: Programs, own: RunningAgent, tmp_path: Path, kind: str
) -> None:
    assert code(asked(programs, kind, str(tmp_path / "nothing"))[1]) == ALONE
    for pid in [own.process.pid, *own.workers()]:
        os.kill(pid, signal.SIGSTOP)
    began = time.monotonic()
    status, out, err = asked(programs, kind, own.socket)
    assert (status, code(out), err) == (1, ALONE, b"")
    assert time.monotonic() - began < 8  # a second until it looks
    for pid in own.workers():
        os.kill(pid, signal.SIGKILL)
    own.process.kill()
    own.process.wait()
    assert os.path.exists(own.socket)
    assert code(asked(programs, kind, own.socket)[1]) == ALONE


@pytest.mark.parametrize("kind", ASKING)
@pytest.mark.parametrize("what", ["writable by others", "another user's", "a link", "no path"])
def test_agent_is_not_asked_when_others_may_have_put_it_there(
    programs: Programs, tmp_path: Path, kind: str, what: str
) -> None:
    with Impostor(tmp_path / "run", after(taken, answer(0, BY_IMPOSTOR))) as impostor:
        folder = tmp_path / "run"
        path = impostor.path
        if what == "writable by others":
            folder.chmod(0o777)
        elif what == "another user's":
            os.chown(folder, 65534, 65534)
        elif what == "a link":
            (tmp_path / "link").symlink_to(folder)
            path = str(tmp_path / "link" / "agent.sock")
        else:
            path = "agent.sock"
        assert code(asked(programs, kind, path)[1]) == ALONE
        assert impostor.asked == 0


@pytest.mark.parametrize("kind", ASKING)
@pytest.mark.parametrize("closed", [0, 1, 2])
def test_agent_is_not_asked_when_a_stream_is_closed(programs: Programs, tmp_path: Path, kind: str, closed: int) -> None:
    with Impostor(tmp_path / "run", after(taken, answer(0, BY_IMPOSTOR))) as impostor:
        environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", **REFUSED_BY_SDK}
        done = subprocess.run(
            ["sh", "-c", f'exec "$0" {closed}>&-', str(programs.folders[kind] / "portmap")],
            env={**environ, **impostor.environ}, input=conf("portmap"), capture_output=True, check=False, timeout=30,
        )  # fmt: skip
        assert done.returncode == 1
        assert impostor.asked == 0
        assert b"Traceback" not in done.stderr
        if closed != 1:
            assert code(done.stdout) == (6 if closed == 0 else ALONE)


@pytest.mark.parametrize("kind", ASKING)
def test_stdin_is_left_unread_until_the_agent_has_accepted(programs: Programs, agent: RunningAgent, kind: str) -> None:
    """A runtime that takes its time to write it is waited for, by the agent as by a plugin of its own."""
    process = programs.begin(kind, "portmap", "ADD", **REFUSED_BY_SDK, **agent.environ)
    assert process.stdin is not None
    time.sleep(1.2)
    process.stdin.write(conf("portmap"))
    out, err = process.communicate(timeout=30)
    assert (code(out), err) == (8, b"")


@pytest.mark.parametrize("kind", ASKING)
def test_all_of_it_arrives_when_environment_and_answer_are_large_and_no_text(
    programs: Programs, tmp_path: Path, kind: str
) -> None:
    large = b"\xff\xfe" + b"x" * 100_000
    said = b'{"code":77,"x":"' + b"y" * 3_000_000 + b'"}\n'
    heard = []

    def act(connection: socket.socket) -> None:
        connection.sendall(HELLO)
        head, descriptors, _, _ = socket.recv_fds(connection, 1 << 20, 16)
        while len(head) < 15 * len(large):
            part = connection.recv(1 << 20)
            head += part
        heard.append(head)
        connection.sendall(answer(1, said))
        dropped(descriptors)

    environ = {f"LARGE{number}".encode(): large for number in range(15)}
    with Impostor(tmp_path / "run", act) as impostor:
        environ |= {b"CNI_COMMAND": b"ADD", VARIABLE.encode(): os.fsencode(impostor.path)}
        done = subprocess.run(
            [str(programs.folders[kind] / "portmap")], env=environ, input=b"", capture_output=True, check=False
        )
        assert done.stdout == said
    assert all(b"LARGE%d=%b" % (number, large) in heard[0] for number in range(15))


@pytest.mark.parametrize("kind", ASKING)
def test_answer_is_written_whole_when_stdout_does_not_wait(programs: Programs, tmp_path: Path, kind: str) -> None:
    said = b"y" * 1_000_000
    with Impostor(tmp_path / "run", after(taken, answer(0, said))) as impostor:
        ours, theirs = os.pipe()
        os.set_blocking(theirs, False)
        environ = {"CNI_COMMAND": "ADD", **impostor.environ}
        process = subprocess.Popen(
            [str(programs.folders[kind] / "portmap")], env=environ, stdin=subprocess.DEVNULL, stdout=theirs
        )
        os.close(theirs)
        time.sleep(0.3)
        with open(ours, "rb") as file:
            assert file.read() == said
        assert process.wait(20) == 0


@pytest.mark.parametrize("kind", ASKING)
def test_status_tells_when_nobody_reads_the_answer(programs: Programs, tmp_path: Path, kind: str) -> None:
    with Impostor(tmp_path / "run", after(taken, answer(0, b"y" * 200_000))) as impostor:
        ours, theirs = os.pipe()
        os.close(ours)
        environ = {"CNI_COMMAND": "ADD", **impostor.environ}
        process = subprocess.Popen(
            [str(programs.folders[kind] / "portmap")], env=environ, stdin=subprocess.DEVNULL, stdout=theirs
        )
        os.close(theirs)
        assert process.wait(20) == 1
