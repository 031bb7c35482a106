"""An API server, a name server and credentials that do as they like: ADD ends in time, says so, and keeps what is secret."""

from __future__ import annotations

import base64
import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import kubernetes.client
import kubernetes.config  # noqa: F401 - what follows is not timed with the import
import pytest
from hostile_api import NEVER_DONE, NOT_AN_ANSWER, TOKEN, HostileServer, drips, http, says, waits
from hostport_harness import POD_ARGS, Node, conf

from cnimeta.errors import CniError
from cnimeta.host.clock import SystemClock
from cnimeta.host.kube.api import KubernetesPodApi
from cnimeta.host.values import PodApiError
from cnimeta.spec.netconf import NetConf
from cnimeta.testing.kube import Fault
from cnimeta_plugins.hostport_alloc.operator.examine import examine
from cnimeta_plugins.hostport_alloc.pod import annotation

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.unit

SLACK_S = 6.0
"""What a loaded machine may add. Whatever is not bounded at all takes 20 s and longer."""
SHORT_S = 0.4


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostileServer]:
    with HostileServer(tmp_path_factory.mktemp("ca")) as one:
        yield one


@pytest.fixture
def server(running: HostileServer) -> HostileServer:
    running.behave, running.raw, running.heard = waits, None, lambda _: None
    return running


class ApiNode(Node):
    """A node with the real adapter and the real time."""

    def __init__(self, kubeconfig: str) -> None:
        super().__init__()
        self.clock = SystemClock()  # type: ignore[assignment]
        self.kubeconfig = kubeconfig

    def _pods(self, kubeconfig: str) -> Any:
        return KubernetesPodApi(self.kubeconfig)


def failure(kubeconfig: str, timeout_s: float = SHORT_S, pod: str = "web") -> PodApiError:
    """What a PATCH comes to. It must fail, and in time."""
    began = time.monotonic()
    with pytest.raises(PodApiError) as caught:
        annotation._require_written(
            {"metadata": {"annotations": {"a": "1"}}},
            KubernetesPodApi(kubeconfig).patch_status(
                "default", pod, {"metadata": {"annotations": {"a": "1"}}}, timeout_s
            ),
        )
    assert time.monotonic() - began < timeout_s + SLACK_S
    assert len(str(caught.value)) < 1500
    assert str(caught.value).isprintable()
    assert TOKEN not in f"{caught.value} {caught.value.reason}"
    return caught.value


@pytest.mark.parametrize("behave", NEVER_DONE.values(), ids=NEVER_DONE)
def test_request_ends_in_time_when_the_server_never_does(
    server: HostileServer, tmp_path: Path, behave: Callable[..., None]
) -> None:
    server.behave = behave
    assert failure(server.kubeconfig(tmp_path / "kubeconfig")).status == 0


@pytest.mark.parametrize("raw", [waits, says(b"HTTP/1.1 200 OK\r\n\r\n"), drips(b"\x16\x03\x03\x40\x00" + b"\0" * 400)])
def test_request_ends_in_time_when_there_is_no_handshake(
    server: HostileServer, tmp_path: Path, raw: Callable[..., None]
) -> None:
    server.raw = raw
    assert failure(server.kubeconfig(tmp_path / "kubeconfig")).status == 0


@pytest.mark.parametrize("behave", NOT_AN_ANSWER.values(), ids=NOT_AN_ANSWER)
def test_nothing_counts_as_written_but_what_the_answer_shows(
    server: HostileServer, tmp_path: Path, behave: Callable[..., None]
) -> None:
    server.behave = behave
    error = failure(server.kubeconfig(tmp_path / "kubeconfig"), 5)
    assert error.reason != "NoCredentials"
    assert error.retry_after_s <= 86400
    assert not 200 <= error.status < 300


BAD_TOKENS = ["a\rb", "a\nHost: evil", "a\0b", "a\u2028b", "ä", "a\x7fb"]


@pytest.mark.parametrize("where", ["token", "tokenFile"])
@pytest.mark.parametrize("text", BAD_TOKENS, ids=repr)
def test_token_that_no_header_can_hold_is_told_without_it(
    server: HostileServer, tmp_path: Path, where: str, text: str
) -> None:
    token = TOKEN + text
    (tmp_path / "token").write_bytes(token.encode())
    user = {where: token if where == "token" else str(tmp_path / "token")}
    error = failure(server.kubeconfig(tmp_path / "kubeconfig", **user), 3)
    assert error.reason == "NoCredentials"
    assert "no HTTP header may hold" in str(error)


@pytest.mark.parametrize(
    ("text", "sent"),
    [(f"{TOKEN}\n", TOKEN), (f" {TOKEN} \r\n", TOKEN), (TOKEN, TOKEN), ("\n", ""), ("", ""), ("  ", "")],
    ids=repr,
)
@pytest.mark.parametrize("where", ["token", "tokenFile", "exec"])
def test_token_is_stripped_and_an_empty_one_is_not_sent(
    server: HostileServer, tmp_path: Path, where: str, text: str, sent: str
) -> None:
    (tmp_path / "token").write_bytes(text.encode())
    user: dict[str, Any] = {where: text if where == "token" else str(tmp_path / "token")}
    if where == "exec":
        credential = {"apiVersion": "v1", "kind": "ExecCredential", "status": {"token": text}}
        user = {"exec": plugin(tmp_path, f"print({json.dumps(credential)!r})")}
    seen = []

    def behave(connection: Any) -> None:
        connection.sendall(http(b"{}"))

    server.behave = behave
    server.heard = seen.append
    failure(server.kubeconfig(tmp_path / "kubeconfig", **user), 5)
    (request,) = seen
    lines = [line for line in request.split(b"\r\n") if line.lower().startswith(b"authorization")]
    assert lines == ([f"Authorization: Bearer {sent}".encode()] if sent else [])


def plugin(folder: Path, code: str) -> dict[str, Any]:
    """The `exec` section for a credential plugin that runs `code`."""
    path = folder / "credential-plugin"
    path.write_text(f"#!{sys.executable} -IS\nimport os, sys, time\n{code}\n")
    path.chmod(0o755)
    return {"command": str(path), "apiVersion": "v1"}


PLUGINS = {
    "hangs": "time.sleep(60)",
    "hangs with a child": "os.fork(); time.sleep(60)",
    "leaves a child that holds its output": "os.fork() or time.sleep(60)",
    "fails and talks": f"sys.stderr.write('{TOKEN}'); sys.exit(1)",
    "prints no JSON": f"print('{TOKEN}')",
    "prints nothing": "",
    "prints another document": """print('{"apiVersion":"v2","kind":"x","status":{}}')""",
    "gives a certificate that is none": (
        """print('{"apiVersion":"v1","kind":"x","status":{"clientCertificateData":"TOKEN","clientKeyData":"TOKEN"}}')"""
    ).replace("TOKEN", TOKEN),
    "is killed": "os.kill(os.getpid(), 9)",
    "ignores signals": "import signal; [signal.signal(n, signal.SIG_IGN) for n in (1, 2, 15)]; time.sleep(60)",
}


@pytest.mark.parametrize("code", PLUGINS.values(), ids=PLUGINS)
def test_credential_plugin_is_ended_in_time_and_not_quoted(server: HostileServer, tmp_path: Path, code: str) -> None:
    section = plugin(tmp_path, f"open('{tmp_path}/pids', 'a').write(f'{{os.getpid()}}\\n')\n{code}")
    server.behave = NOT_AN_ANSWER["a page"]
    error = failure(server.kubeconfig(tmp_path / "kubeconfig", exec=section), 1 if "sleep" in code else 5)
    assert error.status == 0
    for pid in (tmp_path / "pids").read_text().split():
        assert not is_running(int(pid), section["command"])


def is_running(pid: int, command: str) -> bool:
    until = time.monotonic() + SLACK_S
    while time.monotonic() < until:
        try:
            if command.encode() not in Path(f"/proc/{pid}/cmdline").read_bytes():
                return False
        except OSError:
            return False
        time.sleep(0.02)
    return True


def test_credential_plugin_ends_with_the_plugin_that_asked(server: HostileServer, tmp_path: Path) -> None:
    section = plugin(tmp_path, f"open('{tmp_path}/pid', 'w').write(str(os.getpid())); time.sleep(60)")
    kubeconfig = server.kubeconfig(tmp_path / "kubeconfig", exec=section)
    pid = os.fork()
    if pid == 0:
        try:
            KubernetesPodApi(kubeconfig).sign_in(60)
        finally:
            os._exit(1)
    while not (tmp_path / "pid").exists() or not (tmp_path / "pid").read_text():
        time.sleep(0.02)
    os.kill(pid, 9)
    os.waitpid(pid, 0)
    assert not is_running(int((tmp_path / "pid").read_text()), section["command"])


def test_memory_is_bounded_when_a_credential_plugin_babbles(server: HostileServer, tmp_path: Path) -> None:
    section = plugin(tmp_path, "while True: os.write(1, b'x' * 65536)")
    kubeconfig = server.kubeconfig(tmp_path / "kubeconfig", exec=section)
    assert peak_bytes(lambda: failure(kubeconfig, 10)) < 700 << 20


@pytest.mark.parametrize("name", ["a body without end", "chunks without end", "headers without end", "nested"])
def test_memory_is_bounded_when_an_answer_has_no_end(server: HostileServer, tmp_path: Path, name: str) -> None:
    server.behave = NOT_AN_ANSWER[name]
    kubeconfig = server.kubeconfig(tmp_path / "kubeconfig")
    own = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    assert peak_bytes(lambda: failure(kubeconfig, 5)) < own + (64 << 20)


def peak_bytes(attempt: Callable[[], object]) -> int:
    """The most memory that a process of the attempt had, in a fork of this one whose children are the attempt's alone."""
    ours, theirs = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            attempt()
            kinds = (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)
            os.write(theirs, str(max(resource.getrusage(kind).ru_maxrss for kind in kinds) << 10).encode())
        finally:
            os._exit(0)
    os.close(theirs)
    said = os.read(ours, 64)
    os.close(ours)
    os.waitpid(pid, 0)
    return int(said)


DOCUMENTS = {
    "no YAML": f"a: [{TOKEN}",
    "no object": f"- {TOKEN}",
    "nothing": "",
    "no context": json.dumps({"users": [{"name": "u", "user": {"token": TOKEN}}]}),
    "an unknown user": json.dumps(
        {
            "current-context": "x",
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": TOKEN[:4]}}],
            "clusters": [{"name": "c", "cluster": {"server": "https://127.0.0.1"}}],
        }
    ),
    "a server that is none": json.dumps(
        {
            "current-context": "x",
            "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
            "clusters": [{"name": "c", "cluster": {"server": f"ftp://u:{TOKEN}@h"}}],
            "users": [{"name": "u", "user": {}}],
        }
    ),
    "objects of other kinds": json.dumps(
        {"current-context": ["x"], "contexts": [7, {"name": ["x"], "context": TOKEN}]}
    ),
    "too long": "a: " + "x" * (2 << 20),
    "nested": "[" * 5000,
    "references that multiply": "a: &a [x]\n"
    + "".join(f"{b}: &{b} [*{a},*{a},*{a},*{a}]\n" for a, b in itertools.pairwise("abcdefghijk")),
    "a byte that is no text": "\x01",
}


@pytest.mark.parametrize("text", DOCUMENTS.values(), ids=DOCUMENTS)
def test_kubeconfig_that_is_none_is_told_without_its_words(tmp_path: Path, text: str) -> None:
    (tmp_path / "kubeconfig").write_text(text)
    error = failure(str(tmp_path / "kubeconfig"), 10)
    assert error.reason == "NoCredentials"
    assert str(tmp_path / "kubeconfig") in str(error)


FILES = [
    (key, kind)
    for key in ("certificate-authority", "client-certificate", "client-key", "tokenFile")
    for kind in ("missing", "fifo", "folder", "link to /dev/zero", "secret")
    if (key, kind) != ("tokenFile", "secret")  # it is one
]


@pytest.mark.parametrize(("key", "kind"), FILES)
def test_file_of_a_kubeconfig_is_a_file_or_told(server: HostileServer, tmp_path: Path, key: str, kind: str) -> None:
    path = tmp_path / "file"
    if kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    elif kind == "secret":
        path.write_text(TOKEN)
    elif kind != "missing":
        path.symlink_to("/dev/zero")
    user = {"client-certificate": str(path), "client-key": str(path)} if key.startswith("client") else {key: str(path)}
    kubeconfig = Path(server.kubeconfig(tmp_path / "kubeconfig", **user))
    if key == "certificate-authority":
        kubeconfig.write_text(kubeconfig.read_text().replace(server.authority.path, str(path)))
    server.behave = NOT_AN_ANSWER["a page"]
    assert failure(str(kubeconfig), 5).reason == "NoCredentials"


def test_keys_inside_a_kubeconfig_leave_no_file(
    server: HostileServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    seen = tmp_path / "seen"
    look = f"import stat; open('{seen}', 'w').write(repr([oct(os.umask(0)), os.listdir('{tmp_path}/tmp')]))"
    before = os.umask(0)
    failure(server.kubeconfig(tmp_path / "kubeconfig", exec=plugin(tmp_path, look)), 5)
    os.umask(before)
    assert seen.read_text() == "['0o77', []]"
    pem = base64.b64encode(Path(server.authority.issue("user")).read_bytes()).decode()
    user = {"client-certificate-data": pem, "client-key-data": pem}
    made = []

    def behave(connection: Any) -> None:
        made.extend((tmp_path / "tmp").iterdir())
        waits(connection)

    server.behave = behave
    kubeconfig = server.kubeconfig(tmp_path / "kubeconfig", **user)
    assert failure(kubeconfig, 1).reason == "NoAnswer"  # killed while it waits
    assert made == list((tmp_path / "tmp").iterdir()) == []
    text = Path(kubeconfig).read_text().replace(pem, base64.b64encode(TOKEN.encode()).decode())
    Path(kubeconfig).write_text(text)
    assert failure(kubeconfig, 5).reason == "NoCredentials"
    assert list((tmp_path / "tmp").iterdir()) == []


ENTRIES = ["ADD deferred", "ADD required", "ADD readPod", "GC", "deliver", "doctor"]


@pytest.mark.parametrize("entry", ENTRIES)
@pytest.mark.parametrize("peer", ["a byte of body now and then", "credential plugin"])
def test_every_way_to_the_server_is_bounded_and_keeps_the_token(
    server: HostileServer, tmp_path: Path, capfd: pytest.CaptureFixture[str], peer: str, entry: str
) -> None:
    user = (
        {"exec": plugin(tmp_path, f"print('{TOKEN}'); sys.stdout.flush(); time.sleep(60)")} if "plugin" in peer else {}
    )
    server.behave = NEVER_DONE.get(peer) or NOT_AN_ANSWER.get(peer) or waits
    node = ApiNode(server.kubeconfig(tmp_path / "kubeconfig", **user))
    timeout_s = 0.4
    api = {"kubeconfig": node.kubeconfig, "timeout": timeout_s}
    answer, began = "", time.monotonic()
    try:
        if entry == "ADD required":
            node.call("ADD", conf(kubernetes={**api, "policy": "required"}), args=POD_ARGS)
        elif entry == "ADD readPod":
            node.call("ADD", conf(kubernetes={**api, "readPod": True}), args=POD_ARGS)
        elif entry == "doctor":
            answer = " ".join(examine(node.wiring, NetConf(conf(kubernetes=api))))
        else:
            node.call("ADD", conf(kubernetes=api), args=POD_ARGS)
            record = node.store.load(("pods", "c1", "eth0"))
            assert record is not None
            assert record.annotation.state == "pending"
            answer = str(record)
            began = time.monotonic()
            if entry == "GC":
                node.call("GC", {**conf(kubernetes=api), "cniVersion": "1.1.0"})
            elif entry == "deliver":
                deadline = annotation.Deadline(node.clock, timeout_s)
                done = annotation.deliver_pending(node.store, KubernetesPodApi(node.kubeconfig), deadline, 9, print)
                assert done == (0, 0, 1)
    except CniError as error:
        assert entry in ("ADD required", "ADD readPod")
        assert error.code == (102 if entry == "ADD required" else 11)
        answer = json.dumps(error.as_json("1.0.0"))
        assert node.bridge.attachments == {}
    assert time.monotonic() - began < timeout_s + SLACK_S
    assert TOKEN not in " ".join([answer, *node.log, *capfd.readouterr()])


@pytest.mark.parametrize("policy", ["deferred", "required"])
def test_time_that_ran_out_between_two_attempts_is_no_defect(policy: str) -> None:
    """A machine that was suspended, or a stopped process."""
    node = Node()
    node.pods.create("default", "web", uid="0a-1b")
    node.pods.faults += [Fault(status=500)] * 3
    sleep, node.clock.sleep = node.clock.sleep, lambda _: sleep(3600)  # type: ignore[method-assign]
    try:
        node.call("ADD", conf(kubernetes={"timeout": 5, "policy": policy}), args=POD_ARGS)
    except CniError as error:
        assert (policy, error.code) == ("required", 102)
        assert node.bridge.attachments == {}
    else:
        assert policy == "deferred"


@pytest.mark.parametrize("timeout_s", [0, -1, -1e9, 1e-9])
def test_request_without_time_is_no_answer(timeout_s: float) -> None:
    for attempt in (KubernetesPodApi("/k").sign_in, lambda s: KubernetesPodApi("/k").read("default", "web", s)):
        with pytest.raises(PodApiError) as caught:
            attempt(timeout_s)
        assert caught.value.reason == "NoAnswer"


SILENT_NAME_SERVER = """
import json, socket, sys, time
from cnimeta.host.kube.api import KubernetesPodApi
from cnimeta.host.values import PodApiError
name_server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
name_server.bind(("127.0.0.1", 53))
KubernetesPodApi("/nowhere")._ask  # what follows is timed without the import
import kubernetes.client, kubernetes.config
began = time.monotonic()
try:
    KubernetesPodApi(sys.argv[1]).patch_status("default", "web", {}, 1)
except PodApiError as error:
    asked = len(name_server.recv(512, socket.MSG_DONTWAIT))
    print(json.dumps({"reason": error.reason, "took": time.monotonic() - began, "asked": asked}))
"""


@pytest.mark.kernel
def test_request_ends_in_time_when_the_name_server_is_silent(server: HostileServer, tmp_path: Path) -> None:
    kubeconfig = Path(server.kubeconfig(tmp_path / "kubeconfig"))
    kubeconfig.write_text(kubeconfig.read_text().replace("127.0.0.1", "api.test"))
    (tmp_path / "resolv.conf").write_text("nameserver 127.0.0.1\n")
    (tmp_path / "run.py").write_text(SILENT_NAME_SERVER)
    script = 'mount --bind "$1" /etc/resolv.conf && ip link set lo up && exec "$2" "$3" "$4"'
    inside = ["unshare", "--mount", "--net", "sh", "-c", script, "sh", tmp_path / "resolv.conf"]
    done = subprocess.run(
        [*inside, sys.executable, tmp_path / "run.py", kubeconfig], capture_output=True, text=True, check=False
    )
    told = json.loads(done.stdout or "{}")
    assert told.get("reason") == "NoAnswer", done.stderr
    assert told["asked"] > 0
    assert told["took"] < 1 + SLACK_S / 2  # the resolver's own patience is 10 s
