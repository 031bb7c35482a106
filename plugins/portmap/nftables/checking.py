"""Comparing the kernel with what ADD would make of it, and putting the shared part right.

It reads every rule of the table, so no ADD or DEL comes here.
"""

from __future__ import annotations

from cnimeta.errors import CheckFailed
from cnimeta.host.nftables.values import Chain, Change, Element, Refusal, Rule
from cnimeta_plugins.portmap.nftables.base import difference, foreign_entries, renewal, strange_rule
from cnimeta_plugins.portmap.nftables.reading import Reading
from cnimeta_plugins.portmap.nftables.rules import (
    BASE_CHAIN,
    CONDITIONAL,
    conditional_chains,
    content_changes,
    plan_elements,
    presence_changes,
    subnet_chains,
    subnet_named,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cnimeta.host.protocols import Nft
    from cnimeta_plugins.portmap.plan import Plan


def check(nft: Nft, plan: Plan) -> None:
    """Raise CheckFailed (code 101) unless every element and rule of the plan, and the whole base, is there as made.

    A plan's own elements are asked for; in a Reading, what plans share is judged once.
    """
    if not nft.has_chain(BASE_CHAIN):
        raise CheckFailed("the nftables table inet cnimeta_hostports is missing: another tool flushed the rules")
    _check_elements(nft, plan)
    rules, judged = nft.all_rules(), nft.judged if isinstance(nft, Reading) else {}
    if BASE_CHAIN not in judged:
        judged[BASE_CHAIN] = strange_rule(rules)
    found = judged[BASE_CHAIN]
    for subnet in subnet_chains(plan):
        if subnet.chain not in judged:
            judged[subnet.chain] = difference(subnet.chain, subnet.rules, rules.get(subnet.chain, ()))
        found = found or judged[subnet.chain]
    if found:
        raise CheckFailed(found)
    _check_conditions(plan, rules)


def _check_elements(nft: Nft, plan: Plan) -> None:
    groups = plan_elements(plan).groups
    for changes in (presence_changes(groups), content_changes(groups)):
        try:
            nft.dry_run(changes)
        except Refusal as refusal:
            refused = changes[refusal.index].item if 0 <= refusal.index < len(changes) else None
            raise _differs(refused, refusal.kind == "missing", refusal.msg) from None


def _check_conditions(plan: Plan, rules: Mapping[str, Sequence[Rule]]) -> None:
    entries = rules.get(CONDITIONAL, ())
    for condition in conditional_chains(plan):
        if not any(f"jump {condition.chain}" in entry.text for entry in entries):
            raise CheckFailed(f"the nftables chain {CONDITIONAL} has no rule that leads to {condition.chain}")
        if len(rules.get(condition.chain, ())) != len(condition.rules):
            raise CheckFailed(f"the nftables chain {condition.chain} does not have its {len(condition.rules)} rules")


def _differs(element: object, missing: bool, details: str) -> CheckFailed:
    where = f"{element.map} {{ {element.key} }}" if isinstance(element, Element) else ""
    state = "missing" if missing else "not this container's"
    return CheckFailed(f"the nftables element {where} is {state}", details)


def heal(nft: Nft) -> None:
    """Write the rules of the base, and of the subnets' chains, anew where they say something else. Mappings stay."""
    if not nft.has_chain(BASE_CHAIN):
        return
    rules = nft.all_rules()
    if strange_rule(rules):
        nft.apply([*(Change("delete", rule) for rule in foreign_entries(rules)), *renewal()])
    for name, present in rules.items():
        subnet = subnet_named(name)
        if subnet is not None and difference(name, subnet.rules, present):
            anew = [Change("add", Rule(name, text)) for text in subnet.rules]
            nft.apply([Change("flush", Chain(name)), *anew])
