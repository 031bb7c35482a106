"""What goes past hostport_alloc on this node: configurations that runtimes prefer, containers made by those."""

from __future__ import annotations

import os

from cnimeta.errors import CniError, counted
from cnimeta_plugins.hostport_alloc.config import PLUGIN_TYPE
from cnimeta_plugins.hostport_alloc.operator.own import NAME, configurations, in_step, is_kept, ownership
from cnimeta_plugins.hostport_alloc.operator.wrap import is_wrapped
from cnimeta_plugins.hostport_alloc.operator.wrapfile import read_document

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cnimeta_plugins.hostport_alloc.wiring import Wiring

_RESULTS = "/var/lib/cni"
_NAMED_MAX = 3


def unserved(wiring: Wiring, net_dir: str, cache_dir: str = _RESULTS) -> Iterator[str]:
    """A line for each thing; none where hostport_alloc is in no configuration at all."""
    names = configurations(net_dir) if os.path.isdir(net_dir) else []
    ours = [name for name in names if _has_us(os.path.join(net_dir, name))]
    own = ownership(net_dir)
    if own is not None:
        state, message = in_step(own)
        if state in ("stale", "missing"):
            yield f"{message}, and nobody derives it anew: `cnimeta wrap --own --keep {own.source}` does"
        elif state != "ok":
            yield message
        elif not is_kept(own):
            yield f"{message}, and nobody keeps it so: `cnimeta agent --own` or cnimeta-own.service does"
    if not ours:
        if own is not None:
            yield f"no configuration in {net_dir} has {PLUGIN_TYPE}: containers get no ports"
        return
    if names[0] != ours[0]:
        yield (
            f"runtimes take {names[0]}, the first in {net_dir}, which lacks {PLUGIN_TYPE}; {ours[0]} has it and is not"
            f" used: `cnimeta wrap --own {os.path.join(net_dir, names[0])}` writes {NAME} before it"
        )
    found = made_without(wiring, cache_dir)
    if found:
        more = f" and {len(found) - _NAMED_MAX} more" if len(found) > _NAMED_MAX else ""
        yield (
            f"{counted(len(found), 'container')} made without {PLUGIN_TYPE}: {', '.join(found[:_NAMED_MAX])}{more};"
            " those that want ports get them when they are made anew"
        )


def _has_us(path: str) -> bool:
    try:
        return is_wrapped(read_document(path))
    except CniError:
        return False  # the doctor tells what is wrong with the file


def made_without(wiring: Wiring, cache_dir: str = _RESULTS) -> list[str]:
    """Living containers whose ADD did not go through hostport_alloc, as libcni's cache has them: Pods, or IDs.

    Whether they want ports is known only where the runtime handed their annotations over; they are named all the same.
    """
    from cnimeta.host.files import PosixFiles
    from cnimeta.runtime.cache import Cache

    found = set()
    for cached in Cache(PosixFiles(), cache_dir, lambda _: None).every():
        if PLUGIN_TYPE.encode() not in cached.config and cached.config and wiring.namespaces.identity(cached.netns):
            args = dict(cached.args)
            pod = f"{args.get('K8S_POD_NAMESPACE', '')}/{args.get('K8S_POD_NAME', '')}"
            found.add(pod if args.get("K8S_POD_NAME") else cached.container_id)
    return sorted(found)
