"""Port mappings in iptables: the chains that upstream's portmap makes, so that either can remove the other's.

Per family an ADD is one atomic batch; what it relies on (the shared chains and jumps) is required by the batch itself.
Only when that fails is the whole table read, and what is missing made in the same batch.
"""

from __future__ import annotations

from cnimeta.errors import CheckFailed, CniError, HostPortConflict, IoFailure, joined, shown
from cnimeta.host.iptables.adapters import installed, open_variant
from cnimeta.host.iptables.values import FAMILIES, Change, Refused
from cnimeta.namedtuple import NamedTuple
from cnimeta.spec.ip import parse_cidr
from cnimeta_plugins.portmap import iptables_plan as plan
from cnimeta_plugins.portmap.iptables_rules import (
    DNAT_CHAIN,
    OLD_SNAT_CHAIN,
    ContainerRules,
    Mapping,
    Settings,
    chain_name,
    container_rules,
    old_snat_chain_name,
    second_chain_name,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence

    from cnimeta.host.protocols import Iptables

_VARIANTS = ("nft", "legacy")


class Part(NamedTuple):
    """What one family of an attachment needs: the container's address ("10.0.0.2/24"), and the family's settings."""

    address: str
    mappings: tuple[Mapping, ...]
    settings: Settings

    @property
    def family(self) -> int:
        """4 or 6."""
        return parse_cidr(self.address).address.family


class Target(NamedTuple):
    """Whose mappings. `second` tells that another interface of the container holds upstream's chain name."""

    network: str
    container_id: str
    ifname: str
    second: bool = False

    @property
    def chain(self) -> str:
        """The container's chain."""
        if self.second:
            return second_chain_name(self.network, self.container_id, self.ifname)
        return chain_name(self.network, self.container_id)


def _keep(_owner: plan.Owner) -> bool:
    return False


class IptablesBackend:
    """The backend on the host's iptables; the variant is looked for when first needed, unless `tables` is given."""

    name = "iptables"

    def __init__(self, tables: Iptables | None = None, path: str = "") -> None:
        self._tables = tables
        self._path = path

    @property
    def tables(self) -> Iptables:
        """The adapter. Raises IoFailure (code 5) when the host has no iptables."""
        if self._tables is None:
            self._tables = installed(self._path)
        if self._tables is None:
            raise IoFailure("iptables is not installed: install it, or set backend to nftables")
        return self._tables

    # --- ADD -------------------------------------------------------------------------------------------------

    def add(self, target: Target, parts: Sequence[Part], take_over: Callable[[plan.Owner], bool] = _keep) -> None:
        """Map, in place of what the same target had. Nothing is written when a port is taken.

        Raises HostPortConflict (code 100) for a port that another container has, unless `take_over` says that its
        owner is gone: then the owner's chain is removed in the same batch.
        """
        with self.tables.held():
            work = [self._prepared(target, part, take_over) for part in parts]
            for part, wanted, entries, dead in work:
                self._write(part, wanted, entries, dead)

    def _prepared(
        self, target: Target, part: Part, take_over: Callable[[plan.Owner], bool]
    ) -> tuple[Part, ContainerRules, list[plan.Entry] | None, list[str]]:
        wanted = container_rules(
            target.network, target.container_id, part.address, part.mappings, part.settings, target.chain
        )
        rules = self.tables.chain(part.family, DNAT_CHAIN)
        if rules is None:
            return part, wanted, None, []
        entries = plan.concerning(rules, wanted)
        return part, wanted, entries, self._dead(part.family, wanted, entries, take_over)

    def _dead(
        self,
        family: int,
        wanted: ContainerRules,
        entries: Sequence[plan.Entry],
        take_over: Callable[[plan.Owner], bool],
    ) -> list[str]:
        """The chains of owners that are gone and hold a port that is wanted; HostPortConflict for a live one.

        A mapping for every address holds the port on each: the first rule that matches would win, and silently.
        """
        asked = plan.translated(wanted.rules)
        dead: list[str] = []
        for entry in entries:
            if entry.chain == wanted.chain or entry.chain in dead or not plan.meet(entry.spans, asked):
                continue
            taken = plan.taken(asked, plan.translated(self.tables.chain(family, entry.chain) or ()))
            if taken is None:
                continue
            owner = plan.read_owner(entry)
            if not take_over(owner):
                raise _conflict(taken, owner)
            dead.append(entry.chain)
        return dead

    def _write(
        self, part: Part, wanted: ContainerRules, entries: Sequence[plan.Entry] | None, dead: Sequence[str]
    ) -> None:
        tables, family, settings = self.tables, part.family, part.settings
        if entries is not None:
            known = any(entry.chain == wanted.chain for entry in entries)
            changes = [
                *plan.base_present(settings),
                *(change for chain in dead for change in plan.remove(entries, chain)),
                *plan.replace(entries, wanted, known),
            ]
            try:
                tables.commit(family, changes)
                return
            except Refused:
                pass  # something shared is missing, or another program was in between: look at everything
        table = tables.read(family)
        if settings.snat and settings.set_mark_chain and settings.set_mark_chain not in table:
            raise IoFailure(
                f"$.externalSetMarkChain: there is no chain {shown(settings.set_mark_chain)} in the IPv{family} nat"
                " table: whoever owns it has to make it first"
            )
        entries = [plan.read_entry(rule) for rule in table.get(DNAT_CHAIN, ())]
        changes = [
            *plan.base_missing(table, settings),
            *(change for chain in dead if chain in table for change in plan.remove(entries, chain)),
            *plan.replace(entries, wanted, wanted.chain in table),
        ]
        try:
            tables.commit(family, changes)
        except Refused as error:
            hint = "; check $.conditionsV4 and $.conditionsV6" if settings.conditions else ""
            raise IoFailure(f"{error.msg}{hint}") from None

    # --- DEL and GC ------------------------------------------------------------------------------------------

    def delete(self, target: Target, other_networks: Collection[str] | None = None) -> None:
        """Remove the target's mappings in both families and both variants, whoever made them; none is fine.

        `other_networks`, when given, are networks on which the container still is; what it has under any further
        name is removed too (the network was renamed since ADD).
        """
        errors = []
        for tables in self._everywhere():
            for family in FAMILIES:
                try:
                    if tables.used(family):
                        with tables.held():
                            _delete(tables, family, target, other_networks)
                except CniError as error:
                    errors.append(error)
        failure = joined(errors)
        if failure is not None:
            raise failure

    def gc(self, network: str, valid: Collection[tuple[str, str]]) -> None:
        """Remove every container of `network` that has no attachment (container ID, ifname) in `valid`."""
        kept = {chain_name(network, container_id) for container_id, _ in valid}
        kept |= {second_chain_name(network, container_id, ifname) for container_id, ifname in valid}
        errors = []
        for tables in self._everywhere():
            for family in FAMILIES:
                try:
                    if not tables.used(family):
                        continue
                    with tables.held():
                        entries = _entries(tables, family)
                        stale = {e.chain for e in entries if plan.read_owner(e).network == network} - kept
                        _remove(tables, family, entries, stale)
                except CniError as error:
                    errors.append(error)
        failure = joined(errors)
        if failure is not None:
            raise failure

    def _everywhere(self) -> list[Iptables]:
        """The adapters to look into when removing: the host may have been switched over since ADD."""
        if self._tables is not None:
            return [self._tables]
        return [open_variant(variant, self._path) for variant in _VARIANTS]

    # --- CHECK -----------------------------------------------------------------------------------------------

    def check(self, target: Target, parts: Sequence[Part]) -> None:
        """Raise CheckFailed (code 101) for the first rule that is missing, changed, out of order or too many."""
        for part in parts:
            wanted = container_rules(
                target.network, target.container_id, part.address, part.mappings, part.settings, target.chain
            )
            self._check_family(part.family, wanted, part.settings)

    def _check_family(self, family: int, wanted: ContainerRules, settings: Settings) -> None:
        with self.tables.held():
            chain = self.tables.chain(family, wanted.chain)
            entries = [
                entry.rule for entry in _entries(self.tables, family, (wanted.chain,)) if entry.chain == wanted.chain
            ]
            for shared, rule, _ in plan.base_rules(settings):
                if rule not in (self.tables.chain(family, shared) or ()):
                    raise CheckFailed(f"the IPv{family} iptables chain {shared} has no rule {rule}")
        if chain is None:
            raise CheckFailed(f"the IPv{family} iptables chain {wanted.chain} is missing")
        self._compare(family, wanted.chain, chain, wanted.rules, exact=True)
        self._compare(family, DNAT_CHAIN, entries, wanted.entries, exact=not settings.conditions)

    def _compare(self, family: int, chain: str, present: Sequence[str], wanted: Sequence[str], exact: bool) -> None:
        """Conditions are text of the operator's, which the kernel's form may spell otherwise: `iptables -C` knows."""
        where = f"the IPv{family} iptables chain {chain}"
        for rule in wanted:
            if rule not in present and (exact or not self.tables.has_rule(family, chain, rule)):
                raise CheckFailed(f"{where} has no rule {rule}")
        if len(present) != len(wanted):
            raise CheckFailed(f"{where} has {len(present)} rules for this container, expected are {len(wanted)}")
        if exact and list(present) != list(wanted):
            raise CheckFailed(f"the rules of {where} are out of order")


def remove_foreign(network: str, container_id: str, path: str = "", other_networks: Collection[str] = ()) -> None:
    """Remove what a container has in iptables although its backend is another one now; cheap when there is nothing.

    That is what upstream's portmap made, or this one before the backend was changed, under this network's name or an
    earlier one; networks in `other_networks` are left alone. Starts no program unless there is something to remove.
    """
    # Another interface on this very network may be alive: its chain has upstream's name, so that one stays.
    IptablesBackend(path=path).delete(Target(network, container_id, "", network in other_networks), other_networks)


def _entries(tables: Iptables, family: int, mentioning: tuple[str, ...] = ()) -> list[plan.Entry]:
    return [plan.read_entry(rule) for rule in tables.chain(family, DNAT_CHAIN, mentioning) or ()]


def _delete(tables: Iptables, family: int, target: Target, other_networks: Collection[str] | None) -> None:
    names = {target.chain, second_chain_name(target.network, target.container_id, target.ifname)}
    chains = {name for name in names if tables.has_chain(family, name)}
    entries = _entries(tables, family, (*names, target.container_id))
    if other_networks is not None:
        kept = {*other_networks, target.network}
        for entry in entries:
            owner = plan.read_owner(entry)
            if owner.whole and owner.container_id == target.container_id and owner.network not in kept:
                chains.add(entry.chain)
    _remove(tables, family, entries, chains)
    old = old_snat_chain_name(target.network, target.container_id)
    if tables.has_chain(family, old):
        tables.commit(family, plan.remove_old_snat(tables.chain(family, OLD_SNAT_CHAIN) or (), old))


def _remove(tables: Iptables, family: int, entries: Sequence[plan.Entry], chains: Collection[str]) -> None:
    changes: list[Change] = []
    for chain in sorted(chains):
        changes += plan.remove(entries, chain)
    if not changes:
        return
    try:
        tables.commit(family, changes)
    except Refused:  # another program was in between, or something else leads to the chain: take it as it is now
        table = tables.read(family)
        changes = [
            Change("delete", holder, rule)
            for holder, rules in table.items()
            for rule in rules
            if plan.read_entry(rule).chain in chains
        ]
        changes += [
            Change(action, chain) for chain in sorted(chains) if chain in table for action in ("flush", "remove")
        ]
        if changes:
            tables.commit(family, changes)


def _conflict(span: plan.Span, owner: plan.Owner) -> HostPortConflict:
    ports = str(span.first) if span.first == span.last else f"{span.first}-{span.last}"
    whose = f"container {shown(owner.container_id)} of network {shown(owner.network)}" if owner.network else "another"
    where = f" on {span.host_ip}" if span.host_ip else ""
    return HostPortConflict(
        f"host port {ports}/{span.protocol}{where} is taken by {whose} (iptables chain {owner.chain}): choose another"
        " hostPort, or delete that container first"
    )
