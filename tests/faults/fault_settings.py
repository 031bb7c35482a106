"""The commands that something happens to: each plugin alone and together, each backend, each verb."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable

DATA = "/run/state"
VALID = "cni.dev/valid-attachments"
VERBS = ("ADD", "DEL", "CHECK", "GC", "STATUS")
PORTS = {
    "c0": [{"hostPort": 8000, "containerPort": 80, "protocol": "tcp"}],
    "c1": [
        {"hostPort": 8001, "containerPort": 80, "protocol": "tcp"},
        {"hostPort": 5301, "containerPort": 53, "protocol": "udp", "hostIP": "10.88.0.1"},
    ],
    "c2": [{"hostPort": 8002, "containerPort": 80, "protocol": "tcp"}],
    "c3": [{"hostPort": 8003, "containerPort": 80, "protocol": "tcp"}],
}
RATES = {"ingressRate": 8_000_000, "ingressBurst": 800_000, "egressRate": 8_000_000, "egressBurst": 800_000}


class Setting(NamedTuple):
    """One way to run a plugin. `keys` are those of its configuration."""

    plugin: str
    keys: dict[str, Any]
    programs: tuple[str, ...] = ()
    """What it starts, each of which may fail in its turn."""
    wrapper: bool = False
    api: bool = False
    """Whether a Kubernetes API server is told of the ports, each request to which may fail in its turn."""
    iptables: str = "nft"
    """The variant that the host's `iptables` is."""
    agent: str = ""
    """The kind of launcher that asks an agent, `python` or `native`; empty: the plugin works alone, without a launcher."""


def _hostports(backend: str, **keys: Any) -> dict[str, Any]:
    return {
        "ranges": {"default": "20000-20009"},
        "expose": ["80/tcp", "53/udp"],
        "quarantineSeconds": 0,
        "sticky": False,
        "portmap": {"type": "portmap", "backend": backend},
        "dataDir": DATA,
        **keys,
    }


_WRAPPED = {"delegates": [{"type": "bridge"}, {"type": "bandwidth", **RATES}]}
_API = {"kubeconfig": "/run/kubeconfig", "policy": "required", "timeout": 10}
SETTINGS = {
    "portmap nftables": Setting("portmap", {"backend": "nftables", "dataDir": DATA}, ("nft",)),
    "portmap iptables": Setting(
        "portmap", {"backend": "iptables", "dataDir": DATA}, ("iptables-nft-restore", "iptables-nft-save", "iptables")
    ),
    "portmap legacy iptables": Setting(
        "portmap",
        {"backend": "iptables", "dataDir": DATA},
        ("iptables-legacy-restore", "iptables-legacy-save"),
        iptables="legacy",
    ),
    "bandwidth": Setting("bandwidth", RATES),
    "bandwidth subnets": Setting("bandwidth", {**RATES, "shapedSubnets": ["10.88.0.0/16"]}),
    "hostport_alloc nftables": Setting("hostport_alloc", _hostports("nftables"), ("nft",)),
    "hostport_alloc iptables": Setting("hostport_alloc", _hostports("iptables"), ("iptables-nft-restore",)),
    "hostport_alloc annotated": Setting("hostport_alloc", _hostports("nftables", kubernetes=_API), api=True),
    "hostport_alloc wrapped": Setting(
        "hostport_alloc", _hostports("nftables", **_WRAPPED), ("nft", "bridge"), wrapper=True
    ),
    "hostport_alloc legacy iptables": Setting("hostport_alloc", _hostports("iptables"), iptables="legacy"),
    "portmap agent": Setting("portmap", {"backend": "nftables", "dataDir": DATA}, agent="native"),
    "portmap agent python": Setting("portmap", {"backend": "iptables", "dataDir": DATA}, agent="python"),
    "bandwidth agent": Setting("bandwidth", RATES, agent="native"),
    "hostport_alloc agent": Setting("hostport_alloc", _hostports("nftables", **_WRAPPED), wrapper=True, agent="native"),
}


def conf(setting: Setting, verb: str, name: str, valid: Iterable[str] = ()) -> dict[str, Any]:
    """The configuration on stdin."""
    number = name[1:]
    found: dict[str, Any] = {"cniVersion": "1.1.0", "name": "net", "type": setting.plugin, **setting.keys}
    if verb in ("ADD", "DEL", "CHECK") and not (setting.wrapper and verb == "ADD"):
        inside = {"name": "eth0", "sandbox": f"/run/netns/{name}"}
        address = {"address": f"10.88.0.1{number}/16", "interface": 1}
        found["prevResult"] = {"cniVersion": "1.1.0", "interfaces": [{"name": f"v{number}"}, inside], "ips": [address]}
    if setting.plugin == "portmap" and verb in ("ADD", "DEL", "CHECK"):
        found["runtimeConfig"] = {"portMappings": PORTS[name]}
    if verb == "GC":
        found[VALID] = [{"containerID": one, "ifname": "eth0"} for one in valid]
    return found


CODES = {
    "ADD": {0, 5, 11, 102, 103, 104, 105},
    "DEL": {0, 5, 11, 104, 105},
    "CHECK": {0, 5, 11, 101, 104, 105},
    "GC": {0, 5, 11, 104, 105},
    "STATUS": {0, 5, 11, 50, 51, 104, 105},
}
"""What a verb may answer when something of the host's fails. 4, 6 and 7 blame the configuration, 100 another container,
and 999 is a defect. 102 and 103 are the API server's.
"""
