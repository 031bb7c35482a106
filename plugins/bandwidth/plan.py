"""What shaping comes to, as data: numbers for the kernel, names, filters. Pure.

Towards the container ("ingress") a queue on the host's end of the veth delays packets. From the container ("egress")
packets arrive at that end; they are redirected to an interface of kind ifb, whose queue delays them. Inside the
container it is the other way round: the interface's own queue is for what it sends, the ifb's for what arrives.
"""

from __future__ import annotations

from cnimeta.host.digest import sha512_hex
from cnimeta.host.links import htb
from cnimeta.host.links.values import Bucket
from cnimeta.namedtuple import NamedTuple
from cnimeta_plugins.bandwidth.config import UNSPECIFIED_BURST_BITS

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from cnimeta.host.links.values import Classes
    from cnimeta.spec.ip import Cidr
    from cnimeta_plugins.bandwidth.config import Limit, Settings

    Key = tuple[str, str, str]
    """(network, container ID, ifname)"""

IFB_PREFIX = "bwp"
"""Never change, as upstream's: DEL finds interfaces of other versions by it."""
ALIAS_PREFIX = "cnimeta:bandwidth:"
"""Never change: GC finds what is this plugin's by it."""
_IFNAMSIZ = 15
_ALIAS_MAX_BYTES = 254
"""IFALIASZ of linux/if.h, less the two ends that netlink and the kernel put to it."""
_UINT32 = 2**32 - 1
_DEFAULT_BURST_S = 0.05
_DEFAULT_BURST_PACKETS, _DEFAULT_WAITING_PACKETS = 2, 10
_SHORTEST_BURST = 1


class Shape(NamedTuple):
    """One queue: the bucket, and the subnets it is for (`only`) or not for; without subnets it is for everything."""

    bucket: Bucket
    side: str
    """src: the peer's address is the packet's source (towards the container); dst: its destination."""
    subnets: tuple[Cidr, ...] = ()
    only: bool = False


class Plan(NamedTuple):
    """The queues of one attachment: of the interface and of its ifb; None for a direction that is not limited."""

    leaving: Shape | None
    arriving: Shape | None


def plan_shaping(settings: Settings, mtu: int, ticks_per_us: float, *, inside: bool = False) -> Plan:
    """The queues for `settings` on an interface with `mtu`: the host's end, or (`inside`) the container's own."""
    subnets = settings.shaped or settings.unshaped
    only = bool(settings.shaped)

    def shape(limit: Limit, side: str) -> Shape | None:
        if not limit.rate_bps:
            return None
        return Shape(bucket(limit, settings.latency_ms, mtu, ticks_per_us), side, subnets, only)

    to_container, from_container = shape(settings.ingress, "src"), shape(settings.egress, "dst")
    return Plan(from_container, to_container) if inside else Plan(to_container, from_container)


def classes(shape: Shape, ticks_per_us: float) -> Classes:
    """The htb of a shape that is for some subnets, or not for them."""
    subnets = [(net.address.family, net.address.packed, net.prefix) for net in shape.subnets]
    return htb.classes(shape.bucket, ticks_per_us, shape.side, subnets, shape.only)


def bucket(limit: Limit, latency_ms: int, mtu: int, ticks_per_us: float) -> Bucket:
    """Upstream's numbers for the same input, except where they would not fit or not limit:

    - containerd's burst for "none given" is 50 ms of the rate, two packets at least, and ten packets may wait at least:
      with fewer, TCP at 1 Mbit/s loses so many that the queue runs empty;
    - a burst that takes longer than the kernel's field can say (275 s) is that long; upstream's number wraps around.
    """
    rate = limit.rate_bps // 8
    burst, fewest = limit.burst_bits // 8, 0
    if limit.burst_bits == UNSPECIFIED_BURST_BITS:
        fewest = _DEFAULT_WAITING_PACKETS * (mtu + 14)
        burst = min(max(int(rate * _DEFAULT_BURST_S), _DEFAULT_BURST_PACKETS * (mtu + 14)), _UINT32)
    longest = int(_UINT32 / ticks_per_us / 1e6 * rate)
    burst = max(min(burst, longest), _SHORTEST_BURST)
    waiting = min(max(int(rate * latency_ms / 1000 + burst), fewest), _UINT32)
    return Bucket(rate, burst, waiting)


def ifb_name(network: str, container_id: str, ifname: str = "") -> str:
    """Upstream's name for the container; with `ifname`, the name for a further interface of the same container."""
    text = f"{network}{container_id}" + (f"/{ifname}" if ifname else "")
    return (IFB_PREFIX + sha512_hex(text))[:_IFNAMSIZ]


def alias(network: str, container_id: str, ifname: str) -> str:
    """The text on an ifb that tells whose it is: `cnimeta:bandwidth:IFNAME/ID/NETWORK`.

    What does not fit into the kernel's 254 bytes stands there as a digest: the network first, then the ID too. The `=`
    before a digest is in no name.
    """
    for texts in ((container_id, network), (container_id, _digest(network))):
        found = "/".join((ALIAS_PREFIX + ifname, *texts))
        if len(found.encode()) <= _ALIAS_MAX_BYTES:
            return found
    return "/".join((ALIAS_PREFIX + ifname, _digest(container_id), _digest(network)))


def is_orphan(text: str, network: str, valid: Collection[tuple[str, str]]) -> bool:
    """Whether an alias is that of an attachment to `network` which is not in `valid`, (container ID, ifname) pairs."""
    parts = text.removeprefix(ALIAS_PREFIX).split("/")
    if not text.startswith(ALIAS_PREFIX) or len(parts) != 3 or parts[2] not in (network, _digest(network)):
        return False
    return text not in {alias(network, container_id, ifname) for container_id, ifname in valid}


def _digest(text: str) -> str:
    return f"={sha512_hex(text)[:64]}"
