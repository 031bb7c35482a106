"""The base of the table: what every mapping relies on, made once and healed when something of it is gone. Pure."""

from __future__ import annotations

from cnimeta.host.nftables.values import Chain, Change, Hook, Map, Rule, Table
from cnimeta_plugins.portmap.nftables.rules import ADDRESS, BASE_CHAIN, CONDITIONAL, TABLE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

_MASQUERADING = "masquerading"
_OWNER = "ipv6_addr"
_HOOKS = {
    "prerouting": Hook("nat", "prerouting", "dstnat"),
    "output": Hook("nat", "output", "-100"),
    "postrouting": Hook("nat", "postrouting", "srcnat"),
    "guard": Hook("filter", "input", "filter"),
}


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
    """The base's rules anew, in place of what there is of them; by the kernel's `uses` of each chain (its rules, and
    what leads to it) they are not whole. None when they are.
    """
    wanted: dict[str, int] = dict.fromkeys((*_HOOKS, BASE_CHAIN, CONDITIONAL, _MASQUERADING), 0)
    for rule in base_rules():
        wanted[rule.chain] += 1
        target = rule.text.rpartition(" jump ")[2] if "jump " in rule.text else ""
        target = rule.text.removeprefix("jump ") if rule.text.startswith("jump ") else target
        if target:
            wanted[target] += 1
    if all(uses.get(chain, -1) >= number for chain, number in wanted.items()):
        return []
    parts = list(_base_parts())
    rules = [change for change in parts if isinstance(change.item, Rule)]
    emptied = [Change("flush", Chain(chain)) for chain in wanted if chain != CONDITIONAL]
    return [*(change for change in parts if change not in rules), *emptied, *rules]


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
