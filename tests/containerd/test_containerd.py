"""containerd drives the installed plugins by CRI: Pods that come and go, and everything that goes wrong between.

After every case the node is as it was before: the same rules, interfaces, address leases, cached results and records.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from containerd_node import PAUSE, SOCKET, ContainerdNode
from cri import CallFailed, Cri
from private_node import PLUGINS, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.runtime

BANDWIDTH = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}, "snat": True}
LIMITS = {"kubernetes.io/ingress-bandwidth": "80M", "kubernetes.io/egress-bandwidth": "80M"}


def bridge(name: str, subnet: str) -> dict[str, Any]:
    ipam = {"type": "host-local", "ranges": [[{"subnet": subnet}]], "routes": [{"dst": "0.0.0.0/0"}]}
    return {"type": "bridge", "bridge": f"br-{name}", "isGateway": True, "ipMasq": False, "ipam": ipam}


def wrapper(*delegates: dict[str, Any]) -> dict[str, Any]:
    capabilities = {"portMappings": True, "bandwidth": True, "io.kubernetes.cri.pod-annotations": True}
    ranges = {"default": "20000-20099"}
    times = {"quarantineSeconds": 0, "sticky": False}
    return {"type": "hostport_alloc", "capabilities": capabilities, "ranges": ranges, "delegates": delegates, **times}


NETWORKS = {
    "nftables": [bridge("nft", "10.41.0.0/24"), {**PORTMAP, "backend": "nftables"}, BANDWIDTH],
    "iptables": [bridge("ipt", "10.42.0.0/24"), {**PORTMAP, "backend": "iptables"}, BANDWIDTH],
    "wrapper": [wrapper(bridge("wrap", "10.43.0.0/24"), BANDWIDTH)],
}


class World(NamedTuple):
    """A node whose network has seen a Pod come and go, and what that one left: bridge, tables, folders."""

    node: ContainerdNode
    cri: Cri
    network: str
    before: list[str]

    @property
    def program(self) -> str:
        return f"{PLUGINS}/{'hostport_alloc' if self.network == 'wrapper' else 'portmap'}"

    def run(self, name: str) -> str:
        """A Pod with an explicit host port, limits and, where the network knows it, a random port."""
        return self.cri.run(name, self.network, [(8080, 80, "tcp")], {**LIMITS, "cnimeta.io/expose": "80/tcp"})

    def end(self, times: int = 1) -> None:
        """Stop and remove what there is, each so many times. Nothing may be left."""
        self.take_away(times)
        assert self.node.allocated() == []
        checked = self.node.cnimeta("ports", "check", "--conf", "/etc/cni/wrapper.d/10-wrapper.conflist")
        assert checked.returncode == 0, checked.stdout

    def take_away(self, times: int = 1) -> None:
        """The same, but the records are not looked at."""
        for sandbox in self.cri.sandboxes():
            for act in (*[self.cri.stop] * times, *[self.cri.remove] * times):
                act(sandbox)
        assert self.cri.sandboxes() == []
        assert self.node.footprint() == self.before


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ContainerdNode]:
    made = ContainerdNode(tmp_path_factory.mktemp("containerd"))
    try:
        made.prepare()
        for name, plugins in NETWORKS.items():
            made.configure({"cniVersion": "1.0.0", "name": name, "plugins": plugins}, f"/etc/cni/{name}.d")
        made.start_containerd({name: f"/etc/cni/{name}.d" for name in NETWORKS})
        # The sandbox's own process serves a page with the Pod's name.
        page = {"www/cgi-bin/name": b"#!/bin/sh\necho; hostname\n"}
        made.load(PAUSE, ["/bin/httpd", "-f", "-p", "80", "-h", "/www"], page)
        yield made
    finally:
        made.close()


@pytest.fixture(scope="module", params=NETWORKS)
def used(node: ContainerdNode, request: pytest.FixtureRequest) -> World:
    """A world after its first Pod."""
    first = World(node, Cri(node.path(SOCKET), node.node.name), request.param, [])
    first.cri.remove(first.run("first"))
    return first


@pytest.fixture
def world(used: World) -> Iterator[World]:
    yield used._replace(before=used.node.footprint())
    for sandbox in used.cri.sandboxes():
        used.cri.remove(sandbox)


def test_pod_is_reached_and_leaves_nothing_when_it_is_stopped_and_removed_twice(world: World) -> None:
    world.run("web")
    ports = {8080, *(one["hostPort"] for one in world.node.allocated())}
    assert len(ports) == (2 if world.network == "wrapper" else 1)
    assert [world.node.fetch(port, "cgi-bin/name") for port in ports] == ["web"] * len(ports)
    assert world.node.run("tc", "qdisc").stdout.count("tbf") == 2
    world.end(times=2)


def test_nothing_is_left_when_libcnis_cache_is_lost(world: World) -> None:
    sandbox = world.run("cacheless")
    cached = world.node.run("sh", "-c", "ls /var/lib/cni/results").stdout
    assert sandbox in cached
    world.node.run("sh", "-c", "rm -r /var/lib/cni/results/*")
    world.end()


def test_nothing_is_left_when_the_namespace_is_gone_before_the_stop(world: World) -> None:
    sandbox = world.run("lost")
    path = world.cri.namespace(sandbox)
    world.node.run("ctr", "-n", "k8s.io", "tasks", "kill", "-s", "9", sandbox)
    eventually(lambda: not world.node.run("ip", "netns", "pids", os.path.basename(path)).stdout, "end of the Pod")
    world.node.run("umount", path)
    world.node.run("rm", path)
    world.end()


def test_nothing_is_left_when_the_namespace_and_the_cache_are_gone(world: World) -> None:
    sandbox = world.run("bare")
    path = world.cri.namespace(sandbox)
    world.node.run("ctr", "-n", "k8s.io", "tasks", "kill", "-s", "9", sandbox)
    world.node.run("umount", path)
    world.node.run("rm", path)
    world.node.run("sh", "-c", "rm -r /var/lib/cni/results/*")
    world.end()


def test_nothing_is_left_when_containerd_was_killed_while_the_pod_ran(world: World) -> None:
    world.run("orphan")
    world.node.running["containerd"].kill()
    world.node.restart_containerd()
    assert world.node.fetch(8080, "cgi-bin/name") == "orphan"
    world.end()


def test_nothing_is_left_when_containerd_was_killed_while_the_plugin_added(world: World) -> None:
    """The plugin goes on with nobody waiting for its answer; the next containerd knows the sandbox, not its result."""
    with ThreadPoolExecutor(1) as beside:
        killer = beside.submit(kill, world.node, world.program, 0, world.node.running["containerd"].pid)
        with pytest.raises((CallFailed, OSError)):
            world.run("forgotten")
    killer.result()
    world.node.restart_containerd()
    assert len(world.cri.sandboxes()) == 1
    world.end()


def test_nothing_is_left_when_the_plugin_is_killed_while_it_adds(world: World) -> None:
    """Whichever part of its work is done: the runtime's own DEL and what the killed process had started may overlap."""
    with timed(world) as lived:
        world.run("whole")
    world.take_away()
    for part in (0, 0.3, 0.6, 0.9):
        with killed(world, part * lived.result(), sure=part == 0):
            world.run("killed")
        world.take_away()
    world.end()


def test_nothing_is_left_when_the_plugin_is_killed_while_it_deletes(world: World) -> None:
    sandbox = world.run("whole")
    with timed(world) as lived:
        world.cri.stop(sandbox)
    world.take_away()
    for part in (0, 0.5):
        sandbox = world.run("killed")
        with killed(world, part * lived.result(), sure=part == 0):
            world.cri.stop(sandbox)
        world.take_away()
    world.end()


@contextlib.contextmanager
def timed(world: World) -> Iterator[Future[float]]:
    """For how many seconds the plugin's next process lives."""
    with ThreadPoolExecutor(1) as beside:
        yield beside.submit(lifetime, world.node, world.program)


@contextlib.contextmanager
def killed(world: World, delay_s: float, *, sure: bool) -> Iterator[None]:
    """Kill the plugin's next process after so much time, so that the call fails; unless it is sure, it may be too late."""
    with ThreadPoolExecutor(1) as beside:
        done = beside.submit(kill, world.node, world.program, delay_s)
        with pytest.raises(CallFailed) if sure else contextlib.suppress(CallFailed):
            yield
    done.result()


def appear(node: ContainerdNode, program: str) -> int:
    """The process that containerd starts next from this program."""
    return eventually(lambda: node.containerds(program), program, pause_s=0.001)[0]


def lifetime(node: ContainerdNode, program: str) -> float:
    """For how many seconds the program's next process lives."""
    pid = appear(node, program)
    since = time.monotonic()
    eventually(lambda: pid not in node.containerds(program), f"end of {program}", pause_s=0.001)
    return time.monotonic() - since


def kill(node: ContainerdNode, program: str, delay_s: float, victim: int = 0) -> None:
    """Kill the program's next process, or the victim, when it has lived for so long."""
    pid = appear(node, program)
    time.sleep(delay_s)
    with contextlib.suppress(ProcessLookupError):
        os.kill(victim or pid, signal.SIGKILL)
