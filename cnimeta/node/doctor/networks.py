"""Whether the networks that are configured can work: each plugin's configuration by its own reader, delegates too."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cnimeta.delegate.find import find
from cnimeta.errors import CniError
from cnimeta.node.doctor.finding import Finding
from cnimeta.node.judged import judged
from cnimeta.node.networks import called, file_names, loadable
from cnimeta.runtime.conf import load_file

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from cnimeta.node.judged import Said
    from cnimeta.plugin.base import Plugin
    from cnimeta.runtime.conf import NetworkList
    from cnimeta.spec.netconf import NetConf


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
            said = [*_missing(network, plugins, bin_dirs), *judged(path, network, plugins, _examine)]
        except CniError as error:
            yield Finding(f"network {name}", "fail", str(error))
            continue
        for state, message in said:
            yield Finding(f"network {name}", state, f"{network.name}: {message}")
        if not said:
            yield Finding(f"network {name}", "ok", f"{network.name}, {network.cni_version}")


def plugins_of_node(net_dir: str) -> Iterator[Finding]:
    """What each plugin finds on the node beside its configurations."""
    for name, plugin in loadable().items():
        try:
            for message in plugin.examine_networks(net_dir):
                yield Finding(f"node {name}", "warn", message)
        except CniError as error:
            yield Finding(f"node {name}", "fail", str(error))


def _examine(plugin: Plugin, conf: NetConf) -> Iterable[str]:
    return plugin.examine(conf)


def _missing(network: NetworkList, plugins: Mapping[str, Plugin], bin_dirs: Sequence[str]) -> Iterator[Said]:
    types = dict.fromkeys(one.type for one in called(network, plugins))
    missing = [name for name in types if not _is_there(name, bin_dirs)]
    if missing:
        yield "warn", f"not in {':'.join(bin_dirs)}: {', '.join(missing)}"


def _is_there(name: str, bin_dirs: Sequence[str]) -> bool:
    try:
        find(name, bin_dirs)
    except CniError:
        return False
    return True
