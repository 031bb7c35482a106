"""CHECK, GC and STATUS on fakes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hostport_harness import DATA_DIR, POD_ARGS, Node, conf

from cnimeta.errors import CniError, IoFailure, PluginNotAvailable, StateUnusable
from cnimeta.testing.delegates import FakeDelegate
from cnimeta.testing.memory import call
from cnimeta_plugins.hostport_alloc.main import HostportAlloc

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit

GC = {"cniVersion": "1.1.0"}


def check_conf(**keys: Any) -> dict[str, Any]:
    return conf(prevResult={"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.2/24"}]}, **keys)


def test_check_asks_delegates_and_portmap_with_the_recorded_mappings() -> None:
    node = Node()
    node.call("ADD", conf())
    node.executor.calls.clear()
    node.call("CHECK", check_conf(expose=["9/tcp"]))
    assert node.executor.dump() == "CHECK bridge c1 eth0\nCHECK portmap c1 eth0\n"
    assert [one["hostPort"] for one in node.mappings("CHECK")] == node.ports()


@pytest.mark.parametrize("missing", ["bridge", "portmap"])
def test_check_fails_when_something_is_missing(missing: str) -> None:
    node = Node()
    node.call("ADD", conf())
    node.executor.plugins[missing].attachments.clear()
    with pytest.raises(CniError, match=f"plugin {missing} failed CHECK") as caught:
        node.call("CHECK", check_conf())
    assert caught.value.code == 101


def test_check_fails_when_the_record_is_missing() -> None:
    with pytest.raises(CniError, match='container "c1" has no record in /data') as caught:
        Node().call("CHECK", check_conf())
    assert caught.value.code == 101


def test_check_fails_when_the_record_is_of_an_earlier_boot() -> None:
    node = Node()
    node.call("ADD", conf())
    node.boot = "boot-2"
    with pytest.raises(CniError, match="earlier boot"):
        node.call("CHECK", check_conf())


def test_check_reaches_the_delegates_when_nothing_is_exposed() -> None:
    node = Node()
    node.call("ADD", conf(expose=[]))
    node.call("CHECK", check_conf(expose=[]))
    assert node.executor.dump() == "ADD bridge c1 eth0\nCHECK bridge c1 eth0\n"


def test_check_leaves_the_delegates_out_when_their_list_disables_it() -> None:
    node = Node()
    wrapped = {"name": "pods", "plugins": [{"type": "bridge"}], "disableCheck": True}
    settings = check_conf(delegate=wrapped)
    del settings["delegates"]
    node.call("ADD", settings)
    node.executor.calls.clear()
    node.call("CHECK", settings)
    assert node.executor.dump() == "CHECK portmap c1 eth0\n"


def test_gc_frees_exactly_what_is_not_listed() -> None:
    node = Node()
    for container_id in ("c1", "c2", "c3"):
        node.call("ADD", conf(**GC), container_id=container_id, args=POD_ARGS)
    node.executor.calls.clear()
    listed = [{"containerID": "c2", "ifname": "eth0"}]
    node.call("GC", conf(**GC, **{"cni.dev/valid-attachments": listed, "cni.dev/attachments": listed}))
    assert node.ports("c1") == node.ports("c3") == []
    assert len(node.ports("c2")) == 1
    undone = [(call.plugin, call.container_id) for call in node.executor.sent("DEL")]
    assert sorted(undone) == [("bridge", "c1"), ("bridge", "c3"), ("portmap", "c1"), ("portmap", "c3")]
    assert {call.environ["CNI_ARGS"] for call in node.executor.sent("DEL")} == {POD_ARGS}
    forwarded = node.executor.sent("GC")
    assert [call.plugin for call in forwarded] == ["bridge", "portmap"]
    assert all(call.conf["cni.dev/valid-attachments"] == listed for call in forwarded)


def test_gc_leaves_other_networks_alone() -> None:
    node = Node()
    node.call("ADD", {**conf(**GC), "name": "other"})
    node.call("GC", conf(**GC, **{"cni.dev/valid-attachments": []}))
    assert len(node.ports(network="other")) == 1


def test_gc_frees_nothing_when_the_list_is_absent_and_all_when_it_is_empty() -> None:
    node = Node()
    node.call("ADD", conf(**GC))
    node.call("GC", conf(**GC))
    assert len(node.ports()) == 1
    node.call("GC", conf(**GC, **{"cni.dev/valid-attachments": []}))
    assert node.ports() == []


def test_gc_goes_on_and_keeps_the_port_when_rules_cannot_be_removed() -> None:
    node = Node()
    for container_id in ("c1", "c2"):
        node.call("ADD", conf(**GC), container_id=container_id)
    failures = [IoFailure("nft is stuck")]
    node.executor.script("portmap", "DEL", *failures)
    with pytest.raises(CniError, match="nft is stuck"):
        node.call("GC", conf(**GC, **{"cni.dev/valid-attachments": []}))
    assert sorted(len(node.ports(container_id)) for container_id in ("c1", "c2")) == [0, 1]
    assert len(node.executor.sent("GC", "portmap")) == 1


def test_status_is_good_when_ports_are_free() -> None:
    node = Node()
    node.call("STATUS", conf(**GC))
    assert node.executor.dump() == "STATUS bridge\nSTATUS portmap\n"


def test_one_port_is_called_one_port_when_a_range_has_no_more() -> None:
    node = Node()
    settings = conf(**GC, ranges={"default": "20000"})
    node.call("ADD", settings)
    with pytest.raises(CniError, match=r"\(20000, 1 port\) has no free tcp port"):
        node.call("STATUS", settings)


def test_status_is_50_when_a_range_is_exhausted() -> None:
    node = Node()
    settings = conf(**GC, ranges={"default": "20000-20001"})
    for container_id in ("c1", "c2"):
        node.call("ADD", settings, container_id=container_id)
    with pytest.raises(CniError, match=r'range "default" \(20000-20001, 2 ports\) has no free tcp port') as caught:
        node.call("STATUS", settings)
    assert caught.value.code == 50
    with pytest.raises(CniError, match="exhausted") as caught:
        node.call("ADD", settings, container_id="c3")
    assert caught.value.code == 11
    assert node.executor.sent("ADD", "bridge")[-1].container_id == "c2"
    node.call("DEL", settings, container_id="c1")
    node.call("STATUS", settings)


def test_status_counts_ports_in_use_on_the_node() -> None:
    node = Node()
    node.sockets.busy = {("tcp", 20000)}
    with pytest.raises(CniError) as caught:
        node.call("STATUS", conf(**GC, ranges={"default": "20000"}))
    assert caught.value.code == 50


def test_status_is_what_a_delegate_says() -> None:
    node = Node()
    node.bridge.errors["STATUS"] = PluginNotAvailable("no bridge module")
    with pytest.raises(CniError, match="no bridge module") as caught:
        node.call("STATUS", conf(**GC))
    assert caught.value.code == 50


def test_status_is_50_when_a_plugin_is_missing() -> None:
    node = Node()
    with pytest.raises(CniError, match='failed to find plugin "ptp"') as caught:
        node.call("STATUS", conf(**GC, delegates=[{"type": "ptp"}]))
    assert caught.value.code == 50


def test_status_is_50_when_the_data_dir_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "data").write_text("")
    plugin = HostportAlloc()
    with pytest.raises(CniError, match="it is not a folder; owner 0") as caught:
        call(plugin, "STATUS", conf(**GC, dataDir=str(tmp_path / "data")))
    assert caught.value.code == 50


@pytest.mark.parametrize("folder", ["/proc/cnimeta", "/sys/cnimeta"])
def test_status_is_50_when_the_data_dir_cannot_be_written(folder: str) -> None:
    with pytest.raises(CniError, match=f"state: {folder}: .*check dataDir") as caught:
        call(HostportAlloc(), "STATUS", conf(**GC, dataDir=folder))
    assert caught.value.code == 50


def test_status_is_50_when_the_disk_is_full() -> None:
    node = Node()
    node.databases.fail_at(1, StateUnusable("state: database or disk is full"), lasting=True)
    with pytest.raises(CniError, match="disk is full") as caught:
        node.call("STATUS", conf(**GC))
    assert caught.value.code == 50


def test_status_is_50_when_a_later_version_wrote_the_state() -> None:
    node = Node()
    node.call("ADD", conf())
    node.databases.connections[DATA_DIR].execute("PRAGMA user_version=99")
    with pytest.raises(CniError) as caught:
        node.call("STATUS", conf(**GC))
    assert caught.value.code == 50


def test_add_fails_clean_when_the_disk_is_full() -> None:
    node = Node()
    node.databases.fail_at(1, lasting=True)
    with pytest.raises(CniError) as caught:
        node.call("ADD", conf())
    assert caught.value.code == 104
    assert node.executor.calls == []


def test_add_takes_all_back_when_the_disk_fills_up_meanwhile() -> None:
    node = Node()

    def hook(name: str, *_: Any) -> None:
        if name == "portmap":
            node.databases.fail_at(1, lasting=True)

    node.executor.hook = hook
    with pytest.raises(CniError) as caught:
        node.call("ADD", conf())
    assert caught.value.code == 104
    assert node.portmap.attachments == node.bridge.attachments == {}
    node.executor.hook = None
    node.databases.heal()
    node.call("DEL", conf())
    assert node.ports() == []


def test_delete_succeeds_after_a_reboot_and_frees_delegates_leases() -> None:
    node = Node()
    node.call("ADD", conf())
    node.boot = "boot-2"
    node.executor.calls.clear()
    node.call("DEL", conf(), netns="")
    assert node.executor.dump() == "DEL portmap c1 eth0\nDEL bridge c1 eth0\n"
    assert node.store.load(("pods", "c1", "eth0")) is None


def test_same_container_gets_its_ports_again_after_a_reboot() -> None:
    """Podman keeps container IDs: ADD comes again without a DEL, and the delegates may hold leases on disk."""
    node = Node()
    node.call("ADD", conf(), args=POD_ARGS)
    ports = node.ports()
    node.boot = "boot-2"
    node.executor.calls.clear()
    node.call("ADD", conf(), args=POD_ARGS)
    assert node.ports() == ports
    assert [call.verb for call in node.executor.calls] == ["DEL", "DEL", "ADD", "ADD"]
    assert node.store.problems() == []


@pytest.mark.parametrize("damage", ["", "{", "\0" * 100, "garbage"])
def test_delete_undoes_by_the_configuration_when_the_record_is_damaged(damage: str) -> None:
    node = Node()
    node.call("ADD", conf())
    node.damage_document(damage)
    node.executor.calls.clear()
    node.call("DEL", conf(), netns="")
    node.call("DEL", conf(), netns="")
    assert {call.plugin for call in node.executor.sent("DEL")} == {"bridge", "portmap"}
    assert node.bridge.attachments == node.portmap.attachments == {}
    assert node.store.load(("pods", "c1", "eth0")) is None


def test_sticky_pod_gets_its_ports_again_when_they_are_free() -> None:
    node = Node()
    node.call("ADD", conf(quarantineSeconds=0), args=POD_ARGS)
    ports = node.ports()
    node.call("DEL", conf(), args=POD_ARGS)
    node.call("ADD", conf(), args=POD_ARGS, container_id="c2")
    assert node.ports("c2") == ports


class Killed(BaseException):
    """The process dies here."""


@pytest.mark.parametrize("at", range(12))
def test_next_command_restores_everything_when_add_is_killed(at: int) -> None:
    """Killed before or after each call of a plugin: DEL then leaves nothing, and the port can be had again."""
    node = Node(FakeDelegate("tuning"))
    settings = conf(delegates=[{"type": "bridge"}, {"type": "tuning"}], ranges={"default": "20000"})
    settings["quarantineSeconds"] = 0
    left = [at]

    def hook(*_: Any) -> None:
        if left[0] == 0:
            raise Killed
        left[0] -= 1

    node.executor.hook = hook
    try:
        node.call("ADD", settings)
    except Killed:
        pass
    for name, plugin in node.executor.plugins.items():
        if name == "portmap":
            for key in plugin.attachments:
                assert node.store.load(key) is not None, "rule => record"
    node.executor.hook = None
    node.call("DEL", settings, netns="")
    assert all(plugin.attachments == {} for plugin in node.executor.plugins.values())
    assert node.store.problems() == []
    node.call("ADD", settings, container_id="c2")
    assert node.ports("c2") == [20000]


def test_everything_is_gone_when_the_namespace_has_become_the_nodes_own() -> None:
    node = Node()
    node.call("ADD", conf())
    node.call("DEL", conf(), netns="/proc/self/ns/net")
    assert node.ports() == []
    assert {sent.environ["CNI_NETNS"] for sent in node.executor.sent("DEL", "bridge")} <= {"", "/run/netns/c1"}
