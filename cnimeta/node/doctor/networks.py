"""Whether the networks that are configured can work: each plugin's configuration by its own reader, delegates too."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cnimeta.delegate.find import find
from cnimeta.errors import CniError
from cnimeta.node.doctor.finding import Finding
from cnimeta.node.networks import called, file_names, loadable
from cnimeta.runtime.conf import LIST_SUFFIX, declared, load_file
from cnimeta.spec import version
from cnimeta.spec.fields import Fields
from cnimeta.spec.jsonio import loads_object
from cnimeta.spec.keys import OF_LISTS, strangers

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cnimeta.node.networks import Called
    from cnimeta.plugin.base import Plugin
    from cnimeta.runtime.conf import NetworkList

    Said = tuple[str, str]
    """A finding's state and message."""

_MAPPINGS = "portMappings"


def networks(net_dir: str, bin_dirs: Sequence[str]) -> Iterator[Finding]:
    """A line for each file that is good, else one for each thing that is wrong in it."""
    try:
        names = file_names(net_dir)
    except CniError as error:
        yield Finding("networks", "fail", str(error))
        return
    if not names:
        yield Finding("networks", "warn", f"no configuration in {net_dir}")
    plugins = loadable() if names else {}
    for name in names:
        path = os.path.join(net_dir, name)
        try:
            network = load_file(path)
            said = [*_strange(path), *_network(network, plugins, bin_dirs)]
        except CniError as error:
            yield Finding(f"network {name}", "fail", str(error))
            continue
        for state, message in said:
            yield Finding(f"network {name}", state, f"{network.name}: {message}")
        if not said:
            yield Finding(f"network {name}", "ok", f"{network.name}, {network.cni_version}")


def _strange(path: str) -> Iterator[Said]:
    """Keys of a list that nobody reads."""
    with open(path, "rb") as file:
        fields = Fields(loads_object(file.read(), path))
    if fields.has("plugins") or path.endswith(LIST_SUFFIX):
        for text in strangers(fields, OF_LISTS):
            yield "warn", text


def _network(network: NetworkList, plugins: Mapping[str, Plugin], bin_dirs: Sequence[str]) -> Iterator[Said]:
    found = list(called(network, plugins))
    missing = [name for name in dict.fromkeys(one.type for one in found) if not _is_there(name, bin_dirs)]
    if missing:
        yield "warn", f"not in {':'.join(bin_dirs)}: {', '.join(missing)}"
    for one in found:
        if one.type in plugins:
            for state, message in _configuration(one, plugins[one.type]):
                yield state, f"{_trail(one)}: {message}"
    mappers = [one for one in found if one.type in plugins and plugins[one.type].port_mapper() is not None]
    if len(mappers) > 1:
        served = sum(not one.in_chain or _MAPPINGS in declared(one.conf.raw) for one in mappers)
        message = f"ports are mapped more than once, by {' and by '.join(_trail(one) for one in mappers)}: keep one"
        yield "fail" if served > 1 else "warn", message


def _configuration(one: Called, plugin: Plugin) -> Iterator[Said]:
    """What the plugin's own reader says."""
    try:
        version.reconcile(one.conf.cni_version, plugin.versions)
        for text in plugin.examine(one.conf):
            yield "warn", text
    except CniError as error:
        yield "fail", str(error)


def _is_there(name: str, bin_dirs: Sequence[str]) -> bool:
    try:
        find(name, bin_dirs)
    except CniError:
        return False
    return True


def _trail(one: Called) -> str:
    return " > ".join(one.trail)
