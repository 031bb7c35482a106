"""The configuration: defaults, every key, and what is said of a wrong one."""

from __future__ import annotations

from typing import Any

import pytest
from hostport_harness import Node, conf

from cnimeta.errors import CniError
from cnimeta.spec.netconf import NetConf
from cnimeta_plugins.hostport_alloc.config import ApiSettings, Settings, read_settings

pytestmark = pytest.mark.unit


def settings(**keys: Any) -> Settings:
    return read_settings(NetConf({"cniVersion": "1.0.0", "name": "pods", "type": "hostport_alloc", **keys}))


def test_defaults_are_safe_when_nothing_is_set() -> None:
    found = settings()
    assert [(one.name, one.spans) for one in found.ranges] == [("default", ((20000, 24999),))]
    assert found.expose == ()
    assert not found.chain.wrapper
    assert found.portmap == {"type": "portmap"}
    assert found.host_ips == ()
    assert found.api is None
    assert (found.quarantine_s, found.sticky, found.sticky_s, found.lock_timeout_s) == (30, True, 3600, 10)
    assert found.data_dir == "/var/lib/cni/cnimeta"
    assert found.node_ports.spans == ((30000, 32767),)


def test_every_key_is_read() -> None:
    found = settings(
        Ranges={"default": "20000-20009", "games": "7000-7999,8100"},
        expose=["games:9000/udp"],
        delegates=[{"type": "bridge"}],
        portmap={"type": "portmap", "snat": False},
        hostIP=["192.0.2.1", "2001:DB8::1"],
        kubernetes={"kubeconfig": "/k", "policy": "required", "timeout": 2.5, "readPod": True},
        quarantineSeconds=0,
        sticky=False,
        stickySeconds=60,
        forceOverlap=True,
        nodePortRange="31000-31999",
        maxPortsPerPod=3,
        lockTimeout=1,
        dataDir="/data",
    )
    assert found.range("games").spans == ((7000, 7999), (8100, 8100))
    assert found.host_ips == ("192.0.2.1", "2001:db8::1")
    assert found.api == ApiSettings("/k", True, 2.5, True)
    assert (found.quarantine_s, found.sticky, found.sticky_s) == (0, False, 60)
    assert (found.force_overlap, found.max_ports, found.lock_timeout_s, found.data_dir) == (True, 3, 1, "/data")
    assert found.portmap == {"type": "portmap", "snat": False}


@pytest.mark.parametrize(
    ("keys", "path"),
    [
        ({"ranges": "20000-20009"}, "$.ranges"),
        ({"ranges": {}}, "$.ranges"),
        ({"ranges": {"default": 20000}}, "$.ranges.default"),
        ({"ranges": {"default": "25000-20000"}}, "$.ranges.default"),
        ({"ranges": {"default": "0-10"}}, "$.ranges.default"),
        ({"ranges": {"default": "60000-70000"}}, "$.ranges.default"),
        ({"ranges": {"a b": "20000-20009"}}, "$.ranges"),
        ({"ranges": {"default": "20000-20009", "b": "20009-20010"}}, "$.ranges.b"),
        ({"expose": "80/tcp"}, "$.expose"),
        ({"expose": [80]}, "$.expose[0]"),
        ({"expose": ["80/tcp", "no"]}, "$.expose[1]"),
        ({"delegates": {}}, "$.delegates"),
        ({"delegates": []}, "$.delegates"),
        ({"delegates": [{}]}, "$.delegates[0].type"),
        ({"delegates": [{"type": "../sh"}]}, "$.delegates[0].type"),
        ({"delegates": [{"type": "hostport_alloc"}]}, "$.delegates[0].type"),
        ({"delegates": [{"type": "bridge", "capabilities": []}]}, "$.delegates[0].capabilities"),
        ({"delegate": {"hairpinMode": True}}, "$.delegate.type"),
        ({"delegate": {"plugins": []}}, "$.delegate.plugins"),
        ({"delegate": {"plugins": [{"type": "a"}, {"x": 1}]}}, "$.delegate.plugins[1].type"),
        ({"delegate": {"type": "a"}, "delegates": [{"type": "b"}]}, "$.delegates and $.delegate"),
        ({"portmap": "portmap"}, "$.portmap"),
        ({"portmap": {"type": "/bin/sh"}}, "$.portmap.type"),
        ({"hostIP": "node1"}, "$.hostIP"),
        ({"hostIP": "0.0.0.0"}, "$.hostIP"),
        ({"hostIP": 4}, "$.hostIP"),
        ({"kubernetes": True}, "$.kubernetes"),
        ({"kubernetes": {"kubeconfig": "k"}}, "$.kubernetes.kubeconfig"),
        ({"kubernetes": {"policy": "never"}}, "$.kubernetes.policy"),
        ({"kubernetes": {"timeout": 0}}, "$.kubernetes.timeout"),
        ({"kubernetes": {"timeout": "5"}}, "$.kubernetes.timeout"),
        ({"kubernetes": {"readPod": 1}}, "$.kubernetes.readPod"),
        ({"quarantineSeconds": -1}, "$.quarantineSeconds"),
        ({"quarantineSeconds": True}, "$.quarantineSeconds"),
        ({"sticky": "yes"}, "$.sticky"),
        ({"maxPortsPerPod": 0}, "$.maxPortsPerPod"),
        ({"nodePortRange": "x"}, "$.nodePortRange"),
        ({"dataDir": "data"}, "$.dataDir"),
    ],
)
def test_wrong_value_is_refused_with_its_path(keys: dict[str, Any], path: str) -> None:
    with pytest.raises(CniError) as caught:
        settings(**keys)
    assert caught.value.code == 7
    assert caught.value.msg.startswith(path)


def test_delegate_list_keeps_its_own_name_and_version() -> None:
    plugins = [{"type": "flannel", "delegate": {"hairpinMode": True}}, {"type": "portmap"}]
    chain = settings(delegate={"name": "cbr0", "cniVersion": "0.3.1", "plugins": plugins, "disableCheck": "true"}).chain
    assert (chain.wrapper, chain.name, chain.cni_version) == (True, "cbr0", "0.3.1")
    assert chain.plugins == tuple(plugins)
    assert (chain.mapper, chain.check, chain.gc) == (1, False, True)


def test_delegate_takes_the_outer_name_and_version_when_it_has_none() -> None:
    chain = settings(delegate={"type": "ptp"}).chain
    assert (chain.name, chain.cni_version, chain.mapper) == ("pods", "1.0.0", -1)


def test_portmap_gets_the_mappings_when_another_delegate_could_take_them() -> None:
    capable = {"type": "cilium-cni", "capabilities": {"portMappings": True}}
    assert settings(delegates=[capable]).chain.mapper == 0
    assert settings(delegates=[capable, {"type": "portmap"}]).chain.mapper == 1


def test_unknown_keys_are_warned_of_by_the_plugin_when_they_are_its_own() -> None:
    node = Node()
    delegates = [{"type": "bridge", "brdge": "theirs"}]
    api = {"kubeconfig": "/k", "polcy": "required"}
    node.call(
        "ADD", conf(expos=["80/tcp"], kubernetes=api, delegates=delegates, portmap={"type": "portmap", "snatt": 1})
    )
    assert [line for line in node.log if "key" in line] == [
        'hostport_alloc: $ has a key "expos" that nothing reads: did you mean expose?',
        'hostport_alloc: $.kubernetes has a key "polcy" that nothing reads: did you mean policy?',
    ]
    node.log.clear()
    inner = {"name": "inner", "plugins": [{"type": "bridge"}], "disableChek": True}
    node.call("ADD", conf(delegates=None, delegate=inner), container_id="c2")
    assert [line for line in node.log if "key" in line] == [
        'hostport_alloc: $.delegate has a key "disableChek" that nothing reads: did you mean disableCheck?'
    ]
    node.log.clear()
    node.call("ADD", conf(), container_id="c3")
    assert node.log == []


@pytest.mark.parametrize(
    ("keys", "idle"),
    [
        ({"hostIP": "192.0.2.1"}, "$.hostIP"),
        ({"hostIP": "192.0.2.1", "kubernetes": {}}, ""),
        ({"sticky": False, "stickySeconds": 60}, "$.stickySeconds"),
        ({"stickySeconds": 60}, ""),
        ({"forceOverlap": True, "nodePortRange": "1-2"}, "$.nodePortRange"),
        ({"portmap": {"snat": False}, "delegates": [{"type": "bridge"}, {"type": "portmap"}]}, "$.portmap"),
        ({"portmap": {"snat": False}}, ""),
    ],
    ids=str,
)
def test_key_that_decides_nothing_is_told(keys: dict[str, Any], idle: str) -> None:
    node = Node()
    node.call("ADD", conf(**keys))
    told = [line for line in node.log if "has no effect" in line]
    assert len(told) == bool(idle)
    assert all(f"{idle} has no effect" in line for line in told)


def test_required_annotation_without_credentials_is_an_error_when_no_pod_is_named() -> None:
    for policy, code in (("deferred", 0), ("required", 7)):
        node = Node()
        node.pods.no_credentials = "kubeconfig /none does not exist"
        try:
            node.call("ADD", conf(kubernetes={"kubeconfig": "/none", "policy": policy}))
            assert code == 0
        except CniError as error:
            assert (error.code, "/none" in error.msg, node.executor.calls) == (code, True, [])
        assert node.pods.requests == []
