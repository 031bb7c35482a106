"""Port mappings in nftables. This file is read by every command: what costs is imported when it is called for."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta_plugins.portmap.nftables.backend import NftBackend

_TABLES = (("inet", "cnimeta_hostports"), ("ip", "cni_hostport"), ("ip6", "cni_hostport"))


def open_backend(path: str) -> NftBackend:
    """The backend on this host; programs are looked for in `path` first."""
    from cnimeta.host.nftables.program import NftProgram
    from cnimeta_plugins.portmap.nftables.backend import NftBackend
    from cnimeta_plugins.portmap.nftables.rules import TABLE
    from cnimeta_plugins.portmap.nftables.upstream import other_holder, remove_container

    return NftBackend(
        NftProgram(TABLE, path),
        lambda container_id: remove_container(container_id, path),
        lambda family, ports, container_id: other_holder(family, ports, container_id, path),
    )


def may_hold() -> bool:
    """Whether the host may have mappings of this kind: this project's, or upstream's."""
    from cnimeta.host.netlink import nft_table_exists

    return any(nft_table_exists(*table) for table in _TABLES)
