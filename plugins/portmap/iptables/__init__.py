"""Port mappings in iptables. This file is read by every command: what costs is imported when it is called for."""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta_plugins.portmap.iptables.backend import IptablesBackend

DNAT_CHAIN = "CNI-HOSTPORT-DNAT"
"""Never change: see `names`, which has the others."""
_LEGACY_TABLES = ("/proc/net/ip_tables_names", "/proc/net/ip6_tables_names")


def open_backend(path: str) -> IptablesBackend:
    """The backend on this host; programs are looked for in `path` first."""
    from cnimeta_plugins.portmap.iptables.backend import IptablesBackend

    return IptablesBackend(path=path)


def may_hold() -> bool:
    """Whether either variant may have mappings: nft's by its entry chain, legacy's by a loaded nat table."""
    from cnimeta.host.netlink import nft_chain_exists

    if any(nft_chain_exists(family, "nat", DNAT_CHAIN) for family in ("ip", "ip6")):
        return True
    for names in _LEGACY_TABLES:
        try:
            with open(names, encoding="ascii") as file:
                if "nat" in file.read().split():
                    return True
        except OSError:
            continue
    return False
