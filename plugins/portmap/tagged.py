"""The mappings in the kernel by the names they carry: what there is when every record of them is lost.

Loaded by name for `cnimeta ports` and for recovery. Only nftables elements tell the whole attachment; upstream's
iptables rules do not name the interface.
"""

from __future__ import annotations

from cnimeta.errors import CniError
from cnimeta.host.nftables.program import NftProgram
from cnimeta.namedtuple import NamedTuple
from cnimeta_plugins.portmap.nft_rules import BASE_CHAIN, TABLE, owner_id

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cnimeta.host.protocols import Nft


class Tagged(NamedTuple):
    """One port of one attachment. host_ip is empty for every address of the node."""

    network: str
    container_id: str
    ifname: str
    protocol: str
    host_port: int
    container_port: int
    host_ip: str = ""


def tagged(log: Callable[[str], None], nft: Nft | None = None) -> list[Tagged]:
    """Every mapping of this node's rules, each once. What cannot be listed is logged."""
    nft = nft if nft is not None else NftProgram(TABLE)
    try:
        if not nft.has_chain(BASE_CHAIN):
            return []
        return sorted({one for family in (4, 6) for one in _of_family(nft, family)})
    except CniError as error:
        log(f"portmap: the kernel's mappings cannot be listed: {error.msg}")
        return []


def _of_family(nft: Nft, family: int) -> Iterator[Tagged]:
    for claims, targets in (("claims", "any"), ("hostclaims", "host")):
        container_ports = {one.key: one.value.rpartition(" . ")[2] for one in nft.elements(f"{targets}{family}")}
        for key, owner, comment in ((one.key, one.value, one.comment) for one in nft.elements(f"{claims}{family}")):
            container_id, _, rest = comment.partition("/")
            ifname, _, network = rest.partition("/")
            if owner_id(network, container_id, ifname) != owner:
                continue  # no owner's name, or one that was cut to fit
            *where, protocol, port = key.split(" . ")
            target = container_ports.get(key, port)  # one of an interval keeps its port
            yield Tagged(network, container_id, ifname, protocol, int(port), int(target), "".join(where))
