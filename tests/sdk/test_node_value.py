"""A plugin that reaches its host through the request, on nodes that are values; and what no runtime produces."""

from __future__ import annotations

import subprocess
import sys

import pytest

from cnimeta.delegate import Delegates
from cnimeta.delegate.ipam import Ipam
from cnimeta.errors import CheckFailed, CniError, DelegateFailed, IoFailure, TryAgainLater
from cnimeta.host.network.values import AddAddress, AddRoute, AddVeth, RemoveLink, SetLink, SetSysctl
from cnimeta.host.nftables.values import Chain, Change, Rule, Table
from cnimeta.host.values import PodApiError
from cnimeta.plugin import Plugin
from cnimeta.spec.result import Interface, Result, Route
from cnimeta.testing import call
from cnimeta.testing.delegates import FakeDelegate, FakeExec, address_result
from cnimeta.testing.host import FakeHost
from cnimeta.testing.kube import Fault
from cnimeta.testing.node import Node, Pod, attempt, run
from cnimeta.testing.possible import Impossible

pytestmark = pytest.mark.unit

FOLDER = "/var/lib/cni/ptp"
CONF = {"cniVersion": "1.1.0", "name": "net", "type": "ptp", "ipam": {"type": "host-local"}}
KEY = ("net", "c1", "eth0")
NETNS = "/run/netns/c1"


class Ptp(Plugin):
    """An interface plugin, small and whole: a veth pair, an address from IPAM, a route, a setting, a record."""

    name = "ptp"

    def add(self, request):
        attachment, host = request.attachment, request.host
        records = host.records(FOLDER, log=request.log)
        with records.locks.of(attachment.key).held():
            records.put(attachment.key, {"host": "veth9"})
            ipam = Ipam.of(request)
            result = ipam.add(Interface(attachment.ifname, sandbox=attachment.netns))
            host.networks.here().apply(AddVeth("veth9", attachment.ifname, attachment.netns), SetLink("veth9", up=True))
            with host.network(attachment.netns) as inside:
                inside.apply(
                    SetLink("eth0", up=True),
                    AddAddress("eth0", result.ips[0].address),
                    AddRoute("eth0", Route("0.0.0.0/0", result.ips[0].gateway)),
                    SetSysctl("net/ipv4/conf/eth0/arp_notify", "1"),
                )
                result = result.with_changed("eth0", attachment.netns, mac=inside.link("eth0").mac)
            return result.with_interface(Interface("veth9"))

    def delete(self, request):
        records = request.host.records(FOLDER, log=request.log)
        record = records.get(request.attachment.key)
        if record is not None:
            with request.host.network() as here:
                here.apply(RemoveLink(record.text("host")))
            Ipam.of(request).delete()
            records.remove(request.attachment.key)

    def check(self, request):
        if request.host.records(FOLDER, log=request.log).get(request.attachment.key) is None:
            raise CheckFailed("no record")


def ipam():
    return FakeDelegate("host-local", Result().with_ip("10.1.0.2/24", gateway="10.1.0.1"))


def empty():
    return Node().with_changes(NETNS)


def test_the_node_is_as_before_when_add_was_followed_by_del():
    delegates = [ipam()]
    before = empty()
    after = run(Ptp(), "ADD", before, CONF, delegates=delegates)
    eth0 = after.node.links[NETNS]["eth0"]
    assert (eth0.addresses, eth0.routes) == (("10.1.0.2/24",), (Route("0.0.0.0/0", "10.1.0.1"),))
    assert eth0.sysctls == {"net/ipv4/conf/eth0/arp_notify": "1"}
    assert after.node.records == {FOLDER: {KEY: {"host": "veth9"}}}
    assert [(call.plugin, call.verb, call.conf["type"]) for call in after.calls] == [("host-local", "ADD", "ptp")]
    assert after.result.ips_of("eth0", NETNS)[0].address == "10.1.0.2/24"
    assert after.result.interfaces[0].mac == eth0.link.mac
    assert before == empty()
    run(Ptp(), "CHECK", after.node, {**CONF, "prevResult": after.result}, delegates=delegates)
    for netns in (NETNS, ""):
        assert run(Ptp(), "DEL", after.node, CONF, delegates=delegates, netns=netns).node == before
    assert run(Ptp(), "DEL", before, CONF).node == before


def test_the_node_shows_how_far_it_came_when_a_change_is_refused():
    for step in range(1, 7):
        host = empty().host(ipam())
        host.networks.fail_at(step)
        after = attempt(Ptp(), "ADD", empty(), CONF, host=host)
        assert isinstance(after.error, IoFailure)
        assert run(Ptp(), "DEL", after.node, CONF, delegates=[ipam()]).node == empty()


def test_the_authors_error_is_raised_when_a_verb_fails():
    node = run(Ptp(), "ADD", empty(), CONF, delegates=[ipam()]).node._replace(records={})
    with pytest.raises(CheckFailed, match="no record"):
        run(Ptp(), "CHECK", node, {**CONF, "prevResult": Result()})


def test_the_host_is_the_fake_when_call_is_given_one():
    host = FakeHost(ipam())
    host.networks.namespace(NETNS)
    result = call(Ptp(), "ADD", CONF, host=host)
    assert result.ips[0].address == "10.1.0.2/24"
    assert host.executor.dump() == "ADD host-local c1 eth0\n"


def test_nodes_differ_when_anything_on_them_does():
    key = ("net", "c2", "eth0")
    nodes = [
        Node(), Node.of(), Node.of(host_name="other"), Node.of().with_container("/run/netns/c2", host_name="veth1"),
        Node().with_record(FOLDER, KEY, {"a": 1}), Node().with_record(FOLDER, KEY, {"a": 2}),
        Node().with_record(FOLDER, key, {"a": 1}), Node().with_rules("t", Change("add", Table("t")), Change("add", Chain("c")), Change("add", Rule("c", "accept"))),
        Node()._replace(files={"/x": b""}), Node()._replace(sockets=frozenset({("tcp", 80)})),
        Node().with_changes("", SetSysctl("net/ipv4/ip_forward", "1")), Node().with_pod("default", "web", "u1"),
        Node().with_pod("default", "web", "u1", {"a": "b"}), Node().with_pod("default", "web", "u2"), Node().with_pod("default", "db", "u1"),
    ]  # fmt: skip
    for number, node in enumerate(nodes):
        assert [other for other, one in enumerate(nodes) if one == node] == [number]
        assert run(FakeDelegate("p"), "DEL", node, {**CONF, "type": "p"}).node == node
    assert Node.of().without(NETNS) == Node()


PREV = Result((Interface("eth0", sandbox=NETNS),)).with_ip("10.1.0.2/24")


@pytest.mark.parametrize(
    ("node", "verb", "conf", "why"),
    [
        (Node(), "ADD", CONF, "makes the namespace"),
        (Node.of(), "ADD", {**CONF, "type": "other"}, "finds the plugin ptp by its type"),
        (Node.of(), "CHECK", CONF, "gives CHECK the prevResult"),
        (Node.of(), "GC", {**CONF, "prevResult": PREV}, "no runtime gives GC a prevResult"),
        (Node.of(), "DEL", {**CONF, "cni.dev/valid-attachments": []}, "no runtime gives DEL a list"),
        (Node.of(ifname="net1"), "ADD", {**CONF, "prevResult": PREV}, "interface eth0, which /run/netns/c1 does not"),
        (
            Node.of(), "ADD", {**CONF, "prevResult": PREV._replace(ips=(PREV.ips[0]._replace(interface=7),))},
            "of interface 7, of 1",
        ),
        (Node.of()._replace(links={**Node.of().links, "": Node().links[""]}), "DEL", CONF, "does not lead back"),
    ],
)  # fmt: skip
def test_a_world_is_refused_when_no_runtime_produces_it(node, verb, conf, why):
    with pytest.raises(Impossible, match=why):
        run(Ptp(), verb, node, conf)
    attempt(Ptp(), verb, node, conf, possible=False)


ARGS = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=u1"


class Counting(Plugin):
    """Counts its ADDs in an annotation of the Pod; DEL takes it away."""

    name = "counting"

    def _pods(self, request):
        args = request.attachment.args
        return request.host.pods(), (args["K8S_POD_NAMESPACE"], args["K8S_POD_NAME"]), args["K8S_POD_UID"]

    def add(self, request):
        api, pod, uid = self._pods(request)
        try:
            before = api.read(*pod, 5)["metadata"].get("annotations", {}).get("adds", "0")
            patch = {"metadata": {"uid": uid, "annotations": {"adds": str(int(before) + 1)}}}
            api.patch_status(*pod, patch, 5)
        except PodApiError as error:
            raise TryAgainLater(str(error)) from error
        return Result()

    def delete(self, request):
        api, pod, uid = self._pods(request)
        api.patch_status(*pod, {"metadata": {"uid": uid, "annotations": {"adds": None}}}, 5)


COUNTING = {**CONF, "type": "counting"}


def test_annotations_are_in_the_node_and_found_by_the_next_run_when_a_plugin_writes_them():
    before = Node.of().with_pod("default", "web", "u1", {"kept": "1"}).with_pod("default", "db", "u2")
    first = run(Counting(), "ADD", before, COUNTING, args=ARGS).node
    second = run(Counting(), "ADD", first, COUNTING, args=ARGS).node
    assert second.pods == {("default", "web"): Pod("u1", {"kept": "1", "adds": "2"}), ("default", "db"): Pod("u2")}
    assert first.pods["default", "web"].annotations["adds"] == "1"
    assert before.pods["default", "web"] == Pod("u1", {"kept": "1"})
    assert second.with_container("/run/netns/c2", host_name="veth1").pods == second.pods
    assert run(Counting(), "DEL", second, COUNTING, args=ARGS).node == before


def test_the_pod_is_as_before_when_it_is_missing_or_another_or_the_server_fails():
    for node in (Node.of(), Node.of().with_pod("default", "web", "u9")):
        after = attempt(Counting(), "ADD", node, COUNTING, args=ARGS)
        assert isinstance(after.error, TryAgainLater)
        assert after.node == node
    node = Node.of().with_pod("default", "web", "u1")
    for faults, adds in (
        ([Fault(500)], None),
        ([Fault(), Fault(drop=True)], None),
        ([Fault(), Fault(500, after=True)], "1"),
    ):
        host = node.host()
        host.pods().faults += faults
        after = attempt(Counting(), "ADD", node, COUNTING, args=ARGS, host=host)
        assert isinstance(after.error, TryAgainLater)
        assert after.node.pods["default", "web"].annotations.get("adds") == adds


@pytest.mark.parametrize(
    ("node", "args", "why"),
    [
        (Node.of().with_pod("default", "web", ""), "", "default/web has no uid"),
        (Node.of().with_pod("default", "web", "u1").with_pod("a", "b", "u1"), "", "default/web and a/b have one uid"),
        (Node.of().with_pod("default", "web", "u1", {"n": 1}), "", "annotation n of Pod default/web is no text"),
        (Node.of().with_pod("default", "db", "u1"), ARGS, "default/web with uid u1, which is default/db's"),
    ],
)
def test_pods_are_refused_when_no_api_server_has_them(node, args, why):
    plugin, conf = FakeDelegate("p"), {**CONF, "type": "p"}
    with pytest.raises(Impossible, match=why):
        run(plugin, "DEL", node, conf, args=args)
    assert run(plugin, "DEL", node, conf, args=args, possible=False).error is None


def test_no_client_is_loaded_when_a_plugin_has_the_pods_and_asks_nothing():
    code = (
        "import sys; from cnimeta.plugin.host import Host; from cnimeta.testing.node import Node; Node.of().without('x')\n"
        "Host().pods('/x'); Node.of().with_container('/run/netns/c2', host_name='v')\n"
        "print({'kubernetes', 'ssl', 'http.server', 'cnimeta.testing.kube'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


class Calling(Plugin):
    name = "calling"

    def add(self, request):
        result = request.conf.require_prev_result().with_ip("10.9.0.2/24")
        return Delegates.of(request).add({**request.conf.raw, "type": "next", "prevResult": result})


@pytest.mark.parametrize(("version", "key"), [("0.2.0", "ip4"), ("0.4.0", "ips"), ("1.1.0", "ips")])
def test_a_result_is_written_in_the_configurations_version_when_a_delegate_gets_it(version, key):
    conf = {"cniVersion": version, "name": "n", "type": "calling", "prevResult": {key: None}}
    host = FakeHost(FakeDelegate("next", address_result("10.9.0.2/24")))
    call(Calling(), "ADD", conf, host=host)
    sent = host.executor.calls[0].conf["prevResult"]
    assert Result.from_json(sent, version).ips[0].address == "10.9.0.2/24"
    assert key in sent


def test_delegates_are_found_when_the_executor_is_a_fake():
    plugins = FakeExec(FakeDelegate("next"))

    class Direct(Plugin):
        name = "direct"

        def status(self, request):
            Delegates.of(request, plugins).status({**request.conf.raw, "type": "next"})

    call(Direct(), "STATUS", {"cniVersion": "1.1.0", "name": "n", "type": "direct"})
    assert plugins.dump() == "STATUS next\n"


class OfIpam(Plugin):
    name = "ptp"

    def add(self, request):
        found = Ipam.of(request)
        return Result() if found is None else found.add()


@pytest.mark.parametrize("ipam_conf", [None, {}, {"type": ""}])
def test_there_is_no_ipam_when_none_is_asked_for(ipam_conf):
    assert call(OfIpam(), "ADD", {**CONF, "ipam": ipam_conf}, host=FakeHost()) == Result()


def test_ipam_is_undone_when_it_gives_no_address_or_fails():
    for delegate, error in ((FakeDelegate("host-local", Result()), DelegateFailed), (ipam(), CniError)):
        if error is CniError:
            delegate.errors["ADD"] = TryAgainLater("full")
        host = FakeHost(delegate)
        with pytest.raises(error):
            call(OfIpam(), "ADD", CONF, host=host)
        assert [one.verb for one in host.executor.calls] == ["ADD", "DEL"]
    with pytest.raises(CniError, match=r"\$\.ipam\.type"):
        call(OfIpam(), "ADD", {**CONF, "ipam": {"type": "../x"}}, host=FakeHost())


def test_a_result_says_what_was_put_into_it_when_it_is_asked():
    eth0 = Interface("eth0", "02:00:00:00:00:01", sandbox=NETNS)
    result = Result((Interface("veth0"),)).with_ip("10.1.0.2/24", gateway="10.1.0.1", interface=eth0)
    assert result.with_ip("10.1.0.2/24", gateway="10.1.0.1", interface=eth0) == result
    assert (result.index_of("eth0", NETNS), result.index_of("eth0"), result.ips[0].interface) == (1, None, 1)
    assert result.ips_of("veth0") == ()
    assert result.with_route(Route("0.0.0.0/0")).with_route(Route("0.0.0.0/0")).routes == (Route("0.0.0.0/0"),)
    assert Result.from_json(result.as_json("1.1.0"), "1.1.0") == result
    for wrong in (
        lambda: result.with_ip("10.1.0.2"),
        lambda: result.with_route(Route("x")),
        lambda: result.with_ip(""),
    ):
        with pytest.raises(ValueError, match=r"."):
            wrong()
