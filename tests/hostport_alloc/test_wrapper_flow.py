"""ADD and DEL in wrapper and chained mode, on fakes: order, prevResult, capabilities, mappings, roll-back."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hostport_harness import POD_ARGS, Node, conf

from cnimeta.errors import CniError, DelegateFailed, HostPortConflict, IoFailure
from cnimeta.spec.version import ALL, at_least
from cnimeta.testing.delegates import FakeDelegate, address_result

if TYPE_CHECKING:
    pass

pytestmark = pytest.mark.unit


def test_container_gets_a_port_of_the_range_when_wrapped() -> None:
    node = Node()
    result = node.call("ADD", conf())
    assert result is not None
    assert result.ips[0].address == "10.1.0.2/24"
    assert node.executor.dump() == "ADD bridge c1 eth0\nADD portmap c1 eth0\n"
    (port,) = node.ports()
    assert 20000 <= port <= 20099
    assert node.mappings() == [{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]


def test_delegates_run_in_order_with_name_version_and_the_result_so_far() -> None:
    tuning = FakeDelegate("tuning")
    node = Node(tuning)
    result = node.call("ADD", conf(delegates=[{"type": "bridge", "mtu": 1400}, {"type": "tuning", "name": "x"}]))
    bridge, second, portmap = node.executor.calls
    assert [call.plugin for call in node.executor.calls] == ["bridge", "tuning", "portmap"]
    assert {key: bridge.conf[key] for key in ("name", "cniVersion", "mtu")} == {
        "name": "pods",
        "cniVersion": "1.0.0",
        "mtu": 1400,
    }
    assert "prevResult" not in bridge.conf
    assert second.conf["name"] == "pods"
    assert second.conf["prevResult"]["ips"][0]["address"] == "10.1.0.2/24"
    assert [one["name"] for one in portmap.conf["prevResult"]["interfaces"]] == ["eth0", "tuning0"]
    assert result is not None
    assert [one.name for one in result.interfaces] == ["eth0", "tuning0", "portmap0"]


def test_delegate_gets_only_the_capabilities_it_declares() -> None:
    bandwidth = FakeDelegate("bandwidth")
    node = Node(bandwidth)
    given = {
        "bandwidth": {"IngressRate": 1000},
        "io.kubernetes.cri.pod-annotations": {"a": "b"},
        "portMappings": [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp"}],
        "dns": {"servers": ["192.0.2.53"]},
    }
    plugins = [
        {"type": "bridge", "capabilities": {"dns": False}},
        {"type": "bandwidth", "capabilities": {"bandwidth": True}},
    ]
    node.call("ADD", conf(delegates=plugins, runtimeConfig=given))
    assert "runtimeConfig" not in node.executor.sent("ADD", "bridge")[0].conf
    assert node.executor.sent("ADD", "bandwidth")[0].conf["runtimeConfig"] == {"bandwidth": {"IngressRate": 1000}}


def test_explicit_and_random_ports_go_to_portmap_in_one_call() -> None:
    node = Node()
    given = [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": "192.168.77.1"}]
    node.call("ADD", conf(runtimeConfig={"portMappings": given}))
    assert len(node.executor.sent("ADD", "portmap")) == 1
    assert node.mappings() == [
        {"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "192.168.77.1"},
        {"hostPort": node.ports()[0], "containerPort": 80, "protocol": "tcp"},
    ]


def test_delegate_portmap_gets_all_mappings_and_no_second_one_runs() -> None:
    node = Node()
    plugins = [{"type": "bridge"}, {"type": "portmap", "capabilities": {"portMappings": True}, "snat": False}]
    node.call("ADD", conf(delegates=plugins, runtimeConfig={"portMappings": [{"hostPort": 81, "containerPort": 81}]}))
    (sent,) = node.executor.sent("ADD", "portmap")
    assert sent.conf["snat"] is False
    assert [one["hostPort"] for one in node.mappings()] == [81, *node.ports()]


def test_delegate_with_the_capability_maps_instead_of_portmap() -> None:
    node = Node(FakeDelegate("cilium-cni", result=address_result("10.1.0.9/24")))
    node.call("ADD", conf(delegates=[{"type": "cilium-cni", "capabilities": {"portMappings": True}}]))
    assert node.executor.dump() == "ADD cilium-cni c1 eth0\n"
    assert [one["hostPort"] for one in node.mappings(plugin="cilium-cni")] == node.ports()


def test_whole_conflist_as_delegate_keeps_its_name_and_version() -> None:
    node = Node(FakeDelegate("flannel", result=address_result("10.244.0.2/24")))
    plugins = [
        {"type": "flannel", "delegate": {"hairpinMode": True, "isDefaultGateway": True}},
        {"type": "portmap", "capabilities": {"portMappings": True}},
    ]
    settings = conf(delegate={"name": "cbr0", "cniVersion": "0.3.1", "plugins": plugins})
    del settings["delegates"]
    node.call("ADD", settings)
    flannel, portmap = node.executor.calls
    assert (flannel.conf["name"], flannel.conf["cniVersion"]) == ("cbr0", "0.3.1")
    assert flannel.conf["delegate"] == {"hairpinMode": True, "isDefaultGateway": True}
    assert portmap.conf["prevResult"]["ips"][0]["version"] == "4"
    assert [one["hostPort"] for one in node.mappings()] == node.ports()


def chained(**keys: Any) -> dict[str, Any]:
    prev = {"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.7/24"}]}
    settings = conf(prevResult=prev, **keys)
    del settings["delegates"]
    return settings


def test_chained_plugin_maps_and_passes_the_result_on() -> None:
    node = Node()
    result = node.call("ADD", chained())
    assert result is not None
    assert result.ips[0].address == "10.1.0.7/24"
    assert node.executor.dump() == "ADD portmap c1 eth0\n"
    node.call("DEL", chained())
    assert node.executor.sent("DEL")[-1].conf["prevResult"]["ips"] == [{"address": "10.1.0.7/24"}]
    assert node.ports() == []


def test_chained_plugin_is_refused_when_there_is_no_prev_result() -> None:
    settings = chained()
    del settings["prevResult"]
    node = Node()
    with pytest.raises(CniError, match=r"\$\.prevResult is missing") as caught:
        node.call("ADD", settings)
    assert caught.value.code == 7
    assert node.executor.calls == []


def test_nothing_is_mapped_or_recorded_when_nothing_is_exposed() -> None:
    node = Node()
    node.call("ADD", conf(expose=[]))
    assert node.executor.dump() == "ADD bridge c1 eth0\n"
    node.call("DEL", conf(expose=[]))
    assert node.executor.dump() == "ADD bridge c1 eth0\nDEL portmap c1 eth0\nDEL bridge c1 eth0\n"


def test_pod_annotation_asks_for_ports_when_the_runtime_passes_it() -> None:
    node = Node()
    asked = {"io.kubernetes.cri.pod-annotations": {"cnimeta.io/expose": "games:9000/udp,80/tcp"}}
    node.call("ADD", conf(runtimeConfig=asked))
    by_port = {one["containerPort"]: one for one in node.mappings()}
    assert sorted(by_port) == [80, 9000]
    assert 7000 <= by_port[9000]["hostPort"] <= 7009
    assert by_port[9000]["protocol"] == "udp"


def test_pod_is_refused_when_it_asks_for_more_than_allowed() -> None:
    node = Node()
    asked = {"io.kubernetes.cri.pod-annotations": {"cnimeta.io/expose": "1-100/tcp"}}
    with pytest.raises(CniError, match=r"^100 host ports are asked for, \$\.maxPortsPerPod allows 64"):
        node.call("ADD", conf(runtimeConfig=asked))
    assert node.executor.calls == []


def test_delete_undoes_in_reverse_from_the_record_when_everything_else_is_gone() -> None:
    tuning = FakeDelegate("tuning")
    node = Node(tuning)
    node.call("ADD", conf(delegates=[{"type": "bridge", "mtu": 1400}, {"type": "tuning"}]))
    (port,) = node.ports()
    node.executor.calls.clear()
    changed = {"cniVersion": "1.0.0", "name": "pods", "type": "hostport_alloc", "dataDir": "/data", "ranges": 5}
    node.call("DEL", changed, netns="")
    assert node.executor.dump() == "DEL portmap c1 eth0\nDEL tuning c1 eth0\nDEL bridge c1 eth0\n"
    assert node.mappings("DEL") == [{"hostPort": port, "containerPort": 80, "protocol": "tcp"}]
    assert node.executor.sent("DEL", "bridge")[0].conf["mtu"] == 1400
    assert node.ports() == []


def test_delete_undoes_from_the_record_when_the_network_was_renamed() -> None:
    node = Node()
    node.call("ADD", conf())
    node.call("ADD", conf(), container_id="c2")
    node.call("DEL", {**conf(), "name": "renamed"}, ifname="eth1")
    assert len(node.ports()) == 1, "another interface"
    node.call("DEL", {**conf(), "name": "renamed"})
    assert (node.ports(), len(node.ports("c2"))) == ([], 1)
    assert node.executor.sent("DEL", "portmap")[-1].conf["name"] == "pods"
    node.call("DEL", {**conf(), "name": "renamed"})


@pytest.mark.parametrize("state", ["alive", "hidden"])
def test_delete_leaves_the_record_when_the_container_id_is_in_use_in_another_namespace(state: str) -> None:
    node = Node()
    node.call("ADD", conf(), netns="/run/netns/one")
    if state == "hidden":
        node.namespaces.hidden.add("/run/netns/one")
    node.call("DEL", {**conf(), "name": "renamed"}, netns="/run/netns/two")
    assert len(node.ports()) == 1
    node.namespaces.hidden.clear()
    node.namespaces.gone.add("/run/netns/one")
    node.call("DEL", {**conf(), "name": "renamed"}, netns="/run/netns/two")
    assert node.ports() == []


def test_delete_succeeds_every_time_and_still_reaches_the_delegates() -> None:
    node = Node()
    node.call("ADD", conf())
    for _ in range(3):
        node.call("DEL", conf(), netns="")
    assert len(node.executor.sent("DEL", "bridge")) == 3
    assert len(node.executor.sent("DEL", "portmap")) == 3, "rules without a record are found by name"


def test_delete_reaches_portmap_when_the_container_is_from_before_wrapping() -> None:
    node = Node()
    given = [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}]
    node.call("DEL", conf(runtimeConfig={"portMappings": given}))
    assert node.executor.dump() == "DEL portmap c1 eth0\nDEL bridge c1 eth0\n"
    assert node.mappings("DEL") == given


def test_delete_goes_on_and_reports_all_when_several_steps_fail() -> None:
    node = Node(FakeDelegate("tuning"))
    node.call("ADD", conf(delegates=[{"type": "bridge"}, {"type": "tuning"}]))
    node.bridge.errors["DEL"] = IoFailure("bridge is stuck")
    node.executor.plugins["tuning"].errors["DEL"] = IoFailure("tuning is stuck")
    with pytest.raises(CniError, match=r"tuning is stuck.*bridge is stuck"):
        node.call("DEL", conf())
    assert node.ports() == [], "the rules are gone, so the port may be used again"


def test_port_stays_allocated_when_its_rules_could_not_be_removed() -> None:
    node = Node()
    node.call("ADD", conf())
    ports = node.ports()
    node.portmap.errors["DEL"] = IoFailure("nft is stuck")
    with pytest.raises(CniError, match="nft is stuck"):
        node.call("DEL", conf())
    assert node.ports() == ports
    assert node.bridge.attachments == {}
    del node.portmap.errors["DEL"]
    node.call("DEL", conf())
    assert node.ports() == []


@pytest.mark.parametrize("failing", ["bridge", "tuning", "portmap"])
@pytest.mark.parametrize("late", [False, True])
def test_add_takes_everything_back_when_a_step_fails(failing: str, late: bool) -> None:
    node = Node(FakeDelegate("tuning"))
    plugin = node.executor.plugins[failing]
    assert isinstance(plugin, FakeDelegate)
    (plugin.late_errors if late else plugin.errors)["ADD"] = IoFailure("no luck")
    settings = conf(delegates=[{"type": "bridge"}, {"type": "tuning"}])
    with pytest.raises(CniError, match=f"plugin {failing} failed ADD: no luck") as caught:
        node.call("ADD", settings)
    assert caught.value.code == 5
    assert caught.value.details == ""
    assert node.ports() == []
    for name in ("bridge", "tuning", "portmap"):
        assert node.executor.plugins[name].attachments == {}
    order = ["bridge", "tuning", "portmap"]
    started = order[: order.index(failing) + 1]
    undone = [call.plugin for call in node.executor.sent("DEL")]
    assert undone == [failing, *reversed(started)]


def test_add_keeps_the_port_and_says_so_when_roll_back_fails() -> None:
    node = Node()
    node.portmap.late_errors["ADD"] = IoFailure("half done")
    node.portmap.errors["DEL"] = IoFailure("nft is stuck")
    with pytest.raises(CniError, match="half done") as caught:
        node.call("ADD", conf())
    assert "undoing it: plugin portmap failed DEL: nft is stuck" in caught.value.details
    assert len(node.ports()) == 1
    del node.portmap.errors["DEL"]
    node.call("DEL", conf())
    assert node.ports() == []


def test_add_fails_before_anything_is_done_when_a_plugin_is_missing() -> None:
    node = Node()
    with pytest.raises(CniError, match='failed to find plugin "ptp"') as caught:
        node.call("ADD", conf(delegates=[{"type": "bridge"}, {"type": "ptp"}]))
    assert caught.value.code == DelegateFailed.code
    assert node.executor.calls == []
    assert node.ports() == []


def test_another_port_is_picked_when_the_first_is_mapped_already() -> None:
    node = Node()
    taken: list[int] = []

    def hook(name: str, environ: Any, stdin: bytes) -> None:
        if (name, environ["CNI_COMMAND"]) == ("portmap", "ADD") and len(taken) < 2:
            taken.extend(node.ports())
            conflict = HostPortConflict(f"host port {taken[-1]}/tcp is mapped for container other already")
            node.executor.script("portmap", "ADD", conflict)

    node.executor.hook = hook
    node.call("ADD", conf())
    (port,) = node.ports()
    assert len(taken) == 2
    assert port not in taken
    assert node.mappings()[0]["hostPort"] == port
    assert len(node.executor.sent("ADD", "bridge")) == 1


def test_add_fails_when_an_explicit_port_is_mapped_already() -> None:
    node = Node()
    node.executor.script("portmap", "ADD", HostPortConflict("host port 8080/tcp is mapped for container other already"))
    with pytest.raises(CniError, match="8080/tcp is mapped") as caught:
        node.call("ADD", conf(runtimeConfig={"portMappings": [{"hostPort": 8080, "containerPort": 80}]}))
    assert caught.value.code == 100
    assert node.ports() == []
    assert len(node.executor.sent("ADD", "portmap")) == 1


def test_add_gives_up_when_every_port_conflicts() -> None:
    node = Node()

    def hook(name: str, environ: Any, stdin: bytes) -> None:
        if (name, environ["CNI_COMMAND"]) == ("portmap", "ADD"):
            node.executor.script("portmap", "ADD", HostPortConflict(f"host port {node.ports()[0]}/tcp is mapped"))

    node.executor.hook = hook
    with pytest.raises(CniError) as caught:
        node.call("ADD", conf())
    assert caught.value.code == 100
    assert len(node.executor.sent("ADD", "portmap")) == 5
    assert node.ports() == []


def test_repeated_add_answers_the_same_when_all_is_in_place() -> None:
    node = Node()
    first = node.call("ADD", conf())
    ports = node.ports()
    node.executor.calls.clear()
    assert node.call("ADD", conf()) == first
    assert node.ports() == ports
    assert node.executor.dump() == "CHECK bridge c1 eth0\nCHECK portmap c1 eth0\n"


def test_repeated_add_starts_afresh_with_the_same_ports_when_something_is_missing() -> None:
    node = Node()
    node.call("ADD", conf())
    ports = node.ports()
    node.bridge.attachments.clear()
    node.executor.calls.clear()
    node.call("ADD", conf())
    assert node.ports() == ports
    assert [call.verb for call in node.executor.calls] == ["CHECK", "DEL", "DEL", "ADD", "ADD"]


def test_repeated_add_maps_again_and_keeps_the_address_when_only_rules_are_missing() -> None:
    node = Node()
    first = node.call("ADD", conf())
    node.portmap.attachments.clear()
    node.executor.calls.clear()
    assert node.call("ADD", conf()) == first
    assert [(call.verb, call.plugin) for call in node.executor.calls] == [
        ("CHECK", "bridge"),
        ("CHECK", "portmap"),
        ("DEL", "portmap"),
        ("ADD", "portmap"),
    ]
    assert [one["hostPort"] for one in node.mappings()] == node.ports()


def test_wrong_portmap_key_keeps_no_port_when_portmap_refuses_it_on_del_too() -> None:
    node = Node()

    def hook(name: str, environ: Any, stdin: bytes) -> None:
        if name == "portmap" and b"masqAll" in stdin:
            node.executor.script("portmap", environ["CNI_COMMAND"], CniError("invalid masqAll", code=999))

    node.executor.hook = hook
    with pytest.raises(CniError, match="invalid masqAll"):
        node.call("ADD", conf(portmap={"type": "portmap", "masqAll": "yes", "backend": "nftables"}))
    assert node.ports() == []
    last = node.executor.sent("DEL", "portmap")[-1].conf
    assert last["backend"] == "nftables"
    assert "masqAll" not in last


def test_repeated_add_gives_other_ports_when_others_are_asked_for() -> None:
    node = Node()
    node.call("ADD", conf())
    node.call("ADD", conf(expose=["81/tcp", "82/tcp"]))
    assert sorted(one["containerPort"] for one in node.mappings()) == [81, 82]
    assert len(node.ports()) == 2
    assert node.executor.sent("DEL", "portmap")[0].conf["runtimeConfig"]["portMappings"][0]["containerPort"] == 80


def test_repeated_chained_add_maps_again_with_the_same_ports() -> None:
    node = Node()
    node.call("ADD", chained())
    ports = node.ports()
    node.call("ADD", chained())
    assert node.ports() == ports
    assert [one["hostPort"] for one in node.mappings()] == ports


@pytest.mark.parametrize("version", ALL)
def test_every_spec_version_is_served(version: str) -> None:
    node = Node()
    settings = conf(cniVersion=version)
    result = node.call("ADD", settings)
    assert result is not None
    assert result.ips[0].address == "10.1.0.2/24"
    assert {call.conf["cniVersion"] for call in node.executor.calls} == {version}
    (port,) = node.ports()
    assert node.mappings()[0]["hostPort"] == port
    node.call("DEL", settings)
    assert ("prevResult" in node.executor.sent("DEL")[0].conf) is at_least(version, "0.4.0")
    assert node.bridge.attachments == node.portmap.attachments == {}
    assert node.ports() == []


def test_same_number_is_had_for_both_protocols_when_asked() -> None:
    node = Node()
    node.call("ADD", conf(expose=["53/tcp+udp"]))
    assert {one["protocol"] for one in node.mappings()} == {"tcp", "udp"}
    assert len({one["hostPort"] for one in node.mappings()}) == 1


def test_block_is_consecutive_when_asked() -> None:
    node = Node()
    node.call("ADD", conf(expose=["games:9000-9003/udp"]))
    found = sorted((one["containerPort"], one["hostPort"]) for one in node.mappings())
    first = found[0][1]
    assert found == [(9000 + offset, first + offset) for offset in range(4)]


def test_wrapper_in_the_middle_of_a_chain_hands_prev_result_to_its_first_delegate() -> None:
    node = Node(FakeDelegate("tuning"))
    prev = {"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.7/24"}]}
    node.call("ADD", conf(delegates=[{"type": "tuning"}], prevResult=prev))
    assert node.executor.sent("ADD", "tuning")[0].conf["prevResult"]["ips"] == prev["ips"]


def test_range_is_refused_when_it_overlaps_node_ports_unless_forced() -> None:
    node = Node()
    overlapping = {"default": "29000-31000"}
    with pytest.raises(CniError, match=r"\$\.ranges\.default .* overlaps the NodePort range") as caught:
        node.call("ADD", conf(ranges=overlapping))
    assert caught.value.code == 7
    assert node.executor.calls == []
    node.call("ADD", conf(ranges=overlapping, forceOverlap=True))
    assert len(node.ports()) == 1


def test_args_reach_the_delegates_as_they_came() -> None:
    node = Node()
    node.call("ADD", conf(), args=POD_ARGS)
    assert {call.environ["CNI_ARGS"] for call in node.executor.calls} == {POD_ARGS}
