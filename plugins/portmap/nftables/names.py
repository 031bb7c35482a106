"""The tables of port mappings in nftables, and whether there are any. Cheap to import."""

from __future__ import annotations

_TABLES = (("inet", "cnimeta_hostports"), ("ip", "cni_hostport"), ("ip6", "cni_hostport"))


def may_hold() -> bool:
    """Whether the host may have mappings of this kind: this project's, or upstream's."""
    from cnimeta.host.netlink import nft_table_exists

    return any(nft_table_exists(*table) for table in _TABLES)
