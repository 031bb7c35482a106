"""What the portmap tests share: a host of fakes, and configurations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cnimeta.testing import call
from cnimeta.testing.files import MemoryFiles
from cnimeta.testing.netfilter import FakeConntrack, FakeNft, FakeSysctl
from cnimeta_plugins.portmap.main import Portmap
from cnimeta_plugins.portmap.mapper import Mapper

if TYPE_CHECKING:
    from cnimeta.host.protocols import Nft


class Host:
    """A node for portmap: everything it touches, in memory (or the real nft), and the container namespaces that exist."""

    def __init__(self, nft: Nft | None = None) -> None:
        self.nft = nft or FakeNft()
        self.conntrack = FakeConntrack()
        self.sysctl = FakeSysctl()
        self.files = MemoryFiles()
        self.boot = "boot-1"
        self.gone: set[str] = set()
        self.lines: list[str] = []

    def plugin(self) -> Portmap:
        return Portmap(
            lambda request: Mapper(
                self.nft,
                self.conntrack,
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
