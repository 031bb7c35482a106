"""A backend in memory, which maps nothing: for tests of what stands above a backend, and to read before the others.

No configuration on a host can choose it: only `registry` has its line, for `Backends(sources=registry(backend))`.
"""

from __future__ import annotations

from cnimeta.errors import CheckFailed, CniError, HostPortConflict, IoFailure
from cnimeta.namedtuple import NamedTuple
from cnimeta.ports.mapper import MappedPort
from cnimeta.spec.fields import Fields
from cnimeta_plugins.portmap.backends import BACKENDS, Source
from cnimeta_plugins.portmap.plan import address_conflict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from cnimeta.spec.jsonio import JSON
    from cnimeta_plugins.portmap.config import PortMapping
    from cnimeta_plugins.portmap.others import Others
    from cnimeta_plugins.portmap.plan import Owner, Plan


def registry(backend: MemoryBackend) -> Mapping[str, Source]:
    """The registry with one line more."""
    return {**BACKENDS, "memory": Source(lambda _: backend)}


class Port(NamedTuple):
    """One host port of one family, and where it leads. `host_ip` is empty for every address."""

    family: int
    host_ip: str
    protocol: str
    host_port: int
    container: str
    container_port: int

    def meets(self, other: Port) -> bool:
        """Whether one packet can be for both."""
        same = (self.family, self.protocol, self.host_port) == (other.family, other.protocol, other.host_port)
        return same and (self.host_ip == other.host_ip or not self.host_ip or not other.host_ip)


class Ports(NamedTuple):
    """An attachment's ports: the payload of its record."""

    ports: tuple[Port, ...]

    def as_json(self) -> JSON:
        """The form in the record."""
        ports: list[JSON] = [list(port) for port in self.ports]
        return {"ports": ports}


class MemoryBackend:
    """The backend. `held` is what a kernel would have; `before_add` runs ahead of each ADD, to inject faults."""

    def __init__(self) -> None:
        self.held: dict[Owner, tuple[Port, ...]] = {}
        self.usable = True
        self.before_add: Callable[[], None] = lambda: None

    # --- an attachment with a record -------------------------------------------------------------------------

    def plan(self, plan: Plan, _before: Ports | None, _others: Others) -> Ports:
        """Every port."""
        return Ports(_ports(plan))

    def both(self, before: Ports, after: Ports) -> Ports:
        """All of both."""
        return Ports(tuple(dict.fromkeys((*after.ports, *before.ports))))

    def add(self, plan: Plan, payload: Ports, _before: Ports | None, others: Others) -> None:
        """In place of what the owner had."""
        self.before_add()
        dead = {record.owner for record in others.every() if others.is_dead(record)}
        for owner, ports in list(self.held.items()):
            taken = next((port for port in payload.ports if any(port.meets(other) for other in ports)), None)
            shared = {port.container for port in payload.ports} & {port.container for port in ports}
            renamed = bool(shared) and owner[1:] == plan.owner[1:]
            if owner == plan.owner or (taken is None and not shared):
                continue
            if owner not in dead and not renamed:
                if taken is None:
                    raise address_conflict(min(shared), owner.text)
                place = f"{taken.host_port}/{taken.protocol}"
                raise HostPortConflict(f"host port {place} is already mapped for {owner.text}: choose another hostPort")
            del self.held[owner]
        self.held[plan.owner] = payload.ports

    def check(self, plan: Plan, _payload: Ports | None) -> None:
        """All of it, and nothing else."""
        wanted, held = _ports(plan), self.held.get(plan.owner, ())
        for port in wanted:
            if port not in held:
                raise CheckFailed(f"host port {port.host_port}/{port.protocol} is not mapped as it should be")
        if len(held) != len(wanted):
            raise CheckFailed(f"{plan.owner.text} has {len(held)} ports, expected are {len(wanted)}")

    def remove(self, owner: Owner, payload: Ports) -> None:
        """What of it the owner has."""
        left = tuple(port for port in self.held.pop(owner, ()) if port not in payload.ports)
        if left:
            self.held[owner] = left

    # --- what there is without a record ----------------------------------------------------------------------

    def sweep(self, owner: Owner, mappings: Sequence[PortMapping] | None, others: Others) -> bool:
        """Everything of the owner's, when one of its ports is as suspected; under another network's name too."""
        if mappings is None:
            return self.held.pop(owner, None) is not None
        suspected = {(mapping.protocol, mapping.first) for mapping in mappings}
        recorded = {record.owner for record in others.of_container(owner.container_id)}
        found = [
            one
            for one, ports in self.held.items()
            if one[1:] == owner[1:]
            and one not in recorded
            and any((port.protocol, port.host_port) in suspected for port in ports)
        ]
        for one in found:
            del self.held[one]
        return bool(found)

    def collect(self, network: str, valid: Collection[tuple[str, str]], others: Others) -> None:
        """By owner."""
        for owner in list(self.held):
            gone = owner.network == network and (owner.container_id, owner.ifname) not in valid
            if gone and not others.has(owner):
                del self.held[owner]

    def require_free(self, plan: Plan, others: Others) -> None:
        """It maps nothing that could be in anybody's way."""

    def heal(self) -> None:
        """Nothing is relied on."""

    def tidy(self) -> None:
        """Nothing is shared."""

    def listed(self) -> Iterator[MappedPort]:
        """Every port; one that is mapped in both families once."""
        for owner, ports in self.held.items():
            for port in sorted({port._replace(family=0, container="") for port in ports}):
                yield MappedPort(
                    *(*owner, port.protocol, port.host_port, port.container_port, port.host_ip),
                    recorded=False,
                    managed_by=None,
                )

    def frozen(self) -> MemoryBackend:
        """A copy."""
        found = MemoryBackend()
        found.held, found.usable = dict(self.held), self.usable
        return found

    # --- the rest --------------------------------------------------------------------------------------------

    def ready(self) -> None:
        """As `usable` says."""
        if not self.usable:
            raise IoFailure("the memory backend is switched off")

    def payload(self, value: JSON) -> Ports:
        """Read a payload."""
        fields = Fields(value if isinstance(value, dict) else {}, "$.payload")
        if not fields.has("ports"):
            raise CniError("the payload names no ports")
        ports = []
        for row in fields.items("ports"):
            if not isinstance(row, list) or [type(part) for part in row] != [int, str, str, int, str, int]:
                raise CniError("a port is not an array of family, address, protocol, port, container and its port")
            ports.append(Port(*row))
        return Ports(tuple(ports))


def _ports(plan: Plan) -> tuple[Port, ...]:
    return tuple(
        Port(one.family, mapping.where, mapping.protocol, port, one.container.address.text, mapping.target(port))
        for one in plan.families
        for mapping in one.mappings
        for port in mapping.host_ports
    )
