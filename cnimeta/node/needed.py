"""What on this node still needs a plugin: containers that it has something of, and network configurations."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cnimeta.errors import CniError, counted
from cnimeta.node.networks import loadable, uses_of

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator, Sequence

    from cnimeta.plugin.base import Plugin
    from cnimeta.spec.netconf import NetConf

_NAMED_MAX = 3


def needs(names: Sequence[str], restored: Collection[str], net_dir: str) -> list[str]:
    """A line for each of the plugins that is still needed. `restored`: those that another file takes the place of,
    which serves the configurations, but not what ours has made for containers.
    """
    plugins = loadable()
    uses = list(uses_of(net_dir, plugins))
    found = []
    for name in names:
        files = dict.fromkeys(file for file, conf in uses if conf.type == name)
        if files and name not in restored:
            found.append(f"{name} by {', '.join(files)} in {net_dir}")
        if name in plugins:
            found += _containers(name, plugins[name], [conf for _, conf in uses if conf.type == name])
    return found


def _containers(name: str, plugin: Plugin, confs: Sequence[NetConf]) -> Iterator[str]:
    """What cannot be told is no reason to remove it."""
    try:
        ids = sorted(set(plugin.in_use(confs)))
    except CniError as error:
        yield f"{name}, as far as can be told: {error}"
        return
    if ids:
        more = f" and {len(ids) - _NAMED_MAX} more" if len(ids) > _NAMED_MAX else ""
        yield f"{name} by {counted(len(ids), 'container')}: {', '.join(ids[:_NAMED_MAX])}{more}"


def leave(names: Sequence[str], net_dir: str) -> Iterator[str]:
    """Let plugins that are gone give back what they have changed of the node; a line for each thing."""
    plugins = loadable()
    uses = list(uses_of(net_dir, plugins))
    for name in names:
        try:
            yield from plugins[name].leave([conf for _, conf in uses if conf.type == name]) if name in plugins else ()
        except CniError as error:
            yield f"{name} could not give everything back: {error}"
