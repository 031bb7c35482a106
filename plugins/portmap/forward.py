"""What an attachment's port mappings come to: the container's addresses and the mappings of each family. Pure."""

from __future__ import annotations

from cnimeta.errors import InvalidNetworkConfig
from cnimeta.namedtuple import NamedTuple
from cnimeta.spec.ip import Cidr, parse_cidr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.plugin.request import Attachment
    from cnimeta.spec.result import Result
    from cnimeta_plugins.portmap.config import PortMapping, Settings


class Half(NamedTuple):
    """One family's part: the container's address with its subnet, and the mappings that reach it."""

    container: Cidr
    mappings: tuple[PortMapping, ...]
    conditions: tuple[str, ...]
    listed: tuple[PortMapping, ...] = ()
    """Every mapping of the attachment, the other family's too: upstream's iptables rules list the ports of all."""

    @property
    def family(self) -> int:
        """4 or 6."""
        return self.container.address.family


class Forward(NamedTuple):
    """The desired state of one attachment."""

    network: str
    container_id: str
    ifname: str
    netns: str
    halves: tuple[Half, ...]
    snat: bool
    masq_all: bool
    mark_bit: int
    external_set_mark_chain: str


def plan_forward(attachment: Attachment, settings: Settings, result: Result) -> Forward:
    """The desired state. Raises InvalidNetworkConfig (code 7) when the container has no address to map to."""
    halves = []
    for container in container_addresses(attachment.ifname, result):
        family = container.address.family
        mappings = tuple(mapping for mapping in settings.mappings if mapping.serves(family))
        conditions = settings.conditions_v4 if family == 4 else settings.conditions_v6
        if mappings:
            halves.append(Half(container, mappings, conditions, settings.mappings))
    if not halves:
        raise InvalidNetworkConfig(
            "$.prevResult.ips has no address of the container that a mapping could lead to: "
            + ", ".join(mapping.text for mapping in settings.mappings)
        )
    return Forward(
        attachment.network,
        attachment.container_id,
        attachment.ifname,
        attachment.netns,
        tuple(halves),
        settings.snat,
        settings.masq_all,
        settings.mark_bit,
        settings.external_set_mark_chain,
    )


def container_addresses(ifname: str, result: Result) -> list[Cidr]:
    """The first IPv4 and the first IPv6 address of the container, as upstream chooses them.

    An address that names an interface counts only when that is CNI_IFNAME inside a sandbox; an index that points
    nowhere is ignored.
    """
    found: dict[int, Cidr] = {}
    for config in result.ips:
        index = config.interface
        if index is not None and 0 <= index < len(result.interfaces):
            interface = result.interfaces[index]
            if interface.name != ifname or not interface.sandbox:
                continue
        address = parse_cidr(config.address)
        found.setdefault(address.address.family, address)
    return [found[family] for family in sorted(found)]
