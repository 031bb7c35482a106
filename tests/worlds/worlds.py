"""A world as a value: the attachments of a node, what its host is like, and the steps that are taken there.

The text of a world (`repr`) is Python that makes it again, with what is usual left out:

    World(backend="nftables", attachments=(Attachment(ips=("192.168.5.2/24",)),), steps=("ADD 0", "CHECK 0"))

Steps are text, `ACTION ATTACHMENT [HOW]` or `EVENT [WHAT]`:

| step | means |
|---|---|
| `ADD n`, `CHECK n`, `DEL n` | the plugin is called for attachment n |
| `DEL n nowhere`, `DEL n own`, `DEL n bare` | with CNI_NETNS empty; the node's own; without mappings and prevResult |
| `GC` | for each network, with the attachments that are there |
| `die n`, `stale n`, `reuse n` | n's namespace goes; its path goes too, is a plain file now, or leads to another namespace |
| `hide n` | n's namespace lives, but its path is not visible from here |
| `come WHO`, `go WHO` | somebody else's rules (see others.py) |
| `restore` | every rule is saved, flushed and restored, as a service does at its restart |
| `flush` | every rule goes, ours and others' |
| `flush K` | the K-th of our own chains and maps, or the one of that name, is emptied by somebody |
| `SEND` | packets are sent through what is mapped, and their ways compared with the settings (see traffic.py) |
| `KNOCK` | each container tries what the node serves on 127.0.0.1 alone; the last step with packets |
| `forget localnet` | route_localnet is set back to 0 everywhere |
"""

from __future__ import annotations

import ipaddress
import json
from dataclasses import MISSING, dataclass, fields
from typing import Any

BACKENDS = ("nftables", "iptables-nft", "iptables-legacy")
VERSIONS = ("1.1.0", "1.0.0", "0.4.0", "0.3.1")


class Value:
    """Prints as Python with the fields that differ from their defaults, and no single quote: a shell takes it in these."""

    def __repr__(self) -> str:
        shown = []
        for field in fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            if field.default is MISSING or value != field.default:
                shown.append(f"{field.name}={_text(value)}")
        return f"{type(self).__name__}({', '.join(shown)})"


def _text(value: object) -> str:
    if isinstance(value, str):
        return json.dumps(value).replace("'", "\\u0027")
    if isinstance(value, tuple):
        return f"({', '.join(map(_text, value))}{',' * (len(value) == 1)})"
    return repr(value)


@dataclass(frozen=True, repr=False)
class Mapping(Value):
    """One entry of portMappings; `end` 0 for a single port, `ip` empty for none given."""

    host: int = 8080
    container: int = 80
    protocol: str = "tcp"
    ip: str = ""
    end: int = 0

    @property
    def last(self) -> int:
        """The last host port."""
        return self.end or self.host

    def json(self) -> dict[str, Any]:
        """As a runtime sends it."""
        found: dict[str, Any] = {"hostPort": self.host, "containerPort": self.container, "protocol": self.protocol}
        return found | ({"hostIP": self.ip} if self.ip else {}) | ({"endPort": self.end} if self.end else {})

    def families(self) -> tuple[int, ...]:
        """The families it is for."""
        if not self.ip:
            return (4, 6)
        address = ipaddress.ip_address(self.ip)
        return (4,) if address.version == 4 or address.ipv4_mapped else (6,)

    def where(self, family: int) -> str:
        """The one host address it is for; empty for every address."""
        address = ipaddress.ip_address(self.ip) if self.ip else None
        if address is None or address.is_unspecified:
            return ""
        return str(getattr(address, "ipv4_mapped", None) or address)

    def meets(self, other: Mapping, family: int) -> bool:
        """Whether one packet of the family can be for both."""
        if self.protocol.lower() != other.protocol.lower() or self.last < other.host or other.last < self.host:
            return False
        if family not in self.families() or family not in other.families():
            return False
        mine, its = self.where(family), other.where(family)
        return not mine or not its or mine == its


@dataclass(frozen=True, repr=False)
class Attachment(Value):
    """One container's interface on one network, with what the runtime sends for it.

    prev: `usual`; `bare` (no interfaces, no index); `unnumbered` (no index); `beyond` (an index that leads nowhere);
    `host` (the index of the host's end); `unboxed` (the interface has no sandbox). netns: `bind` or `proc`, the kind of
    path. `sources` are the callers that the conditions allow.
    """

    container: str = "c1"
    network: str = "net"
    ifname: str = "eth0"
    ips: tuple[str, ...] = ("10.88.0.2/24",)
    mappings: tuple[Mapping, ...] = (Mapping(),)
    snat: bool = True
    masq_all: bool = False
    sources: tuple[str, ...] = ()
    prev: str = "usual"
    netns: str = "bind"
    version: str = "1.1.0"

    @property
    def key(self) -> tuple[str, str, str]:
        """What identifies it."""
        return self.network, self.container, self.ifname

    def addresses(self) -> dict[int, tuple[str, int]]:
        """Per family the address, and its prefix length, that mappings lead to: the first in the container."""
        found: dict[int, tuple[str, int]] = {}
        for text in self.ips if self.prev not in ("host", "unboxed") else ():
            head, _, tail = text.partition("/")
            address, prefix = ipaddress.ip_address(head), int(tail)
            if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped:
                address, prefix = address.ipv4_mapped, prefix - 96
            found.setdefault(address.version, (str(address), prefix))
        return found

    def served(self) -> list[tuple[int, Mapping]]:
        """(family, mapping) of everything that is to be mapped."""
        return [(f, mapping) for f in sorted(self.addresses()) for mapping in self.mappings if f in mapping.families()]

    def prev_result(self, path: str) -> dict[str, Any]:
        """The result of the plugin before, in the shape of the version; `path` is the container's namespace."""
        sandbox = "" if self.prev == "unboxed" else path
        interfaces = [{"name": "veth0"}, {"name": self.ifname, "sandbox": sandbox}]
        index = {"bare": None, "unnumbered": None, "beyond": 7, "host": 0}.get(self.prev, 1)
        ips = []
        for address in self.ips:
            one: dict[str, Any] = {"address": address} | ({} if index is None else {"interface": index})
            if self.version < "1.0.0":
                one["version"] = "6" if ":" in address else "4"
            ips.append(one)
        found: dict[str, Any] = {"cniVersion": self.version, "ips": ips}
        return found if self.prev == "bare" else found | {"interfaces": interfaces}

    def conf(self, backend: str, path: str, data_dir: str) -> dict[str, Any]:
        """The network configuration of a call."""
        found: dict[str, Any] = {"cniVersion": self.version, "name": self.network, "type": "portmap"}
        found |= {"backend": backend.partition("-")[0], "dataDir": data_dir}
        found |= {"runtimeConfig": {"portMappings": [mapping.json() for mapping in self.mappings]}}
        found |= {"prevResult": self.prev_result(path)}
        found |= {} if self.snat else {"snat": False}
        found |= {"masqAll": True} if self.masq_all else {}
        for source in self.sources:
            key, word = ("conditionsV6", "ip6") if ":" in source else ("conditionsV4", "ip")
            found[key] = [f"{word} saddr {source}"] if backend == "nftables" else ["-s", source]
        return found


@dataclass(frozen=True, repr=False)
class World(Value):
    """A node and what happens on it. `host` names what is unusual about the node (see node.py)."""

    attachments: tuple[Attachment, ...] = (Attachment(),)
    steps: tuple[str, ...] = ("ADD 0", "DEL 0")
    backend: str = "nftables"
    host: tuple[str, ...] = ()


def read(text: str, *kinds: type[Value]) -> Value:
    """A world, or a value of one of the other kinds of examples, from its text as a failure prints it."""
    known = (World, *kinds)
    world = eval(text, {one.__name__: one for one in (*known, Attachment, Mapping)} | {"__builtins__": {}})
    if not isinstance(world, known):
        raise TypeError(f"not a world: {text}")
    return world
