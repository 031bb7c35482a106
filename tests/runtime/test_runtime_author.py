"""What a program that runs networks is given: dictionaries for files, an event loop, traces, and what plugins said."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import types

import pytest

from cnimeta.cli.main import main
from cnimeta.errors import CniError, DelegateFailed, TryAgainLater
from cnimeta.runtime import Container, Runtime
from cnimeta.runtime.asynchronous import AsyncRuntime
from cnimeta.runtime.recording import Recording, picture, story
from cnimeta.spec.trace import TraceContext
from cnimeta.testing.delegates import FakeDelegate, FakeExec, address_result
from cnimeta.testing.files import MemoryFiles
from cnimeta.testing.noop import write_noop

NETWORK = {"cniVersion": "1.1.0", "name": "net", "plugins": [{"type": "bridge"}, {"type": "portmap"}]}
WEB = Container("web-1", "/run/netns/web")
PARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


def runtime_of(tmp_path, plugins, **more):
    return Runtime(["/opt/cni/bin"], str(tmp_path), executor=plugins, files=MemoryFiles(), environ={}, **more)


def chain():
    return FakeExec(FakeDelegate("bridge", address_result("10.1.0.2/24")), FakeDelegate("portmap"))


@pytest.mark.unit
@pytest.mark.parametrize(
    ("network", "types"),
    [(NETWORK, ["bridge", "portmap"]), ({"cniVersion": "1.1.0", "name": "n", "type": "bridge"}, ["bridge"])],
)
def test_a_network_is_run_when_it_is_the_object_of_a_file(tmp_path, network, types):
    plugins = chain()
    runtime = runtime_of(tmp_path, plugins)
    assert runtime.add(network, WEB).ips[0].address == "10.1.0.2/24"
    runtime.check(network, WEB)
    runtime.status(network)
    runtime.gc(network, [("web-1", "eth0")])
    runtime.delete(network, WEB)
    assert [one.plugin for one in plugins.sent("ADD")] == types
    assert list(runtime.validate(network)) == types
    with pytest.raises(CniError, match="name"):
        runtime.add({"type": "bridge"}, WEB)


@pytest.mark.unit
def test_verbs_run_side_by_side_when_they_are_awaited(tmp_path):
    plugins = chain()
    meeting = threading.Barrier(2)
    plugins.hook = lambda name, environ, stdin: meeting.wait(20) if environ["CNI_COMMAND"] == "ADD" else None

    async def both():
        runtime = AsyncRuntime(runtime_of(tmp_path, plugins))
        one, two = Container("c1", "/run/netns/c1"), Container("c2", "/run/netns/c2")
        results = await asyncio.gather(runtime.add(NETWORK, one), runtime.add(NETWORK, two))
        await runtime.check(NETWORK, one)
        await runtime.status(NETWORK)
        await runtime.gc(NETWORK, [("c1", "eth0")])
        await runtime.delete(NETWORK, one)
        return results, await runtime.validate(NETWORK)

    results, versions = asyncio.run(both())
    assert [one.ips[0].address for one in results] == ["10.1.0.2/24"] * 2
    assert set(versions) == {"bridge", "portmap"}
    assert len(plugins.sent("DEL")) == 4


@pytest.mark.unit
@pytest.mark.parametrize("undo", [True, False])
def test_a_cancelled_add_ends_and_is_undone_when_nobody_waits_any_more(tmp_path, undo):
    plugins = chain()
    began, go_on = threading.Event(), threading.Event()

    def hook(name, environ, stdin):
        if (name, environ["CNI_COMMAND"]) == ("bridge", "ADD"):
            began.set()
            assert go_on.wait(20)

    plugins.hook = hook

    async def cancelled():
        runtime = AsyncRuntime(runtime_of(tmp_path, plugins))
        task = asyncio.create_task(runtime.add(NETWORK, WEB, undo=undo))
        await asyncio.to_thread(began.wait, 20)
        task.cancel()
        await asyncio.sleep(0)
        task.cancel()
        go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert [one.verb for one in plugins.calls] == ["ADD", "ADD", *(["DEL", "DEL"] if undo else [])]


@pytest.mark.unit
def test_an_error_is_raised_when_an_awaited_verb_fails(tmp_path):
    plugins = chain()
    plugins.plugins["portmap"].errors["ADD"] = TryAgainLater("busy")
    with pytest.raises(CniError, match="busy"):
        asyncio.run(AsyncRuntime(runtime_of(tmp_path, plugins)).add(NETWORK, WEB))


@pytest.mark.unit
def test_plugins_are_told_of_the_trace_when_there_is_one(tmp_path):
    plugins = chain()
    runtime_of(tmp_path, plugins, trace=lambda: TraceContext(PARENT, "a=b")).status(NETWORK)
    runtime_of(tmp_path, plugins).status(NETWORK)
    told = [TraceContext.of(one.environ) for one in plugins.calls]
    assert told == [TraceContext(PARENT, "a=b")] * 2 + [None] * 2


@pytest.mark.unit
def test_the_current_span_is_told_when_the_program_uses_opentelemetry(tmp_path, monkeypatch):
    fake = types.ModuleType("opentelemetry")
    fake.propagate = types.SimpleNamespace(inject=lambda carrier: carrier.update(traceparent=PARENT, baggage="k=v"))
    monkeypatch.setitem(sys.modules, "opentelemetry", fake)
    plugins = chain()
    runtime_of(tmp_path, plugins).status(NETWORK)
    assert TraceContext.of(plugins.calls[0].environ) == TraceContext(PARENT, "", "k=v")


@pytest.mark.unit
@pytest.mark.parametrize(
    "parent",
    [
        "",
        "x",
        PARENT[:-1],
        PARENT.upper(),
        PARENT + "-x",
        "ff" + PARENT[2:],
        PARENT.replace("b7ad6b7169203331", "0" * 16),
    ],
)
def test_a_trace_is_none_when_it_has_another_form(parent):
    assert TraceContext.of({"TRACEPARENT": parent}) is None


@pytest.mark.unit
def test_a_trace_says_whose_it_is_when_it_is_read():
    found = TraceContext.of({"TRACEPARENT": PARENT, "TRACESTATE": "a=b"})
    assert (found.trace_id, found.span_id) == ("0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331")
    assert found.environ() == {"TRACEPARENT": PARENT, "TRACESTATE": "a=b"}


@pytest.mark.unit
def test_what_was_given_and_taken_is_shown_when_the_chain_is_recorded(tmp_path):
    plugins = chain()
    plugins.plugins["portmap"].errors["ADD"] = TryAgainLater("busy")
    recording = Recording(plugins)
    with pytest.raises(CniError):
        runtime_of(tmp_path, recording, locate=plugins.locate).add(NETWORK, WEB)
    assert [(step.verb, step.plugin, step.status) for step in recording.steps] == [
        ("ADD", "bridge", 0), ("ADD", "portmap", 1), ("DEL", "portmap", 0), ("DEL", "bridge", 0),
    ]  # fmt: skip
    shown = picture(recording.steps).splitlines()
    assert shown[0].startswith("ADD     [bridge ")
    assert "─▶ [portmap " in shown[0]
    assert shown[0].endswith("FAILED]")
    assert shown[1].startswith("DEL     [portmap ")
    assert "busy" in story(recording.steps)


@pytest.mark.runtime
def test_stderr_is_in_the_error_and_on_the_terminal_when_a_plugin_says_nothing_else(tmp_path, capfd):
    path = tmp_path / "dying"
    path.write_text("#!/bin/sh\necho 'no such thing: /etc/x' >&2\nexit 3\n")
    path.chmod(0o755)
    runtime = Runtime([str(tmp_path)], str(tmp_path / "cache"))
    with pytest.raises(DelegateFailed, match="exit status 3 and nothing on stdout; stderr: no such thing: /etc/x"):
        runtime.status({"cniVersion": "1.1.0", "name": "n", "type": "dying"})
    assert "no such thing" in capfd.readouterr().err


@pytest.mark.runtime
def test_nobody_is_waited_for_when_a_plugin_leaves_a_child_that_holds_stderr(tmp_path):
    path = tmp_path / "leaving"
    path.write_text("#!/bin/sh\nsleep 30 < /dev/null > /dev/null &\nexit 0\n")
    path.chmod(0o755)
    runtime = Runtime([str(tmp_path)], str(tmp_path / "cache"), timeout_s=10)
    runtime.status({"cniVersion": "1.1.0", "name": "n", "type": "leaving"})


@pytest.mark.runtime
def test_run_shows_the_chain_when_it_is_traced(tmp_path, capfd):
    write_noop(
        str(tmp_path), "first", {"ADD": {"result": {"cniVersion": "1.1.0", "ips": [{"address": "10.1.0.2/24"}]}}}
    )
    write_noop(str(tmp_path), "second", {"ADD": {"code": 11, "msg": "later"}})
    network = {"cniVersion": "1.1.0", "name": "n", "plugins": [{"type": "first"}, {"type": "second"}]}
    (tmp_path / "n.conflist").write_text(json.dumps(network))
    words = ["run", "add", "--conflist", str(tmp_path / "n.conflist"), "--netns", "/run/netns/x", "--trace"]
    assert main([*words, "--bin-dir", str(tmp_path), "--cache-dir", str(tmp_path / "cache"), "--timeout", "20"]) == 1
    out, err = capfd.readouterr()
    assert json.loads(out)["code"] == 11
    for words in (
        "ADD first: exit status 0",
        '"prevResult"',
        "ADD second: exit status 1",
        "FAILED]",
        "\nDEL     [second",
    ):
        assert words in err
