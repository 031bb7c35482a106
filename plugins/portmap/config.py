"""portmap's network configuration, read once into typed settings. Pure; the keys are described in docs/portmap.md."""

from __future__ import annotations

from cnimeta.errors import InvalidNetworkConfig, shown
from cnimeta.namedtuple import NamedTuple
from cnimeta.spec.ip import Address, parse_ip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.spec.fields import Fields
    from cnimeta.spec.netconf import NetConf

PROTOCOLS = ("tcp", "udp", "sctp")
BACKENDS = ("auto", "nftables", "iptables")
DATA_DIR = "/var/lib/cni/cnimeta"
DEFAULT_MARK_BIT = 13
_PORT_MAX = 65535
_CONDITION_MAX = 4096


class PortMapping(NamedTuple):
    """Host ports `first`..`last` to container ports from `container_port` on.

    `host_ip` None means every address of both families, 0.0.0.0 and :: every address of theirs.
    """

    first: int
    last: int
    container_port: int
    protocol: str
    host_ip: Address | None = None

    @property
    def shifted(self) -> bool:
        """Whether the container's port differs from the host's."""
        return self.first != self.container_port

    @property
    def is_wildcard(self) -> bool:
        """Whether the mapping is for every address of a family."""
        return self.host_ip is None or self.host_ip.is_unspecified

    @property
    def where(self) -> str:
        """The host address; empty for every address."""
        return "" if self.host_ip is None or self.host_ip.is_unspecified else self.host_ip.text

    def serves(self, family: int) -> bool:
        """Whether the mapping is for this family: one with an address is for that address's only."""
        return self.host_ip is None or self.host_ip.family == family

    @property
    def text(self) -> str:
        """`192.0.2.1:8080-8089/tcp`"""
        where = "" if self.host_ip is None else f"{self.host_ip.text}:"
        last = "" if self.last == self.first else f"-{self.last}"
        return f"{where}{self.first}{last}/{self.protocol}"


class Settings(NamedTuple):
    """Everything an ADD or CHECK needs to know."""

    backend: str
    mappings: tuple[PortMapping, ...]
    snat: bool
    masq_all: bool
    mark_bit: int
    external_set_mark_chain: str
    conditions_v4: tuple[str, ...]
    conditions_v6: tuple[str, ...]
    data_dir: str
    needs_iptables: str
    """The key that only iptables has, when one is set; else empty."""


def read_settings(conf: NetConf, node_backend: str = "", node_data_dir: str = "") -> Settings:
    """Read and check every key. `node_*` are the node-wide defaults. Raises InvalidNetworkConfig (code 7)."""
    fields = conf.fields
    backend = fields.choice("backend", BACKENDS, node_backend or "auto")
    conditions = {key: _conditions(fields, key) for key in ("conditionsV4", "conditionsV6")}
    external = fields.text("externalSetMarkChain")
    mark_bit = fields.integer("markMasqBit", 0, 31)
    if external and mark_bit is not None:
        raise InvalidNetworkConfig("$.markMasqBit and $.externalSetMarkChain are both set: keep one of them")
    needs = _iptables_key(external, mark_bit, conditions)
    if needs and fields.has("backend") and backend == "nftables":
        raise InvalidNetworkConfig(f"$.{needs} needs iptables, but $.backend is nftables")
    for key, words in conditions.items():
        if words and not _is_iptables(words) and backend == "iptables":
            raise InvalidNetworkConfig(f"$.{key} is written for nftables, but the backend is iptables")
    return Settings(
        backend,
        read_mappings(conf),
        fields.boolean("snat", True),
        fields.boolean("masqAll"),
        DEFAULT_MARK_BIT if mark_bit is None else mark_bit,
        external,
        conditions["conditionsV4"],
        conditions["conditionsV6"],
        read_data_dir(fields, node_data_dir),
        needs,
    )


def read_data_dir(fields: Fields, node_data_dir: str = "") -> str:
    """Where the records are kept."""
    folder = fields.text("dataDir") or node_data_dir or DATA_DIR
    if not folder.startswith("/") or "\0" in folder:
        raise fields.wrong("dataDir", "an absolute path")
    return folder


def read_mappings(conf: NetConf) -> tuple[PortMapping, ...]:
    """`runtimeConfig.portMappings`, each checked; equal ones once. Raises InvalidNetworkConfig (code 7)."""
    found: dict[PortMapping, str] = {}
    for entry in conf.runtime_config.objects("portMappings"):
        mapping = _mapping(entry)
        for other, path in found.items():
            if _clash(mapping, other) and mapping != other:
                raise InvalidNetworkConfig(
                    f"{entry.path} maps {mapping.text}, which {path} maps to another container port already"
                )
        found.setdefault(mapping, entry.path)
    return tuple(found)


def _mapping(entry: Fields) -> PortMapping:
    first, target = _port(entry, "hostPort"), _port(entry, "containerPort")
    last = _last(entry, first)
    if target + last - first > _PORT_MAX:
        raise InvalidNetworkConfig(f"{entry.path} maps beyond container port {_PORT_MAX}: the range is too long")
    protocol = entry.text("protocol", "tcp").lower()
    if protocol not in PROTOCOLS:
        raise entry.wrong("protocol", "one of " + ", ".join(PROTOCOLS))
    return PortMapping(first, last, target, protocol, _host_ip(entry))


def _port(entry: Fields, key: str) -> int:
    port = entry.integer(key, 1, _PORT_MAX)
    if port is None:
        raise InvalidNetworkConfig(f"{entry.at(key)} is missing: it must be a whole number from 1 to {_PORT_MAX}")
    return port


def _last(entry: Fields, first: int) -> int:
    """The last host port: `endPort`, or `count` ports, or `hostPort` alone."""
    end, count = entry.integer("endPort", 1, _PORT_MAX), entry.integer("count", 1, _PORT_MAX)
    if end is not None and count is not None:
        raise InvalidNetworkConfig(f"{entry.path} has both endPort and count: keep one of them")
    last = end if end is not None else first + (count or 1) - 1
    if not first <= last <= _PORT_MAX:
        raise entry.wrong(
            "endPort" if end is not None else "count", f"such that the range from {first} ends by {_PORT_MAX}"
        )
    return last


def _host_ip(entry: Fields) -> Address | None:
    text = entry.text("hostIP")
    if not text:
        return None
    try:
        return parse_ip(text)
    except ValueError:
        raise entry.wrong("hostIP", "an IP address") from None


def _clash(one: PortMapping, other: PortMapping) -> bool:
    if one.protocol != other.protocol or one.last < other.first or other.last < one.first:
        return False
    if one.is_wildcard and other.is_wildcard:
        return any(one.serves(family) and other.serves(family) for family in (4, 6))
    return one.host_ip == other.host_ip


def _conditions(fields: Fields, key: str) -> tuple[str, ...]:
    words = tuple(fields.texts(key))
    for index, word in enumerate(words):
        if len(word) > _CONDITION_MAX or not word.isprintable() or ";" in word or "#" in word:
            raise InvalidNetworkConfig(f"{fields.at(key)}[{index}] is not part of a rule: {shown(word)}")
    return words


def _is_iptables(words: tuple[str, ...]) -> bool:
    """Iptables conditions start with an option or its negation (upstream's test)."""
    return bool(words) and words[0].lstrip()[:1] in ("-", "!")


def _iptables_key(external: str, mark_bit: int | None, conditions: dict[str, tuple[str, ...]]) -> str:
    if external:
        return "externalSetMarkChain"
    if mark_bit is not None:
        return "markMasqBit"
    return next((key for key, words in conditions.items() if _is_iptables(words)), "")
