"""`cnimeta ports` on a node with fakes: what is listed, drawn, found wrong, repaired and delivered."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

import pytest
from hostport_harness import DATA_DIR, POD_ARGS, Node, conf

from cnimeta.ports.mapper import Repaired
from cnimeta.terminal.table import age
from cnimeta.testing.kube import Fault
from cnimeta_plugins.hostport_alloc.operator.commands import add_commands
from cnimeta_plugins.hostport_alloc.operator.drawing import drawing

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit

API = {"kubeconfig": "/k", "timeout": 5}


class Shell:
    """Runs `cnimeta ports` on a node."""

    def __init__(self, node: Node, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.node = node
        self.capsys = capsys
        self.conf = folder / "10-pods.conflist"
        self.conf.write_text(json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [conf(kubernetes=API)]}))

    def __call__(self, *words: str) -> tuple[int, str]:
        parser = argparse.ArgumentParser()
        add_commands(parser.add_subparsers(), self.node.wiring)
        args = parser.parse_args(["ports", *words, "--conf", str(self.conf)])
        status: int = args.run(args)
        said = self.capsys.readouterr()
        return status, said.out + said.err

    def json(self, *words: str) -> Any:
        return json.loads(self(*words, "--json")[1])


@pytest.fixture
def node() -> Node:
    node = Node()
    node.pods.create("default", "web", uid="0a-1b")
    return node


@pytest.fixture
def shell(node: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(node, tmp_path, capsys)


def test_list_has_a_line_for_every_port(node: Node, shell: Shell) -> None:
    given = [{"hostPort": 8080, "containerPort": 80}]
    node.call("ADD", conf(kubernetes=API, runtimeConfig={"portMappings": given}), args=POD_ARGS)
    node.clock.advance(600)
    status, text = shell()
    assert status == 0
    heads, *lines = text.splitlines()
    assert heads.split()[:3] == ["HOST", "PORT", "PROTOCOL"]
    assert lines[0].split() == ["8080", "tcp", "explicit", "80", "default/web", "c1", "pods", "10m", "mapped", "done"]
    random = [str(node.ports()[0]), "tcp", "default", "80", "default/web", "c1", "pods", "10m", "mapped", "done"]
    assert lines[1].split() == random
    entries = shell.json("list")
    assert [entry["hostPort"] for entry in entries] == [8080, node.ports()[0]]
    assert entries[0]["podUID"] == "0a-1b"
    assert entries[0]["ageSeconds"] == 600


def test_list_is_empty_when_nothing_is_allocated(shell: Shell) -> None:
    assert shell.json() == []
    assert shell()[0] == 0


def test_pending_annotation_is_listed_with_its_reason_and_delivered(node: Node, shell: Shell) -> None:
    node.pods.faults += [Fault(drop=True)] * 2
    node.call("ADD", conf(kubernetes=API), args=POD_ARGS)
    (entry,) = shell.json()
    assert entry["annotation"] == "pending"
    assert "no answer" in entry["annotationError"]
    status, text = shell("deliver")
    assert (status, text) == (0, "1 annotation written, 0 of Pods that are gone, 0 still pending\n")
    assert shell.json()[0]["annotation"] == "done"
    assert "cnimeta.io/hostports" in node.pods.annotations("default", "web")


def test_deliver_fails_when_the_server_still_does(node: Node, shell: Shell) -> None:
    node.pods.faults += [Fault(drop=True)] * 10
    node.call("ADD", conf(kubernetes=API), args=POD_ARGS)
    assert shell("deliver")[0] == 1
    assert shell.json("deliver")["pending"] == 1


def test_show_draws_the_range(node: Node, shell: Shell) -> None:
    for container_id in ("c1", "c2", "c3"):
        node.call("ADD", conf(), container_id=container_id)
    released = node.ports("c3")[0]
    node.call("DEL", conf(), container_id="c3")
    node.sockets.busy = {("tcp", port) for port in range(20000, 20100) if port not in (node.ports("c1")[0], released)}
    status, text = shell("show", "default")
    assert status == 0
    assert text.startswith("default: 20000-20099, size 100, used 2, quarantined 1, blocked 97")
    cells = "".join(line.partition("|")[2].rpartition("|")[0] for line in text.splitlines() if "|" in line)
    assert (cells.count("#"), cells.count("q"), cells.count("x")) == (2, 1, 97)
    assert cells[released - 20000] == "q"
    body = shell.json("show", "20000-20099")
    assert body["usedPorts"] == sorted(node.ports("c1") + node.ports("c2"))


def test_show_names_the_ranges_when_there_is_none_of_that_name(shell: Shell) -> None:
    assert shell("show", "web") == (2, 'cnimeta: there is no range "web": default, games\n')
    status, said = shell("show", "20000-")
    assert status == 2
    assert said.startswith("cnimeta: RANGE")


def test_check_is_good_when_everything_agrees(node: Node, shell: Shell) -> None:
    node.call("ADD", conf())
    assert shell("check") == (0, "rules, records, bits and sockets agree\n")
    assert shell.json("check") == {"ok": True, "problems": []}


def test_check_finds_missing_rules_and_repair_puts_them_back(node: Node, shell: Shell) -> None:
    node.call("ADD", conf())
    ports = node.ports()
    node.portmap.attachments.clear()
    (problem,) = shell.json("check")["problems"]
    assert (problem["kind"], problem["containerID"]) == ("rule", "c1")
    assert shell("check")[0] == 1
    assert shell("repair") == (0, "port mappings of 1 container are in place, 0 could not be repaired\n")
    assert [one["hostPort"] for one in node.mappings()] == ports
    assert node.executor.sent("ADD", "portmap")[-1].conf["prevResult"]["ips"] == [
        {"address": "10.1.0.2/24", "interface": 0}
    ]
    assert shell("check")[0] == 0


def test_check_and_repair_look_once_when_portmap_is_ours(node: Node, shell: Shell) -> None:
    """No process and no CHECK for a container whose mappings are in place; the others are worked on alone."""
    node.is_ours = True
    for name in ("c1", "c2", "c3"):
        node.call("ADD", conf(), container_id=name)
    del node.portmap.attachments["pods", "c2", "eth0"]
    node.executor.calls.clear()
    (problem,) = shell.json("check")["problems"]
    assert (problem["kind"], problem["containerID"], problem["message"]) == ("rule", "c2", "its rules are gone")
    assert node.executor.calls == []
    assert [one.container_id for one in node.mapper.compared] == ["c1", "c2", "c3"]
    (mapping,) = node.mapper.compared[0].conf["runtimeConfig"]["portMappings"]  # type: ignore[call-overload,index]
    assert mapping["hostPort"] == node.ports("c1")[0]
    assert "prevResult" in node.mapper.compared[0].conf
    assert shell("repair")[0] == 0
    touched = {call.environ["CNI_CONTAINERID"] for call in node.executor.calls}
    assert touched == {"c2"}
    assert shell("check")[0] == 0


def test_delegates_are_asked_only_when_check_is_deep(node: Node, shell: Shell) -> None:
    node.is_ours = True
    node.call("ADD", conf())
    node.bridge.attachments.clear()
    assert shell("check")[0] == 0
    (problem,) = shell.json("check", "--deep")["problems"]
    assert problem["kind"] == "rule"
    assert "bridge" in problem["message"]


def test_check_finds_what_is_gone_of_portmaps_own_mappings(node: Node, shell: Shell) -> None:
    node.call("ADD", conf())
    node.mapper.others = [Repaired("other", "eth0", "net", "its rules are gone"), Repaired("c1", "eth0", "pods", "no")]
    (problem,) = shell.json("check")["problems"]
    assert problem == {"kind": "rule", "containerID": "other", "message": "its rules are gone"}


def test_check_finds_a_process_that_took_a_port(node: Node, shell: Shell) -> None:
    node.call("ADD", conf())
    node.sockets.busy = {("tcp", node.ports()[0])}
    (problem,) = shell.json("check")["problems"]
    assert problem["kind"] == "socket"


def test_check_finds_damaged_files_and_repair_rebuilds_them(node: Node, shell: Shell) -> None:
    node.call("ADD", conf())
    connection = node.databases.connections[DATA_DIR]
    connection.execute("UPDATE bitmaps SET bits=zeroblob(8192)")
    connection.execute("UPDATE ports SET port=port+1")
    assert {problem["kind"] for problem in shell.json("check")["problems"]} == {"state"}
    assert shell("repair")[0] == 0
    assert shell.json("check") == {"ok": True, "problems": []}
    assert len(shell.json()) == 1


def test_check_finds_an_add_that_was_cut_short(node: Node, shell: Shell) -> None:
    class Killed(BaseException):
        pass

    def hook(*_: Any) -> None:
        raise Killed

    node.executor.hook = hook
    with pytest.raises(Killed):
        node.call("ADD", conf())
    (problem,) = shell.json("check")["problems"]
    assert problem["kind"] == "record"
    assert "ADD is under way or was cut short" in problem["message"]  # a record does not tell which


def test_release_does_what_del_would_have_done(node: Node, shell: Shell) -> None:
    node.call("ADD", conf())
    (port,) = node.ports()
    status, text = shell("release", "c1")
    assert status == 1
    assert "is alive: stop the container, or use --force" in text
    assert node.ports() == [port]
    node.namespaces.hidden.add("/run/netns/c1")
    assert shell("release", "c1") == (0, f"freed {port}/tcp\n")
    assert node.ports() == []
    assert node.bridge.attachments == node.portmap.attachments == {}
    assert shell("release", "c1")[0] == 1


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0s"), (119, "119s"), (120, "2m"), (7200, "2h0m"), (11520, "3h12m"), (172800, "2d")]
)
def test_age_is_short(seconds: float, text: str) -> None:
    assert age(seconds) == text


def test_drawing_shows_parts_when_a_cell_is_many_ports() -> None:
    from cnimeta_plugins.hostport_alloc.allocate.ranges import parse_range, ports_of

    text = drawing(parse_range("r", "20000-24999", "r"), ports_of([(20000, 20004), (20005, 20005)]), 0, 0)
    assert text.splitlines()[0].startswith(" 20000 |#.")
    assert "one cell is 5 ports" in text
