"""Comparing the kernel with what ADD would make of it. No ADD or DEL comes here."""

from __future__ import annotations

from cnimeta.errors import CheckFailed
from cnimeta.host.iptables.values import target
from cnimeta_plugins.portmap.iptables import plan as steps
from cnimeta_plugins.portmap.iptables.names import DNAT_CHAIN
from cnimeta_plugins.portmap.iptables.rules import ContainerRules, container_rules

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cnimeta.host.protocols import Iptables
    from cnimeta_plugins.portmap.config import Settings
    from cnimeta_plugins.portmap.plan import FamilyPlan, Plan


def check(tables: Iptables, plan: Plan, chain: str, *, own: bool) -> None:
    """Raise CheckFailed (code 101) unless the container's `chain` and the shared ones are as made; `own`: by us."""
    for family in plan.families:
        _check_base(tables, family.family, plan.settings, own=own)
        _check_family(tables, family, container_rules(plan, family, chain))


def _check_base(tables: Iptables, family: int, settings: Settings, *, own: bool) -> None:
    """`own`: what only we make is there too, which a mapping without a record, of upstream's, does not need."""
    wanted = steps.base(family, settings) if own else steps.upstream_base(settings)
    with tables.held():
        there = {name: tables.read(family, name) for name in dict.fromkeys(one.table for one in wanted)}
    for one in wanted:
        rules = there[one.table].get(one.chain, ())
        if one.rule not in rules:
            raise CheckFailed(f"the IPv{family} iptables chain {one.chain} has no rule {one.rule}")
        if one.chain == DNAT_CHAIN and steps.is_late(rules, one.rule):
            raise CheckFailed(f"the IPv{family} iptables chain {one.chain} has its rule {one.rule} too late")


def _check_family(tables: Iptables, plan: FamilyPlan, wanted: ContainerRules) -> None:
    family = plan.family
    with tables.held():
        chain = tables.chain(family, wanted.chain)
        entries = tables.chain(family, DNAT_CHAIN, (wanted.chain,)) or ()
    entries = [rule for rule in entries if target(rule) == wanted.chain]
    if chain is None:
        raise CheckFailed(f"the IPv{family} iptables chain {wanted.chain} is missing")
    _compare(tables, family, wanted.chain, chain, wanted.rules, exact=True)
    _compare(tables, family, DNAT_CHAIN, entries, wanted.entries, exact=not plan.conditions)


def _compare(
    tables: Iptables, family: int, chain: str, present: Sequence[str], wanted: Sequence[str], *, exact: bool
) -> None:
    """Conditions are text of the operator's, which the kernel's form may spell otherwise: `iptables -C` knows."""
    where = f"the IPv{family} iptables chain {chain}"
    there = set(present)
    for rule in wanted:
        if rule not in there and (exact or not tables.has_rule(family, chain, rule)):
            raise CheckFailed(f"{where} has no rule {rule}")
    if len(present) != len(wanted):
        raise CheckFailed(f"{where} has {len(present)} rules for this container, expected are {len(wanted)}")
    if exact and list(present) != list(wanted):
        raise CheckFailed(f"the rules of {where} are out of order")
