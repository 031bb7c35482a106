"""hostport_alloc on fakes of everything it touches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cnimeta.spec.result import Result
from cnimeta.testing.addresses import FakeAddresses
from cnimeta.testing.clock import FakeClock
from cnimeta.testing.delegates import FakeDelegate, FakeExec, address_result
from cnimeta.testing.files import MemoryFiles
from cnimeta.testing.kube import FakePods
from cnimeta.testing.lock import FakeLock
from cnimeta.testing.memory import call
from cnimeta.testing.sockets import FakePortScan, FakeSockets
from cnimeta_plugins.hostport_alloc.main import HostportAlloc
from cnimeta_plugins.hostport_alloc.wiring import Host

if TYPE_CHECKING:
    from cnimeta_plugins.hostport_alloc.state.store import Rule, Store

DATA_DIR = "/data"


class Node:
    """A node with fake plugins, a fake API server and its own state."""

    def __init__(self, *plugins: FakeDelegate, result: Result | None = None) -> None:
        self.bridge = FakeDelegate("bridge", result=result or address_result("10.1.0.2/24"))
        self.portmap = FakeDelegate("portmap")
        self.executor = FakeExec(self.bridge, self.portmap, *plugins)
        self.clock = FakeClock()
        self.sockets = FakeSockets()
        self.pods = FakePods()
        self.kubeconfigs: list[str] = []
        self.addresses = FakeAddresses("192.0.2.10", "2001:db8::10")
        self.files = MemoryFiles()
        self.lock = FakeLock()
        self.boot = "boot-1"
        self.rules: list[Rule] = []
        self.log: list[str] = []
        self.executor.hook = lambda *_: self.unlocked()

    @property
    def host(self) -> Host:
        return Host(
            executor=self.executor,
            locate=self.executor.locate,
            files=self.files,
            lock=self.lock,
            clock=self.clock,
            sockets=self.sockets,
            scan=FakePortScan(),
            addresses=self.addresses,
            pods=self._pods,
            rules=lambda: self.rules,
            boot_id=self.boot,
        )

    @property
    def store(self) -> Store:
        return self.host.store(DATA_DIR, 1, self.log.append)

    def unlocked(self) -> None:
        """Nothing is executed or sent while the node's lock is held."""
        assert not self.lock.is_held

    def _pods(self, kubeconfig: str) -> FakePods:
        self.unlocked()
        self.kubeconfigs.append(kubeconfig)
        return self.pods

    def call(self, verb: str, conf: dict[str, Any], **how: Any) -> Result | None:
        return call(HostportAlloc(self.host), verb, conf, log=self.log, **how)

    def mappings(self, verb: str = "ADD", plugin: str = "portmap") -> list[dict[str, Any]]:
        """The port mappings of the last call."""
        sent = self.executor.sent(verb, plugin)[-1]
        return list(sent.conf.get("runtimeConfig", {}).get("portMappings", []))

    def ports(self, container_id: str = "c1", network: str = "pods", ifname: str = "eth0") -> list[int]:
        """The random host ports on record."""
        record = self.store.load((network, container_id, ifname))
        return [port.host_port for port in record.ports] if record is not None else []


def conf(**keys: Any) -> dict[str, Any]:
    """A wrapper configuration that exposes 80/tcp."""
    return {
        "cniVersion": "1.0.0",
        "name": "pods",
        "type": "hostport_alloc",
        "ranges": {"default": "20000-20099", "games": "7000-7009"},
        "expose": ["80/tcp"],
        "delegates": [{"type": "bridge", "bridge": "cni0"}],
        "dataDir": DATA_DIR,
        **keys,
    }


POD_ARGS = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=0a-1b"
