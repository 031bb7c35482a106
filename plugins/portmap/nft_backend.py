"""Port mappings in nftables: one transaction per command, decided by the kernel. See nft_rules for the form."""

from __future__ import annotations

from cnimeta.errors import CheckFailed, HostPortConflict
from cnimeta.host.nftables.values import Chain, Change, Element, Refusal
from cnimeta_plugins.portmap.nft_rules import (
    BASE_CHAIN,
    CONDITIONAL,
    SHARED,
    Group,
    add_changes,
    base_changes,
    base_rules,
    content_changes,
    presence_changes,
    remove_changes,
    shared_keys,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cnimeta.host.protocols import Nft
    from cnimeta_plugins.portmap.config import PortMapping
    from cnimeta_plugins.portmap.nft_rules import Plan
    from cnimeta_plugins.portmap.records import Record

_ATTEMPTS = 4  # another command may build the base, or a tool flush it, between a look and the transaction
_CLAIMS = ("claims4", "claims6", "hostclaims4", "hostclaims6", "addresses4", "addresses6")


class NftBackend:
    """The backend on nftables. `find_owner` names the record that holds a claim, None when there is none."""

    name = "nftables"

    def __init__(self, nft: Nft) -> None:
        self.nft = nft

    # --- ADD -------------------------------------------------------------------------------------------------

    def add(
        self,
        plan: Plan,
        before: Record | None,
        find_holder: Callable[[Element], Record | None],
        is_dead: Callable[[Record], bool],
    ) -> None:
        """Put `plan` in, in place of what `before` says is there. One transaction, so all or nothing.

        Raises HostPortConflict (code 100) when another attachment holds a port; a holder that is dead is replaced.
        """
        stale = self._stale(plan, before)
        refusal: Refusal
        for _ in range(_ATTEMPTS + len(plan.groups)):
            changes = self._add_script(plan, stale)
            try:
                self.nft.apply(changes)
                return
            except Refusal as error:
                refusal = error
            refused = changes[refusal.index].item if 0 <= refusal.index < len(changes) else None
            if refused is None or refusal.kind == "other":
                raise refusal
            if refusal.kind == "missing" or not isinstance(refused, Element):
                continue  # flushed, or built by another command, since we looked
            stale = [*stale, *self._displaced(plan, refused, find_holder, is_dead)]
        raise refusal

    def _stale(self, plan: Plan, before: Record | None) -> list[Change]:
        """What to take out first: groups that `plan` does not have, and every conditional chain."""
        if before is None:
            return []
        kept = set(plan.groups)
        gone = [group for group in before.groups if group not in kept]
        return [*self._conditions_out(before.conditions), *remove_changes(gone)]

    def _add_script(self, plan: Plan, stale: Sequence[Change]) -> list[Change]:
        if not self.nft.has_chain(BASE_CHAIN):
            return [*base_changes(), *add_changes(plan, [chain for chain, _ in plan.subnets], plan.comment)]
        missing = [chain for chain, _ in plan.subnets if not self.nft.has_chain(chain)]
        return [*stale, *add_changes(plan, missing, plan.comment)]

    def _displaced(
        self,
        plan: Plan,
        wanted: Element,
        find_holder: Callable[[Element], Record | None],
        is_dead: Callable[[Record], bool],
    ) -> list[Change]:
        """Changes that remove the dead holder of the key that is wanted. Raises HostPortConflict for a live one."""
        holder = find_holder(wanted)
        if holder is not None and (is_dead(holder) or wanted.map.startswith(("addresses", "snat"))):
            # An address belongs to one container at a time: whoever had it before is gone.
            return [*self._conditions_out(holder.conditions), *remove_changes(holder.groups)]
        if holder is None:
            removal = remove_changes(self.held_by(plan.owner)) or self._abandoned(wanted)
            if removal:
                return removal
        raise _conflict(wanted, holder, self._comment_of(wanted))

    def _abandoned(self, wanted: Element) -> list[Change]:
        """Changes that remove a shared claim which no owner is left to share."""
        if wanted.value == SHARED or not wanted.map.startswith("claims"):
            return []
        if any(one.key.endswith(f" . {wanted.key}") for one in self.nft.elements(f"host{wanted.map}")):
            return []
        return [
            Change("delete", one)
            for one in self.nft.elements(wanted.map)
            if one.key == wanted.key and one.value == SHARED
        ]

    def _comment_of(self, wanted: Element) -> str:
        return next((one.comment for one in self.nft.elements(wanted.map) if one.key == wanted.key), "")

    # --- DEL and GC ------------------------------------------------------------------------------------------

    def remove(self, groups: Sequence[Group], conditions: Sequence[str] = ()) -> None:
        """Take out what is ours of `groups`; missing is fine, another owner's is left alone."""
        if not self.nft.has_chain(BASE_CHAIN):
            return
        try:
            self.nft.apply([*self._conditions_out(conditions), *remove_changes(groups)])
        except Refusal as refusal:
            if refusal.kind == "other":
                raise
            for group in groups:
                self._remove_one(group)
            if conditions:
                self._apply_if_there(self._conditions_out(conditions))
        self._drop_shared(groups)

    def _remove_one(self, group: Group) -> None:
        """One group on its own: its claim tells whose it is."""
        self._apply_if_there(remove_changes([group]))

    def _apply_if_there(self, changes: Sequence[Change]) -> None:
        try:
            self.nft.apply(changes)
        except Refusal as refusal:
            if refusal.kind == "other":
                raise

    def _conditions_out(self, chains: Iterable[str]) -> list[Change]:
        wanted = [chain for chain in chains if self.nft.has_chain(chain)]
        if not wanted:
            return []
        changes = [
            Change("delete", rule)
            for rule in self.nft.rules(CONDITIONAL)
            if any(f"jump {chain}" in rule.text for chain in wanted)
        ]
        for chain in wanted:
            changes += [Change("flush", Chain(chain)), Change("delete", Chain(chain))]
        return changes

    def _drop_shared(self, groups: Iterable[Group]) -> None:
        """Remove shared claims that nobody shares any more (mappings for one host address only)."""
        wanted = set(shared_keys(groups))
        for name in {element.map for element in wanted}:
            held = {element.key.partition(" . ")[2] for element in self.nft.elements(f"host{name}")}
            for element in wanted:
                if element.map == name and element.key not in held:
                    self._apply_if_there([Change("add", element), Change("delete", element)])

    def holds(self, owner: str, mappings: Iterable[PortMapping]) -> bool:
        """Whether any of these mappings is there and `owner`'s. Two dry runs a mapping, whatever the maps hold."""
        if not self.nft.has_chain(BASE_CHAIN):
            return False
        for mapping in mappings:
            for family in (4, 6):
                if not mapping.serves(family):
                    continue
                name = f"hostclaims{family}" if mapping.where else f"claims{family}"
                key = f"{mapping.where} . " * bool(mapping.where) + f"{mapping.protocol} . {mapping.first}"
                try:
                    self.nft.dry_run([Change("delete", Element(name, key, owner))])
                    self.nft.dry_run([Change("add", Element(name, key, owner))])
                except Refusal as refusal:
                    if refusal.kind == "other":
                        raise
                    continue
                return True
        return False

    def held_by(self, owner: str) -> list[Group]:
        """What the kernel holds for an owner, found by its claims: for when the record is lost. Lists every claim."""
        groups: list[Group] = []
        if not self.nft.has_chain(BASE_CHAIN):
            return groups
        for name in _CLAIMS:
            groups += [self._group_of(claim) for claim in self.nft.elements(name) if claim.value == owner]
        return groups

    def owners(self) -> dict[str, str]:
        """Every owner in the kernel and the comment on one of its claims."""
        found: dict[str, str] = {}
        if self.nft.has_chain(BASE_CHAIN):
            for name in _CLAIMS:
                for claim in self.nft.elements(name):
                    if claim.value != SHARED:
                        found.setdefault(claim.value, claim.comment)
        return found

    def _group_of(self, claim: Element) -> Group:
        kind, family = claim.map[:-1], claim.map[-1]
        sources = {"claims": ("any", "range"), "hostclaims": ("host", "hostrange"), "addresses": ("snat",)}[kind]
        elements = [
            Element(one.map, one.key, one.value)
            for source in sources
            for one in self.nft.elements(f"{source}{family}")
            if one.key == claim.key or (one.comment == claim.comment and _covers(one.key, claim.key))
        ]
        if kind == "hostclaims":
            elements.append(Element(f"claims{family}", claim.key.partition(" . ")[2], SHARED))
        return Group(Element(claim.map, claim.key, claim.value), tuple(elements))

    # --- CHECK -----------------------------------------------------------------------------------------------

    def check(self, plan: Plan) -> None:
        """Raise CheckFailed (code 101) for anything of the plan or the base that is missing or different."""
        if not self.nft.has_chain(BASE_CHAIN):
            raise CheckFailed("the nftables table inet cnimeta_hostports is missing: another tool flushed the rules")
        for changes in (presence_changes(plan.groups), content_changes(plan.groups)):
            try:
                self.nft.dry_run(changes)
            except Refusal as refusal:
                refused = changes[refusal.index].item if 0 <= refusal.index < len(changes) else None
                where = f"{refused.map} {{ {refused.key} }}" if isinstance(refused, Element) else ""
                state = "missing" if refusal.kind == "missing" else "not this container's"
                raise CheckFailed(f"the nftables element {where} is {state}", refusal.msg) from None
        self._check_rules(plan)

    def _check_rules(self, plan: Plan) -> None:
        wanted: dict[str, list[str]] = {}
        for rule in base_rules():
            wanted.setdefault(rule.chain, []).append(rule.text)
        for chain, rules in (*wanted.items(), *((chain, list(rules)) for chain, rules in plan.subnets)):
            present = [_plain(rule.text) for rule in self.nft.rules(chain)]
            for text in rules:
                if _plain(text) not in present:
                    raise CheckFailed(f"the nftables chain {chain} has no rule: {text}")
        entries = self.nft.rules(CONDITIONAL) if plan.conditions else []
        for condition in plan.conditions:
            if not any(f"jump {condition.chain}" in entry.text for entry in entries):
                raise CheckFailed(f"the nftables chain {CONDITIONAL} has no rule that leads to {condition.chain}")
            if len(self.nft.rules(condition.chain)) != len(condition.rules):
                raise CheckFailed(
                    f"the nftables chain {condition.chain} does not have its {len(condition.rules)} rules"
                )


def _plain(text: str) -> str:
    """A rule without what nft leaves out when it prints: implied family matches."""
    return text.removeprefix("meta nfproto ipv4 ").removeprefix("meta nfproto ipv6 ")


def _covers(interval: str, key: str) -> bool:
    head, _, ports = interval.rpartition(" . ")
    place, _, port = key.rpartition(" . ")
    first, dash, last = ports.partition("-")
    return bool(dash) and head == place and port.isdigit() and int(first) <= int(port) <= int(last)


def _conflict(wanted: Element, holder: Record | None, comment: str) -> HostPortConflict:
    protocol, _, port = wanted.key.rpartition(" . ")
    where, _, protocol = protocol.rpartition(" . ")
    place = f"{port}/{protocol}" + (f" on {where}" if where else "")
    if wanted.value == SHARED:
        place += " (every address)"
    whose = holder.name if holder is not None else (comment or "another container")
    return HostPortConflict(f"host port {place} is already mapped for {whose}: choose another hostPort")


def unknown_owner(comment: str, network: str, keep: Iterable[tuple[str, str]]) -> bool:
    """Whether a claim's comment names an attachment of `network` that is not in `keep`."""
    parts = comment.split("/")
    if len(parts) != 3 or comment.endswith("...") or parts[2] != network:
        return False
    return (parts[0], parts[1]) not in set(keep)
