"""`same`: the container port is the host port that was chosen."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from hostport_harness import POD_ARGS, Node, conf
from kernel_node import KernelNode, assert_nothing_left

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cnimeta.testing.netns import Namespace


@pytest.mark.unit
def test_container_port_is_the_host_port_in_mapping_annotation_and_record() -> None:
    node = Node()
    node.pods.create("default", "web", uid="0a-1b")
    node.call("ADD", conf(expose=["games:same/udp+tcp", "80/tcp"], kubernetes={}), args=POD_ARGS)
    first, second, random = node.ports()
    assert first == second
    assert [(one["hostPort"], one["containerPort"], one["protocol"]) for one in node.mappings()] == [
        (first, first, "tcp"),
        (first, first, "udp"),
        (random, 80, "tcp"),
    ]
    written = json.loads(node.pods.annotations("default", "web")["cnimeta.io/hostports"])
    assert [entry["containerPort"] for entry in written] == [first, first, 80]


@pytest.mark.unit
def test_repeated_add_and_a_later_sandbox_of_the_pod_get_the_same_number() -> None:
    node = Node()
    wanted = conf(expose=["same/tcp"])
    first = node.call("ADD", wanted, args=POD_ARGS)
    ports = node.ports()
    assert node.call("ADD", wanted, args=POD_ARGS) == first
    assert node.ports() == ports
    assert len(node.executor.sent("ADD", "bridge")) == 1
    node.call("DEL", wanted, args=POD_ARGS)
    assert node.mappings("DEL")[0]["containerPort"] == ports[0]
    node.call("ADD", wanted, container_id="c2", args=POD_ARGS)
    assert node.ports("c2") == ports


@pytest.mark.unit
def test_a_number_that_was_asked_for_is_not_taken_for_one_that_was_chosen() -> None:
    """A container that asks for 80/tcp, or for `same`, wants another mapping when it asks for the other."""
    node = Node()
    node.call("ADD", conf(expose=["default:20007/tcp"], ranges={"default": "20007"}))
    node.call("ADD", conf(expose=["same/tcp"], ranges={"default": "20007-20008"}))
    assert len(node.executor.sent("ADD", "bridge")) == 2


@pytest.mark.kernel
def test_server_listens_on_the_number_it_was_told(make_netns: Callable[[str], Namespace], tmp_path: Path) -> None:
    node = KernelNode(make_netns, tmp_path, ("hostport_alloc", "portmap"))
    wanted = node.conf(expose=["same/tcp"])
    result = node.call("ADD", wanted)
    (port,) = node.ports()
    node.serve("c1", port)
    try:
        assert node.fetch(port) == "hello from c1"
        assert node.fetch(port, source=node.node) == "hello from c1"
        node.call("CHECK", {**wanted, "prevResult": result})
        assert node.call("ADD", wanted) == result
    finally:
        node.close()
    node.call("DEL", wanted)
    assert_nothing_left(node)
