"""For hostport_alloc until it asks the port mapper; then this file goes."""

from __future__ import annotations

from cnimeta_plugins.portmap.port_mapper import PortmapPorts

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from cnimeta.ports.mapper import Repaired


def repair(data_dir: str, log: Callable[[str], None], skip: Collection[str] = ()) -> list[Repaired]:
    """As the port mapper's."""
    return PortmapPorts().repair(data_dir, log, skip)
