"""The shared chains, upstream's but for one, and whether this host may have some. Imports next to nothing.

Never change the names: other versions and other programs look for them.
"""

from __future__ import annotations

from cnimeta.host.netlink import nft_chain_exists
from cnimeta.host.reading import read_file

DNAT_CHAIN = "CNI-HOSTPORT-DNAT"
SETMARK_CHAIN = "CNI-HOSTPORT-SETMARK"
MASQ_CHAIN = "CNI-HOSTPORT-MASQ"
OLD_SNAT_CHAIN = "CNI-HOSTPORT-SNAT"
"""Of versions before 0.8."""

GUARD_CHAIN = "CNIMETA-LOCALNET"
"""Our own, in the raw table of IPv4, where no other implementation looks."""

_LEGACY_TABLES = ("/proc/net/ip_tables_names", "/proc/net/ip6_tables_names")


def may_hold() -> bool:
    """Whether either variant may have mappings: nft's by its entry chain, legacy's by a loaded nat table.

    Raises IoFailure (code 5) when that cannot be told.
    """
    if any(nft_chain_exists(family, "nat", DNAT_CHAIN) for family in ("ip", "ip6")):
        return True
    return any(b"nat" in (read_file(names) or b"").split() for names in _LEGACY_TABLES)
