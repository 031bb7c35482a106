"""Putting hostport_alloc around an existing network configuration: what it becomes. Pure; wrapfile.py writes it.

All plugins of the file become `delegates` of one hostport_alloc entry, as they stand. A portmap at the end moves to
the key `portmap`, so that it gets explicit and random mappings in one call; one further up keeps its place and gets
them there. The file keeps its name, so the runtime goes on loading it; the original lies beside it, byte for byte,
under a name no runtime loads.
"""

from __future__ import annotations

from cnimeta.errors import InvalidNetworkConfig
from cnimeta.namedtuple import NamedTuple
from cnimeta.runtime.conf import choose_version
from cnimeta.spec.fields import Fields, without
from cnimeta.spec.netconf import NetConf
from cnimeta_plugins.hostport_alloc.allocate.expose import DEFAULT_RANGE, POD_ANNOTATIONS
from cnimeta_plugins.hostport_alloc.config import DEFAULT_PORTS, PLUGIN_TYPE, PORTMAP_TYPE, read_settings

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cnimeta.spec.jsonio import JSON


class Options(NamedTuple):
    """What to configure besides the delegates; empty values are left to the defaults."""

    ranges: Mapping[str, str]
    """By name. The range `default` keeps its ports unless it is named; named without any, it is left out."""
    expose: Sequence[str] = ()
    kubeconfig: str | None = None
    """None: no `kubernetes` key. Empty: the key without a kubeconfig, so the node's own credentials."""
    policy: str = ""
    data_dir: str = ""


def wrapped(document: Mapping[str, JSON], options: Options) -> dict[str, JSON]:
    """The wrapped form of a .conf or .conflist document. Raises InvalidNetworkConfig (code 7)."""
    fields = Fields(document)
    is_list = fields.has("plugins")
    plugins = [dict(entry.raw) for entry in fields.objects("plugins")] if is_list else [dict(document)]
    if is_wrapped(document):
        raise InvalidNetworkConfig(f"the configuration has a plugin of type {PLUGIN_TYPE} already")
    if not plugins:
        raise InvalidNetworkConfig("$.plugins is empty: there is nothing to wrap")
    if not fields.text("name"):
        raise InvalidNetworkConfig("$.name is missing: a network configuration needs a name")
    choose_version(fields)  # one that nobody speaks is refused by every runtime
    name_and_version: dict[str, JSON] = {
        key: document[key] for key in document if key.lower() in ("cniversion", "name")
    }
    entry = _entry(plugins if is_list else [without(document, "cniVersion", "name")], options)
    read_settings(NetConf({**name_and_version, **entry}))  # what is written must be accepted
    if not is_list:
        return {**name_and_version, **entry}
    return {key: [entry] if key.lower() == "plugins" else value for key, value in document.items()}


def alone(options: Options) -> dict[str, JSON]:
    """A configuration that has nothing but the options."""
    return without(_entry([], options), "delegates")


def _entry(plugins: list[dict[str, JSON]], options: Options) -> dict[str, JSON]:
    delegates, portmap = plugins, None
    if len(plugins) > 1 and Fields(plugins[-1]).text("type") == PORTMAP_TYPE:
        delegates, portmap = plugins[:-1], without(plugins[-1], "capabilities")
    capabilities: dict[str, JSON] = {"portMappings": True, POD_ANNOTATIONS: True}
    for plugin in plugins:
        capabilities.update({key: True for key, value in Fields(plugin).object("capabilities").raw.items() if value})
    entry: dict[str, JSON] = {"type": PLUGIN_TYPE, "capabilities": capabilities}
    if options.ranges:
        given = {DEFAULT_RANGE: DEFAULT_PORTS, **options.ranges}
        entry["ranges"] = {name: ports for name, ports in given.items() if ports}
    if options.expose:
        entry["expose"] = list(options.expose)
    entry["delegates"] = delegates
    if portmap is not None:
        entry["portmap"] = portmap
    if options.kubeconfig is not None:
        api = {"kubeconfig": options.kubeconfig, "policy": options.policy}
        entry["kubernetes"] = {key: value for key, value in api.items() if value}
    if options.data_dir:
        entry["dataDir"] = options.data_dir
    return entry


def is_wrapped(document: Mapping[str, JSON]) -> bool:
    """Whether hostport_alloc is in the document already, as a wrapper or in a chain."""
    fields = Fields(document)
    entries = list(fields.objects("plugins")) if fields.has("plugins") else [fields]
    return any(entry.text("type") == PLUGIN_TYPE for entry in entries)
