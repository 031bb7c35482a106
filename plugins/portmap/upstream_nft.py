"""Removing what upstream's portmap left in its own nftables tables for a container (plugins v1.6.0 and later).

Its rules carry the container ID as comment in `ip` and `ip6` table `cni_hostport`. Looked for with one netlink request
a family; only when a table is there are its rules listed.
"""

from __future__ import annotations

from cnimeta.errors import IoFailure
from cnimeta.host.netlink import nft_table_exists
from cnimeta.host.process import find_program, run_program

_TABLE = "cni_hostport"
_CHAINS = ("hostports", "hostip_hostports", "masquerading")
_FAMILIES = ("ip", "ip6")
_TIMEOUT_S = 60.0


def remove_container(container_id: str, path: str = "") -> None:
    """Delete the container's rules in both families. Raises IoFailure (code 5) when nft refuses."""
    families = [family for family in _FAMILIES if nft_table_exists(family, _TABLE)]
    program = find_program("nft", path) if families else None
    if program is None:
        return
    lines = []
    for family in families:
        for chain in _CHAINS:
            listing = run_program([program, "-a", "-t", "list", "chain", family, _TABLE, chain], {}, b"", _TIMEOUT_S)
            lines += [
                f"delete rule {family} {_TABLE} {chain} handle {handle}"
                for handle in _handles(listing.stdout.decode("utf-8", "replace"), container_id)
            ]
    if lines:
        done = run_program([program, "-f", "-"], {}, "\n".join(lines).encode() + b"\n", _TIMEOUT_S)
        if done.status != 0:
            raise IoFailure(f"nft refused to remove the rules of container {container_id}: {done.complaint}")


def _handles(listing: str, container_id: str) -> list[str]:
    marker = f' comment "{container_id}"'
    return [
        line.rpartition(" # handle ")[2] for line in listing.splitlines() if marker in line and " # handle " in line
    ]
