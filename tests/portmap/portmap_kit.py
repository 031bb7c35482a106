"""What the portmap tests share: a host of fakes, and configurations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cnimeta.testing import call
from cnimeta.testing.files import MemoryFiles
from cnimeta.testing.iptables import FakeIptables
from cnimeta.testing.netfilter import FakeConntrack, FakeNft, FakeSysctl
from cnimeta_plugins.portmap.backends import Backends, Source
from cnimeta_plugins.portmap.iptables.backend import IptablesBackend
from cnimeta_plugins.portmap.main import Portmap
from cnimeta_plugins.portmap.mapper import Mapper
from cnimeta_plugins.portmap.memory import MemoryBackend, registry
from cnimeta_plugins.portmap.nftables.backend import NftBackend

if TYPE_CHECKING:
    from cnimeta.host.protocols import Nft


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
        self.gone: set[str] = set()
        self.lines: list[str] = []

    def sources(self) -> dict[str, Source]:
        """Every backend, on fakes; new ones for each command, as on a host."""
        return {
            **registry(self.memory),
            "nftables": Source(lambda _: NftBackend(self.nft)),
            "iptables": Source(lambda _: IptablesBackend(self.iptables)),
        }

    def plugin(self) -> Portmap:
        return Portmap(
            lambda request: Mapper(
                Backends(sources=self.sources()),
                lambda: self.conntrack,
                self.sysctl,
                self.files,
                self.lines.append,
                boot_id=self.boot,
                route=lambda address: f"to-{address.text}",
                netns_exists=lambda path: path not in self.gone,
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
