"""What the iptables tests share: plans in few words, and the backend driven by them."""

from __future__ import annotations

from typing import Any, NamedTuple

from cnimeta.spec.ip import Address, parse_cidr, parse_ip
from cnimeta_plugins.portmap.config import PortMapping, Settings
from cnimeta_plugins.portmap.iptables.backend import ContainerChain, IptablesBackend
from cnimeta_plugins.portmap.iptables.rules import ContainerRules, chain_name, container_rules, second_chain_name
from cnimeta_plugins.portmap.plan import FamilyPlan, Owner, Plan
from cnimeta_plugins.portmap.records import Record


def mapping(protocol: str, first: int, last: int, to: int, host_ip: str = "") -> PortMapping:
    return PortMapping(first, last, to, protocol, parse_ip(host_ip) if host_ip else None)


def settings_with(conditions: tuple[str, ...] = (), **keys: Any) -> Settings:
    """The same conditions for both families."""
    return Settings(conditions_v4=conditions, conditions_v6=conditions, **keys)


class Part(NamedTuple):
    """One family of an attachment: the container's address ("10.0.0.2/24"), what is mapped, and the settings."""

    address: str
    mappings: tuple[PortMapping, ...]
    settings: Settings


class Target(NamedTuple):
    """Whose mappings. `second`: another interface of the container has upstream's chain name."""

    network: str
    container_id: str
    ifname: str
    second: bool = False

    @property
    def owner(self) -> Owner:
        return Owner(self.network, self.container_id, self.ifname)

    @property
    def chain(self) -> str:
        return second_chain_name(self.owner) if self.second else chain_name(self.network, self.container_id)


def plan_of(target: Target, parts: list[Part]) -> Plan:
    every = tuple(dict.fromkeys(one for part in parts for one in part.mappings))
    families = []
    for part in parts:
        container = parse_cidr(part.address)
        family = container.address.family
        mappings = tuple(one for one in part.mappings if one.serves(family))
        families.append(FamilyPlan(container, mappings, part.settings.conditions(family)))
    return Plan(target.owner, parts[0].settings._replace(mappings=every), tuple(families))


def rules_of(
    network: str, container_id: str, address: str, mappings: Any, settings: Settings | None = None
) -> ContainerRules:
    """The rules of one family."""
    target = Target(network, container_id, "eth0")
    plan = plan_of(target, [Part(address, tuple(mappings), settings or Settings())])
    return container_rules(plan, plan.families[0], target.chain)


class Known:
    """What the records say of other attachments: (target, whether it is dead)."""

    def __init__(self, *attachments: tuple[Target, bool]) -> None:
        self.records = {
            Record(target.owner, "", "", (), (), "iptables", ContainerChain(target.chain)): dead
            for target, dead in attachments
        }
        self.asked: list[str] = []
        self.addresses: list[Address] = []

    def every(self) -> list[Record]:
        return list(self.records)

    def of_container(self, container_id: str) -> list[Record]:
        self.asked.append(container_id)
        return [record for record in self.records if record.owner.container_id == container_id]

    def at(self, _address: Address) -> list[Record]:
        """No container has another's address."""
        return []

    def take(self, addresses: list[Address]) -> None:
        self.addresses = list(addresses)

    def is_dead(self, record: Record) -> bool:
        return self.records[record]


class Driver:
    """The backend by targets and parts."""

    def __init__(self, tables: Any) -> None:
        self.backend = IptablesBackend(tables)
        self.tables = tables

    def add(self, target: Target, parts: list[Part], known: Known | None = None) -> None:
        self.backend.add(plan_of(target, parts), ContainerChain(target.chain), None, known or Known())

    def check(self, target: Target, parts: list[Part]) -> None:
        self.backend.check(plan_of(target, parts), ContainerChain(target.chain))

    def delete(self, target: Target) -> None:
        self.backend.remove(target.owner, ContainerChain(target.chain))

    def sweep(self, target: Target, known: Known | None = None) -> bool:
        return self.backend.sweep(target.owner, (), known or Known())

    def gc(self, network: str, valid: Any) -> None:
        self.backend.collect(network, valid, Known())

    def tidy(self) -> None:
        self.backend.tidy()
