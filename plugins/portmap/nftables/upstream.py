"""Removing what upstream's portmap left in its own nftables tables for a container (plugins v1.6.0 and later).

Its rules carry the container ID as comment in `ip` and `ip6` table `cni_hostport`. Looked for with one netlink request
a family; only when a table is there are its rules listed.
"""

from __future__ import annotations

from cnimeta.errors import IoFailure
from cnimeta.host.netlink import nft_table_exists

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

_TABLE = "cni_hostport"
_CHAINS = ("hostports", "hostip_hostports", "masquerading")
_FAMILIES = ("ip", "ip6")
_TIMEOUT_S = 60.0
_MISSING = b"No such file or directory"


def remove_container(container_id: str, path: str = "") -> bool:
    """Delete the container's rules in both families; whether there were any. Raises IoFailure (code 5)."""
    families = [family for family in _FAMILIES if nft_table_exists(family, _TABLE)]
    if not families:
        return False
    program = _find_program("nft", path)
    if program is None:
        raise IoFailure(f"the nftables table {_TABLE} may have rules of this container, and nft is not installed")
    lines = []
    for family in families:
        for chain in _CHAINS:
            lines += [
                f"delete rule {family} {_TABLE} {chain} handle {handle}"
                for handle in _handles(_list(program, family, chain), container_id)
            ]
    if lines:
        from cnimeta.host.process import run_program

        done = run_program([program, "-f", "-"], {}, "\n".join(lines).encode() + b"\n", _TIMEOUT_S)
        if done.status != 0:
            raise IoFailure(f"nft refused to remove the rules of container {container_id}: {done.complaint}")
    return bool(lines)


def other_holder(family: int, ports: Collection[tuple[str, int]], container_id: str, path: str = "") -> tuple[str, str]:
    """The first of (protocol, port) that its rules map for another container, as `8080/tcp`, and that one's ID.

    Empty for none; without its table, one netlink request. Raises IoFailure (code 5).
    """
    name = "ip" if family == 4 else "ip6"
    if not nft_table_exists(name, _TABLE):
        return "", ""
    program = _find_program("nft", path)
    if program is None:
        raise IoFailure(f"the nftables table {_TABLE} may have rules for this port, and nft is not installed")
    for chain in _CHAINS[:2]:
        for line in _list(program, name, chain).splitlines():
            words = line.split()
            owner = line.partition(' comment "')[2].partition('"')[0]
            if "dport" not in words[1:-1] or owner == container_id:
                continue
            at = words.index("dport")
            if words[at + 1].isdigit() and (words[at - 1], int(words[at + 1])) in ports:
                return f"{words[at + 1]}/{words[at - 1]}", owner
    return "", ""


def _list(program: str, family: str, chain: str) -> str:
    from cnimeta.host.process import run_program

    done = run_program([program, "-a", "-t", "list", "chain", family, _TABLE, chain], {}, b"", _TIMEOUT_S)
    if done.status != 0 and _MISSING not in done.stderr:
        raise IoFailure(f"nft cannot list the chain {chain} of table {family} {_TABLE}: {done.complaint}")
    return done.stdout.decode("utf-8", "replace") if done.status == 0 else ""


def _find_program(name: str, path: str) -> str | None:
    from cnimeta.host.process import find_program

    return find_program(name, path)


def _handles(listing: str, container_id: str) -> list[str]:
    marker = f' comment "{container_id}"'
    return [
        line.rpartition(" # handle ")[2] for line in listing.splitlines() if marker in line and " # handle " in line
    ]
