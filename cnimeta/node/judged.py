"""What is wrong with a network configuration, by each plugin's own reader: on any node, or on this one."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cnimeta.errors import CniError
from cnimeta.node.networks import called
from cnimeta.runtime.conf import LIST_SUFFIX, declared
from cnimeta.spec import version
from cnimeta.spec.fields import Fields
from cnimeta.spec.jsonio import loads_object
from cnimeta.spec.keys import OF_LISTS, strangers

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from cnimeta.node.networks import Called
    from cnimeta.plugin.base import Plugin
    from cnimeta.runtime.conf import NetworkList
    from cnimeta.spec.netconf import NetConf

    Said = tuple[str, str]
    """`fail` or `warn`, and what is wrong."""
    Ask = Callable[[Plugin, NetConf], Iterable[str]]
    """`Plugin.validate` or `Plugin.examine`."""

_MAPPINGS = "portMappings"


def judged(path: str, network: NetworkList, plugins: Mapping[str, Plugin], ask: Ask) -> Iterator[Said]:
    """Everything wrong in a file that could be loaded. Raises CniError for what cannot be read at all."""
    yield from _strange(path)
    found = list(called(network, plugins))
    for one in found:
        if one.type in plugins:
            for state, message in _configuration(one, plugins[one.type], ask):
                yield state, f"{_trail(one)}: {message}"
    mappers = [one for one in found if one.type in plugins and plugins[one.type].port_mapper() is not None]
    if len(mappers) > 1:
        served = sum(not one.in_chain or _MAPPINGS in declared(one.conf.raw) for one in mappers)
        message = f"ports are mapped more than once, by {' and by '.join(_trail(one) for one in mappers)}: keep one"
        yield "fail" if served > 1 else "warn", message


def _strange(path: str) -> Iterator[Said]:
    """Keys of a list that nobody reads."""
    with open(path, "rb") as file:
        fields = Fields(loads_object(file.read(), path))
    if fields.has("plugins") or path.endswith(LIST_SUFFIX):
        for text in strangers(fields, OF_LISTS):
            yield "warn", text


def _configuration(one: Called, plugin: Plugin, ask: Ask) -> Iterator[Said]:
    """What the plugin's own reader says."""
    try:
        version.reconcile(one.conf.cni_version, plugin.versions)
        for text in ask(plugin, one.conf):
            yield "warn", text
    except CniError as error:
        yield "fail", str(error)


def _trail(one: Called) -> str:
    return " > ".join(one.trail)
