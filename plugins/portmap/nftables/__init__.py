"""Port mappings in nftables. This file is read by every command: what costs is imported when it is called for."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta_plugins.portmap.nftables.backend import NftBackend


def open_backend(path: str) -> NftBackend:
    """The backend on this host; programs are looked for in `path` first."""
    from cnimeta.host.nftables.program import NftProgram
    from cnimeta_plugins.portmap.nftables.backend import NftBackend
    from cnimeta_plugins.portmap.nftables.rules import TABLE
    from cnimeta_plugins.portmap.nftables.upstream import remove_container

    return NftBackend(NftProgram(TABLE, path), lambda container_id: remove_container(container_id, path))
