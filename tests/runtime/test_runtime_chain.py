"""Chains on fake plugins: what each plugin is sent, in which order, and what is left after each kind of failure."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cnimeta.errors import (
    CniError,
    DelegateFailed,
    IncompatibleVersion,
    InvalidEnvironment,
    IoFailure,
    PluginNotAvailable,
    TryAgainLater,
)
from cnimeta.runtime import Container, NetworkList, Runtime
from cnimeta.runtime.conf import parse_list
from cnimeta.spec.version import ALL
from cnimeta.testing.delegates import FakeDelegate, FakeExec, address_result, completed
from cnimeta.testing.files import MemoryFiles

if TYPE_CHECKING:
    from collections.abc import Mapping

pytestmark = pytest.mark.unit

ENVIRON = {
    "PATH": "/usr/bin",
    "HOME": "/root",
    "CNI_COMMAND": "x",
    "CNI_IFNAME": "old",
    "CNI_NETNS": "old",
    "CNI_ARGS": "A=B",
}
CONTAINER = Container("c1", "/run/netns/c1", args=(("IgnoreUnknown", "1"), ("K", "V")))


class Rig:
    """A runtime on three fake plugins, files in memory, and what it logged."""

    def __init__(self, folder: Path) -> None:
        self.bridge = FakeDelegate("bridge", result=address_result("10.1.0.2/24", netns="/run/netns/c1"))
        self.portmap = FakeDelegate("portmap")
        self.bandwidth = FakeDelegate("bandwidth")
        self.plugins = FakeExec(self.bridge, self.portmap, self.bandwidth)
        self.files = MemoryFiles()
        self.log: list[str] = []
        self.folder = folder
        self.runtime = Runtime(
            ["/opt/a", "/opt/b"],
            str(folder),
            lock_timeout_s=0.05,
            executor=self.plugins,
            locate=self.plugins.locate,
            files=self.files,
            environ=ENVIRON,
            log=self.log.append,
        )

    @property
    def cached(self) -> str:
        return f"{self.folder}/results/net-c1-eth0"

    def sent(self, verb: str, plugin: str) -> dict[str, Any]:
        """The configuration that the plugin's only call of this verb got."""
        (call,) = self.plugins.sent(verb, plugin)
        return call.conf

    def clear(self) -> None:
        self.plugins.calls.clear()


@pytest.fixture
def rig(tmp_path: Path) -> Rig:
    return Rig(tmp_path)


def network(version: str = "1.1.0", **changes: Any) -> NetworkList:
    plugins = [
        {"type": "bridge", "bridge": "br0", "name": "inner", "cniVersion": "0.1.0"},
        {"type": "portmap", "capabilities": {"portMappings": True, "ips": False}},
        {"type": "bandwidth", "capabilities": {"bandwidth": True, "portMappings": True}},
    ]
    return parse_list({"cniVersion": version, "name": "net", "plugins": plugins, **changes})


# --- ADD -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ALL)
def test_each_plugin_gets_the_result_before_it_when_a_chain_is_added(rig: Rig, version: str) -> None:
    result = rig.runtime.add(network(version), CONTAINER)
    assert rig.plugins.dump() == "ADD bridge c1 eth0\nADD portmap c1 eth0\nADD bandwidth c1 eth0\n"
    assert "prevResult" not in rig.sent("ADD", "bridge")
    for plugin in ("portmap", "bandwidth"):
        assert rig.sent("ADD", plugin)["prevResult"]["cniVersion"] == version
    if version >= "0.3.0":
        names = [entry["name"] for entry in rig.sent("ADD", "bandwidth")["prevResult"]["interfaces"]]
        assert names == ["eth0", "portmap0"]
        assert [interface.name for interface in result.interfaces] == ["eth0", "portmap0", "bandwidt0"]
    stored = json.loads(rig.files.content[rig.cached])
    assert stored["result"]["cniVersion"] == version


def test_name_and_version_are_the_lists_and_the_rest_is_the_plugins_when_it_is_called(rig: Rig) -> None:
    rig.runtime.add(network(), CONTAINER)
    assert rig.sent("ADD", "bridge") == {"cniVersion": "1.1.0", "name": "net", "type": "bridge", "bridge": "br0"}


def test_the_environment_is_the_runtimes_and_the_attachments_when_a_plugin_is_called(rig: Rig) -> None:
    rig.runtime.add(network(), CONTAINER)
    for call in rig.plugins.calls:
        assert call.environ == {
            "PATH": "/usr/bin",
            "HOME": "/root",
            "CNI_COMMAND": "ADD",
            "CNI_CONTAINERID": "c1",
            "CNI_NETNS": "/run/netns/c1",
            "CNI_IFNAME": "eth0",
            "CNI_ARGS": "IgnoreUnknown=1;K=V",
            "CNI_PATH": "/opt/a:/opt/b",
        }


def test_a_plugin_gets_what_it_declares_when_there_are_capability_arguments(rig: Rig) -> None:
    given: Mapping[str, Any] = {"portMappings": [{"hostPort": 1}], "ips": ["10.0.0.9/24"], "mac": "x"}
    rig.runtime.add(network(), CONTAINER._replace(capability_args=given))
    assert "runtimeConfig" not in rig.sent("ADD", "bridge")
    for plugin in ("portmap", "bandwidth"):
        assert rig.sent("ADD", plugin)["runtimeConfig"] == {"portMappings": [{"hostPort": 1}]}
    assert rig.sent("ADD", "portmap")["capabilities"] == {"portMappings": True, "ips": False}


def test_capabilities_match_letter_by_letter_when_they_are_compared(rig: Rig) -> None:
    rig.runtime.add(network(), CONTAINER._replace(capability_args={"PortMappings": [], "bandWidth": {}}))
    for call in rig.plugins.calls:
        assert "runtimeConfig" not in call.conf


def test_written_keys_stay_when_the_runtime_has_nothing_in_their_place(rig: Rig) -> None:
    prev = {"cniVersion": "1.1.0", "ips": [{"address": "10.9.0.2/24"}]}
    written = {"type": "portmap", "prevResult": prev, "RuntimeConfig": {"a": 1}, "capabilities": {"b": True}}
    alone = network(plugins=[written])
    rig.runtime.add(alone, CONTAINER)
    assert rig.sent("ADD", "portmap")["prevResult"] == prev
    assert rig.sent("ADD", "portmap")["RuntimeConfig"] == {"a": 1}
    rig.clear()
    rig.runtime.add(alone, CONTAINER._replace(capability_args={"b": 2}))
    assert "RuntimeConfig" not in rig.sent("ADD", "portmap")
    assert rig.sent("ADD", "portmap")["runtimeConfig"] == {"b": 2}


def test_the_whole_chain_is_undone_when_a_plugin_fails(rig: Rig) -> None:
    rig.portmap.errors["ADD"] = CniError("port 80 is taken", "by c9", code=100)
    with pytest.raises(CniError) as caught:
        rig.runtime.add(network(), CONTAINER)
    assert (caught.value.code, caught.value.msg, caught.value.details) == (
        100,
        "plugin portmap failed ADD: port 80 is taken",
        "by c9",
    )
    assert rig.plugins.dump() == (
        "ADD bridge c1 eth0\nADD portmap c1 eth0 -> 1\nDEL bandwidth c1 eth0\nDEL portmap c1 eth0\nDEL bridge c1 eth0\n"
    )
    for call in rig.plugins.sent("DEL"):
        assert call.conf["prevResult"] == rig.sent("ADD", "portmap")["prevResult"]
    assert rig.files.content == {}


def test_undoing_has_no_result_when_the_first_plugin_fails(rig: Rig) -> None:
    rig.bridge.late_errors["ADD"] = CniError("no address", code=11)
    with pytest.raises(CniError, match="no address"):
        rig.runtime.add(network(), CONTAINER)
    assert [call.conf.get("prevResult") for call in rig.plugins.sent("DEL")] == [None] * 3
    assert rig.bridge.attachments == {}


def test_the_undoings_own_failures_are_details_when_it_fails_too(rig: Rig) -> None:
    rig.bandwidth.errors["ADD"] = CniError("no ifb", code=101)
    rig.portmap.errors["DEL"] = CniError("nft is gone", code=5)
    with pytest.raises(CniError) as caught:
        rig.runtime.add(network(), CONTAINER)
    assert caught.value.code == 101
    assert caught.value.details == "and DEL after it: plugin portmap failed DEL: nft is gone"
    assert rig.bridge.attachments == {}


def test_the_chain_stays_when_undoing_is_not_wanted(rig: Rig) -> None:
    rig.portmap.errors["ADD"] = CniError("no", code=100)
    with pytest.raises(CniError):
        rig.runtime.add(network(), CONTAINER, undo=False)
    assert rig.plugins.sent("DEL") == []
    assert rig.bridge.attachments


def test_a_served_attachment_stays_when_a_second_add_of_it_fails(rig: Rig) -> None:
    rig.runtime.add(network(), CONTAINER)
    rig.bridge.errors["ADD"] = CniError("eth0 already exists", code=999)
    with pytest.raises(CniError) as caught:
        rig.runtime.add(network(), CONTAINER)
    assert "nothing was undone" in caught.value.details
    assert rig.plugins.sent("DEL") == []
    assert rig.cached in rig.files.content


@pytest.mark.parametrize("fault", [KeyboardInterrupt(), RuntimeError("defect")])
def test_the_chain_is_undone_when_something_else_than_an_error_stops_it(rig: Rig, fault: BaseException) -> None:
    def interrupt(name: str, environ: Mapping[str, str], _: bytes) -> None:
        if name == "bandwidth" and environ["CNI_COMMAND"] == "ADD":
            raise fault

    rig.plugins.hook = interrupt
    with pytest.raises(type(fault)):
        rig.runtime.add(network(), CONTAINER)
    assert rig.bridge.attachments == {}
    assert rig.portmap.attachments == {}


def test_the_chain_is_undone_when_the_result_cannot_be_cached(rig: Rig) -> None:
    rig.files.fail_at(1, errno.ENOSPC)
    with pytest.raises(IoFailure, match=r"cannot write the result to .*/net-c1-eth0: No space left"):
        rig.runtime.add(network(), CONTAINER)
    assert rig.bridge.attachments == rig.bandwidth.attachments == {}
    assert rig.files.content == {}


def test_later_plugins_are_not_run_when_one_is_missing(rig: Rig) -> None:
    del rig.plugins.plugins["portmap"]
    with pytest.raises(DelegateFailed, match='failed to find plugin "portmap" in CNI_PATH "/opt/a:/opt/b"'):
        rig.runtime.add(network(), CONTAINER)
    assert rig.plugins.sent("ADD", "bandwidth") == []
    assert rig.bridge.attachments == {}


@pytest.mark.parametrize("answer", ["", "{", "[]", "{}{}", '{"ips": [{"address": "x"}]}', '{"cniVersion": "7.0.0"}'])
def test_the_chain_is_undone_when_an_answer_cannot_be_read(rig: Rig, answer: str) -> None:
    rig.plugins.script("portmap", "ADD", completed(answer))
    with pytest.raises(CniError, match="portmap"):
        rig.runtime.add(network(), CONTAINER)
    assert rig.bridge.attachments == {}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"container_id": ""}, "CNI_CONTAINERID"),
        ({"container_id": "../c1"}, "CNI_CONTAINERID"),
        ({"container_id": "c1\n"}, "CNI_CONTAINERID"),
        ({"ifname": ""}, "CNI_IFNAME"),
        ({"ifname": "a/b"}, "CNI_IFNAME"),
        ({"ifname": "x" * 16}, "longer than 15 bytes"),
        ({"netns": ""}, "network namespace"),
        ({"args": (("K", "V;IgnoreUnknown=1"),)}, "CNI_ARGS cannot hold"),
        ({"args": (("K=L", "V"),)}, "CNI_ARGS cannot hold"),
        ({"args": (("", "V"),)}, "CNI_ARGS cannot hold"),
    ],
)
def test_nothing_is_run_when_the_container_is_not_valid(rig: Rig, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidEnvironment, match=message):
        rig.runtime.add(network(), CONTAINER._replace(**changes))
    assert rig.plugins.calls == []


# --- DEL -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", ALL)
def test_the_cached_result_goes_to_every_plugin_when_the_version_has_it_on_del(rig: Rig, version: str) -> None:
    rig.runtime.add(network(version), CONTAINER)
    stored = json.loads(rig.files.content[rig.cached])["result"]
    rig.clear()
    rig.runtime.delete(network(version), CONTAINER)
    assert rig.plugins.dump() == "DEL bandwidth c1 eth0\nDEL portmap c1 eth0\nDEL bridge c1 eth0\n"
    for call in rig.plugins.calls:
        assert call.conf.get("prevResult") == (stored if version >= "0.4.0" else None)
    assert rig.files.content == {}


def test_del_succeeds_when_it_is_repeated_or_nothing_was_added(rig: Rig) -> None:
    rig.runtime.delete(network(), CONTAINER)
    rig.runtime.add(network(), CONTAINER)
    for _ in range(3):
        rig.runtime.delete(network(), CONTAINER)
    assert rig.log == []


def test_every_plugin_is_called_and_every_failure_told_when_some_fail_del(rig: Rig) -> None:
    rig.runtime.add(network(), CONTAINER)
    rig.bandwidth.errors["DEL"] = CniError("busy", code=11)
    rig.portmap.errors["DEL"] = CniError("nft is gone", code=5)
    with pytest.raises(CniError) as caught:
        rig.runtime.delete(network(), CONTAINER)
    assert caught.value.code == 11
    assert caught.value.msg == "plugin bandwidth failed DEL: busy; plugin portmap failed DEL: nft is gone"
    assert rig.bridge.attachments == {}
    assert rig.cached in rig.files.content  # the next DEL has the same result
    rig.bandwidth.errors.clear()
    rig.portmap.errors.clear()
    rig.clear()
    rig.runtime.delete(network(), CONTAINER)
    assert "prevResult" in rig.sent("DEL", "bridge")
    assert rig.files.content == {}


def test_what_was_left_out_is_taken_from_add_when_only_the_container_is_named(rig: Rig) -> None:
    rig.runtime.add(network(), CONTAINER._replace(capability_args={"portMappings": [1]}))
    rig.runtime.delete(network(), Container("c1", ""))
    (call,) = rig.plugins.sent("DEL", "portmap")
    assert call.environ["CNI_NETNS"] == "/run/netns/c1"
    assert call.environ["CNI_ARGS"] == "IgnoreUnknown=1;K=V"
    assert call.conf["runtimeConfig"] == {"portMappings": [1]}


@pytest.mark.parametrize(
    ("interfaces", "netns"),
    [
        ([{"name": "eth0"}, {"name": "eth0", "sandbox": "/run/netns/x"}], "/run/netns/x"),
        ([{"name": "eth1", "sandbox": "/run/netns/x"}], ""),
        (None, ""),
        ("nonsense", ""),
    ],
)
def test_the_result_tells_the_namespace_when_the_cache_does_not(rig: Rig, interfaces: Any, netns: str) -> None:
    rig.runtime.add(network(), CONTAINER)
    body = json.loads(rig.files.content[rig.cached])
    del body["netns"]
    body["result"]["interfaces"] = interfaces
    rig.files.content[rig.cached] = json.dumps(body).encode()
    rig.runtime.delete(network(), Container("c1", ""))
    assert [call.environ["CNI_NETNS"] for call in rig.plugins.sent("DEL")] == [netns] * 3


def test_the_namespace_is_empty_when_nobody_knows_it_on_del(rig: Rig) -> None:
    rig.runtime.delete(network(), Container("c1", ""))
    assert [call.environ["CNI_NETNS"] for call in rig.plugins.sent("DEL")] == ["", "", ""]


@pytest.mark.parametrize("content", [b"", b"{", b'{"kind":"cniCacheV1"}', b'{"kind":"other"}'])
def test_del_goes_through_when_the_cached_result_is_damaged(rig: Rig, content: bytes) -> None:
    rig.runtime.add(network(), CONTAINER)
    rig.files.content[rig.cached] = content
    rig.clear()
    rig.runtime.delete(network(), CONTAINER)
    assert len(rig.plugins.sent("DEL")) == 3
    assert rig.files.content == {}


def test_del_does_all_it_can_and_reports_when_the_disk_does_not_give_the_cached_result(rig: Rig) -> None:
    rig.runtime.add(network(), CONTAINER)
    rig.clear()
    rig.files.unreadable[rig.cached] = errno.EIO
    with pytest.raises(IoFailure, match=r"cannot read the cached result .*net-c1-eth0: Input/output error"):
        rig.runtime.delete(network(), CONTAINER)
    assert rig.plugins.dump() == "DEL bandwidth c1 eth0\nDEL portmap c1 eth0\nDEL bridge c1 eth0\n"
    assert rig.cached in rig.files.content
    del rig.files.unreadable[rig.cached]
    rig.runtime.delete(network(), CONTAINER)
    assert "prevResult" in rig.plugins.sent("DEL", "bridge")[-1].conf
    assert rig.cached not in rig.files.content


def test_nothing_is_added_when_nobody_knows_whether_it_was_before(rig: Rig) -> None:
    rig.files.content[rig.cached] = b"{}"
    rig.files.unreadable[rig.cached] = errno.EIO
    with pytest.raises(IoFailure, match="cannot read the cached result"):
        rig.runtime.add(network(), CONTAINER)
    assert rig.plugins.calls == []


def test_what_can_be_read_is_collected_when_the_disk_does_not_give_the_rest(rig: Rig) -> None:
    for container in (CONTAINER, CONTAINER._replace(container_id="c2")):
        rig.runtime.add(network(), container)
    rig.clear()
    rig.files.unreadable[rig.cached] = errno.EIO
    with pytest.raises(IoFailure, match="net-c1-eth0: Input/output error"):
        rig.runtime.gc(network(), [])
    assert [call.container_id for call in rig.plugins.sent("DEL")] == ["c2"] * 3
    assert len(rig.plugins.sent("GC")) == 3


@pytest.mark.parametrize("number", [errno.EINTR, errno.EAGAIN])
def test_cached_result_is_read_again_when_reading_fails_in_passing(rig: Rig, number: int) -> None:
    rig.runtime.add(network(), CONTAINER)
    rig.files.unreadable[rig.cached] = number
    seen = len(rig.files.reads)

    class Passing(dict[str, int]):
        def __contains__(self, path: object) -> bool:
            return len(rig.files.reads) < seen + 3 and super().__contains__(path)

    rig.files.unreadable = Passing(rig.files.unreadable)
    rig.runtime.check(network(), CONTAINER)
    assert len(rig.files.reads) == seen + 3


def test_the_cached_result_is_converted_when_the_configuration_was_changed(rig: Rig) -> None:
    rig.runtime.add(network("1.0.0"), CONTAINER)
    rig.clear()
    rig.runtime.delete(network("0.4.0"), CONTAINER)
    prev = rig.sent("DEL", "bridge")["prevResult"]
    assert prev["cniVersion"] == "0.4.0"
    assert prev["ips"][0]["version"] == "4"


def test_del_goes_through_when_the_cached_result_cannot_be_converted(rig: Rig) -> None:
    rig.runtime.add(network(), CONTAINER)
    body = json.loads(rig.files.content[rig.cached])
    body["result"]["ips"] = [{"address": "nonsense"}]
    rig.files.content[rig.cached] = json.dumps(body).encode()
    rig.clear()
    rig.runtime.delete(network(), CONTAINER)
    assert "prevResult" not in rig.sent("DEL", "bridge")
    assert "the cached result is ignored" in rig.log[0]


# --- CHECK -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [version for version in ALL if version >= "0.4.0"])
def test_the_final_result_goes_to_every_plugin_when_the_chain_is_checked(rig: Rig, version: str) -> None:
    rig.runtime.add(network(version), CONTAINER)
    stored = json.loads(rig.files.content[rig.cached])["result"]
    rig.clear()
    rig.runtime.check(network(version), CONTAINER)
    assert rig.plugins.dump() == "CHECK bridge c1 eth0\nCHECK portmap c1 eth0\nCHECK bandwidth c1 eth0\n"
    assert [call.conf["prevResult"] for call in rig.plugins.calls] == [stored] * 3


@pytest.mark.parametrize("version", [version for version in ALL if version < "0.4.0"])
def test_check_is_refused_when_the_version_does_not_have_it(rig: Rig, version: str) -> None:
    rig.runtime.add(network(version, disableCheck=True), CONTAINER)
    with pytest.raises(IncompatibleVersion, match="does not allow CHECK"):
        rig.runtime.check(network(version, disableCheck=True), CONTAINER)


def test_nothing_is_run_when_the_list_disables_check(rig: Rig) -> None:
    rig.runtime.check(network(disableCheck="true"), CONTAINER)
    assert rig.plugins.calls == []


def test_check_stops_when_a_plugin_fails(rig: Rig) -> None:
    rig.runtime.add(network(), CONTAINER)
    rig.portmap.errors["CHECK"] = CniError("the rule is gone", code=101)
    with pytest.raises(CniError, match="plugin portmap failed CHECK: the rule is gone") as caught:
        rig.runtime.check(network(), CONTAINER)
    assert caught.value.code == 101
    assert rig.plugins.sent("CHECK", "bandwidth") == []


def test_check_fails_when_there_is_no_cached_result(rig: Rig) -> None:
    with pytest.raises(IoFailure, match="no cached result of net c1 eth0"):
        rig.runtime.check(network(), CONTAINER)
    assert rig.plugins.calls == []


# --- GC and STATUS ---------------------------------------------------------------------------------------


def added(rig: Rig, version: str, *names: str) -> None:
    for name in names:
        rig.runtime.add(network(version), CONTAINER._replace(container_id=name, args=()))
    rig.clear()


def test_stale_attachments_are_deleted_before_gc_when_a_network_is_collected(rig: Rig) -> None:
    added(rig, "1.1.0", "c1", "c2", "c3")
    rig.runtime.gc(network(), [("c2", "eth0"), ("gone", "eth0")])
    assert rig.plugins.dump() == (
        "DEL bandwidth c1 eth0\nDEL portmap c1 eth0\nDEL bridge c1 eth0\n"
        "DEL bandwidth c3 eth0\nDEL portmap c3 eth0\nDEL bridge c3 eth0\n"
        "GC bridge\nGC portmap\nGC bandwidth\n"
    )
    listed = [{"containerID": "c2", "ifname": "eth0"}, {"containerID": "gone", "ifname": "eth0"}]
    for call in rig.plugins.sent("GC"):
        assert call.conf["cni.dev/valid-attachments"] == call.conf["cni.dev/attachments"] == listed
        assert "CNI_CONTAINERID" not in call.environ
    for call in rig.plugins.sent("DEL"):
        assert call.environ["CNI_NETNS"] == "/run/netns/c1"
        assert "prevResult" in call.conf
    assert list(rig.files.content) == [f"{rig.folder}/results/net-c2-eth0"]
    assert set(rig.bridge.attachments) == {("net", "c2", "eth0")}


def test_an_interface_is_an_attachment_of_its_own_when_a_network_is_collected(rig: Rig) -> None:
    added(rig, "1.1.0", "c1")
    rig.runtime.gc(network(), [("c1", "net1")])
    assert rig.bridge.attachments == {}


def test_plugins_are_not_told_what_is_valid_when_the_caller_does_not_say(rig: Rig) -> None:
    added(rig, "1.1.0", "c1")
    rig.files.content.clear()  # an attachment that only the plugins know
    rig.runtime.gc(network(), None)
    for call in rig.plugins.sent("GC"):
        assert not [key for key in call.conf if key.startswith("cni.dev/")]
    assert rig.bridge.attachments


def test_an_empty_list_is_sent_when_nothing_is_valid(rig: Rig) -> None:
    added(rig, "1.1.0", "c1")
    rig.files.content.clear()
    rig.runtime.gc(network(), [])
    assert rig.sent("GC", "bridge")["cni.dev/valid-attachments"] == []
    assert rig.bridge.attachments == {}


def test_only_del_is_run_when_the_version_does_not_have_gc(rig: Rig) -> None:
    added(rig, "1.0.0", "c1")
    rig.runtime.gc(network("1.0.0"), [])
    assert rig.plugins.sent("GC") == []
    assert rig.bridge.attachments == {}


def test_nothing_is_run_when_the_list_disables_gc(rig: Rig) -> None:
    added(rig, "1.1.0", "c1")
    rig.runtime.gc(network(disableGC="true"), [])
    assert rig.plugins.calls == []


def test_gc_goes_on_and_tells_everything_when_some_calls_fail(rig: Rig) -> None:
    added(rig, "1.1.0", "c1", "c2")
    rig.plugins.script("portmap", "DEL", CniError("busy", code=11))
    rig.bridge.errors["GC"] = CniError("no", code=5)
    with pytest.raises(CniError) as caught:
        rig.runtime.gc(network(), [])
    assert caught.value.msg == "plugin portmap failed DEL: busy; plugin bridge failed GC: no"
    assert rig.bandwidth.attachments == {}
    assert list(rig.files.content) == [f"{rig.folder}/results/net-c1-eth0"]


def test_a_hostile_cache_file_is_reported_when_a_network_is_collected(rig: Rig) -> None:
    body = {"kind": "cniCacheV1", "containerId": "../../etc", "ifName": "eth0", "networkName": "net", "config": ""}
    rig.files.content[f"{rig.folder}/results/net-x-eth0"] = json.dumps(body).encode()
    with pytest.raises(InvalidEnvironment, match=r"CNI_CONTAINERID \"\.\./\.\./etc\" is invalid"):
        rig.runtime.gc(network(), [])
    assert rig.plugins.sent("DEL") == []
    assert len(rig.plugins.sent("GC")) == 3


def test_status_stops_when_a_plugin_is_not_ready(rig: Rig) -> None:
    rig.runtime.status(network())
    assert rig.plugins.dump() == "STATUS bridge\nSTATUS portmap\nSTATUS bandwidth\n"
    assert "CNI_CONTAINERID" not in rig.plugins.calls[0].environ
    rig.clear()
    rig.portmap.errors["STATUS"] = PluginNotAvailable("no nft")
    with pytest.raises(CniError, match="no nft") as caught:
        rig.runtime.status(network())
    assert caught.value.code == 50
    assert rig.plugins.sent("STATUS", "bandwidth") == []


def test_status_is_not_asked_when_the_version_does_not_have_it(rig: Rig) -> None:
    rig.runtime.status(network("1.0.0"))
    assert rig.plugins.calls == []


# --- VERSION ---------------------------------------------------------------------------------------------


def test_what_each_plugin_supports_is_told_when_a_network_is_validated(rig: Rig) -> None:
    rig.portmap.versions = ("1.0.0", "1.1.0")
    assert rig.runtime.validate(network()) == {"bridge": ALL, "portmap": ("1.0.0", "1.1.0"), "bandwidth": ALL}


def test_every_unfit_plugin_is_named_when_a_network_is_validated(rig: Rig) -> None:
    rig.bridge.versions = ("0.4.0",)
    del rig.plugins.plugins["bandwidth"]
    with pytest.raises(CniError) as caught:
        rig.runtime.validate(network())
    assert 'plugin bridge does not support 1.1.0, only "0.4.0"' in caught.value.msg
    assert 'failed to find plugin "bandwidth"' in caught.value.msg
    assert caught.value.code == 1


# --- locks -----------------------------------------------------------------------------------------------


def test_one_caller_works_on_an_attachment_when_several_want_to(rig: Rig) -> None:
    other = Runtime(
        ["/opt/a"],
        str(rig.folder),
        lock_timeout_s=0.05,
        executor=rig.plugins,
        locate=rig.plugins.locate,
        files=rig.files,
    )
    tried: list[str] = []

    def meanwhile(name: str, *_: object) -> None:
        if name == "portmap" and not tried:
            tried.append(name)
            for call in (other.add, other.delete, other.check):
                with pytest.raises(TryAgainLater, match="another process has been working on this"):
                    call(network(), CONTAINER)
            with pytest.raises(TryAgainLater):
                other.gc(network(), [])
            other.add(network(), CONTAINER._replace(container_id="c2", args=()))
            other.gc(network(name="othernet"), [])

    rig.plugins.hook = meanwhile
    rig.runtime.add(network(), CONTAINER)
    assert tried == ["portmap"]
    assert {key[1] for key in rig.bandwidth.attachments} == {"c1", "c2"}


def test_nobody_works_on_a_network_when_it_is_collected(rig: Rig) -> None:
    tried: list[str] = []

    def meanwhile(name: str, *_: object) -> None:
        if not tried:
            tried.append(name)
            with pytest.raises(TryAgainLater):
                rig.runtime.add(network(), CONTAINER)

    rig.plugins.hook = meanwhile
    rig.runtime.gc(network(), [])
    assert tried == ["bridge"]


def test_the_file_is_named_when_the_lock_cannot_be_made(rig: Rig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    runtime = Runtime(["/opt/a"], str(tmp_path / "file"), executor=rig.plugins, locate=rig.plugins.locate)
    with pytest.raises(IoFailure, match=r"the lock .*/file/cnimeta-run\.lock cannot be used: "):
        runtime.add(network(), CONTAINER)
    assert rig.plugins.calls == []
