"""Debian's reference plugins, run along chains by `cnimeta run`, at every spec version that they support."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from runtime_node import CLEAN, DEBIAN_PLUGINS, Failed, Node

from cnimeta.cli.run import default_container_id

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cnimeta.testing.netns import Namespace

pytestmark = pytest.mark.runtime

VERSIONS = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0")
SINCE = {"bandwidth": "0.3.0", "firewall": "0.4.0"}
"""Which spec version each of Debian's plugins starts at; the others start at 0.1.0."""

GIVEN = {
    "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}],
    "bandwidth": {"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 4_000_000, "egressBurst": 400_000},
}


@pytest.fixture
def node(tmp_path: Path, make_netns: Callable[[str], Namespace]) -> Node:
    return Node(tmp_path, make_netns)


def chain(node: Node, version: str, first: str = "bridge", **keys: Any) -> dict[str, Any]:
    """A list of all plugins that know this version."""
    ipam = {"type": "host-local", "subnet": "10.77.0.0/24", "dataDir": str(node.folder / "leases")}
    main = {"bridge": {"bridge": "br0", "isGateway": True, "hairpinMode": True}, "ptp": {"ipMasq": False}}[first]
    plugins: list[dict[str, Any]] = [
        {"type": first, **main, "ipam": {**ipam, "routes": [{"dst": "0.0.0.0/0"}]}},
        {"type": "tuning", "dataDir": str(node.folder / "tuning"), "sysctl": {"net.ipv4.conf.eth0.arp_filter": "1"}},
        {"type": "firewall", "backend": "iptables"},
        {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
    ]
    known = [plugin for plugin in plugins if version >= SINCE.get(plugin["type"], "0.1.0")]
    return {"cniVersion": version, "name": "net", "plugins": known, **keys}


def test_debians_versions_are_what_these_tests_say_when_they_are_asked(node: Node) -> None:
    node.configure(chain(node, "1.0.0"))
    found = json.loads(node.cnimeta("version", "net"))
    assert found["plugins"] == {
        name: [version for version in VERSIONS if version >= SINCE.get(name, "0.1.0")]
        for name in ("bridge", "tuning", "firewall", "portmap", "bandwidth")
    }


@pytest.mark.parametrize("first", ["bridge", "ptp"])
@pytest.mark.parametrize("version", VERSIONS)
def test_the_chain_works_and_leaves_nothing_when_it_is_run(node: Node, first: str, version: str) -> None:
    conflist = chain(node, version, first)
    node.configure(conflist)
    result = json.loads(node.cnimeta("add", "net", capability_args=GIVEN))
    assert result["cniVersion"] == version
    assert '"10.77.0.' in json.dumps(result)
    assert "inet 10.77.0." in node.pod.run("ip", "address", "show", "eth0").stdout
    assert node.reach("192.0.2.10", 8080, 80) == "192.0.2.10"
    assert node.pod.run("sysctl", "-n", "net.ipv4.conf.eth0.arp_filter").stdout == "1\n"
    left = node.footprint()
    assert [line for line in left["rules"] if "--dport 8080" in line]
    assert left["cache"] == [node.cached()[0]["containerId"]]
    types = [plugin["type"] for plugin in conflist["plugins"]]
    assert len(left["queues"]) == (2 if "bandwidth" in types else 0)
    for _ in range(2):
        node.cnimeta("del", "net", capability_args=GIVEN)
    assert node.footprint() == CLEAN


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
def test_check_passes_until_something_is_damaged_when_the_version_has_it(node: Node, version: str) -> None:
    """Without portmap: this one looks for IPv4 rules in ip6tables, and fails under cnitool just the same."""
    conflist = chain(node, version)
    conflist["plugins"] = [plugin for plugin in conflist["plugins"] if plugin["type"] != "portmap"]
    node.configure(conflist)
    node.cnimeta("add", "net", capability_args=GIVEN)
    node.cnimeta("check", "net", capability_args=GIVEN)
    node.cnimeta("check", "net", "--container-id", default_container_id(node.pod.path))
    node.pod.run("sysctl", "-qw", "net.ipv4.conf.eth0.arp_filter=0")
    with pytest.raises(Failed) as caught:
        node.cnimeta("check", "net", capability_args=GIVEN)
    assert caught.value.error["msg"].startswith("plugin tuning failed CHECK: ")
    node.pod.run("sysctl", "-qw", "net.ipv4.conf.eth0.arp_filter=1")
    node.namespace.run("iptables", "-w", "-F", "CNI-FORWARD")
    with pytest.raises(Failed) as caught:
        node.cnimeta("check", "net", capability_args=GIVEN)
    assert caught.value.error["msg"].startswith("plugin firewall failed CHECK: ")
    node.cnimeta("del", "net")
    assert node.footprint() == CLEAN


@pytest.mark.parametrize("version", ["0.3.1", "1.0.0"])
def test_del_leaves_nothing_when_only_the_cache_knows_the_arguments(node: Node, version: str) -> None:
    node.configure(chain(node, version))
    node.cnimeta("add", "net", capability_args=GIVEN)
    node.cnimeta("del", "net")
    assert node.footprint() == CLEAN


@pytest.mark.parametrize("version", VERSIONS)
def test_the_chain_is_undone_when_its_last_plugin_is_missing(node: Node, version: str) -> None:
    conflist = chain(node, version)
    node.configure({**conflist, "plugins": [*conflist["plugins"], {"type": "no-such-plugin"}]})
    with pytest.raises(Failed) as caught:
        node.cnimeta("add", "net", capability_args=GIVEN)
    error = caught.value.error
    assert (error["code"], error["cniVersion"]) == (105, version)
    assert 'failed to find plugin "no-such-plugin"' in error["msg"]
    assert node.footprint() == CLEAN


def test_earlier_plugins_are_undone_when_a_later_ones_del_fails(node: Node) -> None:
    """libcni stops at the first DEL that fails and leaks the address and the interface."""
    conflist = chain(node, "1.0.0")
    node.configure(conflist)
    node.cnimeta("add", "net", capability_args=GIVEN)
    node.configure({**conflist, "plugins": [*conflist["plugins"], {"type": "no-such-plugin"}]})
    with pytest.raises(Failed):
        node.cnimeta("del", "net", capability_args=GIVEN)
    left = node.footprint()
    assert len(left.pop("cache")) == 1
    assert left == {key: value for key, value in CLEAN.items() if key != "cache"}
    node.configure(conflist)
    node.cnimeta("del", "net", capability_args=GIVEN)
    assert node.footprint() == CLEAN


def test_stale_containers_go_when_the_network_is_collected(node: Node) -> None:
    node.configure(chain(node, "1.0.0"))
    node.cnimeta("add", "net", capability_args=GIVEN)
    container_id = node.cached()[0]["containerId"]
    node.cnimeta("gc", "net", "--valid", f"{container_id},eth0")
    assert node.footprint()["links"]
    node.cnimeta("gc", "net", "--none-valid")
    assert node.footprint() == CLEAN


def test_the_second_attachment_has_its_own_interface_when_ifname_is_given(node: Node) -> None:
    node.configure(chain(node, "1.0.0", plugins=chain(node, "1.0.0")["plugins"][:1]))
    for ifname in ("eth0", "net1"):
        node.cnimeta("add", "net", "--ifname", ifname)
    assert node.footprint()["pod"] == ["eth0", "lo", "net1"]
    node.cnimeta("del", "net")
    assert node.footprint()["pod"] == ["lo", "net1"]
    assert node.reach("10.77.0.3", 80, 80) == "10.77.0.1"
    node.cnimeta("del", "net", "--ifname", "net1")
    assert node.footprint() == CLEAN


def test_a_plugins_own_code_and_words_come_out_when_it_fails(node: Node) -> None:
    conflist = chain(node, "1.0.0")
    conflist["plugins"][0]["ipam"]["subnet"] = "10.77.0.0/33"
    node.configure(conflist)
    with pytest.raises(Failed) as caught:
        node.cnimeta("add", "net")
    error = caught.value.error
    assert error["code"] == 999
    assert error["msg"].startswith("plugin bridge failed ADD: ")
    assert "10.77.0.0/33" in error["msg"]
    assert node.footprint()["pod"] == ["lo"]


def test_plugins_come_from_the_first_folder_that_has_them_when_there_are_several(node: Node, tmp_path: Path) -> None:
    own = tmp_path / "own"
    own.mkdir()
    (own / "tuning").symlink_to(f"{DEBIAN_PLUGINS}/tuning")
    (own / "bridge").mkdir()  # not a regular file: passed over
    node.path = f"{own}:{node.path}"
    node.configure(chain(node, "1.0.0"))
    node.cnimeta("add", "net", capability_args=GIVEN)
    node.cnimeta("del", "net")
    assert node.footprint() == CLEAN
