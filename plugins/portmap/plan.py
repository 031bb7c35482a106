"""What an attachment's port mappings come to: the container's addresses and the mappings of each family. Pure.

It is the same for every backend; each makes its own rules of it.
"""

from __future__ import annotations

from cnimeta.errors import HostPortConflict, InvalidNetworkConfig
from cnimeta.namedtuple import NamedTuple
from cnimeta.spec.ip import Cidr, parse_cidr

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.spec.result import Result
    from cnimeta_plugins.portmap.config import PortMapping, Settings


class Owner(NamedTuple):
    """The attachment that mappings belong to. `/` occurs in none of the three."""

    network: str
    container_id: str
    ifname: str

    @property
    def text(self) -> str:
        """For a message."""
        return f"container {self.container_id} interface {self.ifname} network {self.network}"


class FamilyPlan(NamedTuple):
    """One family's part: the container's address with its subnet, and the mappings that lead to it."""

    container: Cidr
    mappings: tuple[PortMapping, ...]
    conditions: tuple[str, ...] = ()

    @property
    def family(self) -> int:
        """4 or 6."""
        return self.container.address.family


class Plan(NamedTuple):
    """What is to be mapped for one attachment; at least one family."""

    owner: Owner
    settings: Settings
    families: tuple[FamilyPlan, ...]


def plan_mappings(owner: Owner, settings: Settings, result: Result) -> Plan:
    """Raises InvalidNetworkConfig (code 7) when the container has no address that a mapping could lead to."""
    families = []
    for container in container_addresses(owner.ifname, result):
        family = container.address.family
        mappings = tuple(mapping for mapping in settings.mappings if mapping.serves(family))
        if mappings:
            families.append(FamilyPlan(container, mappings, settings.conditions(family)))
    if not families:
        raise InvalidNetworkConfig(
            "$.prevResult.ips has no address of the container that a mapping could lead to: "
            + ", ".join(mapping.text for mapping in settings.mappings)
        )
    return Plan(owner, settings, tuple(families))


def address_conflict(address: str, holder: str) -> HostPortConflict:
    """The error for a container address that a live attachment has already."""
    return HostPortConflict(
        f"the container's address {address} is that of {holder} too, which is alive as far as can be told: nobody"
        " could tell the two apart; give one another address, or delete that attachment first"
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
