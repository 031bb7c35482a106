"""The networks of a node as they are configured: every plugin that each of them calls, delegates and ipam included."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, NamedTuple

from cnimeta.errors import CniError
from cnimeta.plugin import registry
from cnimeta.runtime.conf import LIST_SUFFIX, SINGLE_SUFFIXES, config_names, load_file
from cnimeta.spec.netconf import NetConf

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cnimeta.plugin.base import Plugin
    from cnimeta.runtime.conf import NetworkList
    from cnimeta.spec.jsonio import JSON


class Called(NamedTuple):
    """One plugin of a network. `trail` are the types that lead to it, its own at the end: hostport_alloc, bridge."""

    trail: tuple[str, ...]
    conf: NetConf
    """What it is given, less what is known only at ADD."""

    @property
    def type(self) -> str:
        """The plugin's executable."""
        return self.trail[-1]

    @property
    def in_chain(self) -> bool:
        """Whether the runtime itself calls it."""
        return len(self.trail) == 1


def file_names(net_dir: str) -> list[str]:
    """The names of a folder's configurations; none where there is no folder. Raises IoFailure (code 5)."""
    return config_names(net_dir, LIST_SUFFIX, *SINGLE_SUFFIXES) if os.path.lexists(net_dir) else []


def loadable() -> dict[str, Plugin]:
    """The plugins that are installed and can be loaded, by type."""
    found = {}
    for name, target in registry.installed().items():
        try:
            found[name] = registry.load(target)
        except CniError:
            continue  # the doctor tells
    return found


def called(network: NetworkList, plugins: Mapping[str, Plugin]) -> Iterator[Called]:
    """Every plugin of the network, in the order of ADD; before each one's delegates comes itself."""
    for raw in network.plugins:
        yield from _called((), {**raw, "name": network.name, "cniVersion": network.cni_version}, plugins)


def _called(trail: tuple[str, ...], raw: dict[str, JSON], plugins: Mapping[str, Plugin]) -> Iterator[Called]:
    conf = NetConf(raw)
    trail = (*trail, conf.type)
    yield Called(trail, conf)
    for inner in _delegates(conf, plugins.get(conf.type)):
        yield from _called(trail, {"name": conf.name, "cniVersion": conf.cni_version, **inner}, plugins)


def _delegates(conf: NetConf, plugin: Plugin | None) -> list[Mapping[str, JSON]]:
    """What the plugin says that it calls; else what the customary keys name."""
    try:
        told = None if plugin is None else plugin.delegates(conf)
    except CniError:
        told = None  # an unreadable configuration: what is wrong with it is for the plugin's `examine` to say
    return list(told) if told is not None else [entry for entry in _nested(conf) if isinstance(entry.get("type"), str)]


def _nested(conf: NetConf) -> Iterator[Mapping[str, JSON]]:
    """The objects under `ipam`, `delegate` (a list as well) and `delegates`."""
    for key in ("ipam", "delegate", "delegates"):
        value = conf.fields.get(key)
        inner = value.get("plugins", value) if isinstance(value, dict) else value
        for entry in inner if isinstance(inner, list) else [inner]:
            if isinstance(entry, dict):
                yield entry


def uses_of(net_dir: str, plugins: Mapping[str, Plugin]) -> Iterator[tuple[str, NetConf]]:
    """(file, configuration) of every plugin that a network of the folder calls; files that cannot be read call none."""
    for file in file_names(net_dir):
        try:
            found = [one.conf for one in called(load_file(os.path.join(net_dir, file)), plugins)]
        except CniError:
            continue
        for conf in found:
            yield file, conf
