"""Commands that meet on an attachment, and delegates that are called as at ADD from whichever command."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING, Any

import pytest
from hostport_harness import DATA_DIR, POD_ARGS, Node, conf

from cnimeta.errors import CniError
from cnimeta_plugins.hostport_alloc.operator.commands import add_commands

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit

KEY = ("pods", "c1", "eth0")
NONE_VALID = {"cniVersion": "1.1.0", "cni.dev/valid-attachments": []}


def ports(node: Node, folder: Path, *words: str, network: dict[str, Any] | None = None) -> int:
    file = folder / "pods.conflist"
    file.write_text(json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [network or conf()]}))
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers(), node.wiring)
    args = parser.parse_args(["ports", *words, "--conf", str(file)])
    status: int = args.run(args)
    return status


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_command_ends_with_11_when_another_one_works_on_the_attachment(verb: str) -> None:
    node = Node()
    node.call("ADD", conf())
    node.executor.calls.clear()
    node.locks.busy = {KEY}
    with pytest.raises(CniError) as caught:
        node.call(verb, conf())
    assert caught.value.code == 11
    assert node.executor.calls == []


@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_lock_of_the_attachment_is_held_while_plugins_run(verb: str) -> None:
    node = Node()
    seen = []
    node.executor.hook = lambda *_: seen.append(list(node.locks.held))
    node.call(verb, conf())
    assert seen
    assert all(held == [KEY] for held in seen)
    assert node.locks.held == []


def test_gc_leaves_a_busy_container_alone_and_says_so() -> None:
    node = Node()
    for name in ("c1", "c2"):
        node.call("ADD", conf(cniVersion="1.1.0"), container_id=name)
    node.locks.busy = {KEY}
    node.call("GC", conf(**NONE_VALID))
    assert (len(node.ports("c1")), len(node.ports("c2"))) == (1, 0)
    assert any("GC leaves container" in line and "c1" in line for line in node.log)
    node.locks.busy = set()
    node.call("GC", conf(**NONE_VALID))
    assert node.ports("c1") == []


def test_repair_and_release_leave_a_busy_container_alone_and_say_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = Node()
    node.call("ADD", conf())
    node.portmap.attachments.clear()
    node.namespaces.hidden.add("/run/netns/c1")
    node.locks.busy = {KEY}
    for words in (("repair",), ("release", "c1")):
        assert ports(node, tmp_path, *words) == 1
        assert "another command works on" in capsys.readouterr().out
    assert node.portmap.attachments == {}
    assert len(node.ports()) == 1
    node.locks.busy = set()
    assert ports(node, tmp_path, "repair") == 0
    assert set(node.portmap.attachments) == {KEY}


def test_repair_does_nothing_for_a_container_that_was_deleted_since_it_looked(tmp_path: Path) -> None:
    node = Node()
    for name in ("c1", "c2"):
        node.call("ADD", conf(), container_id=name)
    node.portmap.attachments.clear()

    def hook(_name: str, environ: dict[str, str], _stdin: bytes) -> None:
        if environ["CNI_COMMAND"] == "CHECK" and node.locks.held == [KEY]:
            node.executor.hook = None
            node.locks.held.clear()  # the runtime's DEL of the other one, meanwhile
            node.call("DEL", conf(), container_id="c2")
            node.locks.held.append(KEY)

    node.executor.hook = hook
    assert ports(node, tmp_path, "repair") == 0
    assert set(node.portmap.attachments) == {KEY}
    assert node.ports("c2") == []


def test_mappings_are_left_alone_when_the_path_of_the_namespace_is_another_ones_now(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = Node()
    node.call("ADD", conf())
    node.portmap.attachments.clear()
    node.namespaces.leads_to["/run/netns/c1"] = "another namespace"
    assert ports(node, tmp_path, "check") == 1
    assert "its namespace is gone; DEL or GC has not come" in capsys.readouterr().out
    assert ports(node, tmp_path, "repair") == 0
    assert node.portmap.attachments == {}


@pytest.mark.parametrize("lives", [True, False])
@pytest.mark.parametrize("command", ["GC", "release", "repair", "check"])
def test_delegates_see_the_namespace_arguments_and_environment_of_their_add(
    command: str, lives: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    node = Node()
    settings = conf(cniVersion="1.1.0")
    node.call("ADD", settings, args=POD_ARGS)
    if command == "repair":
        node.portmap.attachments.clear()
    node.executor.calls.clear()
    if not lives:
        node.namespaces.hidden.add("/run/netns/c1")
    monkeypatch.setenv("SOMETHING", "of the node")
    monkeypatch.setenv("PATH", "/usr/sbin:/usr/bin")
    if command == "GC":
        node.call("GC", conf(**NONE_VALID))
    else:
        words = ("release", "c1", "--force") if command == "release" else (command,)
        assert ports(node, tmp_path, *words, network=settings) == 0
    called = [call for call in node.executor.calls if call.verb in ("DEL", "CHECK", "ADD")]
    assert called
    for call in called:
        # CHECK and ADD need a path, and nothing shows that this one leads elsewhere.
        assert call.environ["CNI_NETNS"] == ("/run/netns/c1" if lives or command in ("repair", "check") else "")
        assert call.environ["CNI_ARGS"] == POD_ARGS
        if command != "GC":
            assert call.environ["SOMETHING"] == "of the node"
            assert call.environ["PATH"] == "/usr/sbin:/usr/bin"
            assert call.environ["CNI_PATH"] == "/opt/cni/bin"


def test_release_takes_the_beginning_of_an_id_and_refuses_one_that_is_not_enough(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = Node()
    for name in ("abcdef0123456789", "abcdee0123456789"):
        node.call("ADD", conf(), container_id=name)
    node.namespaces.hidden.add("/run/netns/c1")
    assert ports(node, tmp_path, "release", "abcde") == 1
    assert "more than one container ID begins with" in capsys.readouterr().err
    assert ports(node, tmp_path, "release", "abcdef012345") == 0
    assert node.ports("abcdef0123456789") == []
    assert len(node.ports("abcdee0123456789")) == 1


def test_rules_of_a_network_without_check_are_checked_when_the_mapper_has_it(tmp_path: Path) -> None:
    """flannel's networks are of 0.3.1: the runtime asks no CHECK of them, an operator does."""
    node = Node()
    settings = conf(cniVersion="0.3.1")
    node.call("ADD", settings)
    assert ports(node, tmp_path, "check", network=settings) == 0
    assert node.executor.sent("CHECK", "portmap")[-1].conf["cniVersion"] == "0.4.0"
    assert ports(node, tmp_path, "repair", network=settings) == 0
    assert len(node.executor.sent("ADD", "portmap")) == 1
    node.portmap.attachments.clear()
    assert ports(node, tmp_path, "check", network=settings) == 1
    assert ports(node, tmp_path, "repair", network=settings) == 0
    assert node.executor.sent("ADD", "portmap")[-1].conf["cniVersion"] == "0.3.1"
    assert ports(node, tmp_path, "check", network=settings) == 0


def test_rules_of_a_mapper_without_check_are_made_again_and_never_called_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    node = Node()
    node.portmap.versions = ("0.3.0", "0.3.1")
    settings = conf(cniVersion="0.3.1")
    node.call("ADD", settings)
    assert ports(node, tmp_path, "check", network=settings) == 1
    node.portmap.attachments.clear()
    assert ports(node, tmp_path, "check", network=settings) == 1
    assert "cannot be checked" in capsys.readouterr().out
    assert ports(node, tmp_path, "repair", network=settings) == 0
    assert set(node.portmap.attachments) == {KEY}


def test_portmap_that_is_hostport_alloc_itself_is_refused_before_anything_is_done() -> None:
    node = Node()
    with pytest.raises(CniError, match=r"\$\.portmap\.type is hostport_alloc") as caught:
        node.call("ADD", conf(portmap={"type": "hostport_alloc"}))
    assert caught.value.code == 7
    assert DATA_DIR not in node.databases.connections


def test_quarantine_of_the_configuration_counts_when_a_repeated_add_asks_for_other_ports() -> None:
    node = Node()
    settings = conf(ranges={"default": "20000-20001"}, quarantineSeconds=600, sticky=False)
    node.call("ADD", settings)
    node.call("ADD", {**settings, "expose": ["81/tcp"]})
    (held,) = node.store.occupancy().quarantined
    assert held.until - node.clock.boottime() == pytest.approx(600)


def test_container_on_two_networks_may_ask_for_the_same_port_twice() -> None:
    """go-cni and podman send one container's mappings to each of its networks."""
    node = Node()
    given = {"runtimeConfig": {"portMappings": [{"hostPort": 8080, "containerPort": 80}]}, "expose": []}
    node.call("ADD", conf(**given))
    node.call("ADD", {**conf(**given), "name": "other"}, ifname="eth1")
    with pytest.raises(CniError, match="8080/tcp") as caught:
        node.call("ADD", conf(**given), container_id="c2", netns="/run/netns/c2")
    assert caught.value.code == 100
    node.call("DEL", conf(**given))
    with pytest.raises(CniError, match="8080/tcp"):
        node.call("ADD", conf(**given), container_id="c2", netns="/run/netns/c2")
    node.call("DEL", {**conf(**given), "name": "other"}, ifname="eth1")
    node.call("ADD", conf(**given), container_id="c2", netns="/run/netns/c2")
