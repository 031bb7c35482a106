"""The network configuration of hostport_alloc, read once into typed settings. Pure; see docs/hostport_alloc.md.

Every failure is an InvalidNetworkConfig (code 7) that names the JSON path and the value. DEL reads only `dataDir`,
`lockTimeout` and the delegates: it must work when the rest of the configuration has been changed since ADD.
"""

from __future__ import annotations

import os

from cnimeta.errors import InvalidNetworkConfig, shown
from cnimeta.namedtuple import NamedTuple
from cnimeta.ports.mapper import DATA_DIR
from cnimeta.spec import validate
from cnimeta.spec.fields import Fields
from cnimeta.spec.ip import parse_ip
from cnimeta.spec.jsonio import kind
from cnimeta_plugins.hostport_alloc.allocate.expose import DEFAULT_RANGE, UNNAMED, Exposure, parse_exposure
from cnimeta_plugins.hostport_alloc.allocate.ranges import PortRange, parse_range, refuse_overlaps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cnimeta.spec.jsonio import JSON
    from cnimeta.spec.netconf import NetConf
    from cnimeta_plugins.hostport_alloc.allocate.quotas import Quotas
    from cnimeta_plugins.hostport_alloc.hook.event import Notify
    from cnimeta_plugins.hostport_alloc.pod.external import External
    from cnimeta_plugins.hostport_alloc.range_config import RangeRule
    from cnimeta_plugins.hostport_alloc.state.record import Pod

DEFAULT_PORTS = "20000-24999"
"""Below the ephemeral range (from 32768) and the NodePorts (30000-32767)."""
NODE_PORTS = "30000-32767"
PLUGIN_TYPE = "hostport_alloc"
PORTMAP_TYPE = "portmap"
QUARANTINE_S = 30.0
STICKY_S = 3600.0
LOCK_TIMEOUT_S = 10.0

_SECONDS_MAX = 86400
_PORTS_PER_POD_MAX = 4096


class ApiSettings(NamedTuple):
    """How the Pod is annotated. An empty `kubeconfig` means in-cluster credentials, or else the node's own."""

    kubeconfig: str
    required: bool
    timeout_s: float
    read_pod: bool


class Chain(NamedTuple):
    """The delegates, run in order as libcni runs a list; none in chained mode, where `wrapper` is False."""

    wrapper: bool
    name: str
    cni_version: str
    plugins: tuple[dict[str, JSON], ...] = ()
    check: bool = True
    gc: bool = True

    @property
    def mapper(self) -> int:
        """The index of the delegate that maps ports itself, and so gets every mapping; -1 for none.

        One of type `portmap` goes before one that only has the capability.
        """
        able = [index for index, raw in enumerate(self.plugins) if _maps_ports(raw)]
        named = [index for index in able if Fields(self.plugins[index]).text("type") == PORTMAP_TYPE]
        return (named or able or [-1])[0]


class Settings(NamedTuple):
    """A whole configuration."""

    ranges: tuple[PortRange, ...]
    expose: tuple[Exposure, ...]
    chain: Chain
    portmap: dict[str, JSON]
    host_ips: tuple[str, ...]
    """The addresses to advertise; empty for `auto`."""
    api: ApiSettings | None
    quarantine_s: float
    sticky: bool
    sticky_s: float
    force_overlap: bool
    node_ports: PortRange
    max_ports: int
    lock_timeout_s: float
    data_dir: str
    range_rules: tuple[RangeRule, ...] = ()
    ranges_file: str = ""
    quotas: Quotas | None = None
    reserve_ports: bool = False
    external: External | None = None
    notify: Notify | None = None

    def default_range(self, pod: Pod | None, labels: Mapping[str, JSON]) -> str:
        """The range of exposures that name none."""
        return next((rule.range for rule in self.range_rules if rule.is_for(pod, labels)), DEFAULT_RANGE)

    @property
    def needs_labels(self) -> bool:
        """Whether a rule is about the Pod's labels."""
        return any(rule.labels for rule in self.range_rules)

    def range(self, name: str) -> PortRange:
        """The range of that name. Raises InvalidNetworkConfig (code 7) when `defaultRange` leaves none."""
        for found in self.ranges:
            if found.name == name:
                return found
        raise InvalidNetworkConfig(
            f"an exposure without a range is of {shown(name)} by $.defaultRange; $.ranges has"
            f" {', '.join(one.name for one in self.ranges)}"
        )

    def reserved(self, ephemeral: tuple[int, int]) -> list[tuple[str, int, int]]:
        """(what, first, last) of ports that no range may have, unless the operator forces it."""
        if self.force_overlap:
            return []
        return [
            *(("the NodePort range", *span) for span in self.node_ports.spans),
            ("the ephemeral range net.ipv4.ip_local_port_range", *ephemeral),
        ]


def refuse_unreadable_credentials(api: ApiSettings | None) -> None:
    """Raise InvalidNetworkConfig (code 7) when Pods must be annotated with credentials that are not there."""
    # unknown: ADD fails, as the policy wants it
    if api is not None and api.required and api.kubeconfig and not os.access(api.kubeconfig, os.R_OK):
        raise InvalidNetworkConfig(
            f'$.kubernetes.kubeconfig {shown(api.kubeconfig)} cannot be read, and $.kubernetes.policy is "required"'
        )


def read_settings(conf: NetConf) -> Settings:
    """Read and check every key."""
    fields = conf.fields
    ranges = _ranges(fields)
    names = tuple(found.name for found in ranges)
    api, rules = _api(fields), _rules(fields, ranges)
    if any(rule.labels for rule in rules) and not (api is not None and api.read_pod):
        raise InvalidNetworkConfig(
            "$.defaultRange has labels, which are read of the Pod: set kubernetes.readPod to true"
        )
    unnamed = UNNAMED if rules else DEFAULT_RANGE
    return Settings(
        ranges=ranges,
        expose=tuple(
            parse_exposure(text, f"$.expose[{index}]", names, unnamed)
            for index, text in enumerate(fields.texts("expose"))
        ),
        chain=read_chain(conf),
        portmap=read_portmap(fields),
        host_ips=_host_ips(fields),
        api=api,
        quarantine_s=_seconds(fields, "quarantineSeconds", QUARANTINE_S),
        sticky=fields.boolean("sticky", True),
        sticky_s=_seconds(fields, "stickySeconds", STICKY_S),
        force_overlap=fields.boolean("forceOverlap"),
        node_ports=parse_range("NodePorts", fields.text("nodePortRange") or NODE_PORTS, "$.nodePortRange"),
        max_ports=fields.integer("maxPortsPerPod", 1, _PORTS_PER_POD_MAX) or 64,
        lock_timeout_s=read_lock_timeout(fields),
        data_dir=read_data_dir(fields),
        range_rules=rules,
        ranges_file=_absolute(fields, "rangesFile"),
        quotas=_quotas(fields),
        reserve_ports=fields.boolean("reservePorts"),
        external=_external(fields, ranges),
        notify=_notify(fields),
    )


def _notify(fields: Fields) -> Notify | None:
    if not fields.has("notify"):
        return None
    from cnimeta_plugins.hostport_alloc.hook.event import read_notify

    hook = fields.object("notify")
    return read_notify(hook, _seconds(hook, "timeout", 5, low=0.1))


def _external(fields: Fields, ranges: tuple[PortRange, ...]) -> External | None:
    if not fields.has("external"):
        return None
    from cnimeta_plugins.hostport_alloc.pod.external import read_external

    return read_external(fields.object("external"), ranges)


def _quotas(fields: Fields) -> Quotas | None:
    if not fields.has("quotas"):
        return None
    from cnimeta_plugins.hostport_alloc.allocate.quotas import read_quotas

    return read_quotas(fields.object("quotas"))


def _absolute(holder: Fields, key: str) -> str:
    path = holder.text(key)
    if path and (not path.startswith("/") or "\0" in path):
        raise holder.wrong(key, "an absolute path")
    return path


def read_data_dir(fields: Fields) -> str:
    """Where records and bitmap are."""
    return _absolute(fields, "dataDir") or DATA_DIR


def read_lock_timeout(fields: Fields) -> float:
    """Seconds to wait for an attachment that another command works on, and for the database."""
    return _seconds(fields, "lockTimeout", LOCK_TIMEOUT_S)


def read_chain(conf: NetConf) -> Chain:
    """`delegates`, a list of plugins, or `delegate`, one plugin or a whole network configuration list."""
    fields = conf.fields
    plugins = [dict(entry.raw) for entry in fields.objects("delegates")]
    if fields.has("delegates") and fields.has("delegate"):
        raise InvalidNetworkConfig("$.delegates and $.delegate are both set: keep one of them")
    name, version, check, gc = conf.name, conf.cni_version, True, True
    wrapper = fields.has("delegates") or fields.has("delegate")
    path = "$.delegates"
    if fields.has("delegate"):
        inner = fields.object("delegate")
        path = "$.delegate"
        if inner.has("plugins"):
            plugins, path = [dict(entry.raw) for entry in inner.objects("plugins")], "$.delegate.plugins"
        else:
            plugins = [dict(inner.raw)]
        name, version = inner.text("name") or name, inner.text("cniVersion") or version
        validate.network_name(name)
        check, gc = not _flag(inner, "disableCheck"), not _flag(inner, "disableGC")
    if wrapper and not plugins:
        raise InvalidNetworkConfig(f"{path} is empty: name at least one plugin, or leave the key out in a chain")
    for index, raw in enumerate(plugins):
        _check_delegate(raw, path if path == "$.delegate" else f"{path}[{index}]")
    return Chain(wrapper, name, version, tuple(plugins), check, gc)


def _flag(fields: Fields, key: str) -> bool:
    """A flag that libcni takes as a boolean or as the string "true" or "false"."""
    value = fields.get(key)
    return value.lower() == "true" if isinstance(value, str) else fields.boolean(key)


def _check_delegate(raw: dict[str, JSON], path: str) -> None:
    fields = Fields(raw, path)
    plugin_type = fields.text("type")
    if not plugin_type:
        raise InvalidNetworkConfig(
            f"{fields.at('type')} is missing: write a plugin's configuration with its type, or a list with plugins"
        )
    validate.plugin_type(plugin_type, fields.at("type"))
    if plugin_type == PLUGIN_TYPE:
        raise InvalidNetworkConfig(f"{fields.at('type')} is {PLUGIN_TYPE}: it cannot delegate to itself")
    fields.object("capabilities")


def _maps_ports(raw: dict[str, JSON]) -> bool:
    fields = Fields(raw)
    return fields.text("type") == PORTMAP_TYPE or fields.object("capabilities").get("portMappings") is True


def read_portmap(fields: Fields) -> dict[str, JSON]:
    """The portmap that runs after the delegates; the plugin of that name with its defaults when not configured."""
    portmap = fields.object("portmap")
    plugin_type = portmap.text("type") or PORTMAP_TYPE
    validate.plugin_type(plugin_type, portmap.at("type"))
    if plugin_type == PLUGIN_TYPE:
        raise InvalidNetworkConfig(f"{portmap.at('type')} is {PLUGIN_TYPE}: it cannot map its own ports")
    return {"type": PORTMAP_TYPE, **portmap.raw}


def _ranges(fields: Fields) -> tuple[PortRange, ...]:
    if not fields.has("ranges"):
        return (parse_range(DEFAULT_RANGE, DEFAULT_PORTS, "$.ranges"),)
    from cnimeta_plugins.hostport_alloc.state.schema import EXPLICIT

    ranges: list[PortRange] = []
    for name, value in fields.object("ranges").raw.items():
        if not validate.is_identifier(name):
            raise InvalidNetworkConfig(
                f"$.ranges: {shown(name)} is no name for a range: use letters, digits, '_', '.', '-'"
            )
        if name == EXPLICIT:
            raise InvalidNetworkConfig(
                f"$.ranges.{name}: lists and quotas call so what is asked for by number: give the range another name"
            )
        path = f"$.ranges.{name}"
        if isinstance(value, str):
            ranges.append(parse_range(name, value, path))
        elif isinstance(value, dict):
            from cnimeta_plugins.hostport_alloc.range_config import read_range

            ranges.append(read_range(name, Fields(value, path)))
        else:
            raise InvalidNetworkConfig(
                f'{path} must be text such as "20000-24999", or an object with ports, got {kind(value)}: {shown(value)}'
            )
    if not ranges:
        raise InvalidNetworkConfig('$.ranges is empty: name at least one range, such as "default": "20000-24999"')
    refuse_overlaps(ranges)
    return tuple(ranges)


def _rules(fields: Fields, ranges: tuple[PortRange, ...]) -> tuple[RangeRule, ...]:
    if not fields.has("defaultRange"):
        return ()
    from cnimeta_plugins.hostport_alloc.range_config import read_rules

    return read_rules(fields, ranges)


def _host_ips(fields: Fields) -> tuple[str, ...]:
    value = fields.get("hostIP")
    if value is None or value in ("auto", ""):
        return ()
    texts = [value] if isinstance(value, str) else fields.texts("hostIP")
    found = []
    for text in texts:
        try:
            address = parse_ip(text)
        except ValueError:
            raise fields.wrong("hostIP", '"auto", an IP address or an array of IP addresses') from None
        if address.is_unspecified:
            raise fields.wrong("hostIP", '"auto" or addresses that clients can reach')
        found.append(address.text)
    return tuple(dict.fromkeys(found))


def _api(fields: Fields) -> ApiSettings | None:
    if not fields.has("kubernetes"):
        return None
    api = fields.object("kubernetes")
    return ApiSettings(
        kubeconfig=_absolute(api, "kubeconfig"),
        required=api.choice("policy", ("deferred", "required"), "deferred") == "required",
        timeout_s=_seconds(api, "timeout", 5, low=0.1),
        read_pod=api.boolean("readPod"),
    )


def _seconds(fields: Fields, key: str, default: float, *, low: float = 0) -> float:
    value = fields.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, int | float) or not low <= value <= _SECONDS_MAX:
        raise fields.wrong(key, f"a number of seconds from {low:g} to {_SECONDS_MAX}")
    return float(value)
