"""Comparing the kernel with what ADD would make of it, and putting the shared part right.

It reads every rule of the table, so no ADD or DEL comes here.
"""

from __future__ import annotations

from cnimeta.errors import CheckFailed
from cnimeta.host.nftables.values import Chain, Change, Rule
from cnimeta_plugins.portmap.nftables.base import difference, foreign_entries, renewal, strange_rule
from cnimeta_plugins.portmap.nftables.reading import Reading
from cnimeta_plugins.portmap.nftables.rules import (
    BASE_CHAIN,
    CONDITIONAL,
    conditional_chains,
    own_elements,
    plan_elements,
    subnet_chains,
    subnet_named,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cnimeta.host.nftables.values import Element
    from cnimeta.host.protocols import Nft
    from cnimeta_plugins.portmap.plan import Plan


def check(nft: Nft, plan: Plan) -> None:
    """Raise CheckFailed (code 101) unless every element and rule of the plan, and the whole base, is there as made.

    A plan's own elements are asked for; in a Reading, what plans share is judged once.
    """
    if not nft.has_chain(BASE_CHAIN):
        raise CheckFailed("the nftables table inet cnimeta_hostports is missing: another tool flushed the rules")
    for name, elements in own_elements(plan_elements(plan).groups).items():
        _check_elements(elements, nft.lookup(name, [one.key for one in elements]))
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


def _check_elements(wanted: Sequence[Element], present: Mapping[Element, str]) -> None:
    there = {one.key: comment or one.value for one, comment in present.items()}
    for element in wanted:
        if element not in present:
            state = "not this container's" if element.key in there else "missing"
            what = f"the nftables element {element.map} {{ {element.key} }} is {state}"
            raise CheckFailed(what, there.get(element.key, ""))


def _check_conditions(plan: Plan, rules: Mapping[str, Sequence[Rule]]) -> None:
    entries = rules.get(CONDITIONAL, ())
    for condition in conditional_chains(plan):
        if not any(f"jump {condition.chain}" in entry.text for entry in entries):
            raise CheckFailed(f"the nftables chain {CONDITIONAL} has no rule that leads to {condition.chain}")
        if len(rules.get(condition.chain, ())) != len(condition.rules):
            raise CheckFailed(f"the nftables chain {condition.chain} does not have its {len(condition.rules)} rules")


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
