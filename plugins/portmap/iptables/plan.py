"""What to change in a nat table, decided from what is in it. Pure: text in, changes out."""

from __future__ import annotations

from itertools import pairwise

from cnimeta.errors import HostPortConflict, shown
from cnimeta.host.iptables.values import NAT, RAW, Change, split, target
from cnimeta.namedtuple import NamedTuple
from cnimeta_plugins.portmap.iptables.names import DNAT_CHAIN, GUARD_CHAIN, MASQ_CHAIN, OLD_SNAT_CHAIN, SETMARK_CHAIN
from cnimeta_plugins.portmap.iptables.rules import (
    GUARD,
    GUARDED,
    JUMP_IN,
    JUMP_OUT,
    LEFT_ALONE,
    ContainerRules,
    masquerade_rule,
    set_mark_rule,
)

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence
    from typing import TypeAlias

    from cnimeta_plugins.portmap.config import Settings

    Tables: TypeAlias = Mapping[str, Mapping[str, Sequence[str]]]
    """The tables of a family by name: every chain with its rules."""

_COMMENT_HEAD = 'dnat name: "'
_COMMENT_JOINT = '" id: "'


class Named(NamedTuple):
    """Whose chain it is, from the comment on its entry rule. A cut comment has no whole container ID (`whole`)."""

    chain: str
    network: str
    container_id: str
    whole: bool


class Span(NamedTuple):
    """Host ports that lead somewhere: protocol, first and last port, host address (empty: every address)."""

    protocol: str
    first: int
    last: int
    host_ip: str = ""

    def meets(self, other: Span) -> bool:
        """Whether one packet can be for both, whatever the addresses."""
        return self.protocol == other.protocol and self.first <= other.last and other.first <= self.last


class Entry(NamedTuple):
    """A rule of CNI-HOSTPORT-DNAT: its text, where it leads, and the ports it lists."""

    rule: str
    chain: str
    spans: tuple[Span, ...]


def read_entry(rule: str) -> Entry:
    """Take one entry rule apart; no spans for a rule of another shape."""
    listed = rule.partition(" --dports ")[2].partition(" ")[0]
    protocol = rule[3:].partition(" ")[0] if rule.startswith("-p ") else rule.partition(" -p ")[2].partition(" ")[0]
    spans = []
    for word in listed.split(",") if listed and protocol else ():
        first, _, last = word.partition(":")
        if first.isdecimal():
            spans.append(Span(protocol, int(first), int(last) if last.isdecimal() else int(first)))
    return Entry(rule, target(rule), tuple(spans))


def concerning(rules: Iterable[str], wanted: ContainerRules) -> list[Entry]:
    """The entry rules that lead to the wanted chain or list one of its ports; there may be thousands of others."""
    asked = translated(wanted.rules)
    single = {str(span.first) for span in asked}
    ranges = any(span.first != span.last for span in asked)
    found = []
    for rule in rules:
        listed = rule.partition(" --dports ")[2].partition(" ")[0]
        if (
            ranges
            or ":" in listed
            or not single.isdisjoint(listed.split(","))
            or (wanted.chain and wanted.chain in rule)
        ):
            found.append(read_entry(rule))
    return found


def read_owner(entry: Entry) -> Named:
    """Who an entry rule belongs to; empty names when its comment says nothing."""
    words = split(entry.rule)
    text = words[words.index("--comment") + 1] if "--comment" in words[:-1] else ""
    if not text.startswith(_COMMENT_HEAD):
        return Named(entry.chain, "", "", whole=False)
    network, joint, rest = text[len(_COMMENT_HEAD) :].partition(_COMMENT_JOINT)
    whole = bool(joint) and rest.endswith('"')
    return Named(
        entry.chain, network if joint else "", rest[:-1] if whole else rest.removesuffix("..").removesuffix("."), whole
    )


def translated(rules: Iterable[str]) -> list[Span]:
    """The ports and host addresses that the rules of a container's chain translate."""
    spans = []
    for rule in rules:
        if target(rule) != "DNAT":
            continue
        words = split(rule)
        value = dict(pairwise(words))
        first, _, last = value.get("--dport", "").partition(":")
        if first.isdecimal():
            address = value.get("-d", "").partition("/")[0]
            spans.append(Span(value.get("-p", ""), int(first), int(last or first), address))
    return spans


def meet(spans: Iterable[Span], others: Sequence[Span]) -> bool:
    """Whether any two have a port in common."""
    return any(span.meets(other) for span in spans for other in others)


def taken(asked: Iterable[Span], held: Sequence[Span]) -> Span | None:
    """The first of `asked` that is also for a packet one of `held` is for."""
    for span in asked:
        for other in held:
            if span.meets(other) and (span.host_ip == other.host_ip or not span.host_ip or not other.host_ip):
                return span
    return None


def conflict(span: Span, owner: Named) -> HostPortConflict:
    """What is said when another owner has a port."""
    ports = str(span.first) if span.first == span.last else f"{span.first}-{span.last}"
    whose = f"container {shown(owner.container_id)} of network {shown(owner.network)}" if owner.network else "another"
    where = f" on {span.host_ip}" if span.host_ip else ""
    return HostPortConflict(
        f"host port {ports}/{span.protocol}{where} is taken by {whose} (iptables chain {owner.chain}): choose another"
        " hostPort, or delete that container first"
    )


# --- writing ---------------------------------------------------------------------------------------------


def base(family: int, settings: Settings) -> list[Change]:
    """Everything shared, as it is added: our own first, then upstream's, in the order upstream makes it."""
    return [*_own_base(family), *upstream_base(settings)]


def _own_base(family: int) -> list[Change]:
    if family == 6:
        return [Change("insert", DNAT_CHAIN, rule) for rule in reversed(LEFT_ALONE)]
    return [Change("append", GUARD_CHAIN, GUARD, RAW), Change("insert", "PREROUTING", GUARDED, RAW)]


def upstream_base(settings: Settings) -> list[Change]:
    """What upstream's portmap makes too, in either family."""
    rules = []
    if settings.snat and not settings.external_set_mark_chain:
        rules += [
            Change("append", SETMARK_CHAIN, set_mark_rule(settings.mark_bit)),
            Change("append", MASQ_CHAIN, masquerade_rule(settings.mark_bit)),
            Change("insert", "POSTROUTING", JUMP_OUT),  # before the masquerading of ptp and bridge
        ]
    return [*rules, Change("append", "PREROUTING", JUMP_IN), Change("append", "OUTPUT", JUMP_IN)]


def base_present(family: int, settings: Settings) -> list[Change]:
    """Steps that pass only when everything shared is in place."""
    return [change._replace(action="require") for change in base(family, settings)]


def base_missing(tables: Tables, family: int, settings: Settings) -> list[Change]:
    """What of the shared part has to be made."""
    rules = base(family, settings)
    chains = dict.fromkeys([(change.chain, change.table) for change in rules] + [(DNAT_CHAIN, NAT)])
    changes = [
        Change("new", chain, table=table)
        for chain, table in chains
        if chain.startswith("CNI") and chain not in tables[table]
    ]
    return changes + [change for change in rules if change.rule not in tables[change.table].get(change.chain, ())]


def late(rules: Sequence[str]) -> list[str]:
    """Rules of CNI-HOSTPORT-DNAT that stand behind a container's and have to stand before."""
    first = next((at for at, rule in enumerate(rules) if read_entry(rule).spans), len(rules))
    return [rule for rule in rules[first:] if rule in LEFT_ALONE]


def is_late(rules: Sequence[str], rule: str) -> bool:
    """Whether a rule of CNI-HOSTPORT-DNAT stands behind a container's and has to stand before. Looks no further."""
    first = next((at for at, other in enumerate(rules) if other == rule or read_entry(other).spans), len(rules))
    return rule in LEFT_ALONE and first < len(rules) and rules[first] != rule


def guard_removed(raw: Mapping[str, Sequence[str]]) -> list[Change]:
    """Take the guard away, however often its rule is there."""
    changes = [Change("delete", "PREROUTING", rule, RAW) for rule in raw.get("PREROUTING", ()) if rule == GUARDED]
    if GUARD_CHAIN in raw:
        changes += [Change("flush", GUARD_CHAIN, table=RAW), Change("remove", GUARD_CHAIN, table=RAW)]
    return changes


def replace(entries: Iterable[Entry], wanted: ContainerRules, exists: bool) -> list[Change]:
    """Write a container's part in place of what there is of it."""
    changes = [Change("delete", DNAT_CHAIN, entry.rule) for entry in entries if entry.chain == wanted.chain]
    changes.append(Change("flush" if exists else "new", wanted.chain))
    changes += [Change("append", wanted.chain, rule) for rule in wanted.rules]
    return changes + [Change("append", DNAT_CHAIN, rule) for rule in wanted.entries]


def remove(entries: Iterable[Entry], chain: str) -> list[Change]:
    """Take a container's chain away; it exists."""
    changes = [Change("delete", DNAT_CHAIN, entry.rule) for entry in entries if entry.chain == chain]
    return [*changes, Change("flush", chain), Change("remove", chain)]


def remove_from(table: Mapping[str, Sequence[str]], chains: Collection[str]) -> list[Change]:
    """Take chains away with every rule that leads to them, as far as they are there."""
    changes = [
        Change("delete", holder, rule)
        for holder, rules in table.items()
        for rule in rules
        if read_entry(rule).chain in chains
    ]
    return changes + [
        Change(action, chain) for chain in sorted(chains) if chain in table for action in ("flush", "remove")
    ]


def remove_old_snat(rules: Iterable[str], chain: str) -> list[Change]:
    """The same for the chain that old versions made for masquerading."""
    changes = [Change("delete", OLD_SNAT_CHAIN, rule) for rule in rules if target(rule) == chain]
    return [*changes, Change("flush", chain), Change("remove", chain)]
