"""Port mappings in nftables: one transaction per command, decided by the kernel. The form is described in `rules`."""

from __future__ import annotations

from cnimeta.errors import Failures, HostPortConflict, IoFailure, StateUnusable
from cnimeta.host.nftables.values import Chain, Change, Element, Refusal
from cnimeta.namedtuple import NamedTuple
from cnimeta_plugins.portmap.backends import Unusable
from cnimeta_plugins.portmap.nftables.base import base_changes, healing_changes
from cnimeta_plugins.portmap.nftables.rules import (
    BASE_CHAIN,
    CONDITIONAL,
    SHARED,
    TABLE,
    Elements,
    add_changes,
    idle_chains,
    is_claim,
    masquerading_uses,
    orphan_changes,
    owner_id,
    plan_elements,
    read_elements,
    remove_changes,
    shared_keys,
    still_held,
    subnet_chains,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

    from cnimeta.host.protocols import Nft
    from cnimeta.ports.mapper import MappedPort
    from cnimeta.spec.jsonio import JSON
    from cnimeta_plugins.portmap.config import PortMapping
    from cnimeta_plugins.portmap.nftables.rules import Group
    from cnimeta_plugins.portmap.others import Others
    from cnimeta_plugins.portmap.plan import Owner, Plan

_PASSING = ("Cannot allocate memory", "No buffer space", "Interrupted", "temporarily unavailable")
_LOOKS = 100  # other commands may change something between a look at the shared claims and the transaction
_ATTEMPTS = 4  # another command may build the base, or a tool flush it, between a look and the transaction


def on_host(path: str) -> NftBackend:
    """The backend on this kernel; the `nft` program, where it is needed, is looked for in `path` first."""
    from cnimeta.host.nftables.kernel import KernelNft

    def remove_upstream(container_id: str) -> bool:
        from cnimeta_plugins.portmap.nftables.upstream import remove_container

        return remove_container(container_id, path)

    def held_by_upstream(family: int, ports: Collection[tuple[str, int]], container_id: str) -> tuple[str, str]:
        from cnimeta_plugins.portmap.nftables.upstream import other_holder

        return other_holder(family, ports, container_id, path)

    return NftBackend(KernelNft(TABLE, path), remove_upstream, held_by_upstream)


class _Deserted(NamedTuple):
    """Changes that remove shared claims which nobody shares, as seen at the generation `since`."""

    changes: tuple[Change, ...] = ()
    since: int = 0

    def and_also(self, more: _Deserted) -> _Deserted:
        """Both, as seen when the first was."""
        return _Deserted((*self.changes, *more.changes), self.since or more.since)


_NOTHING = _Deserted()


class NftBackend:
    """The backend on nftables. `remove_upstream` removes what upstream's portmap made for a container, if anything;
    `held_by_upstream` tells of (family, ports, container ID) whether its rules map one for another container.
    """

    def __init__(
        self,
        nft: Nft,
        remove_upstream: Callable[[str], bool] = lambda _: False,
        held_by_upstream: Callable[[int, Collection[tuple[str, int]], str], tuple[str, str]] = lambda *_: ("", ""),
    ) -> None:
        self.nft = nft
        self._remove_upstream = remove_upstream
        self._held_by_upstream = held_by_upstream

    # --- ADD -------------------------------------------------------------------------------------------------

    def plan(self, plan: Plan, _before: Elements | None, _others: Others) -> Elements:
        """The elements and chains of the attachment's own."""
        return plan_elements(plan)

    def both(self, before: Elements, after: Elements) -> Elements:
        """All of both."""
        return Elements(
            tuple(dict.fromkeys((*after.groups, *before.groups))),
            tuple(dict.fromkeys((*after.conditions, *before.conditions))),
        )

    def add(self, plan: Plan, payload: Elements, before: Elements | None, others: Others) -> None:
        """One transaction, so all or nothing."""
        self._require_none_of_upstream(plan)
        left, stale, displaced, deserted = before, list[Change](), Elements(), _NOTHING
        refusal: Refusal
        attempts, looks = _ATTEMPTS + len(payload.groups) + len(before.groups if before is not None else ()), _LOOKS
        while attempts and looks:
            changes = self._add_script(plan, payload, [*self._stale(payload, left), *stale, *deserted.changes])
            try:
                self.nft.apply(changes, deserted.since)
                self._tidy(before, payload, displaced)
                return
            except Refusal as error:
                refusal = error
            if refusal.kind == "changed":  # a claim that was nobody's may be somebody's now
                looks, attempts, deserted = looks - 1, attempts + 1, _NOTHING
                continue
            attempts -= 1
            refused = changes[refusal.index].item if 0 <= refusal.index < len(changes) else None
            if refused is None or refusal.kind == "other":
                raise refusal
            if refusal.kind == "missing" or not isinstance(refused, Element):
                continue  # flushed, or built by another command, since we looked
            rest = still_held(left, refused, payload)
            if rest != left:  # it was flushed, and is another's now
                left = rest
                continue
            removal, held, more = self._displaced(plan.owner, refused, others)
            stale, displaced, deserted = [*stale, *removal], self.both(displaced, held), deserted.and_also(more)
        raise refusal

    def _stale(self, wanted: Elements, before: Elements | None) -> list[Change]:
        """What to take out first: groups that are not wanted, and every conditional chain."""
        if before is None:
            return self._chains_out(wanted.conditions)
        kept = set(wanted.groups)
        gone = [group for group in before.groups if group not in kept]
        return [*self._chains_out(self.both(before, wanted).conditions), *remove_changes(gone)]

    def _add_script(self, plan: Plan, payload: Elements, stale: Sequence[Change]) -> list[Change]:
        subnets, uses = subnet_chains(plan), self.nft.chain_uses()
        if BASE_CHAIN not in uses:
            return [*base_changes(), *add_changes(plan, payload, subnets)]
        missing = [subnet for subnet in subnets if self.nft.rule_count(subnet.chain) != len(subnet.rules)]
        return [*healing_changes(uses), *stale, *add_changes(plan, payload, missing)]

    def _displaced(self, owner: Owner, wanted: Element, others: Others) -> tuple[list[Change], Elements, _Deserted]:
        """Changes that remove the dead holder of the key that is wanted, what it has, and what nobody shares then.

        Raises HostPortConflict for a live one.
        """
        from cnimeta_plugins.portmap.nftables.shared import conflict, holders, is_renamed, is_shared

        holder, held = next(holders(others, wanted), (None, Elements()))
        if holder is None:
            held = self._held_by(owner)
            removal, deserted = self._removal(held), self._abandoned(wanted, held)
            if removal or deserted.changes:
                return removal, held, deserted
        elif is_shared(held, wanted):
            for holder, more in holders(others, wanted):
                if is_shared(more, wanted) and not others.is_dead(holder):
                    raise conflict(wanted, holder, "")
                held = self.both(held, more)
            held = self.both(held, self._held_by(owner))
            return self._removal(held), held, self._abandoned(wanted, held)
        elif others.is_dead(holder) or is_renamed(holder.owner, owner, wanted):
            return self._removal(held), held, _NOTHING
        comment = next(iter(self.nft.lookup(wanted.map, [wanted.key]).values()), "")
        raise conflict(wanted, holder, comment)

    def _abandoned(self, wanted: Element, held: Elements) -> _Deserted:
        """Changes that remove a shared claim which nobody shares but who has what is `held`, if anybody."""
        if wanted.value == SHARED or not wanted.map.startswith("claims"):
            return _NOTHING
        since = self.nft.generation()
        own = {one.key for group in held.groups for one in group.all if one.map == f"host{wanted.map}"}
        others = (one.key for one in self.nft.elements(f"host{wanted.map}") if one.key not in own)
        if any(key.endswith(f" . {wanted.key}") for key in others):
            return _NOTHING
        shared = [one for one in self.nft.lookup(wanted.map, [wanted.key]) if one.value == SHARED]
        return _Deserted(tuple(Change("delete", one) for one in shared), since) if shared else _NOTHING

    # --- DEL and GC ------------------------------------------------------------------------------------------

    def remove(self, _owner: Owner, payload: Elements) -> None:
        """One transaction; group by group when something of it is another's now."""
        self._remove(payload)

    def _remove(self, payload: Elements) -> None:
        if not self.nft.has_chain(BASE_CHAIN):
            return
        changes = self._removal(payload)
        if not changes:
            return
        idle = idle_chains(self.nft.chain_uses(), masquerading_uses(payload.groups))
        try:
            self._apply_with(changes, idle)
        except Refusal as refusal:
            if refusal.kind == "other":
                raise
            # Its claim tells whose a group is.
            lost = [group for group in payload.groups if self._apply_if_there(remove_changes([group]))]
            for orphan in orphan_changes(payload.groups, lost):
                self._apply_if_there(orphan)
            self._apply_if_there(self._chains_out(payload.conditions))
        self._drop_shared(payload.groups)

    def _apply_with(self, changes: Sequence[Change], more: Sequence[Change]) -> None:
        """All of it; without `more` when that is refused: somebody needs an idle chain again."""
        try:
            self.nft.apply([*changes, *more])
        except Refusal as refusal:
            if not more or refusal.index in range(len(changes)):
                raise
            self.nft.apply(changes)

    def _tidy(self, before: Elements | None, after: Elements, displaced: Elements) -> None:
        """Remove what only an earlier form of the attachment, or a dead one, shared with others."""
        if before is None and not displaced.groups:
            return
        gone = self.both(before or Elements(), displaced).groups
        uses = masquerading_uses(gone)
        if uses:
            self._apply_if_idle(idle_chains(self.nft.chain_uses(), dict.fromkeys(uses, 0)))
        kept = set(after.groups)
        self._drop_shared([group for group in gone if group not in kept])

    def require_free(self, plan: Plan, others: Others) -> None:
        """By upstream's rules on nftables, and by our claims."""
        self._require_none_of_upstream(plan)
        claims = [Change("add", one) for group in plan_elements(plan).groups for one in group.all if is_claim(one)]
        attempts, looks = len(claims) if self.nft.has_chain(BASE_CHAIN) else 0, _LOOKS
        while attempts and looks:
            attempts -= 1
            try:
                self.nft.dry_run(claims)
                return
            except Refusal as refusal:
                refused = claims[refusal.index].item if 0 <= refusal.index < len(claims) else None
                if refusal.kind != "exists" or not isinstance(refused, Element):
                    raise
            removal, held, deserted = self._displaced(plan.owner, refused, others)
            if self._apply_if_there([*removal, *deserted.changes], deserted.since) == "changed":
                looks, attempts = looks - 1, attempts + 1
                continue
            self._drop_shared(held.groups)

    def _require_none_of_upstream(self, plan: Plan) -> None:
        for family in plan.families:
            ports = {(one.protocol, port) for one in family.mappings for port in one.host_ports}
            place, owner = self._held_by_upstream(family.family, ports, plan.owner.container_id)
            if place:
                raise HostPortConflict(
                    f"host port {place} is already mapped for container {owner or 'of another kind'} by upstream's"
                    " portmap: choose another hostPort, or delete that container first"
                )

    def heal(self) -> None:
        """By what the rules say."""
        from cnimeta_plugins.portmap.nftables.checking import heal

        heal(self.nft)

    def tidy(self) -> None:
        """Remove every shared chain that nobody needs."""
        self._apply_if_idle(idle_chains(self.nft.chain_uses()))

    def _apply_if_idle(self, changes: Sequence[Change]) -> None:
        for at in range(0, len(changes), 2):  # each by itself: an ADD may need one again
            try:
                self.nft.apply(changes[at : at + 2])
            except Refusal:  # refused: somebody needs it again
                continue

    def _removal(self, held: Elements) -> list[Change]:
        return [*self._chains_out(held.conditions), *remove_changes(held.groups)]

    def _apply_if_there(self, changes: Sequence[Change], since: int = 0) -> str:
        """The kind of the refusal when it did not fit what is there, empty when it did."""
        try:
            if changes:
                self.nft.apply(changes, since)
        except Refusal as refusal:
            if refusal.kind == "other":
                raise
            return refusal.kind
        return ""

    def _chains_out(self, chains: Iterable[str]) -> list[Change]:
        """Changes that remove conditional chains and the rules that lead to them."""
        there = [chain for chain in chains if self.nft.has_chain(chain)]
        if not there:
            return []
        changes = [
            Change("delete", rule)
            for rule in self.nft.rules(CONDITIONAL)
            if any(f"jump {chain}" in rule.text for chain in there)
        ]
        for chain in there:
            changes += [Change("flush", Chain(chain)), Change("delete", Chain(chain))]
        return changes

    def _drop_shared(self, groups: Iterable[Group]) -> None:
        """Remove shared claims that nobody shares any more (mappings for one host address only)."""
        wanted = shared_keys(groups)
        if wanted:
            from cnimeta_plugins.portmap.nftables.shared import drop_unshared

            drop_unshared(self.nft, wanted)

    def sweep(self, owner: Owner, mappings: Sequence[PortMapping] | None, others: Others) -> bool:
        """What the claims tell to be the owner's, and upstream's rules for the container."""
        found = []
        failures = Failures()
        with failures:
            found.append(self._sweep_own(owner, mappings, others))
        with failures:
            found.append(self._remove_upstream(owner.container_id))
        failures.raise_any()
        return any(found)

    def _sweep_own(self, owner: Owner, mappings: Sequence[PortMapping] | None, others: Others) -> bool:
        from cnimeta_plugins.portmap.nftables.listed import held_by, holders

        numbers = [owner_id(*owner)] if mappings is None else holders(self.nft, owner, mappings)
        if numbers:
            try:
                recorded = {owner_id(*record.owner) for record in others.of_container(owner.container_id)}
            except StateUnusable:  # unknown, but for the owner's own
                self._remove(self._held_by(owner))
                raise
            numbers = [number for number in numbers if number not in recorded]
        held = [held_by(self.nft, number) for number in numbers]
        for elements in held:
            self._remove(elements)
        return any(elements.groups for elements in held)

    def _held_by(self, owner: Owner) -> Elements:
        from cnimeta_plugins.portmap.nftables.listed import held_by

        return held_by(self.nft, owner_id(*owner))

    def collect(self, network: str, valid: Collection[tuple[str, str]], others: Others) -> None:
        """By the comments on the claims."""
        from cnimeta_plugins.portmap.nftables.listed import strays

        failures = Failures()
        with failures:
            for held in strays(self.nft, network, valid, others):
                with failures:
                    self._remove(held)
        with failures:
            self.tidy()
        failures.raise_any()

    def listed(self) -> Iterator[MappedPort]:
        """By the comments on the claims."""
        from cnimeta_plugins.portmap.nftables.listed import mapped_ports

        return mapped_ports(self.nft)

    # --- CHECK and STATUS ------------------------------------------------------------------------------------

    def check(self, plan: Plan, _payload: Elements | None) -> None:
        """Every element with its value, judged by the kernel; every rule of the base and of the plan."""
        from cnimeta_plugins.portmap.nftables.checking import check

        check(self.nft, plan)

    def frozen(self) -> NftBackend:
        """Every map, and all rules, are read once."""
        from cnimeta_plugins.portmap.nftables.reading import Reading

        return NftBackend(Reading(self.nft))

    def ready(self) -> None:
        """Raise Unusable when the kernel has no nftables, or would not take the base."""
        if not self.nft.available():
            raise Unusable("nftables cannot be used: this kernel has no nf_tables")
        if self.nft.has_chain(BASE_CHAIN):
            return
        try:
            self.nft.dry_run(base_changes())
        except Refusal as refusal:
            if refusal.kind != "exists":  # another command has built it since
                kind = IoFailure if any(words in refusal.msg for words in _PASSING) else Unusable
                raise kind(f"nftables cannot be used: {refusal.msg}") from None

    def payload(self, value: JSON) -> Elements:
        """Read a payload."""
        return read_elements(value)
