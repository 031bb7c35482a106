"""hostport_alloc on fakes of everything it touches."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cnimeta.errors import CheckFailed
from cnimeta.ports.mapper import Compared
from cnimeta.spec.result import Result
from cnimeta.testing.addresses import FakeAddresses
from cnimeta.testing.clock import FakeClock
from cnimeta.testing.delegates import FakeDelegate, FakeExec, address_result
from cnimeta.testing.files import MemoryFiles
from cnimeta.testing.hook import FakeHook
from cnimeta.testing.kube import FakePods
from cnimeta.testing.lock import FakeLock
from cnimeta.testing.memory import call
from cnimeta.testing.namespaces import FakeNamespaces
from cnimeta.testing.netfilter import FakeSysctl
from cnimeta.testing.sockets import FakePortScan, FakeSockets
from cnimeta.testing.store import FakeLocks, MemoryDatabases
from cnimeta_plugins.hostport_alloc.main import HostportAlloc
from cnimeta_plugins.hostport_alloc.wiring import Wiring

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence

    from cnimeta.ports.mapper import Expected, MappedPort, Repaired
    from cnimeta.spec.jsonio import JSON
    from cnimeta_plugins.hostport_alloc.state.store import Store

DATA_DIR = "/data"
RESERVED = "net/ipv4/ip_local_reserved_ports"


class FakeMapper:
    """The port mapper's own knowledge: `recorded` mappings, and what it was asked to repair."""

    refusals = frozenset({2, 6, 7, 999})

    def __init__(self, portmap: FakeDelegate) -> None:
        self.portmap = portmap
        self.compared: list[Expected] = []
        """Everything that was to be held against the host."""
        self.recorded: list[MappedPort] = []
        self.others: list[Repaired] = []

    def essential(self, conf: Mapping[str, JSON]) -> dict[str, JSON]:
        kept = ("cniVersion", "name", "type", "runtimeConfig", "dataDir")
        known = {key: value for key, value in conf.items() if key in kept}
        return {
            **known,
            **({"backend": conf["backend"]} if conf.get("backend") in ("auto", "nftables", "iptables") else {}),
        }

    def mappings(self, data_dir: str, log: Callable[[str], None]) -> list[MappedPort]:
        return list(self.recorded)

    def compare(self, data_dir: str, log: Callable[[str], None], expected: Sequence[Expected]) -> Compared:
        self.compared += expected
        there = self.portmap.attachments
        errors = [None if one[:3] in there else CheckFailed("its rules are gone") for one in expected]
        skip = {one.container_id for one in expected}
        return Compared(errors, [one for one in self.others if one.container_id not in skip], self.recorded)

    def repair(self, data_dir: str, log: Callable[[str], None], skip: Collection[str]) -> list[Repaired]:
        return [one for one in self.others if one.container_id not in skip]


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
        self.databases = MemoryDatabases()
        self.locks = FakeLocks()
        self.boot = "boot-1"
        self.mapper = FakeMapper(self.portmap)
        self.is_ours = False
        """Whether the portmap that is called is of this installation, so that it can be asked for all at once."""
        self.namespaces = FakeNamespaces()
        self.files = MemoryFiles()
        self.hook = FakeHook()
        self.sysctl = FakeSysctl()
        self.sysctl.values[RESERVED] = ""
        self.log: list[str] = []
        self.executor.hook = lambda *_: self.unlocked()

    @property
    def wiring(self) -> Wiring:
        return Wiring(
            executor=self.executor,
            locate=self.executor.locate,
            open_database=self.databases,
            locks=self.locks,
            clock=self.clock,
            sockets=self.sockets,
            scan=FakePortScan(),
            addresses=self.addresses,
            pods=self._pods,
            mapper=lambda name: self.mapper if name == "portmap" else None,
            mapper_here=lambda name, _: self.mapper if self.is_ours and name == "portmap" else None,
            namespaces=self.namespaces,
            files=self.files,
            hook=self.hook,
            telling=FakeLock(),
            sysctl=self.sysctl,
            reserving=FakeLock(),
            boot_id=self.boot,
            host_name="Node1",
        )

    @property
    def store(self) -> Store:
        return self.wiring.store(DATA_DIR, 1, self.log.append)

    def unlocked(self) -> None:
        """Nothing is executed or sent inside a transaction."""
        assert not self.databases.in_transaction

    def _pods(self, kubeconfig: str) -> FakePods:
        self.unlocked()
        self.kubeconfigs.append(kubeconfig)
        return self.pods

    def call(self, verb: str, conf: dict[str, Any], **how: Any) -> Result | None:
        return call(HostportAlloc(self.wiring), verb, conf, log=self.log, **how)

    def damage_document(self, text: str) -> None:
        """Let the document of every record be this."""
        self.databases.connections[DATA_DIR].execute("UPDATE attachments SET document=?", (text,))

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


def pod_args(name: str, namespace: str = "default", uid: str = "") -> str:
    """CNI_ARGS of a Pod."""
    given = f"IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}"
    return f"{given};K8S_POD_UID={uid}" if uid else given


POD_ARGS = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=0a-1b"
