"""Delegation: found, run as a process or in this one, answered with typed results and errors."""

from __future__ import annotations

import json
import os
import stat
import threading
import time

import pytest

from cnimeta.cli.install import install
from cnimeta.delegate.call import Delegates
from cnimeta.delegate.find import find, split_path
from cnimeta.delegate.inprocess import InProcessExec
from cnimeta.delegate.spawn import ProcessExec
from cnimeta.errors import CniError, DecodingFailure, DelegateFailed, InvalidNetworkConfig, TryAgainLater
from cnimeta.host.values import Completed
from cnimeta.plugin import launcher
from cnimeta.spec.result import IPConfig, Result
from cnimeta.testing.delegates import FakeDelegate, FakeExec, address_result, completed

pytestmark = pytest.mark.unit

ENVIRON = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_NETNS": "/run/netns/none",
    "CNI_IFNAME": "eth0",
    "CNI_PATH": "/opt/cni/bin",
    "PATH": os.defpath,
}
PLUGINS = ["portmap", "bandwidth", "hostport_alloc"]
CONF = {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "vendor": {"unknown": [1]}}


def fakes(*plugins):
    executor = FakeExec(*plugins)
    return executor, Delegates(executor, ENVIRON, ["/opt/cni/bin"], executor.locate)


def script(folder, name, body):
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_result_is_typed_and_the_configuration_passes_whole():
    executor, delegates = fakes(FakeDelegate("bridge", address_result("10.1.0.2/24")))
    result = delegates.add(CONF)
    assert result.ips == (IPConfig("10.1.0.2/24", interface=0),)
    assert executor.calls[0].conf == CONF
    assert dict(executor.calls[0].environ) == ENVIRON
    assert executor.dump() == "ADD bridge c1 eth0\n"


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0"])
def test_an_ipam_result_is_read_when_it_has_no_interfaces(version):
    answer = {"ips": [{"address": "10.1.0.2/24", "gateway": "10.1.0.1"}], "dns": {}}
    if version < "0.3.0":
        answer = {"ip4": {"ip": "10.1.0.2/24", "gateway": "10.1.0.1"}}
    executor, delegates = fakes()
    executor.script("host-local", "ADD", answer)
    result = delegates.add({**CONF, "cniVersion": version, "type": "host-local"})
    assert result == Result(ips=(IPConfig("10.1.0.2/24", "10.1.0.1"),))


def test_a_failed_add_is_followed_by_del_with_the_same_configuration():
    bridge = FakeDelegate("bridge", address_result("10.1.0.2/24"))
    bridge.late_errors["ADD"] = TryAgainLater("no address left", "pool p")
    executor, delegates = fakes(bridge)
    with pytest.raises(CniError) as caught:
        delegates.add(CONF)
    assert (caught.value.code, caught.value.msg) == (11, "plugin bridge failed ADD: no address left")
    assert caught.value.details == "pool p"
    assert executor.dump() == "ADD bridge c1 eth0 -> 1\nDEL bridge c1 eth0\n"
    assert executor.calls[0].stdin == executor.calls[1].stdin
    assert bridge.attachments == {}


def test_a_failed_del_after_a_failed_add_is_told_in_the_details():
    bridge = FakeDelegate("bridge")
    bridge.errors = {"ADD": TryAgainLater("a"), "DEL": TryAgainLater("b")}
    _, delegates = fakes(bridge)
    with pytest.raises(CniError) as caught:
        delegates.add(CONF)
    assert caught.value.details == "and DEL after it: plugin bridge failed DEL: b"


def test_no_del_follows_when_the_delegate_does_not_exist():
    executor, delegates = fakes()
    with pytest.raises(DelegateFailed, match='failed to find plugin "bridge"'):
        delegates.add(CONF)
    assert executor.calls == []


@pytest.mark.parametrize(
    ("stdout", "status", "error", "words"),
    [
        ("", 0, DecodingFailure, "got nothing"),
        ("garbage", 0, DecodingFailure, "not valid JSON"),
        ("{}{}", 0, DecodingFailure, "got 2 documents"),
        ("[]", 0, DecodingFailure, "got an array"),
        ('{"cniVersion":"9.9.9"}', 0, DecodingFailure, "unsupported result version"),
        ('{"cniVersion":5}', 0, DecodingFailure, "$.cniVersion must be a string"),
        ('{"ips":[{"address":"10.1.0.2"}]}', 0, DecodingFailure, "$.ips[0].address must be an IP address with prefix"),
        ('{"ips":[{"address":"10.1.0.2/24","interface":1.5}]}', 0, DecodingFailure, "$.ips[0].interface"),
        ("", 1, DelegateFailed, "exit status 1 and nothing"),
        ("", 137, DelegateFailed, "exit status 137"),
        ("panic: x", 2, DelegateFailed, 'exit status 2 and "panic: x"'),
        ('{"code":0,"msg":"x"}', 1, DelegateFailed, "exit status 1"),
        ('{"code":"7","msg":"x"}', 1, DelegateFailed, "exit status 1"),
        ('{"code":7.0}', 1, DelegateFailed, "exit status 1"),
    ],
)
def test_a_broken_answer_names_the_delegate(stdout, status, error, words):
    executor, delegates = fakes()
    executor.script("bridge", "ADD", completed(stdout, status))
    executor.script("bridge", "DEL", completed(""))
    with pytest.raises(error) as caught:
        delegates.add(CONF)
    assert "bridge" in caught.value.msg
    assert words in caught.value.msg
    assert [call.verb for call in executor.calls] == ["ADD", "DEL"]


def test_the_error_is_read_when_the_reference_prints_a_result_before_it():
    two = json.dumps({"cniVersion": "1.0.0"}, indent=4) + "\n" + json.dumps({"code": 8, "msg": "same"}, indent=4)
    executor, delegates = fakes()
    executor.script("bridge", "ADD", completed(two, 1))
    executor.script("bridge", "DEL", completed(""))
    with pytest.raises(CniError, match="same") as caught:
        delegates.add(CONF)
    assert caught.value.code == 8


def test_the_other_verbs_carry_their_errors_and_ignore_chatter():
    executor, delegates = fakes(FakeDelegate("bridge"))
    for verb, call in (
        ("DEL", delegates.delete),
        ("CHECK", delegates.check),
        ("GC", delegates.gc),
        ("STATUS", delegates.status),
    ):
        executor.script("bridge", verb, completed("chatter"), TryAgainLater("later"))
        call(CONF)
        with pytest.raises(CniError, match=f"plugin bridge failed {verb}: later") as caught:
            call(CONF)
        assert caught.value.code == 11


@pytest.mark.parametrize(
    ("answer", "expected"),
    [
        (completed('{"cniVersion":"1.1.0","supportedVersions":["0.4.0","1.1.0"]}'), ("0.4.0", "1.1.0")),
        (completed('{"code":4,"msg":"unknown CNI_COMMAND: VERSION"}', 1), ("0.1.0",)),
    ],
)
def test_versions_are_read_also_from_plugins_older_than_the_verb(answer, expected):
    executor, delegates = fakes()
    executor.script("old", "VERSION", answer)
    assert delegates.versions("old") == expected


@pytest.mark.parametrize("stdout", ["", "{}", '{"supportedVersions":"1.0.0"}', '{"supportedVersions":[1]}'])
def test_versions_are_an_error_when_the_answer_has_none(stdout):
    executor, delegates = fakes()
    executor.script("odd", "VERSION", completed(stdout))
    with pytest.raises(DecodingFailure, match="odd"):
        delegates.versions("odd")


def test_finding_follows_links_and_order_and_skips_what_is_no_file(tmp_path):
    first, second = tmp_path / "1", tmp_path / "2"
    first.mkdir()
    second.mkdir()
    (first / "a").mkdir()
    target = tmp_path / "real"
    target.write_text("x")
    (second / "a").symlink_to(target)
    assert find("a", [str(tmp_path / "none"), str(first), str(second)]) == str(second / "a")
    with pytest.raises(DelegateFailed, match="failed to find plugin"):
        find("b", [str(first)])


@pytest.mark.parametrize("name", ["", "../a", "a/b", ".", "..", "a\0", "a\n"])
def test_a_type_that_is_no_file_name_is_code_7(name):
    with pytest.raises(InvalidNetworkConfig, match=r"\$.type"):
        find(name, ["/usr/bin"])


# --- processes ---


def test_a_large_input_and_output_do_not_block_each_other(tmp_path):
    path = script(tmp_path, "p", "head -c 3000000 /dev/zero | tr '\\0' x; cat")
    done = ProcessExec(20).run(path, ENVIRON, b"y" * 3_000_000)
    assert (done.status, len(done.stdout)) == (0, 6_000_000)


def test_input_that_is_never_read_is_no_error(tmp_path):
    path = script(tmp_path, "p", "exec <&-; echo done")
    assert ProcessExec(20).run(path, ENVIRON, b"y" * 1_000_000) == Completed(0, b"done\n")


def test_environment_arguments_and_status_arrive(tmp_path):
    path = script(tmp_path, "p", 'printf %s "$CNI_ARGS|$X|$#"; exit 7')
    environ = {**ENVIRON, "CNI_ARGS": "a=b", "X": "\udcff"}
    assert ProcessExec().run(path, environ, b"") == Completed(7, b"a=b|\xff|0")


def test_a_signal_becomes_a_status_above_128(tmp_path):
    assert ProcessExec(20).run(script(tmp_path, "p", "kill -KILL $$"), ENVIRON, b"").status == 137


def test_stderr_passes_through(tmp_path, capfd):
    ProcessExec(20).run(script(tmp_path, "p", "echo words >&2"), ENVIRON, b"")
    assert capfd.readouterr().err == "words\n"


@pytest.mark.parametrize(
    "body",
    [
        "echo $$ >$PIDFILE; exec sleep 60",
        "echo $$ >$PIDFILE; exec >&-; exec sleep 60",
        "echo $$ >$PIDFILE; while :; do echo x; done",
    ],
    ids=["silent", "lingers after its answer", "babbles"],
)
def test_a_slow_plugin_is_killed_at_its_deadline(tmp_path, body):
    pidfile = tmp_path / "pid"
    path = script(tmp_path, "p", body)
    started = time.monotonic()
    with pytest.raises(DelegateFailed, match=r"within 0\.3 s"):
        ProcessExec(0.3).run(path, {**ENVIRON, "PIDFILE": str(pidfile)}, b"")
    assert time.monotonic() - started < 5
    with pytest.raises(ProcessLookupError):
        os.kill(int(pidfile.read_text()), 0)


def test_endless_output_is_cut_off(tmp_path):
    with pytest.raises(DelegateFailed, match="wrote more than 16777216 bytes"):
        ProcessExec(20).run(script(tmp_path, "p", "exec cat /dev/zero"), ENVIRON, b"")


@pytest.mark.parametrize("case", ["missing", "not executable", "no interpreter", "no format", "nul"])
def test_a_program_that_cannot_start_is_code_105(tmp_path, case):
    path = script(tmp_path, "p", "true")
    environ = dict(ENVIRON)
    if case == "missing":
        path += "x"
    elif case == "not executable":
        os.chmod(path, 0o644)
    elif case == "no interpreter":
        (tmp_path / "p").write_text("#!/no/such/thing\n")
    elif case == "no format":
        (tmp_path / "p").write_bytes(b"\x01\x02")
    else:
        environ["X"] = "a\0b"
    with pytest.raises(DelegateFailed, match="failed to run plugin"):
        ProcessExec(20).run(path, environ, b"")


def test_a_plugin_being_replaced_is_tried_again(tmp_path):
    """Text file busy: the file is open for writing until the copy is done."""
    path = tmp_path / "p"
    with open("/bin/true", "rb") as source:
        path.write_bytes(source.read())
    path.chmod(0o755)
    writer = open(path, "r+b")  # noqa: SIM115 - closed by the timer
    timer = threading.Timer(0.3, writer.close)
    timer.start()
    try:
        assert ProcessExec(20).run(str(path), ENVIRON, b"").status == 0
    finally:
        timer.cancel()
        writer.close()


def test_no_descriptor_is_left_behind(tmp_path):
    path = script(tmp_path, "p", "cat")
    before = os.listdir("/proc/self/fd")
    for _ in range(5):
        ProcessExec(20).run(path, ENVIRON, b"x")
        with pytest.raises(DelegateFailed):
            ProcessExec().run(path + "x", ENVIRON, b"")
    assert os.listdir("/proc/self/fd") == before


# --- in this process ---


@pytest.fixture
def launchers(tmp_path):
    install(str(tmp_path), PLUGINS)
    return tmp_path


class Refusing:
    def run(self, path, environ, stdin):
        pytest.fail(f"started {path}")


@pytest.mark.parametrize("plugin", PLUGINS)
@pytest.mark.parametrize(
    ("change", "stdin"),
    [
        ({"CNI_COMMAND": "VERSION"}, b'{"cniVersion":"0.4.0"}'),
        ({"CNI_COMMAND": "ADD"}, b"{"),
        ({"CNI_COMMAND": "ADD"}, json.dumps(CONF).encode()),
        ({"CNI_COMMAND": "ADD", "CNI_NETNS": "/proc/self/ns/net"}, json.dumps(CONF).encode()),
        ({"CNI_COMMAND": "ADD", "CNI_IFNAME": "a/b"}, json.dumps(CONF).encode()),
        ({"CNI_COMMAND": "CHECK"}, json.dumps({**CONF, "cniVersion": "0.3.1"}).encode()),
        ({"CNI_COMMAND": "FROB"}, json.dumps(CONF).encode()),
    ],
)
def test_a_delegate_answers_the_same_in_this_process_and_in_its_own(launchers, plugin, change, stdin):
    path = str(launchers / plugin)
    environ = {**ENVIRON, **change}
    here = InProcessExec(Refusing(), lambda line: None).run(path, environ, stdin)
    assert here == ProcessExec(20).run(path, environ, stdin)


def test_a_foreign_program_of_the_same_name_runs_as_a_process(tmp_path):
    path = script(tmp_path, "portmap", "echo '{}'")
    assert InProcessExec(ProcessExec(20), lambda line: None).run(path, ENVIRON, b"") == Completed(0, b"{}\n")


def test_a_launcher_of_another_installation_runs_as_a_process(launchers):
    path = launchers / "portmap"
    path.write_text(path.read_text().replace(launcher.package_folder(), "/opt/other/cnimeta", 1))
    assert launcher.read_target(str(path)) is None


def test_folders_are_a_list_when_they_are_divided_or_repeated():
    assert split_path(["/a:/b", "", "/c", ":/d:"]) == ("/a", "/b", "/c", "/d")
    assert split_path([]) == ()
