"""The plugin on a real kernel, beside Debian's own where both must agree."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from typing import TYPE_CHECKING, Any

import ebpf
import pytest

from cnimeta.errors import CheckFailed, InvalidNetworkConfig
from cnimeta.host.links.kernel import RouteLinks
from cnimeta.host.links.removal import remove_link
from cnimeta.testing import call
from cnimeta_plugins.bandwidth.main import Bandwidth
from cnimeta_plugins.bandwidth.plan import ifb_name

if TYPE_CHECKING:
    from collections.abc import Callable

    from cnimeta.testing.netns import Namespace

pytestmark = pytest.mark.kernel

REFERENCE = "/usr/lib/cni/bandwidth"
RATES = {"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 4_000_000, "egressBurst": 400_000}
IFB = ifb_name("net", "c1")


class Pair:
    """A container joined to a host, both namespaces of the test."""

    def __init__(self, host: Namespace, container: Namespace) -> None:
        self.host, self.container = host, container
        host.veth("vhost", container, "eth0")
        for namespace, device, end in ((host, "vhost", 1), (container, "eth0", 2)):
            namespace.run("ip", "addr", "add", f"10.9.0.{end}/24", "dev", device)
            namespace.run("ip", "addr", "add", f"fd09::{end}/64", "dev", device, "nodad")

    def conf(self, **keys: Any) -> dict[str, Any]:
        interfaces = [{"name": "vhost"}, {"name": "eth0", "sandbox": self.container.path}]
        result = {"cniVersion": "1.0.0", "interfaces": interfaces, "ips": [], "dns": {}}
        return {"cniVersion": "1.0.0", "name": "net", "type": "bandwidth", "prevResult": result, **keys}

    def call(self, verb: str, conf: dict[str, Any], **keys: Any) -> Any:
        with self.host.entered():
            return call(Bandwidth(), verb, conf, **{"netns": self.container.path, **keys})

    def reference(self, verb: str, conf: dict[str, Any]) -> None:
        environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_PATH": "/usr/lib/cni"}
        environ |= {"CNI_NETNS": self.container.path, "PATH": os.environ["PATH"]}
        command = ["ip", "netns", "exec", self.host.name, REFERENCE]
        subprocess.run(command, input=json.dumps(conf).encode(), env=environ, check=True, capture_output=True)

    def tc(self, *words: str) -> Any:
        return json.loads(self.host.run("tc", "-j", *words).stdout or "[]")

    def state(self) -> Any:
        """What the reference and this plugin must agree on."""
        qdiscs = {
            device: [(q["kind"], q.get("root"), q.get("options")) for q in self.tc("qdisc", "show", "dev", device)]
            for device in ("vhost", IFB)
            if device in self.names()
        }
        filters = [
            (one["protocol"], one["kind"], one.get("options", {}).get("actions", [{}])[0].get("to_dev"))
            for one in self.tc("filter", "show", "dev", "vhost", "parent", "ffff:")
        ]
        links = json.loads(self.host.run("ip", "-j", "link", "show").stdout)
        shape = [(one["mtu"], one.get("txqlen"), "UP" in one["flags"]) for one in links if one["ifname"] == IFB]
        return qdiscs, filters, shape

    def names(self) -> list[str]:
        return [one["ifname"] for one in json.loads(self.host.run("ip", "-j", "link", "show").stdout)]

    def seconds_for(self, count: int, *, towards_container: bool, host: str = "10.9.0.1") -> float:
        """How long `count` bytes take over one TCP connection between container and host."""
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        with self.host.entered():
            listener = socket.create_server((host, 0), family=family)
        with self.container.entered():
            client = socket.create_connection(listener.getsockname()[:2], timeout=5)
        served, _ = listener.accept()
        sender, receiver = (served, client) if towards_container else (client, served)
        receiver.settimeout(30)
        thread = threading.Thread(target=lambda: (sender.sendall(b"x" * count), sender.shutdown(socket.SHUT_WR)))
        began = time.monotonic()
        thread.start()
        received = 0
        while data := receiver.recv(1 << 16):
            received += len(data)
        took = time.monotonic() - began
        thread.join()
        for one in (listener, client, served):
            one.close()
        assert received == count
        return took


@pytest.fixture
def pair(make_netns: Callable[[str], Namespace]) -> Pair:
    return Pair(make_netns("bwhost"), make_netns("bwcont"))


@pytest.mark.parametrize(
    "keys",
    [
        RATES,
        {"ingressRate": 8_000, "ingressBurst": 16_000},
        {"ingressRate": 8, "ingressBurst": 8, "egressRate": 16, "egressBurst": 8},
        {"egressRate": 1_000_000_000, "egressBurst": 80_000_000},
        {"ingressRate": 16_000_000_000, "ingressBurst": 1_600_000_000},
        {"ingressRate": 80_000_000_000, "ingressBurst": 8_000_000_000},
        {"runtimeConfig": {"bandwidth": {"IngressRate": 64_000_000, "IngressBurst": 2**32 - 8}}},
    ],
    ids=["both", "slow", "slowest", "egress", "fast", "64 bits", "runtime"],
)
def test_kernel_state_equals_the_references_when_nothing_is_clamped(pair: Pair, keys: dict[str, Any]) -> None:
    conf = pair.conf(**keys)
    pair.reference("ADD", conf)
    theirs = pair.state()
    pair.reference("DEL", conf)
    pair.host.run("tc", "qdisc", "del", "dev", "vhost", "root", check=False)
    pair.host.run("tc", "qdisc", "del", "dev", "vhost", "ingress", check=False)
    pair.call("ADD", conf)
    assert pair.state() == theirs
    assert theirs[0]["vhost"]


def test_ifb_is_in_the_result_and_gone_after_del_when_egress_is_limited(pair: Pair) -> None:
    result = pair.call("ADD", pair.conf(**RATES))
    assert [one.name for one in result.interfaces] == ["vhost", "eth0", IFB]
    pair.call("CHECK", pair.conf(**RATES))
    for _ in range(2):
        pair.call("DEL", pair.conf(**RATES), netns="")
        assert IFB not in pair.names()


def test_del_removes_the_ifb_the_reference_made(pair: Pair) -> None:
    pair.reference("ADD", pair.conf(**RATES))
    pair.call("DEL", {"cniVersion": "1.0.0", "name": "net", "type": "bandwidth", "ingressRate": "nonsense"})
    assert IFB not in pair.names()


def test_reference_deletes_what_this_plugin_made(pair: Pair) -> None:
    pair.call("ADD", pair.conf(**RATES))
    pair.reference("DEL", pair.conf(**RATES))
    assert IFB not in pair.names()


def test_del_succeeds_when_veth_and_namespace_are_gone(pair: Pair) -> None:
    pair.call("ADD", pair.conf(**RATES))
    pair.host.run("ip", "link", "del", "vhost")
    pair.call("DEL", pair.conf(**RATES), netns="/run/netns/no-such-namespace")
    assert IFB not in pair.names()


def test_rates_change_in_place_when_added_again(pair: Pair) -> None:
    pair.call("ADD", pair.conf(**RATES))
    before = pair.names()
    pair.call("ADD", pair.conf(**{**RATES, "ingressRate": 16_000_000}))
    pair.call("CHECK", pair.conf(**{**RATES, "ingressRate": 16_000_000}))
    with pytest.raises(Exception, match="expected") as caught:
        pair.call("CHECK", pair.conf(**RATES))
    assert caught.value.code == CheckFailed.code
    assert pair.names() == before
    assert len(pair.tc("filter", "show", "dev", "vhost", "parent", "ffff:")) == len(pair.state()[1])


def test_container_still_sends_when_its_egress_limit_is_taken_away(pair: Pair) -> None:
    pair.call("ADD", pair.conf(**RATES))
    pair.call("ADD", pair.conf(ingressRate=8_000_000, ingressBurst=800_000))
    assert IFB not in pair.names()
    pair.seconds_for(1000, towards_container=False)


def test_container_still_sends_when_it_is_added_again_after_del(pair: Pair) -> None:
    for verb in ("ADD", "DEL", "ADD"):
        pair.call(verb, pair.conf(**RATES))
    pair.seconds_for(1000, towards_container=False)
    pair.call("CHECK", pair.conf(**RATES))


@pytest.mark.parametrize(
    "damage",
    [
        ("tc", "qdisc", "del", "dev", "vhost", "root"),
        ("tc", "qdisc", "del", "dev", "vhost", "ingress"),
        ("tc", "filter", "del", "dev", "vhost", "parent", "ffff:"),
        ("tc", "qdisc", "del", "dev", IFB, "root"),
        ("tc", "qdisc", "replace", "dev", IFB, "root", "tbf", "rate", "1gbit", "burst", "1mb", "latency", "25ms"),
        ("ip", "link", "del", IFB),
    ],
    ids=["no tbf", "no ingress", "no filter", "no tbf on ifb", "other rate", "no ifb"],
)
def test_check_fails_when_something_is_missing_or_changed(pair: Pair, damage: tuple[str, ...]) -> None:
    pair.call("ADD", pair.conf(**RATES))
    pair.call("CHECK", pair.conf(**RATES))
    pair.host.run(*damage)
    with pytest.raises(Exception, match=r"vhost|bwp") as caught:
        pair.call("CHECK", pair.conf(**RATES))
    assert caught.value.code == CheckFailed.code


@pytest.mark.parametrize("kind", ["ingress", "clsact"])
def test_qdisc_of_others_and_its_filter_stay_when_there_is_one(pair: Pair, kind: str) -> None:
    pair.host.run("tc", "qdisc", "add", "dev", "vhost", kind)
    theirs = "protocol ip prio 1 u32 match ip dst 10.77.0.0/16 flowid 1:7"
    pair.host.run(
        "tc", "filter", "add", "dev", "vhost", "parent", "ffff:fff2" if kind == "clsact" else "ffff:", *theirs.split()
    )
    pair.call("ADD", pair.conf(**RATES))
    pair.call("CHECK", pair.conf(**RATES))
    kept = pair.host.run("tc", "filter", "show", "dev", "vhost", "ingress").stdout
    assert "0a4d0000/ffff0000" in kept
    assert "flowid 1:7" in kept or "flowid ffff:7" in kept
    assert kind in pair.host.run("tc", "qdisc", "show", "dev", "vhost").stdout


def test_gc_removes_only_orphans_of_this_network(pair: Pair) -> None:
    pair.call("ADD", pair.conf(**RATES))
    pair.host.run("ip", "link", "add", "bwpforeign", "type", "ifb")
    empty = {"cniVersion": "1.1.0", "type": "bandwidth", "cni.dev/valid-attachments": []}
    pair.call("GC", {**empty, "name": "another"})
    assert IFB in pair.names()
    valid = [{"containerID": "c1", "ifname": "eth0"}]
    pair.call("GC", {**empty, "name": "net", "cni.dev/valid-attachments": valid})
    assert IFB in pair.names()
    pair.call("GC", {**empty, "name": "net"})
    assert IFB not in pair.names()
    assert "bwpforeign" in pair.names()


def test_two_interfaces_of_a_container_have_an_ifb_each(pair: Pair) -> None:
    pair.host.veth("vtwo", pair.container, "eth1")
    conf = pair.conf(**RATES)
    conf["prevResult"]["interfaces"].insert(1, {"name": "vtwo"})
    first = pair.call("ADD", conf).interfaces[-1].name
    second = pair.call("ADD", conf, ifname="eth1").interfaces[-1].name
    assert (first, second) == (IFB, ifb_name("net", "c1", "eth1"))
    pair.call("DEL", conf)
    assert [name for name in pair.names() if name.startswith("bwp")] == [second]
    pair.call("CHECK", conf, ifname="eth1")
    pair.call("DEL", conf, ifname="eth1")
    assert not [name for name in pair.names() if name.startswith("bwp")]


def test_interface_without_a_veth_peer_is_refused_clearly(pair: Pair) -> None:
    pair.host.run("ip", "link", "add", "mv0", "link", "vhost", "type", "macvlan")
    pair.host.run("ip", "link", "set", "mv0", "netns", pair.container.name)
    with pytest.raises(Exception, match="macvlan") as caught:
        pair.call("ADD", pair.conf(**RATES), ifname="mv0")
    assert caught.value.code == InvalidNetworkConfig.code


def test_status_is_served_and_leaves_nothing(pair: Pair) -> None:
    before = pair.names()
    pair.call("STATUS", {"cniVersion": "1.1.0", "name": "net", "type": "bandwidth"})
    assert pair.names() == before


@pytest.mark.parametrize("towards_container", [True, False])
def test_traffic_has_the_asked_rate_when_containerd_gives_no_burst(pair: Pair, towards_container: bool) -> None:
    burst = 2**32 - 1
    pair.call("ADD", pair.conf(ingressRate=8_000_000, ingressBurst=burst, egressRate=8_000_000, egressBurst=burst))
    took = pair.seconds_for(2_000_000, towards_container=towards_container)
    assert 1.8 < took < 3.0, took  # 2 s at 1 MB/s, 50 ms of it at once; slower on a busy machine


@pytest.mark.parametrize("towards_container", [True, False])
@pytest.mark.parametrize("host", ["10.9.0.1", "fd09::1"])
@pytest.mark.parametrize(("key", "limited"), [("shapedSubnets", True), ("unshapedSubnets", False)])
def test_only_the_right_subnets_are_limited(
    pair: Pair, towards_container: bool, host: str, key: str, limited: bool
) -> None:
    conf = pair.conf(**RATES, **{key: ["10.9.0.1/32", "fd09::1/128"]})
    pair.call("ADD", conf)
    pair.call("CHECK", conf)
    took = pair.seconds_for(500_000, towards_container=towards_container, host=host)
    assert (took > 0.3) == limited, took  # 0.5 s or more when limited


SUBNETS = {"shapedSubnets": ["10.9.0.1/32", "fd09::1/128", "fd10:1::/20"]}


@pytest.mark.parametrize("device", ["vhost", IFB])
@pytest.mark.parametrize(
    "damage",
    [
        ("tc", "class", "change", "dev", "DEV", "parent", "1:", "classid", "1:10", "htb", "rate", "9mbit"),
        ("tc", "qdisc", "replace", "dev", "DEV", "parent", "1:10", "handle", "20:", "pfifo", "limit", "9"),
        ("tc", "filter", "del", "dev", "DEV", "parent", "1:", "prio", "2"),
        ("tc", "qdisc", "replace", "dev", "DEV", "root", "tbf", "rate", "1gbit", "burst", "1mb", "latency", "25ms"),
    ],
    ids=["other rate", "other queue", "no filters", "tbf"],
)
def test_check_fails_when_the_shaping_of_subnets_was_changed(pair: Pair, damage: tuple[str, ...], device: str) -> None:
    conf = pair.conf(**RATES, **SUBNETS)
    pair.call("ADD", conf)
    pair.call("CHECK", conf)
    pair.host.run(*(device if word == "DEV" else word for word in damage))
    with pytest.raises(Exception, match=device) as caught:
        pair.call("CHECK", conf)
    assert caught.value.code == CheckFailed.code


def test_check_fails_when_the_configuration_has_other_subnets(pair: Pair) -> None:
    pair.call("ADD", pair.conf(**RATES, **SUBNETS))
    with pytest.raises(Exception, match="subnet") as caught:
        pair.call("CHECK", pair.conf(**RATES, shapedSubnets=["10.9.0.0/31"]))
    assert caught.value.code == CheckFailed.code


def test_waiting_packets_stay_when_rates_for_subnets_change(pair: Pair) -> None:
    slow = {"egressRate": 80_000, "egressBurst": 80_000, **SUBNETS}
    pair.call("ADD", pair.conf(**slow))
    with pair.container.entered():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with sender:
        for _ in range(60):
            sender.sendto(b"x" * 1000, ("10.9.0.1", 9))
    leaf = next(one for one in pair.tc("-s", "qdisc", "show", "dev", IFB) if one["kind"] == "bfifo")
    assert leaf["backlog"] > 30_000
    new = pair.conf(**{**slow, "egressRate": 88_000})
    pair.call("ADD", new)
    pair.call("CHECK", new)
    leaf = next(one for one in pair.tc("-s", "qdisc", "show", "dev", IFB) if one["kind"] == "bfifo")
    assert leaf["backlog"] > 30_000
    assert leaf["drops"] == 0


def test_subnets_of_the_network_limit_the_rates_that_a_pod_asks_for(pair: Pair) -> None:
    conf = pair.conf(**SUBNETS, runtimeConfig={"bandwidth": RATES})
    pair.call("ADD", conf)
    pair.call("CHECK", conf)
    assert pair.seconds_for(500_000, towards_container=True) > 0.3  # 0.4 s: 100 kB of it at once


@pytest.mark.parametrize("towards_container", [True, False])
@pytest.mark.parametrize("keys", [{}, {"shapedSubnets": ["10.9.0.2/32"]}], ids=["all", "subnet"])
def test_macvlan_is_shaped_inside_when_asked_for(
    pair: Pair, make_netns: Callable[[str], Namespace], towards_container: bool, keys: dict[str, Any]
) -> None:
    inner = make_netns("bwinner")
    pair.host.run("ip", "link", "add", "mv0", "link", "vhost", "type", "macvlan", "mode", "bridge")
    pair.host.run("ip", "link", "set", "mv0", "netns", inner.name)
    inner.run("ip", "link", "set", "mv0", "up")
    inner.run("ip", "addr", "add", "10.9.0.3/24", "dev", "mv0")
    conf = pair.conf(**RATES, **keys, shapeInside=True)
    there = {"netns": inner.path, "ifname": "mv0"}
    pair.call("ADD", conf, **there)
    result = pair.call("ADD", conf, **there)
    assert (result.interfaces[-1].name, result.interfaces[-1].sandbox) == (IFB, inner.path)
    pair.call("CHECK", conf, **there)
    assert IFB not in pair.names()
    beyond, outside = object.__new__(Pair), pair.container
    beyond.host, beyond.container = outside, inner
    assert beyond.seconds_for(500_000, towards_container=towards_container, host="10.9.0.2") > 0.3
    inner.run("ip", "link", "del", IFB)
    with pytest.raises(Exception, match=IFB) as caught:
        pair.call("CHECK", conf, **there)
    assert caught.value.code == CheckFailed.code
    pair.call("DEL", conf, **there)
    assert IFB not in inner.run("ip", "link", "show").stdout
    assert "tbf" not in inner.run("tc", "qdisc", "show").stdout


def datagram_arrives(pair: Pair, payload: int) -> bool:
    with pair.host.entered():
        receiver = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
        receiver.bind(("10.9.0.1", 9999))
    with pair.container.entered():
        sender = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    with receiver, sender:
        receiver.settimeout(0.3)
        sender.sendto(b"x" * payload, ("10.9.0.1", 9999))
        try:
            return len(receiver.recv(2000)) == payload
        except TimeoutError:
            return False


@pytest.mark.parametrize(("verdict", "limited"), [(ebpf.PASS_ON, True), (ebpf.ACCEPT, False)], ids=["on", "accept"])
def test_ebpf_program_works_on_when_the_container_is_limited(pair: Pair, verdict: int, limited: bool) -> None:
    with pair.host.entered():
        ebpf.drop_length("vhost", 14 + 20 + 8 + 100, verdict)
    for verb in ("ADD", "CHECK", "ADD"):
        pair.call(verb, pair.conf(**RATES))
    assert not datagram_arrives(pair, 100)
    assert datagram_arrives(pair, 101)
    assert (pair.seconds_for(500_000, towards_container=False) > 0.3) == limited
    assert pair.seconds_for(500_000, towards_container=True) > 0.3
    pair.call("DEL", pair.conf(**RATES))
    assert not datagram_arrives(pair, 100)
    assert datagram_arrives(pair, 101)
    assert "drop_length" in pair.host.run("tc", "filter", "show", "dev", "vhost", "ingress").stdout


@pytest.mark.parametrize("keys", [{}, {"shapedSubnets": ["10.9.0.1/32"]}], ids=["all", "subnet"])
def test_nothing_is_left_on_a_veth_that_outlives_del(pair: Pair, keys: dict[str, Any]) -> None:
    before = pair.tc("qdisc", "show")
    pair.call("ADD", pair.conf(**RATES, **keys))
    for _ in range(2):
        pair.call("DEL", pair.conf(**RATES, **keys))
        assert pair.tc("qdisc", "show") == before
        assert IFB not in pair.names()
    assert pair.seconds_for(2_000_000, towards_container=False) < 0.5
    assert pair.seconds_for(2_000_000, towards_container=True) < 0.5


def test_filter_and_queue_of_others_stay_when_the_veth_outlives_del(pair: Pair) -> None:
    pair.host.run("tc", "qdisc", "add", "dev", "vhost", "ingress")
    theirs = "protocol ip prio 5 u32 match ip dst 10.77.0.0/16 flowid 1:7"
    pair.host.run("tc", "filter", "add", "dev", "vhost", "parent", "ffff:", *theirs.split())
    before = pair.host.run("tc", "filter", "show", "dev", "vhost", "ingress").stdout
    pair.call("ADD", pair.conf(**RATES))
    pair.call("DEL", pair.conf(**RATES))
    after = pair.host.run("tc", "filter", "show", "dev", "vhost", "ingress").stdout
    assert after == before.replace(" parent ffff:", "")  # as the kernel shows it once another filter was there


def test_late_del_leaves_the_next_containers_veth_alone(pair: Pair) -> None:
    """A network plugin that derives the veth's name from the Pod uses it again for the Pod's next container."""
    pair.call("ADD", pair.conf(**RATES), container_id="c2")
    pair.call("DEL", pair.conf(**RATES), netns="/run/netns/gone-with-c1")
    pair.call("CHECK", pair.conf(**RATES), container_id="c2")


def test_device_lent_by_the_host_comes_back_without_a_limit(pair: Pair, make_netns: Callable[[str], Namespace]) -> None:
    """The chain host-device, bandwidth: DEL runs in reverse, and the device must be as it was."""
    inner = make_netns("bwlent")
    pair.host.veth("lent0", make_netns("bwfar"), "far0")  # a device with its other end in no namespace of ours
    pair.host.run("ip", "link", "set", "lent0", "netns", inner.name)
    pair.host.run("ip", "link", "add", "mv0", "link", "vhost", "type", "macvlan", "mode", "bridge")
    lend = {"cniVersion": "1.0.0", "name": "net", "type": "host-device", "device": "mv0"}
    environ = {"CNI_CONTAINERID": "c1", "CNI_IFNAME": "net0", "CNI_NETNS": inner.path, "CNI_PATH": "/usr/lib/cni"}
    environ |= {"PATH": os.environ["PATH"]}
    command = ["ip", "netns", "exec", pair.host.name, "/usr/lib/cni/host-device"]

    def host_device(verb: str) -> str:
        keys = {"env": environ | {"CNI_COMMAND": verb}, "input": json.dumps(lend), "text": True}
        return subprocess.run(command, capture_output=True, check=True, **keys).stdout

    conf = pair.conf(**RATES, shapeInside=True)
    conf["prevResult"] = json.loads(host_device("ADD"))
    there = {"netns": inner.path, "ifname": "net0"}
    pair.call("ADD", conf, **there)
    pair.call("CHECK", conf, **there)
    assert "tbf" in inner.run("tc", "qdisc", "show", "dev", "net0").stdout
    pair.call("DEL", conf, **there)
    assert IFB not in inner.run("ip", "link", "show").stdout
    host_device("DEL")
    assert "mv0" in pair.names()
    shown = pair.host.run("tc", "qdisc", "show", "dev", "mv0").stdout
    assert not [word for word in ("tbf", "ingress") if word in shown]


@pytest.mark.parametrize("sent", [False, True], ids=["no process can be made", "it is killed before it sends"])
def test_link_goes_when_no_other_process_removes_it(pair: Pair, sent: bool) -> None:
    pair.call("ADD", pair.conf(**RATES))
    links = RouteLinks(remove_link=lambda index, name: remove_link(index, name, send=lambda *_: sent))
    with pair.host.entered():
        call(Bandwidth(links), "DEL", pair.conf(**RATES), netns="")
    assert IFB not in pair.names()


def test_no_process_outlives_del_for_long(pair: Pair) -> None:
    pair.call("ADD", pair.conf(**RATES))
    marker = f"cnimeta-test-{os.getpid()}"
    program = f"import os; from cnimeta.host.links.kernel import RouteLinks; RouteLinks().remove({IFB!r}); os.getcwd()"
    command = ["ip", "netns", "exec", pair.host.name, sys.executable, "-c", program, marker]
    subprocess.run(command, check=True, capture_output=True, timeout=10)  # its pipes close at once, too
    assert IFB not in pair.names()
    until = time.monotonic() + 5
    while running(marker):
        assert time.monotonic() < until
        time.sleep(0.01)


def running(marker: str) -> list[str]:
    found = []
    for pid in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{pid}/cmdline", encoding="utf-8", errors="replace") as file:
                found += [pid] if marker in file.read() else []
        except OSError:
            continue
    return found


def test_check_fails_when_a_limit_is_there_that_the_configuration_lacks(pair: Pair) -> None:
    pair.call("ADD", pair.conf(**RATES))
    for direction, device in (("ingress", IFB), ("egress", "vhost")):
        with pytest.raises(Exception, match=f"{device} is") as caught:
            pair.call("CHECK", pair.conf(**{key: RATES[key] for key in RATES if key.startswith(direction)}))
        assert caught.value.code == CheckFailed.code


@pytest.mark.parametrize("keys", [{}, {"shapedSubnets": ["10.9.0.1/32"]}], ids=["all", "subnet"])
def test_rate_is_exact_when_it_needs_64_bits(pair: Pair, keys: dict[str, Any]) -> None:
    fast = 80_000_000_000
    conf = pair.conf(ingressRate=fast, ingressBurst=8 * 10**9, egressRate=fast, egressBurst=8 * 10**9, **keys)
    pair.call("ADD", conf)
    pair.call("CHECK", conf)
    for device in ("vhost", IFB):
        shown = "".join(pair.host.run("tc", kind, "show", "dev", device).stdout for kind in ("qdisc", "class"))
        assert "rate 80Gbit " in shown


LIMITS = {
    "none": {},
    "to": {"ingressRate": 8, "ingressBurst": 2**32 - 1},
    "from": {"egressRate": 10**12, "egressBurst": 8 * (2**32 - 2)},
    "both": RATES,
    "subnets": {**RATES, "unshapedSubnets": ["10.0.0.0/8", "fd00::/8"]},
    "everything": {**RATES, "shapedSubnets": ["0.0.0.0/0", "::/0"], "latency": 10_000},
    "slow subnet": {"ingressRate": 8, "ingressBurst": 8, "shapedSubnets": ["10.9.0.1/32"], "latency": 1},
    "many": {**RATES, "shapedSubnets": [f"10.{number}.0.0/16" for number in range(100)]},
}


@pytest.mark.parametrize("second", LIMITS)
@pytest.mark.parametrize("first", LIMITS)
def test_limits_are_the_new_ones_when_added_again_with_others(pair: Pair, first: str, second: str) -> None:
    before = pair.tc("qdisc", "show")
    for name in (first, second):
        pair.call("ADD", pair.conf(**LIMITS[name]))
        pair.call("CHECK", pair.conf(**LIMITS[name]))
    pair.call("DEL", pair.conf(**LIMITS[second]))
    if LIMITS[second]:
        assert pair.tc("qdisc", "show") == before
    assert IFB not in pair.names()
