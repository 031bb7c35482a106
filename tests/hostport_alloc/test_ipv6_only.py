"""A node without any IPv4 address, 127.0.0.1 included: everything works over IPv6, on a real kernel."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest
from kernel_node import POD_ARGS, Failed, KernelNode

from cnimeta.testing.agent import eventually
from cnimeta.testing.kube import PodServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cnimeta.testing.netns import Namespace

pytestmark = pytest.mark.kernel

NODE, CLIENT = "2001:db8::10", "2001:db8::20"


class Node6(KernelNode):
    """As KernelNode, with addresses of IPv6 alone in all of its namespaces."""

    def __init__(self, make: Callable[[str], Namespace], folder: Path, plugins: tuple[str, ...]) -> None:
        super().__init__(make, folder, plugins)
        for place, address, link in ((self.node, NODE, "up0"), (self.client, CLIENT, "eth0")):
            for name in (link, "lo"):
                place.run("ip", "-4", "addr", "flush", "dev", name)
            place.run("ip", "addr", "add", f"{address}/64", "dev", link, "nodad")
        assert "inet " not in self.node.run("ip", "addr").stdout

    def bridge(self) -> dict[str, Any]:
        plugin = super().bridge()
        plugin["ipam"] |= {"ranges": [[{"subnet": "fd00:10:88::/64"}]], "routes": [{"dst": "::/0"}]}
        return plugin

    def container(self, name: str) -> Namespace:
        made = super().container(name)
        made.run("ip", "-4", "addr", "flush", "dev", "lo")
        return made


@pytest.fixture(params=["nftables", "iptables"])
def node(
    request: pytest.FixtureRequest, make_netns: Callable[[str], Namespace], tmp_path: Path
) -> Iterator[tuple[Node6, dict[str, Any]]]:
    made = Node6(make_netns, tmp_path, ("hostport_alloc", "portmap"))
    yield made, made.conf(portmap={"type": "portmap", "backend": request.param})
    made.close()


def test_add_traffic_check_and_delete(node: tuple[Node6, dict[str, Any]]) -> None:
    made, conf = node
    mappings = [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": "::"}]
    conf = {**conf, "runtimeConfig": {"portMappings": mappings}}
    results = {"c1": made.call("ADD", conf), "c2": made.call("ADD", {**conf, "runtimeConfig": {}}, "c2")}
    for name in ("c1", "c2"):
        made.serve(name)
    (port,), (other,) = made.ports("c1"), made.ports("c2")
    # The bridge's own address is used when nobody else was found to have it, which takes a second.
    eventually(lambda: made.fetch(port, address=NODE) == "hello from c1")
    for number in (port, 8080):
        assert made.fetch(number, address=NODE) == "hello from c1"
        assert made.fetch(number, source=made.node, address=NODE) == "hello from c1"
        assert made.fetch(number, source=made.container("c2"), address=NODE) == "hello from c1"
        assert made.fetch(number, source=made.container("c1"), address=NODE) == "hello from c1"
    assert made.fetch(other, address=NODE) == "hello from c2"
    assert made.call("ADD", conf) == results["c1"]
    for name, result in results.items():
        made.call("CHECK", {**conf, "prevResult": result}, name)
    made.node.run("nft", "flush", "ruleset")
    with pytest.raises(Failed):
        made.call("CHECK", {**conf, "prevResult": results["c1"]})
    assert made.fetch(port, address=NODE) == ""
    words = ("-P", "-m", "cnimeta.cli.main", "ports", "repair", "--data-dir", str(made.folder / "state"))
    assert "of 2 containers are in place" in made.node.run(sys.executable, *words).stdout
    assert made.fetch(port, address=NODE) == "hello from c1"
    for name in ("c1", "c2"):
        for _ in range(2):
            made.call("DEL", conf, name)
    assert made.fetch(port, address=NODE) == ""
    assert (made.rules(), made.records()) == ("", {})
    assert "fd00:10:88" not in made.node.run("nft", "list", "ruleset").stdout


def test_address_that_is_annotated_is_the_nodes(make_netns: Callable[[str], Namespace], tmp_path: Path) -> None:
    """The API server has an IPv6 address alone too, in brackets in the kubeconfig."""
    made = Node6(make_netns, tmp_path, ("hostport_alloc", "portmap"))
    with made.node.entered():
        server = PodServer(tmp_path / "api", NODE)
    with server:
        server.pods.create("default", "web", uid="0a-1b")
        kubeconfig = server.kubeconfig(tmp_path / "kubeconfig", token=server.token("cnimeta"))
        conf = made.conf(kubernetes={"kubeconfig": kubeconfig, "policy": "required"})
        made.call("ADD", conf, args=POD_ARGS)
        made.serve("c1")
        (entry,) = json.loads(server.pods.annotations("default", "web")["cnimeta.io/hostports"])
        assert (entry["hostIP"], entry["hostPort"]) == (NODE, made.ports()[0])
        eventually(lambda: made.fetch(entry["hostPort"], address=entry["hostIP"]) == "hello from c1")
        made.call("DEL", conf, args=POD_ARGS)
    made.close()


def test_doctor_looks_at_ipv6_forwarding(make_netns: Callable[[str], Namespace], tmp_path: Path) -> None:
    made = Node6(make_netns, tmp_path, ("hostport_alloc", "portmap"))
    for value, state in ((0, "warn"), (1, "ok")):
        made.node.run("sysctl", "-w", f"net.ipv6.conf.all.forwarding={value}", "net.ipv4.ip_forward=0")
        words = ("-P", "-m", "cnimeta.cli.main", "doctor", "--json", "--bin-dir", str(made.bin))
        told = json.loads(made.node.run(sys.executable, *words, check=False).stdout)
        (found,) = (entry for entry in told if entry["what"] == "forwarding")
        assert (found["state"], f"net.ipv6.conf.all.forwarding is {value}" in found["message"]) == (state, True)
