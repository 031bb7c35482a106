"""The hook: told of each mapping, durably, at least once, in order; never in the way of DEL."""

from __future__ import annotations

import argparse
import json
import os
import runpy
import socket
import threading
from pathlib import Path
from typing import Any

import pytest
from hostport_harness import POD_ARGS, Node, conf

from cnimeta.errors import CniError, IoFailure
from cnimeta.host.hook import ProgramHook, SocketHook
from cnimeta.testing.delegates import address_result
from cnimeta_plugins.hostport_alloc.operator.commands import add_commands

pytestmark = pytest.mark.unit

HOOK = {"program": "/usr/local/bin/tell"}
REQUIRED = {**HOOK, "policy": "required"}


def deliver(node: Node, tmp_path: Path, *words: str, **keys: Any) -> int:
    path = tmp_path / "net.conflist"
    plugin = conf(**{"notify": HOOK, **keys})
    path.write_text(json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [plugin]}))
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers(), node.wiring)
    args = parser.parse_args(["ports", "deliver", *words, "--conf", str(path)])
    status: int = args.run(args)
    return status


def told(node: Node) -> list[tuple[str, str]]:
    return [(event["event"], event["attachment"]["containerID"]) for event in node.hook.events]


def test_event_says_whose_ports_are_reached_where(tmp_path: Path) -> None:
    node = Node(result=address_result("10.1.0.2/24", "fd00::2/64"))
    given = {"portMappings": [{"hostPort": 8080, "containerPort": 80, "hostIP": "192.0.2.99"}]}
    external = {"address": "203.0.113.1", "portOffset": 10}
    node.call("ADD", conf(notify=HOOK, runtimeConfig=given, external=external), args=POD_ARGS)
    assert node.hook.calls == 0
    assert deliver(node, tmp_path) == 0
    (event,) = node.hook.events
    (port,) = node.ports()
    record = node.store.load(("pods", "c1", "eth0"))
    assert record is not None
    assert event.pop("time") > 0
    random = {"containerPort": 80, "protocol": "TCP", "hostPort": port, "range": "default"}
    outside = {"externalIP": "203.0.113.1", "externalPort": port + 10}
    explicit = {**random, "hostIP": "192.0.2.99", "hostPort": 8080, "range": "explicit"}
    assert event == {
        "version": 1,
        "id": 1,
        "event": "added",
        "attachment": {"network": "pods", "containerID": "c1", "ifname": "eth0"},
        "reservation": record.token,
        "pod": {"namespace": "default", "name": "web", "uid": "0a-1b"},
        "mappings": [
            {**random, "hostIP": "192.0.2.10", **outside},
            {**random, "hostIP": "2001:db8::10"},
            {**explicit, "externalIP": "203.0.113.1", "externalPort": 8090},
        ],
    }
    node.call("DEL", conf(), args=POD_ARGS)  # the hook was configured when it was added
    assert node.hook.calls == 1
    assert deliver(node, tmp_path) == 0
    assert {**node.hook.events[1], "time": 0} == {**event, "id": 2, "event": "removed", "time": 0}


def test_event_waits_until_it_is_taken_and_holds_up_only_its_own_attachment(tmp_path: Path) -> None:
    node = Node()
    wanted = conf(notify=HOOK)
    for name in ("a", "b"):
        node.call("ADD", wanted, container_id=name)
    node.call("DEL", wanted, container_id="a")
    node.hook.refusals = ["not now"]
    assert deliver(node, tmp_path) == 1
    assert told(node) == [("added", "b")]
    assert deliver(node, tmp_path) == 0
    assert told(node) == [("added", "b"), ("added", "a"), ("removed", "a")]
    node.call("GC", {**wanted, "cniVersion": "1.1.0", "cni.dev/valid-attachments": []})
    assert told(node)[-1] == ("removed", "b")


def test_hook_that_fails_three_times_in_a_row_is_left_alone(tmp_path: Path) -> None:
    node = Node()
    for number in range(5):
        node.call("ADD", conf(notify=HOOK), container_id=f"c{number}")
    node.hook.refusals = ["down"] * 9
    assert deliver(node, tmp_path) == 1
    assert node.hook.calls == 3
    assert node.store.outbox.count() == 5


def test_events_that_are_never_taken_do_not_keep_the_hook_from_the_rest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node()
    for number in range(5):
        node.call("ADD", conf(notify=HOOK), container_id=f"c{number}")
    refused = {"c0", "c1", "c2"}  # by the names that their Pods have, say
    tell = node.hook.tell

    def by_name(event: bytes, timeout_s: float) -> str:
        whose = json.loads(event)["attachment"]["containerID"]
        return "label too long" if whose in refused else tell(event, timeout_s)

    monkeypatch.setattr(node.hook, "tell", by_name)
    assert deliver(node, tmp_path) == 1
    node.call("DEL", conf(notify=HOOK), container_id="c4")
    assert deliver(node, tmp_path) == 1
    assert told(node) == [("added", "c3"), ("added", "c4"), ("removed", "c4")]
    node.call("DEL", conf(notify=HOOK), container_id="c0")
    refused.clear()
    assert deliver(node, tmp_path) == 0
    assert [event for event in told(node) if event[1] == "c0"] == [("added", "c0"), ("removed", "c0")]


def test_required_add_waits_for_its_event_and_is_taken_back_without(tmp_path: Path) -> None:
    node = Node()
    node.call("ADD", conf(notify=REQUIRED))
    assert told(node) == [("added", "c1")]
    node.hook.refusals = ["no"]
    with pytest.raises(CniError, match=r"the hook did not take the event .*: no") as caught:
        node.call("ADD", conf(notify=REQUIRED), container_id="c2")
    assert (caught.value.code, node.ports("c2"), set(node.portmap.attachments)) == (106, [], {("pods", "c1", "eth0")})
    assert deliver(node, tmp_path) == 0  # it may have taken the first one all the same
    assert told(node)[1:] == [("added", "c2"), ("removed", "c2")]


def test_only_who_has_the_lock_delivers(tmp_path: Path) -> None:
    node = Node()
    busy = node.wiring.telling("/data", 0)
    node.call("ADD", conf(notify=HOOK))
    busy.busy = True  # type: ignore[attr-defined]
    wiring = node.wiring
    wiring._telling = busy
    from cnimeta.spec.netconf import NetConf
    from cnimeta_plugins.hostport_alloc.config import read_settings
    from cnimeta_plugins.hostport_alloc.hook.telling import tell_all

    done = tell_all(wiring, read_settings(NetConf(conf(notify=HOOK))), node.store, 5, node.log.append)
    assert (done.told, done.failed, node.hook.calls, node.store.outbox.count()) == (0, 1, 0, 1)


def test_repeated_add_is_told_once_and_an_add_anew_twice(tmp_path: Path) -> None:
    node = Node()
    for _ in range(2):
        node.call("ADD", conf(notify=HOOK))
    assert node.store.outbox.count() == 1
    node.call("ADD", conf(notify=HOOK, expose=["81/tcp"]))
    deliver(node, tmp_path)
    assert told(node) == [("added", "c1"), ("removed", "c1"), ("added", "c1")]


def test_failed_add_is_not_told(tmp_path: Path) -> None:
    node = Node()
    node.portmap.errors["ADD"] = IoFailure("no")
    with pytest.raises(CniError):
        node.call("ADD", conf(notify=HOOK))
    assert node.store.outbox.count() == 0


def test_mappings_of_an_earlier_boot_are_told_to_be_gone_once(tmp_path: Path) -> None:
    node = Node()
    node.call("ADD", conf(notify=HOOK))
    node.boot = "boot-2"
    assert deliver(node, tmp_path) == 0
    node.call("DEL", conf(notify=HOOK))
    assert deliver(node, tmp_path) == 0
    assert told(node) == [("added", "c1"), ("removed", "c1")]


def test_hook_that_comes_later_is_told_of_all_there_is(tmp_path: Path) -> None:
    node = Node()
    node.call("ADD", conf())
    assert deliver(node, tmp_path) == 0
    assert node.hook.calls == 0
    assert deliver(node, tmp_path, "--again") == 0
    node.call("DEL", conf())
    assert deliver(node, tmp_path) == 0
    assert told(node) == [("added", "c1"), ("removed", "c1")]


def test_node_without_a_hook_has_no_outbox() -> None:
    node = Node()
    node.call("ADD", conf())
    names = {name for (name,) in node.databases.connections["/data"].execute("SELECT name FROM sqlite_master")}
    assert not {"outbox", "told", "attachments_untold"} & names


def test_events_outlive_a_damaged_database_and_what_is_lost_is_told_to_be_gone(tmp_path: Path) -> None:
    from cnimeta_plugins.hostport_alloc.state.outbox import take_over

    node = Node()
    for name in ("a", "b"):
        node.call("ADD", conf(notify=HOOK), container_id=name)
    old, other = node.databases.connections["/data"], Node()
    other.call("ADD", conf(), container_id="a")
    new = other.databases.connections["/data"]
    take_over(new, old, 5.0)
    assert [event.subject for event in other.store.outbox.waiting(9)] == ["pods/a/eth0", "pods/b/eth0", "pods/b/eth0"]
    assert [event.kind for event in other.store.outbox.waiting(9)] == ["added", "added", "removed"]
    other.call("DEL", conf(), container_id="a")
    assert other.store.outbox.waiting(9)[-1][1:3] == ("pods/a/eth0", "removed")


@pytest.mark.parametrize(
    ("notify", "path"),
    [
        ("/bin/true", "$.notify must be an object"),
        ({}, "$.notify.program must be set"),
        ({"program": "tell"}, "$.notify.program must be an absolute path"),
        ({"socket": "x.sock"}, "$.notify.socket must be an absolute path"),
        ({"program": "/a", "socket": "/b"}, "$.notify.socket must be absent"),
        ({**HOOK, "policy": "never"}, "$.notify.policy must be one of"),
        ({**HOOK, "timeout": 0}, "$.notify.timeout must be"),
    ],
)
def test_wrong_value_is_refused_with_its_path(notify: Any, path: str) -> None:
    with pytest.raises(CniError) as caught:
        Node().call("ADD", conf(notify=notify))
    assert (caught.value.code, caught.value.msg[: len(path)]) == (7, path)


# --- the host's side -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("script", "why"),
    [
        ("cat > $(dirname $0)/got", ""),
        ("exit 0", ""),
        ("echo no room >&2; exit 3", "ended with status 3: no room"),
        ("kill -9 $$", "ended with status 137"),
        ("sleep 60", "did not answer within 0.5 s"),
        ("exec yes", "wrote more than 1048576 bytes"),
    ],
)
def test_program_takes_an_event_when_it_ends_well(tmp_path: Path, script: str, why: str) -> None:
    path = tmp_path / "tell"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    said = ProgramHook(str(path)).tell(b'{"id":1}\n', 0.5 if "sleep" in script else 30)
    assert why in said if why else said == ""
    if "got" in script:
        assert (tmp_path / "got").read_bytes() == b'{"id":1}\n'
    assert "failed to run" in ProgramHook(str(tmp_path / "none")).tell(b"x", 5)


@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (b"ok\n", ""),
        (b" ok ", ""),
        (b"", "says nothing"),
        (b"busy\x1b[2J\nok\n", "says busy"),
        (b"x" * 9000, "says xxx"),
        (None, "did not answer within"),
    ],
)
def test_server_takes_an_event_when_it_says_ok(tmp_path: Path, answer: bytes | None, why: str) -> None:
    path = str(tmp_path / "s")
    server = socket.socket(socket.AF_UNIX)
    server.bind(path)
    server.listen()
    got: list[bytes] = []
    done = threading.Event()

    def serve() -> None:
        connection, _ = server.accept()
        with connection:
            got.append(connection.makefile("rb").readline())
            if answer is None:
                done.wait(30)
            else:
                connection.sendall(answer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    said = SocketHook(path).tell(b'{"id":1}\n', 0.3 if answer is None else 20)
    done.set()
    thread.join(20)
    server.close()
    assert why in said if why else said == ""
    assert "\x1b" not in said
    assert got == [b'{"id":1}\n']
    assert "Connection refused" in SocketHook(path).tell(b"x", 5)
    os.unlink(path)
    assert "No such file" in SocketHook(path).tell(b"x", 5)


def test_zone_of_the_example_has_no_name_that_a_server_refuses() -> None:
    zone = runpy.run_path(str(Path(__file__).parents[2] / "examples" / "hook" / "srv_zone.py"))["zone"]
    mapping = {"containerPort": 65535, "protocol": "TCP", "hostIP": "192.0.2.1", "hostPort": 20000}
    names = ["web", *(".".join(["x" * 49] * 5)[:length] for length in (199, 209, 249))]
    attachments = {name: {"pod": {"name": name, "namespace": "default"}, "mappings": [mapping]} for name in names}
    text = zone("ports.example.", attachments, 1)
    assert "_65535._tcp.web.default SRV 0 0 20000" in text
    found = [line.partition(" ")[0] for line in text.splitlines() if " SRV " in line]
    assert sorted(len(f"{name}.ports.example") for name in found) == [37, 233, 243]
