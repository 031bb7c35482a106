"""Port mappings in iptables: the chains that upstream's portmap makes, so that either can remove the other's.

Per family an ADD is one atomic batch; what it relies on (the shared chains and jumps) is required by the batch itself.
Only when that fails is the whole table read, and what is missing made in the same batch.
"""

from __future__ import annotations

from cnimeta.errors import CniError, Failures, IoFailure, StateUnusable, shown
from cnimeta.host.iptables.adapters import installed, open_variant
from cnimeta.host.iptables.values import FAMILIES, NAT, RAW, Change, Refused
from cnimeta.namedtuple import NamedTuple
from cnimeta.spec.fields import Fields
from cnimeta_plugins.portmap.iptables import plan as steps
from cnimeta_plugins.portmap.iptables.names import DNAT_CHAIN, GUARD_CHAIN, OLD_SNAT_CHAIN
from cnimeta_plugins.portmap.iptables.rules import (
    ContainerRules,
    chain_name,
    container_rules,
    old_snat_chain_name,
    second_chain_name,
)
from cnimeta_plugins.portmap.plan import Owner, address_conflict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from cnimeta.host.protocols import Iptables
    from cnimeta.ports.mapper import MappedPort
    from cnimeta.spec.jsonio import JSON
    from cnimeta_plugins.portmap.config import PortMapping, Settings
    from cnimeta_plugins.portmap.others import Others
    from cnimeta_plugins.portmap.plan import FamilyPlan, Plan
    from cnimeta_plugins.portmap.records import Record


class ContainerChain(NamedTuple):
    """The name of the attachment's chain: the payload of its record."""

    name: str

    def as_json(self) -> JSON:
        """The form in the record."""
        return {"chain": self.name}


class _Work(NamedTuple):
    """One family's part of an ADD, and what there is already."""

    family: FamilyPlan
    wanted: ContainerRules
    entries: list[steps.Entry] | None
    """The entry rules that matter here; None when there is no chain for them."""
    dead: list[str]
    """Chains of dead containers that have a port which is wanted."""


class IptablesBackend:
    """The backend on the host's iptables; the variant is looked for when first needed, unless `tables` is given."""

    def __init__(self, tables: Iptables | None = None, path: str = "") -> None:
        self._tables = tables
        self._path = path
        self._seen: dict[tuple[str, int], list[steps.Entry]] = {}
        """By variant and family, what `remove` has seen of a container and left, for the `sweep` that follows it."""
        self._seen_of = ""

    @property
    def tables(self) -> Iptables:
        """The adapter. Raises IoFailure (code 5) when the host has no iptables."""
        if self._tables is None:
            self._tables = installed(self._path)
        if self._tables is None:
            raise IoFailure("iptables is not installed: install it, or set backend to nftables")
        return self._tables

    # --- ADD -------------------------------------------------------------------------------------------------

    def plan(self, plan: Plan, before: ContainerChain | None, others: Others) -> ContainerChain:
        """Upstream's chain name, unless another interface of the container on this network has it."""
        if before is not None:
            return before
        owner = plan.owner
        first = ContainerChain(chain_name(owner.network, owner.container_id))
        is_taken = any(record.payload == first for record in others.of_container(owner.container_id))
        return ContainerChain(second_chain_name(owner)) if is_taken else first

    def both(self, _before: ContainerChain, after: ContainerChain) -> ContainerChain:
        """The name stays."""
        return after

    def add(self, plan: Plan, payload: ContainerChain, before: ContainerChain | None, others: Others) -> None:
        """One batch a family; nothing is written when a port is taken in either.

        When the second family's batch fails, the first's is taken back; what was there before it is not put back.
        """
        planned = [family.family for family in plan.families]
        for record in _address_holders(plan, others):
            if isinstance(record.payload, ContainerChain):
                self.remove(record.owner, record.payload)
        with self.tables.held():
            _address_holders(plan, others)  # another command may have been quicker
            others.take([family.container.address for family in plan.families])
            work = [self._prepared(plan, family, payload.name, others) for family in plan.families]
            for at, part in enumerate(work):
                try:
                    self._write(part, plan.settings)
                except CniError:
                    self._take_back(payload.name, planned[:at])
                    raise
            if before is not None:
                self._take_back(payload.name, [family for family in FAMILIES if family not in planned])

    def _take_back(self, chain: str, families: Iterable[int]) -> None:
        for family in families:
            if self.tables.has_chain(family, chain):
                _remove(self.tables, family, _entries(self.tables, family, (chain,)), {chain})

    def _prepared(self, plan: Plan, family: FamilyPlan, chain: str, others: Others) -> _Work:
        wanted = container_rules(plan, family, chain)
        rules = self.tables.chain(family.family, DNAT_CHAIN)
        if rules is None:
            return _Work(family, wanted, None, [])
        entries = steps.concerning(rules, wanted)
        return _Work(family, wanted, entries, self._dead(self.tables, family.family, wanted, entries, others))

    def _dead(
        self, tables: Iptables, family: int, wanted: ContainerRules, entries: Sequence[steps.Entry], others: Others
    ) -> list[str]:
        """The chains of owners that are dead and hold a port that is wanted; HostPortConflict for a live one.

        A mapping for every address holds the port on each: the first rule that matches would win, and silently.
        """
        asked = steps.translated(wanted.rules)
        dead: list[str] = []
        for entry in entries:
            if entry.chain == wanted.chain or entry.chain in dead or not steps.meet(entry.spans, asked):
                continue
            taken = steps.taken(asked, steps.translated(tables.chain(family, entry.chain) or ()))
            if taken is None:
                continue
            named = steps.read_owner(entry)
            if not _is_dead(named, others):
                raise steps.conflict(taken, named)
            dead.append(entry.chain)
        return dead

    def _write(self, work: _Work, settings: Settings) -> None:
        tables, family, wanted, entries = self.tables, work.family.family, work.wanted, work.entries
        # Without the guard, which goes with the node's last mapping, the batch would be refused.
        if entries is not None and (family == 6 or tables.has_chain(family, GUARD_CHAIN, RAW)):
            known = any(entry.chain == wanted.chain for entry in entries)
            changes = [
                *steps.base_present(family, settings),
                *(change for chain in work.dead for change in steps.remove(entries, chain)),
                *steps.replace(entries, wanted, known),
            ]
            try:
                tables.commit(family, changes)
                return
            except Refused:  # refused: everything is looked at and written anew
                pass  # something shared is missing, or another program was in between: look at everything
        table = tables.read(family)
        raw = tables.read(family, RAW) if family == 4 else {}
        external = settings.external_set_mark_chain
        if settings.snat and external and external not in table:
            raise IoFailure(
                f"$.externalSetMarkChain: there is no chain {shown(external)} in the IPv{family} nat table: whoever"
                " owns it has to make it first"
            )
        entries = [steps.read_entry(rule) for rule in table.get(DNAT_CHAIN, ())]
        changes = [
            *steps.base_missing({NAT: table, RAW: raw}, family, settings),
            *(change for chain in work.dead if chain in table for change in steps.remove(entries, chain)),
            *steps.replace(entries, wanted, wanted.chain in table),
        ]
        try:
            tables.commit(family, changes)
        except Refused as error:
            hint = "; check $.conditionsV4 and $.conditionsV6" if work.family.conditions else ""
            raise IoFailure(f"{error.msg}{hint}") from None

    # --- DEL and GC ------------------------------------------------------------------------------------------

    def remove(self, owner: Owner, payload: ContainerChain) -> None:
        """The attachment's chain in both families and both variants, whoever made it."""
        self._seen_of = ""
        self._remove_everywhere(owner, {payload.name, second_chain_name(owner)})
        self._seen_of = owner.container_id

    def sweep(self, owner: Owner, _mappings: Sequence[PortMapping] | None, others: Others) -> bool:
        """By name, whoever made it: this attachment's, and the container's on networks that it is not on any more.

        Those are the network's earlier names. Upstream's chain name has no interface in it: it stays when it is that of
        another interface of the container. Where the records do not tell, that is so if this one has a second name.
        """
        try:
            records = list(others.of_container(owner.container_id))
        except StateUnusable:
            first = chain_name(owner.network, owner.container_id)
            if not self._remove_everywhere(owner, {second_chain_name(owner)}):
                self._remove_everywhere(owner, {first})
            raise
        names = {second_chain_name(owner), chain_name(owner.network, owner.container_id)}
        names -= {record.payload.name for record in records if isinstance(record.payload, ContainerChain)}
        networks = {owner.network, *(record.owner.network for record in records)}
        try:
            return self._remove_everywhere(owner, names, lambda named: named.network not in networks)
        finally:
            self._seen_of = ""

    def _remove_everywhere(
        self, owner: Owner, names: set[str], also: Callable[[steps.Named], bool] = lambda _: False
    ) -> bool:
        found = []
        failures = Failures()
        seen = self._seen if self._seen_of == owner.container_id else {}
        for tables, family in self._used(failures):
            with failures, tables.held():
                entries = seen.get((tables.variant, family))
                if entries is None:
                    words = {*names, chain_name(owner.network, owner.container_id), second_chain_name(owner)}
                    entries = _entries(tables, family, (*sorted(words), owner.container_id))
                gone = _delete(tables, family, owner, names, also, entries)
                self._seen[tables.variant, family] = [entry for entry in entries if entry.chain not in gone]
                found.append(bool(gone))
        failures.raise_any()
        return any(found)

    def collect(self, network: str, valid: Collection[tuple[str, str]], _others: Others) -> None:
        """By the comments on the entry rules."""
        kept = {chain_name(network, container_id) for container_id, _ in valid}
        kept |= {second_chain_name(Owner(network, container_id, ifname)) for container_id, ifname in valid}
        failures = Failures()
        for tables, family in self._used(failures):
            with failures, tables.held():
                entries = _entries(tables, family)
                stale = {entry.chain for entry in entries if steps.read_owner(entry).network == network} - kept
                _remove(tables, family, entries, stale)
        failures.raise_any()

    def require_free(self, plan: Plan, others: Others) -> None:
        """By the entry rules of either variant, whoever made them: a node on its way from the reference plugin."""
        _address_holders(plan, others)
        families = {family.family: family for family in plan.families}
        failures = Failures()
        for tables, number in self._used(failures):
            rules = tables.chain(number, DNAT_CHAIN) if number in families else None
            if rules:
                wanted = container_rules(plan, families[number], "")
                found = [
                    entry
                    for entry in steps.concerning(rules, wanted)
                    if steps.read_owner(entry).container_id != plan.owner.container_id
                ]
                self._dead(tables, number, wanted, found, others)
        failures.raise_any()

    def heal(self) -> None:
        """The order in CNI-HOSTPORT-DNAT; what is missing of the shared part, ADD makes."""
        failures = Failures()
        for tables, family in self._used(failures):
            with failures, tables.held():
                rules = steps.late(tables.chain(family, DNAT_CHAIN) or ())
                if rules:
                    changes = [Change("delete", DNAT_CHAIN, rule) for rule in rules]
                    tables.commit(family, [*changes, *(Change("insert", DNAT_CHAIN, rule) for rule in reversed(rules))])
        failures.raise_any()

    def tidy(self) -> None:
        """Our guard, when nothing is mapped any more. Upstream's shared chains stay: its plugin uses them too."""
        failures = Failures()
        for tables in self._everywhere():
            with failures, tables.held():
                if tables.has_chain(4, GUARD_CHAIN, RAW) and not tables.has_rules(4, DNAT_CHAIN):
                    tables.commit(4, steps.guard_removed(tables.read(4, RAW)))
        failures.raise_any()

    def listed(self) -> Iterator[MappedPort]:
        """By the comments on the entry rules, which do not name the interface; one that was cut tells nobody's."""
        from cnimeta_plugins.portmap.iptables.listed import mapped_ports

        failures = Failures()
        for tables, family in self._used(failures):
            with failures:
                yield from mapped_ports(tables.read(family))
        failures.raise_any()

    def _used(self, failures: Failures) -> Iterator[tuple[Iptables, int]]:
        """Every nat table there is."""
        for tables in self._everywhere():
            for family in FAMILIES:
                used = False
                with failures:
                    used = tables.used(family)
                if used:
                    yield tables, family

    def _everywhere(self) -> list[Iptables]:
        """The adapters to look into when removing: the host may have been switched over since ADD."""
        if self._tables is not None:
            return [self._tables]
        return [open_variant(variant, self._path) for variant in ("nft", "legacy")]

    # --- CHECK and STATUS ------------------------------------------------------------------------------------

    def check(self, plan: Plan, payload: ContainerChain | None) -> None:
        """Every rule of the container and of the shared chains, in order, and no further one."""
        from cnimeta_plugins.portmap.iptables.checking import check

        chain = payload.name if payload is not None else chain_name(plan.owner.network, plan.owner.container_id)
        check(self.tables, plan, chain, own=payload is not None)

    def frozen(self) -> IptablesBackend:
        """Each table of the variant that is used is read once."""
        from cnimeta_plugins.portmap.iptables.reading import Reading

        return IptablesBackend(Reading(self.tables), self._path)

    def ready(self) -> None:
        """Raise IoFailure (code 5) when there is no iptables, or its nat table cannot be read."""
        self.tables.has_chain(4, "PREROUTING")

    def payload(self, value: JSON) -> ContainerChain:
        """Read a payload."""
        chain = Fields(value if isinstance(value, dict) else {}, "$.payload").text("chain")
        if not chain:
            raise CniError("the payload names no chain")
        return ContainerChain(chain)


def _address_holders(plan: Plan, others: Others) -> list[Record]:
    """Whose rules go because they lead to an address that is the plan's container's now: dead ones, and the interface's
    own under an earlier name of the network. HostPortConflict for a live one.
    """
    found = []
    for family in plan.families:
        for record in others.at(family.container.address):
            if not others.is_dead(record) and record.owner[1:] != plan.owner[1:]:
                raise address_conflict(family.container.address.text, record.owner.text)
            found.append(record)
    return found


def _is_dead(named: steps.Named, others: Others) -> bool:
    """Whether the owner of a chain is known, and dead in every attachment."""
    found = [one for one in others.of_container(named.container_id) if one.owner.network == named.network]
    return named.whole and bool(found) and all(others.is_dead(one) for one in found)


def _entries(tables: Iptables, family: int, mentioning: tuple[str, ...] = ()) -> list[steps.Entry]:
    return [steps.read_entry(rule) for rule in tables.chain(family, DNAT_CHAIN, mentioning) or ()]


def _delete(
    tables: Iptables,
    family: int,
    owner: Owner,
    names: set[str],
    also: Callable[[steps.Named], bool],
    entries: Sequence[steps.Entry],
) -> set[str]:
    """Remove the chains of these names, and those of the container that `also` is true for; which there were.

    `entries`: those that may concern the container.
    """
    chains = {name for name in names if tables.has_chain(family, name)}
    for entry in entries:
        named = steps.read_owner(entry)
        if named.whole and named.container_id == owner.container_id and also(named):
            chains.add(entry.chain)
    _remove(tables, family, entries, chains)
    old = old_snat_chain_name(owner.network, owner.container_id)
    if tables.has_chain(family, old):
        tables.commit(family, steps.remove_old_snat(tables.chain(family, OLD_SNAT_CHAIN) or (), old))
        chains.add(old)
    return chains


def _remove(tables: Iptables, family: int, entries: Sequence[steps.Entry], chains: Collection[str]) -> None:
    changes: list[Change] = []
    for chain in sorted(chains):
        changes += steps.remove(entries, chain)
    if not changes:
        return
    try:
        tables.commit(family, changes)
    except Refused:  # refused: another was in between; taken as it is now
        table = tables.read(family)
        changes = steps.remove_from(table, chains)
        if changes:
            tables.commit(family, changes)
