"""portmap's network configuration, read once into typed settings. Pure; the keys are described in docs/portmap.md."""

from __future__ import annotations

from cnimeta.errors import InvalidNetworkConfig, shown
from cnimeta.namedtuple import NamedTuple
from cnimeta.ports.mapper import DATA_DIR, MANAGED_BY
from cnimeta.spec.ip import Address, parse_ip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from cnimeta.spec.fields import Fields
    from cnimeta.spec.netconf import NetConf

PROTOCOLS = ("tcp", "udp", "sctp")
AUTO = "auto"
PREFERRED = ("nftables", "iptables")
"""What `auto` chooses from: the first that can be used here and has every key."""
KEYS = (
    *("backend", "snat", "masqAll", "markMasqBit", "externalSetMarkChain", "conditionsV4", "conditionsV6", "dataDir"),
    MANAGED_BY,
)
"""The keys of a configuration that are portmap's own."""
_PORT_MAX = 65535
_CONDITION_MAX = 4096
_NAME_MAX = 255
_VERDICTS = ("accept", "drop", "continue", "return", "goto", "jump", "vmap")
"""What decides about a packet in nft's language and may be followed by more; nft itself refuses others (`reject`)."""


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
    def host_ports(self) -> range:
        """Every host port."""
        return range(self.first, self.last + 1)

    @property
    def is_range(self) -> bool:
        """Whether there is more than one port."""
        return self.last != self.first

    @property
    def shifted(self) -> bool:
        """Whether the container's port differs from the host's."""
        return self.first != self.container_port

    def target(self, host_port: int) -> int:
        """The container's port for one of the host's."""
        return self.container_port + host_port - self.first

    @property
    def is_wildcard(self) -> bool:
        """Whether the mapping is for every address of a family."""
        return self.host_ip is None or self.host_ip.is_unspecified

    @property
    def where(self) -> str:
        """The host address; empty for every address."""
        return "" if self.host_ip is None or self.host_ip.is_unspecified else self.host_ip.text

    @property
    def packed_where(self) -> bytes:
        """The same as bytes."""
        return b"" if self.host_ip is None or self.host_ip.is_unspecified else self.host_ip.packed

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
    """Everything an ADD or CHECK needs to know. The defaults are those of the keys."""

    mappings: tuple[PortMapping, ...] = ()
    backends: tuple[str, ...] = PREFERRED
    """The names of the backends that may serve, in order of preference."""
    snat: bool = True
    masq_all: bool = False
    mark_bit: int = 13
    external_set_mark_chain: str = ""
    conditions_v4: tuple[str, ...] = ()
    conditions_v6: tuple[str, ...] = ()
    data_dir: str = DATA_DIR
    managed_by: str = ""
    """The plugin on whose behalf it maps: see `MANAGED_BY`."""

    def conditions(self, family: int) -> tuple[str, ...]:
        """The conditions of one family, 4 or 6."""
        return self.conditions_v4 if family == 4 else self.conditions_v6


DEFAULTS = Settings()


class NodeDefaults(NamedTuple):
    """The node-wide configuration; what a network configuration says goes before it. Empty for what is not set."""

    backend: str = ""
    data_dir: str = ""


NO_NODE_DEFAULTS = NodeDefaults()


def read_settings(
    conf: NetConf, node: NodeDefaults = NO_NODE_DEFAULTS, backends: Collection[str] = PREFERRED
) -> Settings:
    """Read and check every key; `backends` are the names there are. Raises InvalidNetworkConfig (code 7)."""
    fields = conf.fields
    backend = fields.choice("backend", (AUTO, *backends), node.backend or AUTO)
    conditions = {key: _conditions(fields, key) for key in ("conditionsV4", "conditionsV6")}
    external = fields.text("externalSetMarkChain")
    mark_bit = fields.integer("markMasqBit", 0, 31)
    if external and mark_bit is not None:
        raise InvalidNetworkConfig("$.markMasqBit and $.externalSetMarkChain are both set: keep one of them")
    needs_iptables = _iptables_key(external, mark_bit, conditions)
    if needs_iptables and backend == "nftables":
        whose = "$.backend" if fields.has("backend") else "the node's backend"
        raise InvalidNetworkConfig(f"$.{needs_iptables} needs iptables, but {whose} is nftables")
    for key, words in conditions.items():
        if words and not _is_iptables(words) and backend == "iptables":
            raise InvalidNetworkConfig(f"$.{key} is written for nftables, but the backend is iptables")
        verdict = "" if _is_iptables(words) else _verdict_in(words)
        if verdict:
            raise InvalidNetworkConfig(
                f"$.{key} has the verdict {verdict}, which would be on other containers' packets too:"
                " say only what a packet must match"
            )
    return Settings(
        read_mappings(conf),
        (backend,) if backend != AUTO else ("iptables",) if needs_iptables else PREFERRED,
        fields.boolean("snat", DEFAULTS.snat),
        fields.boolean("masqAll", DEFAULTS.masq_all),
        DEFAULTS.mark_bit if mark_bit is None else mark_bit,
        external,
        conditions["conditionsV4"],
        conditions["conditionsV6"],
        read_data_dir(fields, node),
        read_managed_by(fields),
    )


def read_managed_by(fields: Fields) -> str:
    """On whose behalf it maps; what cannot be a plugin's name counts as nobody's."""
    found = fields.get(MANAGED_BY)
    return found if isinstance(found, str) and "/" not in found and len(found) <= _NAME_MAX else ""


def read_data_dir(fields: Fields, node: NodeDefaults = NO_NODE_DEFAULTS) -> str:
    """Where the records are kept. Raises InvalidNetworkConfig (code 7)."""
    folder = fields.text("dataDir") or node.data_dir or DEFAULTS.data_dir
    if not folder.startswith("/") or "\0" in folder:
        raise fields.wrong("dataDir", "an absolute path")
    return folder


def read_mappings(conf: NetConf) -> tuple[PortMapping, ...]:
    """`runtimeConfig.portMappings`, each checked; equal ones once. Raises InvalidNetworkConfig (code 7)."""
    found: dict[PortMapping, str] = {}
    for entry in conf.runtime_config.objects("portMappings"):
        found.setdefault(read_mapping(entry), entry.path)
    _require_apart(found)
    return tuple(found)


def _require_apart(found: dict[PortMapping, str]) -> None:
    """Raise when two lead one host port to different places. By protocol and address, then port: not each with each."""
    order = {mapping: at for at, mapping in enumerate(found)}
    places: dict[tuple[str, str], list[PortMapping]] = {}
    for mapping in found:
        families = [str(family) for family in (4, 6) if mapping.serves(family)]
        for where in families if mapping.is_wildcard else [mapping.where]:
            places.setdefault((mapping.protocol, where), []).append(mapping)
    for mappings in places.values():
        mappings.sort(key=lambda one: one.first)
        widest = mappings[0]
        for mapping in mappings[1:]:
            if mapping.first <= widest.last:
                earlier, later = sorted((widest, mapping), key=lambda one: order[one])
                raise InvalidNetworkConfig(
                    f"{found[later]} maps {later.text}, which {found[earlier]} maps to another container port already"
                )
            widest = mapping


def read_mapping(entry: Fields) -> PortMapping:
    """One object of `portMappings`. Raises InvalidNetworkConfig (code 7)."""
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
        address = parse_ip(text)
    except ValueError:
        raise entry.wrong("hostIP", "an IP address") from None
    if address.is_link_local:
        raise entry.wrong("hostIP", "no link-local address: fe80::/10 means nothing without an interface")
    return address


def _conditions(fields: Fields, key: str) -> tuple[str, ...]:
    words = tuple(fields.texts(key))
    for index, word in enumerate(words):
        if len(word) > _CONDITION_MAX or not word.isprintable() or ";" in word or "#" in word:
            raise InvalidNetworkConfig(f"{fields.at(key)}[{index}] is not part of a rule: {shown(word)}")
    return words


def _is_iptables(words: tuple[str, ...]) -> bool:
    """Iptables conditions start with an option or its negation (upstream's test)."""
    return bool(words) and words[0].lstrip()[:1] in ("-", "!")


def _verdict_in(words: tuple[str, ...]) -> str:
    """The first word of nft's language that decides about a packet, outside quotes; empty for none."""
    unquoted = " ".join(" ".join(words).split('"')[::2])
    for sign in "{},:":
        unquoted = unquoted.replace(sign, " ")
    return next((word for word in unquoted.split() if word in _VERDICTS), "")


def _iptables_key(external: str, mark_bit: int | None, conditions: dict[str, tuple[str, ...]]) -> str:
    if external:
        return "externalSetMarkChain"
    if mark_bit is not None:
        return "markMasqBit"
    return next((key for key, words in conditions.items() if _is_iptables(words)), "")
