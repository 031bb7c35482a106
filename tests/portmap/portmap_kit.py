"""What the portmap tests share: a host of fakes, configurations, and what is mapped, whatever the backend."""

from __future__ import annotations

from itertools import pairwise
from typing import TYPE_CHECKING, Any, NamedTuple

from cnimeta.errors import IoFailure
from cnimeta.testing import call
from cnimeta.testing.files import MemoryFiles
from cnimeta.testing.iptables import FakeIptables
from cnimeta.testing.namespaces import FakeNamespaces
from cnimeta.testing.netfilter import FakeConntrack, FakeNft, FakeSysctl
from cnimeta.testing.store import FakeLocks
from cnimeta_plugins.portmap.backends import Backends, Source
from cnimeta_plugins.portmap.iptables.backend import IptablesBackend
from cnimeta_plugins.portmap.main import Portmap
from cnimeta_plugins.portmap.mapper import Mapper
from cnimeta_plugins.portmap.memory import MemoryBackend, registry
from cnimeta_plugins.portmap.nftables.backend import NftBackend

if TYPE_CHECKING:
    from cnimeta.host.protocols import Nft


class Unreadable(FakeIptables):
    """A nat table that cannot be read."""

    def has_chain(self, family: int, name: str) -> bool:
        raise IoFailure(f"IPv{family} chain {name} cannot be read")


class Host:
    """A node for portmap: everything it touches, in memory (or the real nft), and the container namespaces that exist."""

    def __init__(self, nft: Nft | None = None) -> None:
        self.nft = nft or FakeNft()
        self.iptables = FakeIptables()
        self.memory = MemoryBackend()
        self.conntrack = FakeConntrack()
        self.sysctl = FakeSysctl()
        self.files = MemoryFiles()
        self.boot = "boot-1"
        self.namespaces = FakeNamespaces()
        self.locks = FakeLocks()
        self.lines: list[str] = []

    def sources(self) -> dict[str, Source]:
        """Every backend, on fakes; new ones for each command, as on a host."""
        return {
            **registry(self.memory),
            "nftables": Source(lambda _: NftBackend(self.nft)),
            "iptables": Source(lambda _: IptablesBackend(self.iptables)),
        }

    def disable(self, backend: str) -> None:
        """Make a backend one that this host cannot use."""
        if backend == "iptables":
            self.iptables = Unreadable()
        else:
            {"nftables": self.nft, "memory": self.memory}[backend].usable = False

    def plugin(self) -> Portmap:
        return Portmap(
            lambda request: Mapper(
                Backends(sources=self.sources()),
                lambda: self.conntrack,
                lambda: self.sysctl,
                self.files,
                self.lines.append,
                boot_id=lambda: self.boot,
                route=lambda address: f"to-{address.text}",
                namespaces=self.namespaces,
                locks=lambda _: self.locks,
            )
        )

    def call(self, verb: str, conf: dict[str, Any], container_id: str = "c1", ifname: str = "eth0", **more: Any) -> Any:
        return call(
            self.plugin(),
            verb,
            conf,
            container_id=container_id,
            ifname=ifname,
            netns=f"/run/netns/{container_id}",
            **more,
        )

    def flush(self) -> None:
        """Another program takes every rule away."""
        self.nft.flush_ruleset()
        self.iptables = FakeIptables()
        self.memory.held.clear()

    def dump(self) -> list[str]:
        """Elements and rules that are not part of the base."""
        assert isinstance(self.nft, FakeNft)
        return [line for line in self.nft.dump().splitlines() if "{" in line and not line.split()[0].endswith(":")]


def conf(
    *mappings: dict[str, Any], ips: tuple[str, ...] = ("10.88.0.2/16",), version: str = "1.1.0", **keys: Any
) -> dict[str, Any]:
    return {
        "cniVersion": version,
        "name": "net",
        "type": "portmap",
        "runtimeConfig": {"portMappings": list(mappings)},
        "prevResult": {
            "cniVersion": version,
            "interfaces": [{"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/c1"}],
            "ips": [{"address": ip, "interface": 1} for ip in ips],
        },
        **keys,
    }


def tcp(host: int, container: int = 80, **more: Any) -> dict[str, Any]:
    return {"hostPort": host, "containerPort": container, "protocol": "tcp", **more}


# --- what is mapped, whatever the backend ---------------------------------------------------------------------


class Mapped(NamedTuple):
    """One host port and where it leads; `where` is empty for every address."""

    family: int
    protocol: str
    port: int
    where: str
    container: str
    container_port: int


def nft_ports(host: Host) -> set[Mapped]:
    found = set()
    for family in (4, 6):
        for name in ("any", "host", "range", "hostrange"):
            for element in host.nft.elements(f"{name}{family}"):
                *where, protocol, ports = element.key.split(" . ")
                container, _, to = element.value.partition(" . ")
                first, _, last = ports.partition("-")
                for port in range(int(first), int(last or first) + 1):
                    found.add(Mapped(family, protocol, port, "".join(where), container, int(to or port)))
    return found


def iptables_ports(host: Host) -> set[Mapped]:
    found = set()
    for family in (4, 6):
        chains = host.iptables.read(family)
        for entry in chains.get("CNI-HOSTPORT-DNAT", ()):
            for rule in chains.get(entry.rpartition("-j ")[2], ()):  # none where addresses are left alone
                words = dict(pairwise(rule.split()))
                if words["-j"] == "DNAT":
                    found |= _of_rule(family, words)
    return found


def _of_rule(family: int, words: dict[str, str]) -> set[Mapped]:
    first, _, last = words["--dport"].partition(":")
    to = words["--to-destination"].partition("/")[0]
    container, _, port = to.rpartition(":") if "]" in to or to.count(":") == 1 else (to, "", "")
    shift = int(port.partition("-")[0] or first) - int(first)
    where = words.get("-d", "").partition("/")[0]
    return {
        Mapped(family, words["-p"], number, where, container.strip("[]"), number + shift)
        for number in range(int(first), int(last or first) + 1)
    }


def memory_ports(host: Host) -> set[Mapped]:
    return {
        Mapped(port.family, port.protocol, port.host_port, port.host_ip, port.container, port.container_port)
        for ports in host.memory.held.values()
        for port in ports
    }


OBSERVERS = {"nftables": nft_ports, "iptables": iptables_ports, "memory": memory_ports}
"""Every backend, and how to see what it has mapped."""
