"""The plugin with the iptables backend, verb by verb, in a namespace."""

import pytest

from cnimeta.errors import CniError
from cnimeta.testing import call
from cnimeta_plugins.portmap.iptables.rules import chain_name, second_chain_name
from cnimeta_plugins.portmap.main import Portmap
from cnimeta_plugins.portmap.plan import Owner

pytestmark = pytest.mark.kernel


class Host:
    def __init__(self, namespace, container, folder):
        self.namespace, self.container, self.folder = namespace, container, folder

    def conf(self, *ports, address="10.0.0.2/24", ifname="eth0", **keys):
        return {
            "cniVersion": "1.1.0",
            "name": "net",
            "type": "portmap",
            "backend": "iptables",
            "dataDir": self.folder,
            "runtimeConfig": {
                "portMappings": [{"hostPort": port, "containerPort": 80, "protocol": "tcp"} for port in ports]
            },
            "prevResult": {
                "cniVersion": "1.1.0",
                "interfaces": [{"name": ifname, "sandbox": self.container.path}],
                "ips": [{"address": address, "interface": 0}],
            },
            **keys,
        }

    def call(self, verb, conf, container_id="c1", ifname="eth0"):
        # Containers in one namespace share its ports; only the first is in the one that is there.
        netns = self.container.path if container_id == "c1" else f"/run/netns/of-{container_id}"
        with self.namespace.entered():
            return call(Portmap(), verb, conf, container_id=container_id, ifname=ifname, netns=netns, path="/x")

    def chains(self):
        saved = self.namespace.run("iptables-nft-save", "-t", "nat").stdout
        return {line[1:].partition(" ")[0] for line in saved.splitlines() if line.startswith(":CNI-DN-")}


@pytest.fixture
def host(make_netns, tmp_path):
    return Host(make_netns("host"), make_netns("ctr"), str(tmp_path / "state"))


def bare(conf, **keys):
    """What a runtime may send on DEL: no mappings, no result."""
    return {key: value for key, value in conf.items() if key not in ("runtimeConfig", "prevResult")} | keys


def test_the_rules_go_when_del_has_neither_mappings_nor_result(host):
    conf = host.conf(8080)
    host.call("ADD", conf)
    host.call("CHECK", conf)
    assert host.chains() == {chain_name("net", "c1")}
    for _ in range(2):
        host.call("DEL", bare(conf))
        assert host.chains() == set()


def test_two_interfaces_of_a_container_are_apart_when_either_is_deleted_first(host):
    first, second = host.conf(8080), host.conf(8081, address="10.1.0.2/24", ifname="eth1")
    both = {chain_name("net", "c1"), second_chain_name(Owner("net", "c1", "eth1"))}
    for gone, stays in ((("eth0", first), ("eth1", second)), (("eth1", second), ("eth0", first))):
        host.call("ADD", first)
        host.call("ADD", second, ifname="eth1")
        assert host.chains() == both
        host.call("DEL", bare(gone[1]), ifname=gone[0])
        host.call("CHECK", stays[1], ifname=stays[0])
        host.call("DEL", bare(stays[1]), ifname=stays[0])
        assert host.chains() == set()


@pytest.mark.parametrize("backend", ["iptables", "nftables", "auto"])
def test_the_rules_go_when_the_network_was_renamed_and_the_record_is_lost(host, backend, tmp_path):
    host.call("ADD", host.conf(8080))
    host.call("ADD", host.conf(8081, name="other", address="10.0.0.3/24"), container_id="c2")
    host.call("DEL", bare(host.conf(), name="renamed", backend=backend, dataDir=str(tmp_path / "elsewhere")))
    assert host.chains() == {chain_name("other", "c2")}


def test_the_rules_go_when_the_backend_was_changed_since(host):
    host.call("ADD", host.conf(8080))
    host.call("DEL", host.conf(8080, backend="nftables"))
    assert host.chains() == set()


def test_gc_keeps_what_is_listed_when_it_collects(host):
    host.call("ADD", host.conf(8080))
    host.call("ADD", host.conf(8081, address="10.0.0.3/24"), container_id="c2")
    host.call("GC", bare(host.conf()))
    assert len(host.chains()) == 2
    host.call("GC", bare(host.conf(), **{"cni.dev/valid-attachments": [{"containerID": "c2", "ifname": "eth0"}]}))
    assert host.chains() == {chain_name("net", "c2")}


def test_the_error_has_code_100_when_another_container_has_the_port(host):
    host.call("ADD", host.conf(8080))
    with pytest.raises(CniError, match="c1") as caught:
        host.call("ADD", host.conf(8080, address="10.0.0.3/24"), container_id="c2")
    assert caught.value.code == 100
    assert host.chains() == {chain_name("net", "c1")}
    host.call("DEL", bare(host.conf()), container_id="c2")
    assert host.chains() == {chain_name("net", "c1")}
