"""podman with its CNI backend drives the installed plugins: nothing of ours is simulated."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from podman_node import PodmanNode

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.runtime

PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}
CHAINS = ("portmap", "chained")
"""What maps ports after the bridge; the wrapper is the third way, where one plugin does it all."""
NETWORKS = [(chain, f"{chain}-{end}") for chain in CHAINS for end in "ab"] + [("wrapper", "wrapper")]


def network(name: str, chain: str, subnet: str) -> dict[str, Any]:
    ipam = {"type": "host-local", "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}]}
    bridge = {"type": "bridge", "bridge": f"br-{name}", "isGateway": True, "ipMasq": True, "ipam": ipam}
    alloc = {
        "type": "hostport_alloc",
        "capabilities": {"portMappings": True, "bandwidth": True},
        "ranges": {"default": "21000-21099"},
        "expose": ["80/tcp"],
        "quarantineSeconds": 0,
        "sticky": False,
    }
    plugins = {"portmap": [bridge, PORTMAP], "chained": [bridge, alloc], "wrapper": [{**alloc, "delegates": [bridge]}]}
    return {"cniVersion": "0.4.0", "name": name, "plugins": plugins[chain]}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Iterator[PodmanNode]:
    """Networks of each kind, each of which has seen a container come and go."""
    node = PodmanNode(tmp_path_factory.mktemp("podman"))
    try:
        node.prepare()
        for third, (chain, name) in enumerate(NETWORKS):
            node.configure(network(name, chain, f"10.91.{third}.0/24"))
            node.container("first", "--network", name, "-p", "18080:80")
            node.remove("first")
        yield node
    finally:
        node.close()


@pytest.fixture
def node(made: PodmanNode) -> Iterator[PodmanNode]:
    """When the containers have gone, nothing is left."""
    before = made.footprint()
    yield made
    made.podman("rm", "-f", "-a", "-t", "0")
    assert Counter(made.footprint()) - Counter(before) == {}
    assert made.allocated() == []


def serves(node: PodmanNode, name: str) -> bool:
    return node.fetch(18080, "cgi-bin/name") == name


def test_container_is_reached_by_every_port_and_leaves_nothing_when_podman_runs_the_wrapper(node: PodmanNode) -> None:
    node.container("web", "--network", "wrapper", "-p", "18080:80")
    (chosen,) = [int(port["hostPort"]) for port in node.allocated() if int(port["hostPort"]) != 18080]
    assert 21000 <= chosen <= 21099
    assert node.fetch(chosen, "cgi-bin/name") == "web"
    assert serves(node, "web")
    assert "18080" in node.run("nft", "list", "ruleset").stdout


@pytest.mark.parametrize("chain", CHAINS)
def test_container_starts_on_two_networks_when_both_map_the_same_port(node: PodmanNode, chain: str) -> None:
    node.container("web", "--network", f"{chain}-a", "--network", f"{chain}-b", "-p", "18080:80")
    assert serves(node, "web")


@pytest.mark.parametrize("chain", CHAINS)
def test_port_goes_on_when_a_network_is_connected_and_the_first_disconnected(node: PodmanNode, chain: str) -> None:
    node.container("web", "--network", f"{chain}-a", "-p", "18080:80")
    assert serves(node, "web")
    node.podman("network", "connect", f"{chain}-b", "web")
    assert serves(node, "web")
    node.podman("network", "disconnect", f"{chain}-a", "web")
    assert serves(node, "web")


@pytest.mark.parametrize("chain", CHAINS)
def test_network_comes_and_goes_when_a_running_container_is_connected_and_disconnected(
    node: PodmanNode, chain: str
) -> None:
    node.container("web", "--network", f"{chain}-a")
    for _ in range(2):
        node.podman("network", "connect", f"{chain}-b", "web")
        assert "eth1" in node.podman("exec", "web", "/bin/busybox", "ip", "-o", "addr")
        node.podman("network", "disconnect", f"{chain}-b", "web")
        assert "eth1" not in node.podman("exec", "web", "/bin/busybox", "ip", "-o", "addr")


def test_ports_work_again_when_rules_were_flushed_and_the_networks_are_reloaded(node: PodmanNode) -> None:
    """The last test here: what the networks' first containers made goes too."""
    for port, chain in enumerate(CHAINS, 18080):
        node.container(chain, "--network", f"{chain}-a", "-p", f"{port}:80")
    node.run("nft", "flush", "ruleset")
    node.podman("network", "reload", "--all")
    for port, chain in enumerate(CHAINS, 18080):
        assert node.fetch(port, "cgi-bin/name") == chain
