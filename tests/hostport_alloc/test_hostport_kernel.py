"""The launcher on a real kernel: Debian's bridge and host-local, real connections, Debian's portmap and ours."""

from __future__ import annotations

import json
import sqlite3
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from kernel_node import POD_ARGS, SERVER, Failed, KernelNode, assert_nothing_left

from cnimeta.testing.kube import Fault, PodServer
from cnimeta_plugins.hostport_alloc.operator import wrap, wrapfile

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cnimeta.testing.netns import Namespace

pytestmark = pytest.mark.kernel


@pytest.fixture(params=["ours", "debian"])
def node(
    request: pytest.FixtureRequest, make_netns: Callable[[str], Namespace], tmp_path: Path
) -> Iterator[KernelNode]:
    plugins = ("hostport_alloc", "portmap") if request.param == "ours" else ("hostport_alloc",)
    made = KernelNode(make_netns, tmp_path, plugins)
    yield made
    made.close()


def test_two_containers_are_reached_through_their_random_ports(node: KernelNode) -> None:
    for name in ("c1", "c2"):
        result = node.call("ADD", node.conf(), name)
        assert result["ips"][0]["address"].startswith("10.88.0.")
        node.serve(name)
    (first,), (second,) = node.ports("c1"), node.ports("c2")
    assert first != second
    assert node.fetch(first) == "hello from c1"
    assert node.fetch(second) == "hello from c2"
    assert node.fetch(first, source=node.node) == "hello from c1"
    assert node.fetch(first, source=node.container("c1")) == "hello from c1"
    assert node.fetch(first, source=node.container("c2"), address="10.88.0.1") == "hello from c1"
    for name in ("c1", "c2"):
        for _ in range(2):
            node.call("DEL", node.conf(), name)
    assert node.fetch(first) == ""
    assert_nothing_left(node)


def test_delete_works_when_namespace_and_configuration_are_gone(node: KernelNode) -> None:
    node.call("ADD", node.conf())
    node.container("c1").close()
    changed = {key: node.conf()[key] for key in ("cniVersion", "name", "type", "dataDir")}
    node.call("DEL", changed, netns="")
    assert_nothing_left(node)
    node.call("DEL", node.conf(), netns="")


def test_delete_works_when_the_network_was_renamed(node: KernelNode) -> None:
    node.call("ADD", node.conf())
    node.call("DEL", {**node.conf(ranges={"default": "21000"}), "name": "renamed"})
    assert_nothing_left(node)


def test_explicit_and_random_ports_work_together(node: KernelNode) -> None:
    mappings = [{"HostPort": 8080, "ContainerPort": 80, "Protocol": "tcp", "HostIP": ""}]
    node.call("ADD", node.conf(runtimeConfig={"portMappings": mappings}))
    node.serve("c1")
    assert node.fetch(8080) == "hello from c1"
    assert node.fetch(node.ports()[0]) == "hello from c1"
    node.call("DEL", node.conf())
    assert_nothing_left(node)


def test_repeated_add_keeps_address_and_ports(node: KernelNode) -> None:
    first = node.call("ADD", node.conf())
    ports = node.ports()
    assert node.call("ADD", node.conf()) == first
    assert node.ports() == ports
    node.container("c1").run("ip", "link", "del", "eth0")
    node.call("ADD", node.conf())
    assert node.ports() == ports
    node.serve("c1")
    assert node.fetch(ports[0]) == "hello from c1"
    node.call("DEL", node.conf())
    assert_nothing_left(node)


@pytest.mark.parametrize("node", ["ours"], indirect=True)
def test_check_sees_flushed_rules(node: KernelNode) -> None:
    """Debian's portmap cannot be asked: its CHECK wants IPv6 rules for a container without an IPv6 address."""
    result = node.call("ADD", node.conf())
    node.call("CHECK", node.conf(prevResult=result))
    node.node.run("nft", "flush", "ruleset")
    with pytest.raises(Failed):
        node.call("CHECK", node.conf(prevResult=result))
    node.call("DEL", node.conf())
    assert_nothing_left(node)


def test_add_takes_everything_back_when_a_later_delegate_fails(node: KernelNode) -> None:
    broken = {"type": "tuning", "sysctl": {"net.ipv4.no_such_key": "1"}}
    with pytest.raises(Failed, match="tuning"):
        node.call("ADD", node.conf(delegates=[node.bridge(), broken]))
    assert_nothing_left(node)
    assert "eth0" not in node.container("c1").run("ip", "link").stdout


def test_add_takes_everything_back_when_portmap_fails(node: KernelNode) -> None:
    with pytest.raises(Failed):
        node.call("ADD", node.conf(portmap={"type": "portmap", "markMasqBit": 99, "backend": "iptables"}))
    assert_nothing_left(node)


def test_chained_after_bridge(node: KernelNode) -> None:
    """The order a runtime keeps: bridge, then hostport_alloc with its result."""
    wrapped = node.conf(expose=[])
    result = node.call("ADD", wrapped)
    chained = node.conf(prevResult=result)
    del chained["delegates"]
    assert node.call("ADD", chained)["ips"] == result["ips"]
    node.serve("c1")
    assert node.fetch(node.ports()[0]) == "hello from c1"
    for _ in range(2):
        node.call("DEL", chained)
        node.call("DEL", wrapped)
    assert_nothing_left(node)


def test_whole_conflist_with_its_own_portmap_is_wrapped(node: KernelNode) -> None:
    portmap = {"type": "portmap", "capabilities": {"portMappings": True}}
    conf = node.conf(delegate={"name": "cbr0", "cniVersion": "0.4.0", "plugins": [node.bridge(), portmap]})
    del conf["delegates"]
    node.call("ADD", conf)
    node.serve("c1")
    assert node.fetch(node.ports()[0]) == "hello from c1"
    node.call("DEL", conf)
    assert_nothing_left(node)


def test_pod_is_annotated_with_the_nodes_address_over_https(node: KernelNode, tmp_path: Path) -> None:
    with node.node.entered():
        server = PodServer(tmp_path / "api", address="192.0.2.10")
    with server:
        server.pods.create("default", "web", uid="0a-1b")
        kubeconfig = server.kubeconfig(tmp_path / "kubelet.conf", client_of="system:node:node1")
        conf = node.conf(kubernetes={"kubeconfig": kubeconfig, "policy": "required", "timeout": 10})
        server.pods.faults.append(Fault(status=500))
        node.call("ADD", conf, args=POD_ARGS)
        entries = json.loads(server.pods.annotations("default", "web")["cnimeta.io/hostports"])
        assert [(entry["hostIP"], entry["hostPort"]) for entry in entries] == [("192.0.2.10", node.ports()[0])]
        sent = len(server.pods.requests)
    began = time.monotonic()
    node.call("DEL", conf, args=POD_ARGS, netns="")
    assert time.monotonic() - began < 5
    assert len(server.pods.requests) == sent == 2
    assert_nothing_left(node)


def test_pod_is_not_started_when_it_cannot_be_annotated_and_that_is_required(node: KernelNode, tmp_path: Path) -> None:
    with PodServer(tmp_path / "api") as server:  # in another namespace: nobody answers at its address
        kubeconfig = server.kubeconfig(tmp_path / "kubeconfig", token=server.token("cnimeta"))
    conf = node.conf(kubernetes={"kubeconfig": kubeconfig, "policy": "required", "timeout": 1})
    with pytest.raises(Failed) as caught:
        node.call("ADD", conf, args=POD_ARGS)
    assert caught.value.code == 102
    assert_nothing_left(node)


def test_port_of_a_listening_process_is_not_given_out(node: KernelNode) -> None:
    process = node.node.start(sys.executable, "-c", SERVER, "20000", "node")
    node.processes.append(process)
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    conf = node.conf(ranges={"default": "20000-20001"})
    node.call("ADD", conf)
    assert node.ports() == [20001]
    with pytest.raises(Failed, match="exhausted") as caught:
        node.call("ADD", conf, "c2")
    assert caught.value.code == 11
    node.call("DEL", conf)
    assert_nothing_left(node)


@pytest.mark.parametrize("node", ["ours"], indirect=True)
def test_lost_state_is_recovered_from_portmap_before_a_port_could_be_given_away(node: KernelNode) -> None:
    conf = node.conf(ranges={"default": "20000-20001"}, quarantineSeconds=0, sticky=False)
    node.call("ADD", conf, "c1")
    (kept,) = node.ports("c1")
    state = node.folder / "state"
    for path in state.glob("cnimeta.db*"):
        path.write_bytes(b"")
    node.call("ADD", conf, "c2")
    assert node.ports("c2") == [20000 + 20001 - kept]
    node.serve("c1")
    assert node.fetch(kept) == "hello from c1"
    for name in ("c1", "c2"):
        node.call("DEL", conf, name)
    assert_nothing_left(node)


@pytest.mark.parametrize("node", ["ours"], indirect=True)
def test_port_that_portmap_mapped_by_itself_is_not_given_out(node: KernelNode) -> None:
    """A network with portmap alone beside ours: nobody's record of ours holds the port, portmap refuses it."""
    alone = {**node.conf(expose=[]), "ranges": {"default": "20000-20001"}}
    result = node.call("ADD", alone, "c1")
    environ = {
        "CNI_COMMAND": "ADD",
        "CNI_CONTAINERID": "c1",
        "CNI_IFNAME": "eth0",
        "CNI_NETNS": node.container("c1").path,
        "CNI_PATH": str(node.bin),
        "PATH": "/usr/sbin:/usr/bin",
        "CNIMETA_AGENT": node.agent,
    }
    conf = {"cniVersion": "1.0.0", "name": "plain", "type": "portmap", "prevResult": result}
    conf["dataDir"] = str(node.folder / "state")
    conf["runtimeConfig"] = {"portMappings": [{"hostPort": 20000, "containerPort": 80, "protocol": "tcp"}]}
    words = [f"{key}={value}" for key, value in environ.items()]
    node.node.run("env", "-i", *words, str(node.bin / "portmap"), stdin=json.dumps(conf))
    for _ in range(3):
        for path in (node.folder / "state").glob("cnimeta.db*"):
            path.unlink()  # portmap's own mappings never become records of ours
        node.call("ADD", node.conf(ranges={"default": "20000-20001"}, quarantineSeconds=0, sticky=False), "c2")
        assert node.ports("c2") == [20001]
        node.call("DEL", node.conf(), "c2")


@pytest.mark.parametrize("node", ["ours"], indirect=True)
def test_check_finds_flushed_and_unrecorded_rules_and_repair_restores(node: KernelNode) -> None:
    def ports(*words: str) -> tuple[int, dict[str, Any]]:
        command = [str(Path(sys.executable).with_name("cnimeta")), "ports", *words, "--json"]
        state = ["--data-dir", str(node.folder / "state")]
        done = node.node.run(*command, *state, check=False)
        return done.returncode, json.loads(done.stdout)

    node.call("ADD", node.conf())
    node.serve("c1")
    (port,) = node.ports()
    assert ports("check") == (0, {"ok": True, "problems": []})
    node.node.run("nft", "flush", "ruleset")
    assert node.fetch(port) == ""
    status, body = ports("check")
    assert status == 1
    assert [problem["kind"] for problem in body["problems"]] == ["rule"]
    assert ports("repair")[0] == 0
    assert node.fetch(port) == "hello from c1"
    assert ports("check")[0] == 0
    connection = sqlite3.connect(node.folder / "state" / "cnimeta.db", isolation_level=None)
    connection.execute("DELETE FROM attachments")
    connection.close()
    status, body = ports("check")
    assert status == 1
    assert any("is mapped and has no record" in problem["message"] for problem in body["problems"])


def test_both_families_are_mapped_with_one_number_and_published(node: KernelNode, tmp_path: Path) -> None:
    for namespace, device, address in ((node.node, "up0", "2001:db8::10"), (node.client, "eth0", "2001:db8::20")):
        namespace.run("ip", "addr", "add", f"{address}/64", "dev", device, "nodad")
    bridge = node.bridge()
    bridge["ipam"]["ranges"].append([{"subnet": "fd00:88::/64"}])
    bridge["ipam"]["routes"].append({"dst": "::/0"})
    with node.node.entered():
        server = PodServer(tmp_path / "api", address="2001:db8::10")
    with server:
        server.pods.create("default", "web", uid="0a-1b")
        kubeconfig = server.kubeconfig(tmp_path / "kubeconfig", token=server.token("cnimeta"))
        conf = node.conf(delegates=[bridge], kubernetes={"kubeconfig": kubeconfig, "policy": "required", "timeout": 10})
        node.call("ADD", conf, args=POD_ARGS)
        entries = json.loads(server.pods.annotations("default", "web")["cnimeta.io/hostports"])
    (port,) = node.ports()
    published = [(entry["hostIP"], entry["hostPort"]) for entry in entries]
    assert published == [("192.0.2.10", port), ("2001:db8::10", port)]
    node.serve("c1")
    for address, _ in published:
        answer, deadline = "", time.monotonic() + 10
        while not answer and time.monotonic() < deadline:  # the bridge's IPv6 address is tentative for a while
            answer = node.fetch(port, address=address)
        assert answer == "hello from c1"
    node.call("DEL", conf, args=POD_ARGS)
    assert node.fetch(port, address="2001:db8::10") == ""
    assert_nothing_left(node)


def test_ptp_is_wrapped_from_its_file(node: KernelNode) -> None:
    ipam = {**node.bridge()["ipam"]}
    file = node.folder / "20-ptp.conf"
    file.write_text(json.dumps({"cniVersion": "0.4.0", "name": "pods", "type": "ptp", "ipam": ipam}))
    wrapfile.wrap_file(
        str(file), wrap.Options({"default": "20000-20099"}, ["80/tcp"], data_dir=str(node.folder / "state"))
    )
    conf = json.loads(file.read_text())
    node.call("ADD", conf)
    node.serve("c1")
    assert node.fetch(node.ports()[0]) == "hello from c1"
    node.call("DEL", conf)
    assert_nothing_left(node)


@pytest.mark.parametrize("node", ["ours"], indirect=True)
def test_parallel_adds_never_share_a_port_and_all_are_undone(node: KernelNode) -> None:
    """As many containers as fit, at once: bridge and host-local, portmap and the lock all work in parallel."""
    names = [f"p{number}" for number in range(12)]
    for name in names:
        node.container(name)
    conf = node.conf(ranges={"default": f"20000-{20000 + 2 * len(names) - 1}"}, expose=["80/tcp", "81/tcp"])
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: node.call("ADD", conf, name), names))
    given = sorted(port for name in names for port in node.ports(name))
    assert given == list(range(20000, 20000 + 2 * len(names)))
    with pytest.raises(Failed, match="exhausted"):
        node.call("ADD", conf, "p99")
    with ThreadPoolExecutor(len(names)) as pool:
        list(pool.map(lambda name: node.call("DEL", conf, name), names))
    assert_nothing_left(node)
