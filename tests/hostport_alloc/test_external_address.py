"""The address outside of a NAT: fixed, of the Node object, or a port that is another one there."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from hostport_harness import POD_ARGS, Node, conf
from kernel_node import KernelNode

from cnimeta.errors import CniError
from cnimeta.testing.delegates import address_result
from cnimeta.testing.kube import ANNOTATE, Fault, PodServer

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cnimeta.testing.netns import Namespace

unit = pytest.mark.unit
ROLE = ANNOTATE | {"get nodes"}


@pytest.fixture
def node() -> Node:
    made = Node(result=address_result("10.1.0.2/24", "fd00::2/64"))
    made.pods.roles["cnimeta"] = ROLE
    made.pods.create("default", "web", uid="0a-1b")
    return made


def written(node: Node) -> Any:
    return json.loads(node.pods.annotations("default", "web")["cnimeta.io/hostports"])


def outside(node: Node) -> list[tuple[Any, Any]]:
    return [(entry.get("externalIP"), entry.get("externalPort")) for entry in written(node)]


def add(node: Node, external: Any, container_id: str = "c1", **keys: Any) -> int:
    node.call("ADD", conf(kubernetes={}, external=external, **keys), args=POD_ARGS, container_id=container_id)
    return node.ports(container_id)[0]


def gets(node: Node) -> int:
    return sum(seen.line.startswith("GET /api/v1/nodes/") for seen in node.pods.requests)


@unit
def test_fixed_address_and_offset_stand_beside_the_nodes_own(node: Node) -> None:
    port = add(node, {"address": ["203.0.113.1", "203.0.113.2", "2001:db8:ffff::1"], "portOffset": 10000})
    assert [(entry["hostIP"], entry["hostPort"]) for entry in written(node)] == [
        ("192.0.2.10", port),
        ("2001:db8::10", port),
    ]
    assert outside(node) == [("203.0.113.1", port + 10000), ("2001:db8:ffff::1", port + 10000)]
    assert gets(node) == 0


@unit
def test_family_without_an_address_outside_and_port_without_one_are_left_out(node: Node) -> None:
    first = add(node, {"address": "203.0.113.1", "ports": {"20000-20099": 50}}, expose=["80", "games:81"])
    assert outside(node) == [("203.0.113.1", first - 20000 + 50), (None, None), (None, None), (None, None)]


@unit
def test_offset_alone_keeps_the_address(node: Node) -> None:
    port = add(node, {"portOffset": -5000})
    assert outside(node) == [("192.0.2.10", port - 5000), ("2001:db8::10", port - 5000)]


@unit
def test_address_of_the_node_object_is_asked_for_once_and_kept(node: Node) -> None:
    node.pods.create_node("node1", ("203.0.113.7",))
    for name in ("c1", "c2"):
        port = add(node, {"address": "node"}, name)
        assert outside(node)[0] == ("203.0.113.7", port)
    assert gets(node) == 1
    node.pods.create_node("node1", ("203.0.113.8",))
    node.call("GC", {**conf(kubernetes={}, external={"address": "node"}), "cniVersion": "1.1.0"})
    assert gets(node) == 2
    add(node, {"address": "node"}, "c3")
    assert (outside(node)[0][0], gets(node)) == ("203.0.113.8", 2)
    node.boot = "boot-2"
    add(node, {"address": "node"}, "c4")
    assert gets(node) == 3


@unit
def test_annotation_of_the_node_goes_before_its_address_and_the_name_can_be_said(node: Node) -> None:
    wanted = {"address": "node", "nodeAnnotation": "example.com/ip", "nodeName": "n.example"}
    node.pods.create_node("n.example", ("203.0.113.7",), {"example.com/ip": "198.51.100.1, 2001:db8:ffff::2"})
    add(node, wanted)
    assert [address for address, _ in outside(node)] == ["198.51.100.1", "2001:db8:ffff::2"]
    del node.pods.nodes["n.example"]["metadata"]["annotations"]["example.com/ip"]
    node.boot = "boot-2"
    add(node, wanted, "c2")
    assert [address for address, _ in outside(node)] == ["203.0.113.7", None]


@unit
@pytest.mark.parametrize("policy", ["deferred", "required"])
def test_pod_waits_for_the_address_while_it_is_not_known(node: Node, policy: str) -> None:
    wanted = conf(kubernetes={"policy": policy}, external={"address": "node"})
    if policy == "required":
        with pytest.raises(CniError, match="external address is not known") as caught:
            node.call("ADD", wanted, args=POD_ARGS)
        assert (caught.value.code, node.ports()) == (102, [])
        return
    node.call("ADD", wanted, args=POD_ARGS)
    assert "cnimeta.io/hostports" not in node.pods.annotations("default", "web")
    (pending,) = node.store.pending()
    assert pending.annotation.error == "the node's external address is not known"
    assert any('cannot be read: HTTP 404 NotFound: nodes "node1"' in line for line in node.log)
    node.call("GC", {**wanted, "cniVersion": "1.1.0"})
    assert len(node.store.pending()) == 1
    node.pods.create_node("node1", ("203.0.113.7",))
    node.call("GC", {**wanted, "cniVersion": "1.1.0"})
    assert (node.store.pending(), outside(node)[0]) == ((), ("203.0.113.7", node.ports()[0]))


@unit
def test_address_that_was_known_serves_while_the_server_is_silent(node: Node) -> None:
    node.pods.create_node("node1", ("203.0.113.7",))
    add(node, {"address": "node"})
    node.clock.sleep(700)
    node.pods.faults += [Fault(status=500)]
    add(node, {"address": "node"}, "c2")
    assert outside(node)[0][0] == "203.0.113.7"


@unit
def test_deferred_patch_gets_the_address_as_it_is_when_it_is_sent(node: Node) -> None:
    node.pods.create_node("node1", ("203.0.113.7",))
    add(node, {"address": "node"})
    node.pods.faults += [Fault(status=403)]
    add(node, {"address": "node"}, "c2")
    node.pods.create_node("node1", ("203.0.113.9",))
    node.call("GC", {**conf(kubernetes={}, external={"address": "node"}), "cniVersion": "1.1.0"})
    assert outside(node)[0] == ("203.0.113.9", node.ports("c2")[0])


@unit
@pytest.mark.parametrize("text", ["lb.example.com", "203.0.113.7;", ""])
def test_node_that_says_no_address_is_no_reason_to_fail(node: Node, text: str) -> None:
    node.pods.create_node("node1", (text,) if text else ())
    add(node, {"address": "node"})
    assert (len(node.store.pending()), len(node.ports())) == (bool(text), 1)


@unit
@pytest.mark.parametrize(
    ("external", "path"),
    [
        ("203.0.113.1", "$.external must be an object"),
        ({"address": "0.0.0.0"}, "$.external.address must be"),
        ({"address": "example.com"}, "$.external.address must be"),
        ({"address": [1]}, "$.external.address[0] must be a string"),
        ({"address": "203.0.113.1", "nodeAnnotation": "a"}, "$.external.address and $.external.nodeAnnotation"),
        ({"nodeName": "../x"}, "$.external.nodeName must be"),
        ({"portOffset": "1"}, "$.external.portOffset must be"),
        ({"portOffset": 60000}, "$.external.portOffset makes ports 80000-80099"),
        ({"portOffset": -7000}, "$.external.portOffset makes ports 0-9"),
        ({"portOffset": 1, "ports": {"1": 2}}, "$.external.ports and $.external.portOffset"),
        ({"ports": {"1-2,5": 2}}, "$.external.ports must be host ports"),
        ({"ports": {"1-2": "3"}}, "$.external.ports must be host ports"),
        ({"ports": {"x": 3}}, "$.external.ports: the key must be ports"),
        ({"ports": {"1-3": 65534}}, "$.external.ports makes ports 65534-65536"),
    ],
)
def test_wrong_value_is_refused_with_its_path(node: Node, external: Any, path: str) -> None:
    with pytest.raises(CniError) as caught:
        add(node, external)
    assert (caught.value.code, caught.value.msg[: len(path)]) == (7, path)


@unit
def test_key_without_the_pod_api_is_told_to_decide_nothing(node: Node) -> None:
    node.call("ADD", conf(external={"portOffset": 1}))
    assert any("$.external has no effect" in line for line in node.log)


@pytest.mark.kernel
def test_client_behind_a_nat_reaches_the_container_at_what_is_annotated(
    make_netns: Callable[[str], Namespace], tmp_path: Path
) -> None:
    """The router is a rule of the client's own: 203.0.113.7 with another port is the node."""
    made = KernelNode(make_netns, tmp_path, ("hostport_alloc", "portmap"))
    made.node.run("ip", "addr", "add", "10.255.0.1/32", "dev", "lo")
    with made.node.entered():
        server = PodServer(tmp_path / "api", "10.255.0.1")
    with server:
        server.pods.create("default", "web", uid="0a-1b")
        server.pods.create_node("node-a", ("203.0.113.7",))
        kubeconfig = server.kubeconfig(tmp_path / "kubeconfig", token=server.token("cnimeta", ROLE))
        external = {"address": "node", "nodeName": "node-a", "portOffset": 20000}
        conf = made.conf(kubernetes={"kubeconfig": kubeconfig, "policy": "required"}, external=external)
        made.call("ADD", conf, args=POD_ARGS)
        made.serve("c1")
        (entry,) = json.loads(server.pods.annotations("default", "web")["cnimeta.io/hostports"])
        router = (
            "add table ip nat; add chain ip nat o { type nat hook output priority -100; };"
            f"add rule ip nat o ip daddr 203.0.113.7 tcp dport {entry['externalPort']}"
            f" dnat to 192.0.2.10:{entry['hostPort']}"
        )
        made.client.run("nft", router)
        made.client.run("ip", "route", "add", "203.0.113.7/32", "dev", "eth0")
        assert made.fetch(entry["externalPort"], address=entry["externalIP"]) == "hello from c1"
        server.pods.nodes.clear()
        made.call("DEL", conf, args=POD_ARGS)
    made.close()
