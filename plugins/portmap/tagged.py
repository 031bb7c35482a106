"""For hostport_alloc until it asks the port mapper; then this file goes."""

from __future__ import annotations

from cnimeta.errors import CniError
from cnimeta_plugins.portmap.backends import Backends

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cnimeta.ports.mapper import MappedPort


def tagged(log: Callable[[str], None]) -> list[MappedPort]:
    """Every mapping of this node's rules, each once. What cannot be listed is logged."""
    try:
        return sorted({port for backend in Backends().holding() for port in backend.listed()})
    except CniError as error:
        log(f"portmap: the kernel's mappings cannot be listed: {error.msg}")
        return []
