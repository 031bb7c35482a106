"""The base of the table: what every mapping relies on, made once and healed when something of it is gone. Pure."""

from __future__ import annotations

from cnimeta.host.nftables.values import Chain, Change, Hook, Map, Rule, Table
from cnimeta_plugins.portmap.nftables.rules import ADDRESS, BASE_CHAIN, CONDITIONAL, TABLE, is_conditional_entry

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

_MASQUERADING = "masquerading"
_OWNER = "ipv6_addr"
_HOOKS = {
    "prerouting": Hook("nat", "prerouting", "dstnat"),
    "output": Hook("nat", "output", "-100"),
    "postrouting": Hook("nat", "postrouting", "srcnat"),
    "guard": Hook("filter", "input", "filter"),
}
_CHAINS = (*_HOOKS, BASE_CHAIN, CONDITIONAL, _MASQUERADING)


def base_changes() -> list[Change]:
    """The table with its chains and maps. It fails with EEXIST at the first chain when it is there already."""
    return [Change("add", Table(TABLE)), Change("create", Chain(BASE_CHAIN)), *_base_parts()]


def _base_parts() -> Iterator[Change]:
    for one in base_maps():
        yield Change("add", one)
    for name, hook in _HOOKS.items():
        yield Change("add", Chain(name, hook))
    for name in (CONDITIONAL, _MASQUERADING):
        yield Change("add", Chain(name))
    for rule in base_rules():
        yield Change("add", rule)


def healing_changes(uses: Mapping[str, int]) -> list[Change]:
    """The base anew, when by the kernel's `uses` of each chain (its rules, and what leads to it) it is not whole.

    What the kernel counts costs next to nothing, so every ADD looks; `strange_rule` reads what the rules say.
    """
    wanted: dict[str, int] = dict.fromkeys(_CHAINS, 0)
    for rule in base_rules():
        wanted[rule.chain] += 1
        target = rule.text.rpartition(" jump ")[2] if "jump " in rule.text else ""
        target = rule.text.removeprefix("jump ") if rule.text.startswith("jump ") else target
        if target:
            wanted[target] += 1
    exact = all(uses.get(chain, -1) == number for chain, number in wanted.items() if chain != CONDITIONAL)
    return [] if exact and uses.get(CONDITIONAL, -1) >= wanted[CONDITIONAL] else renewal()


def renewal() -> list[Change]:
    """What of the base is missing, and its rules in place of what there is of them. Mappings stay."""
    parts = list(_base_parts())
    rules = [change for change in parts if isinstance(change.item, Rule)]
    emptied = [Change("flush", Chain(chain)) for chain in _CHAINS if chain != CONDITIONAL]
    return [*(change for change in parts if change not in rules), *emptied, *rules]


def strange_rule(rules: Mapping[str, Sequence[Rule]]) -> str:
    """What is missing, or too much, or out of order among the rules of the base, in words; empty when nothing is.

    In `conditional`, containers come and go in any order.
    """
    wanted: dict[str, list[str]] = {chain: [] for chain in _CHAINS}
    for rule in base_rules():
        wanted[rule.chain].append(rule.text)
    for chain in _CHAINS:
        if chain != CONDITIONAL:
            found = difference(chain, wanted[chain], rules.get(chain, ()))
            if found:
                return found
    foreign = foreign_entries(rules)
    return f"the nftables chain {CONDITIONAL} has a rule of somebody else's: {foreign[0].text}" if foreign else ""


def foreign_entries(rules: Mapping[str, Sequence[Rule]]) -> list[Rule]:
    """The rules of `conditional` that are no container's."""
    return [rule for rule in rules.get(CONDITIONAL, ()) if not is_conditional_entry(rule.text)]


def difference(chain: str, wanted: Sequence[str], present: Sequence[Rule]) -> str:
    """The first rule of a chain that is missing, too much or out of order, in words; empty for none."""
    from cnimeta_plugins.portmap.nftables.meaning import meaning

    there, asked = [meaning(rule.text) for rule in present], [meaning(text) for text in wanted]
    for text, said in zip(wanted, asked, strict=True):
        if said not in there:
            return f"the nftables chain {chain} has no rule: {text}"
    for rule, said in zip(present, there, strict=True):
        if there.count(said) > asked.count(said):
            return f"the nftables chain {chain} has a rule too many: {rule.text}"
    return "" if there == asked else f"the rules of the nftables chain {chain} are out of order"


def base_maps() -> Iterator[Map]:
    """Every map."""
    service = "inet_proto . inet_service"
    for family, address in ADDRESS.items():
        yield Map(f"any{family}", service, f"{address} . inet_service")
        yield Map(f"host{family}", f"{address} . {service}", f"{address} . inet_service")
        yield Map(f"range{family}", service, address, interval=True)
        yield Map(f"hostrange{family}", f"{address} . {service}", address, interval=True)
        yield Map(f"snat{family}", address, "verdict")
        yield Map(f"claims{family}", service, _OWNER)
        yield Map(f"hostclaims{family}", f"{address} . {service}", _OWNER)
        yield Map(f"addresses{family}", address, _OWNER)


def base_rules() -> Iterator[Rule]:
    """Every rule of the base, in order, as nft prints them."""
    local = f"fib daddr type local jump {BASE_CHAIN}"
    yield Rule("prerouting", f"ip daddr != 127.0.0.0/8 {local}")
    yield Rule("prerouting", f"meta nfproto ipv6 {local}")
    yield Rule("output", local)
    # ::1 cannot leave the host, fe80:: has no way beyond its link: a refusal is better than a timeout.
    yield Rule(BASE_CHAIN, "ip6 daddr ::1 return")
    yield Rule(BASE_CHAIN, "ip6 daddr fe80::/10 return")
    yield Rule(BASE_CHAIN, "ip6 saddr fe80::/10 return")
    yield Rule(BASE_CHAIN, f"jump {CONDITIONAL}")
    for host, anywhere in (("host", "hostrange"), ("any", "range")):
        for family, ip in ((4, "ip"), (6, "ip6")):
            for name in (host, anywhere):
                where, head = ("", f"meta nfproto ipv{family} ") if host == "any" else (f"{ip} daddr . ", "")
                yield Rule(BASE_CHAIN, f"{head}dnat {ip} to {where}meta l4proto . th dport map @{name}{family}")
    yield Rule("postrouting", f"ct status dnat jump {_MASQUERADING}")
    yield Rule(_MASQUERADING, "ip daddr vmap @snat4")
    yield Rule(_MASQUERADING, "ip6 daddr vmap @snat6")
    yield Rule("guard", 'iifname != "lo" ip daddr 127.0.0.0/8 ct direction original ct status ! dnat drop')
