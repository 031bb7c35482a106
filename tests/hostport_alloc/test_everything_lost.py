"""All records are gone, ours and portmap's: the names on the kernel's own rules are what is left."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from kernel_node import KernelNode, assert_nothing_left

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cnimeta.testing.netns import Namespace

pytestmark = pytest.mark.kernel


@pytest.fixture
def node(make_netns: Callable[[str], Namespace], tmp_path: Path) -> Iterator[KernelNode]:
    made = KernelNode(make_netns, tmp_path, ("hostport_alloc", "portmap"))
    yield made
    made.close()


def ports(node: KernelNode, *words: str) -> tuple[int, Any]:
    command = [str(Path(sys.executable).with_name("cnimeta")), "ports", *words, "--json"]
    done = node.node.run(*command, "--data-dir", str(node.folder / "state"), check=False)
    return done.returncode, json.loads(done.stdout)


def test_mappings_are_found_by_their_names_in_the_kernel_when_the_folder_was_removed(node: KernelNode) -> None:
    conf = node.conf(ranges={"default": "20000-20003"}, expose=["80/tcp", "53/tcp+udp"], quarantineSeconds=0)
    node.call("ADD", conf, "c1")
    kept = sorted(node.ports("c1"))
    shutil.rmtree(node.folder / "state")
    status, body = ports(node, "check")
    assert status == 1
    assert sum("is mapped and has no record" in problem["message"] for problem in body["problems"]) == 3
    node.call("ADD", {**conf, "expose": ["80/tcp"]}, "c2")
    assert sorted(node.ports("c1")) == kept
    assert not set(node.ports("c2")) & set(kept)
    found = {(one["containerID"], one["containerPort"], one["protocol"]) for one in ports(node, "list")[1]}
    assert found == {("c1", 80, "tcp"), ("c1", 53, "tcp"), ("c1", 53, "udp"), ("c2", 80, "tcp")}
    for name in ("c1", "c2", "c1"):
        node.call("DEL", conf, name)
    assert_nothing_left(node)


def test_range_and_address_are_found_by_name_when_the_folder_was_removed(node: KernelNode) -> None:
    conf = node.conf(ranges={"default": "20000-20009"}, expose=["9000-9002/udp"], quarantineSeconds=0)
    conf["runtimeConfig"] = {
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.10"}]
    }
    conf["capabilities"] = {"portMappings": True}
    node.call("ADD", conf, "c1")
    kept = sorted(node.ports("c1"))
    shutil.rmtree(node.folder / "state")
    assert ports(node, "repair")[0] in (0, 1)
    assert sorted(node.ports("c1")) == sorted([*kept, 8080])
    node.call("DEL", conf, "c1")
    assert_nothing_left(node)


def test_iptables_mappings_are_found_by_name_when_the_folder_was_removed(node: KernelNode) -> None:
    """Their rules are upstream's, which name network and container: no other gets their ports, and DEL finds them."""
    conf = node.conf(ranges={"default": "20000-20003"}, expose=["80/tcp", "81/tcp"], quarantineSeconds=0)
    conf["portmap"] = {"type": "portmap", "backend": "iptables"}
    node.call("ADD", conf, "c1")
    kept = node.ports("c1")
    assert ports(node, "check")[1]["problems"] == []
    shutil.rmtree(node.folder / "state")
    status, body = ports(node, "check")
    assert status == 1
    told = {(problem["containerID"], problem["message"].split()[2]) for problem in body["problems"]}
    assert told == {("c1", f"{port}/tcp") for port in kept}
    node.call("ADD", conf, "c2")
    assert not set(node.ports("c2")) & set(kept)
    for name in ("c1", "c2"):
        node.call("DEL", conf, name)
    assert_nothing_left(node)
