"""The protocol: every verb, version and broken input, with the code and the message that answers it."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cnimeta
from cnimeta.errors import CniError, PluginNotAvailable
from cnimeta.plugin.base import VERBS, Plugin
from cnimeta.plugin.dispatch import run
from cnimeta.spec.version import ALL, at_least
from cnimeta.testing.delegates import FakeDelegate, address_result

pytestmark = pytest.mark.unit

FULL = {
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/none",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin",
    "CNI_ARGS": "K8S_POD_NAME=web;IgnoreUnknown=1",
}
SINCE = {"CHECK": "0.4.0", "GC": "1.1.0", "STATUS": "1.1.0"}


def serve(verb, conf, plugin=None, **change):
    plugin = plugin or FakeDelegate("fake", result=address_result("10.1.0.2/24"))
    environ = {key: value for key, value in {**FULL, "CNI_COMMAND": verb, **change}.items() if value is not None}
    stdin = conf if isinstance(conf, bytes) else json.dumps(conf).encode()
    return run(plugin, environ, stdin, lambda line: None)


def error_of(outcome):
    assert outcome.status == 1
    body = json.loads(outcome.stdout)
    assert set(body) <= {"cniVersion", "code", "msg", "details"}
    return body["code"], body["msg"]


def conf(version="1.1.0", **more):
    return {"cniVersion": version, "name": "net", "type": "fake", **more}


@pytest.mark.parametrize("version", ALL)
@pytest.mark.parametrize("verb", list(VERBS))
def test_a_verb_works_exactly_when_its_version_has_it(verb, version):
    plugin = FakeDelegate("fake", result=address_result("10.1.0.2/24"))
    if verb == "CHECK":
        serve("ADD", conf(version), plugin)
    outcome = serve(verb, conf(version), plugin)
    if at_least(version, SINCE.get(verb, "0.1.0")):
        assert outcome.status == 0
        assert (json.loads(outcome.stdout)["cniVersion"] == version) if verb == "ADD" else outcome.stdout == ""
    else:
        code, msg = error_of(outcome)
        assert code == 1
        assert f"does not allow {verb}" in msg
        assert all(seen.verb != verb for seen in plugin.requests)


@pytest.mark.parametrize("empty", [None, ""])
@pytest.mark.parametrize(("verb", "name"), [(verb.name, name) for verb in VERBS.values() for name in verb.needs])
def test_a_missing_variable_is_code_4_when_the_verb_needs_it(verb, name, empty):
    assert error_of(serve(verb, conf(), **{name: empty})) == (4, f"required env variables [{name}] missing")


def test_all_missing_variables_are_named_in_one_error():
    outcome = serve("ADD", conf(), CNI_CONTAINERID=None, CNI_NETNS=None, CNI_IFNAME=None)
    assert error_of(outcome) == (4, "required env variables [CNI_CONTAINERID,CNI_NETNS,CNI_IFNAME] missing")


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK"])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("CNI_CONTAINERID", "-a"),
        ("CNI_CONTAINERID", "a\n"),
        ("CNI_CONTAINERID", "a b"),
        ("CNI_CONTAINERID", "ä"),
        ("CNI_CONTAINERID", "../x"),
        ("CNI_CONTAINERID", "a\udcff"),
        ("CNI_CONTAINERID", "a\0"),
        ("CNI_IFNAME", "a" * 16),
        ("CNI_IFNAME", "é" * 8),
        ("CNI_IFNAME", "."),
        ("CNI_IFNAME", ".."),
        ("CNI_IFNAME", "a/b"),
        ("CNI_IFNAME", "a:b"),
        ("CNI_IFNAME", "eth0\n"),
        ("CNI_IFNAME", "a\u2003b"),
        ("CNI_IFNAME", "\udcff"),
        ("CNI_IFNAME", "a\0"),
    ],
)
def test_an_invalid_variable_is_code_4_before_anything_acts(verb, name, value):
    plugin = FakeDelegate("fake", result=address_result("10.1.0.2/24"))
    code, msg = error_of(serve(verb, conf(), plugin, **{name: value}))
    assert code == 4
    assert name in msg
    assert plugin.requests == []


@pytest.mark.parametrize("value", ["a" * 15, "é" * 7 + "a", "-x", "a.b"])
def test_an_interface_name_is_accepted_when_the_kernel_would_accept_it(value):
    assert serve("ADD", conf(), CNI_IFNAME=value).status == 0


@pytest.mark.parametrize("verb", ["add", "ADD\n", "FROB", "ADD ", "\udcff", "🙂"])
def test_an_unknown_verb_is_code_4(verb):
    code, msg = error_of(serve(verb, conf()))
    assert code == 4
    assert msg.startswith("unknown CNI_COMMAND")


@pytest.mark.parametrize("verb", list(VERBS))
@pytest.mark.parametrize(
    ("stdin", "code", "words"),
    [
        (b"", 6, "is empty"),
        (b"{", 6, "not valid JSON"),
        (b"[]", 6, "must be a JSON object, got an array"),
        (b"null", 6, "must be a JSON object, got null"),
        (b"{}{}", 6, "extra text"),
        (b"\xff\xfe", 6, "not UTF-8"),
        (b"[" * 200_000, 6, ""),
        (b'{"a":' * 5000 + b"1" + b"}" * 5000, 6, "nested deeper"),
        (b'{"cniVersion": 1}', 6, "$.cniVersion must be a string, got a number: 1"),
        (b'{"cniVersion": "1.1.0", "name": ["x"]}', 6, "$.name must be a string, got an array"),
        (b'{"cniVersion": "1.1.0", "name": "x", "type": {}}', 6, "$.type must be a string, got an object"),
        (b'{"cniVersion": "2.0.0", "name": "x"}', 1, 'config is "2.0.0", plugin supports'),
        (b'{"cniVersion": "banana", "name": "x"}', 1, 'config is "banana"'),
        (b'{"cniVersion": "1.1", "name": "x"}', 1, 'config is "1.1"'),
        (b'{"cniVersion": "1.1.0"}', 7, "$.name is missing"),
        (b'{"cniVersion": "1.1.0", "name": null}', 7, "$.name is missing"),
        (b'{"cniVersion": "1.1.0", "name": "n\\n"}', 7, "$.name"),
        (b'{"cniVersion": "1.1.0", "name": "../n"}', 7, '$.name "../n" is invalid'),
    ],
)
def test_a_configuration_is_refused_with_its_code_when_it_is_broken(verb, stdin, code, words):
    found, msg = error_of(serve(verb, stdin))
    assert found == code
    assert words in msg


def test_a_missing_version_means_0_1_0():
    assert json.loads(serve("ADD", {"name": "net", "cniVersion": ""}).stdout)["cniVersion"] == "0.1.0"
    plugin = FakeDelegate("fake", versions=("1.0.0",))
    code, msg = error_of(serve("ADD", {"name": "net"}, plugin))
    assert code == 1
    assert '"0.1.0"' in msg


@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
def test_the_own_namespace_is_code_8_before_anything_acts(verb):
    plugin = FakeDelegate("fake", result=address_result("10.1.0.2/24"))
    code, msg = error_of(serve(verb, conf(), plugin, CNI_NETNS="/proc/self/ns/net"))
    assert (code, msg) == (8, 'CNI_NETNS "/proc/self/ns/net" is the plugin\'s own network namespace')
    assert plugin.requests == []


def test_del_goes_on_without_the_namespace_when_it_is_the_own():
    plugin = FakeDelegate("fake", result=address_result("10.1.0.2/24"))
    assert serve("DEL", conf(), plugin, CNI_NETNS="/proc/self/ns/net").status == 0
    (request,) = plugin.requests
    assert (request.attachment.netns, request.environ["CNI_NETNS"]) == ("", "")


@pytest.mark.parametrize("args", ["A=1;", "A=1;B=2;", ";", ""])
def test_args_may_end_in_a_semicolon(args):
    assert serve("ADD", conf(), CNI_ARGS=args).status == 0


@pytest.mark.parametrize("value", ["1", "true", "TRUE"])
def test_the_own_namespace_is_allowed_when_overridden(value):
    assert serve("ADD", conf(), CNI_NETNS="/proc/self/ns/net", CNI_NETNS_OVERRIDE=value).status == 0


def test_a_namespace_path_with_a_nul_byte_is_left_to_the_plugin():
    assert serve("ADD", conf(), CNI_NETNS="/x\0y").status == 0


@pytest.mark.parametrize(
    ("stdin", "echoed"),
    [
        (b"", "1.1.0"),
        (b" \n", "1.1.0"),
        (b'{"cniVersion":"0.4.0"}', "0.4.0"),
        (b'{"CNIVERSION":"9.9.9","name":5}', "9.9.9"),
        (b"{}", "0.1.0"),
    ],
)
def test_version_echoes_what_it_is_asked_in(stdin, echoed):
    outcome = run(FakeDelegate("fake", versions=("1.0.0",)), {"CNI_COMMAND": "VERSION"}, stdin, lambda line: None)
    assert outcome.status == 0
    assert json.loads(outcome.stdout) == {"cniVersion": echoed, "supportedVersions": ["1.0.0"]}


def test_version_is_code_6_when_the_query_cannot_be_read():
    for stdin in (b"{", b'{"cniVersion":5}'):
        assert error_of(run(FakeDelegate("f"), {"CNI_COMMAND": "VERSION"}, stdin, lambda line: None))[0] == 6


def test_about_goes_to_stderr_when_there_is_no_command():
    said = []
    outcome = run(FakeDelegate("fake"), {}, b"", said.append)
    assert tuple(outcome) == (0, "")
    assert "CNI plugin fake" in said[0]
    assert "1.1.0" in said[0]


@pytest.mark.parametrize("verb", ["ADD", "CHECK"])
def test_broken_cni_args_are_code_4(verb):
    code, msg = error_of(serve(verb, conf(), CNI_ARGS="A=1;B"))
    assert (code, msg) == (4, 'CNI_ARGS: invalid pair "B", expected KEY=VALUE')


def test_del_goes_on_when_cni_args_are_broken():
    plugin = FakeDelegate("fake")
    assert serve("DEL", conf(), plugin, CNI_ARGS="A=1;B;C=x=y;").status == 0
    assert plugin.requests[0].attachment.args == {"A": "1", "C": "x=y"}


class Failing(Plugin):
    name = "failing"

    def __init__(self, error):
        self.error = error

    def add(self, request):
        raise self.error

    def status(self, request):
        raise self.error


@pytest.mark.parametrize(
    ("error", "code", "words"),
    [
        (CniError("m", "d", code=111), 111, "m"),
        (PluginNotAvailable("full"), 50, "full"),
        (FileNotFoundError(2, "No such file", "/x"), 5, 'ADD failed: "/x": No such file'),
        (TimeoutError(), 5, "ADD failed"),
        (KeyError("k\udcff\n"), 999, "internal error in failing ADD: KeyError"),
        (SystemExit(3), 999, "SystemExit"),
        (RecursionError("deep"), 999, "RecursionError"),
        (MemoryError(), 11, "out of memory"),
        (OSError(24, "Too many open files"), 11, "Too many open files"),
        (ModuleNotFoundError("No module named 'x'", name="x"), 5, 'not whole: ModuleNotFoundError of "x"'),
        (SyntaxError("invalid syntax"), 5, "not whole"),
        (ValueError("Bearer s3cret"), 999, "internal error in failing ADD: ValueError"),
    ],
)
def test_any_exception_becomes_one_error_object(error, code, words):
    outcome = serve("ADD", conf("1.0.0"), Failing(error))
    assert error_of(outcome)[0] == code
    assert words in error_of(outcome)[1]
    assert "s3cret" not in outcome.stdout
    assert json.loads(outcome.stdout)["cniVersion"] == "1.0.0"
    assert outcome.stdout.count("\n") == 1


def test_a_verb_that_returns_nothing_is_an_internal_error_when_a_result_is_due():
    class Forgetful(Plugin):
        name = "forgetful"

        def add(self, request):
            return None

    assert error_of(serve("ADD", conf(), Forgetful()))[0] == 999


def test_delegates_see_the_whole_environment():
    """Spec §4: the delegated plugin must receive all the same environment variables."""
    plugin = FakeDelegate("fake", result=address_result("10.1.0.2/24"))
    serve("ADD", conf(), plugin, TRACEPARENT="00-1", OTHER="\udcff")
    assert plugin.requests[0].environ["TRACEPARENT"] == "00-1"
    assert plugin.requests[0].environ["OTHER"] == "\udcff"


GC_LIST = [{"containerID": "c1", "ifname": "eth0"}]


@pytest.mark.parametrize(
    ("keys", "kept"),
    [
        ({}, {"c1", "c2"}),
        ({"cni.dev/valid-attachments": None}, {"c1", "c2"}),
        ({"cni.dev/valid-attachments": []}, set()),
        ({"cni.dev/attachments": []}, set()),
        ({"cni.dev/valid-attachments": GC_LIST}, {"c1"}),
        ({"cni.dev/attachments": GC_LIST}, {"c1"}),
        ({"cni.dev/valid-attachments": GC_LIST, "cni.dev/attachments": GC_LIST}, {"c1"}),
        ({"cni.dev/valid-attachments": None, "cni.dev/attachments": GC_LIST}, {"c1"}),
        ({"CNI.dev/Valid-Attachments": [{"ContainerID": "c2", "IfName": "eth0"}]}, {"c2"}),
    ],
)
def test_gc_keeps_what_is_listed_and_everything_without_a_list(keys, kept):
    plugin = FakeDelegate("fake", result=address_result("10.1.0.2/24"))
    for container in ("c1", "c2"):
        serve("ADD", conf(), plugin, CNI_CONTAINERID=container)
    assert serve("GC", conf(**keys), plugin).status == 0
    assert {key[1] for key in plugin.attachments} == kept


@pytest.mark.parametrize("listed", ["c1", {}, [1], [{}], [{"containerID": "c1"}], [{"containerID": 1, "ifname": "e"}]])
def test_gc_frees_nothing_when_the_list_is_malformed(listed):
    plugin = FakeDelegate("fake", result=address_result("10.1.0.2/24"))
    serve("ADD", conf(), plugin)
    code, msg = error_of(serve("GC", conf(**{"cni.dev/valid-attachments": listed}), plugin))
    assert code == 6
    assert "cni.dev/valid-attachments" in msg
    assert len(plugin.attachments) == 1


ANY_ENV = st.dictionaries(
    st.sampled_from(["CNI_COMMAND", *FULL, "CNI_NETNS_OVERRIDE"]),
    st.one_of(st.sampled_from([*VERBS, "VERSION", "c1", "eth0", "/x", ""]), st.text(max_size=20)),
)
ANY_STDIN = st.one_of(
    st.binary(max_size=60),
    st.dictionaries(
        st.sampled_from(["cniVersion", "name", "prevResult", "cni.dev/valid-attachments", "NAME"]),
        st.recursive(
            st.one_of(st.sampled_from([*ALL, "net"]), st.none(), st.integers(), st.text(max_size=9)),
            lambda inner: st.one_of(
                st.lists(inner, max_size=2), st.dictionaries(st.text(max_size=9), inner, max_size=2)
            ),
            max_leaves=4,
        ),
    ).map(lambda body: json.dumps(body).encode()),
)


@given(ANY_ENV, ANY_STDIN)
def test_stdout_is_one_document_or_empty_when_anything_is_sent(environ, stdin):
    outcome = run(FakeDelegate("fake"), environ, stdin, lambda line: None)
    assert outcome.status in (0, 1)
    if outcome.status == 1:
        assert error_of(outcome)[0] != 999
    elif outcome.stdout:
        assert isinstance(json.loads(outcome.stdout), dict)


MAIN = """
import sys; sys.path.insert(0, sys.argv[1])
from cnimeta.plugin.dispatch import main
from cnimeta.plugin.base import Plugin
class P(Plugin):
    name = "p"
    def delete(self, request):
        print("stray"); sys.stdout.flush()
        import os; os.write(1, b"more"); os.system("echo child")
main(P())
"""


def process(environ, stdin=b"", prelude="", **options):
    root = os.path.dirname(os.path.dirname(cnimeta.__file__))
    command = [sys.executable, "-I", "-S", "-c", prelude + MAIN, root]
    return subprocess.run(
        command, env={"PATH": os.defpath, **environ}, input=stdin, capture_output=True, check=False, **options
    )


def test_a_stray_print_goes_to_stderr_when_a_plugin_makes_one():
    done = process({**FULL, "CNI_COMMAND": "DEL"}, json.dumps(conf()).encode())
    assert (done.returncode, done.stdout) == (0, b"")
    assert b"stray" in done.stderr
    assert b"more" in done.stderr
    assert b"child" in done.stderr


@pytest.mark.parametrize("closed", ["0", "1", "2", "0 1", "0 1 2"])
def test_no_traceback_when_descriptors_are_closed(closed):
    done = process(
        {"CNI_COMMAND": "VERSION"},
        b"{}",
        prelude=f"import os,sys\nif not os.environ.get('X'):\n for fd in map(int,'{closed}'.split()): os.close(fd)\n"
        " os.environ['X']='1'; os.execv(sys.executable,[sys.executable,*sys.orig_argv[1:]])\n",
    )
    assert done.returncode == 0
    assert b"Traceback" not in done.stderr
    assert done.stdout == b"" if "1" in closed else json.loads(done.stdout)["supportedVersions"]


def test_the_status_tells_when_nobody_reads_stdout():
    read, write = os.pipe()
    os.close(read)
    root = os.path.dirname(os.path.dirname(cnimeta.__file__))
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", MAIN, root],
        env={"CNI_COMMAND": "VERSION"},
        stdin=subprocess.DEVNULL,
        stdout=write,
        stderr=subprocess.PIPE,
        check=False,
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (1, b"")


def test_an_unreadable_stdin_is_code_5():
    with _write_only() as fd:
        root = os.path.dirname(os.path.dirname(cnimeta.__file__))
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", MAIN, root],
            env={"CNI_COMMAND": "STATUS"},
            stdin=fd,
            capture_output=True,
            check=False,
        )
    assert done.returncode == 1
    assert json.loads(done.stdout)["code"] == 5
    assert done.stderr == b""


class _write_only:
    def __enter__(self):
        self.fd = os.open("/dev/null", os.O_WRONLY)
        return self.fd

    def __exit__(self, *error):
        os.close(self.fd)


def test_bytes_that_are_no_text_are_answered_when_they_stand_in_the_environment():
    done = process({**FULL, "CNI_COMMAND": "DEL", "CNI_CONTAINERID": os.fsdecode(b"\xff\xfe")}, b"{}")
    assert json.loads(done.stdout)["code"] == 4
