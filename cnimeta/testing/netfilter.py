"""Fakes of the packet filter's surroundings: nftables as dictionaries, flows as a list, kernel settings as a mapping.

`FakeNft` makes the same `Change`s as `cnimeta.host.nftables.kernel.KernelNft` and refuses the same ones in the
same way, so one suite of tests runs on both. `dump()` is text to compare.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from cnimeta.errors import IoFailure
from cnimeta.host.nftables.values import Chain, Element, Map, Refusal, Rule, Table
from cnimeta.spec.ip import parse_ip

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from cnimeta.host.nftables.values import Change


HOST = "the host"


class FakeNft:
    """One nftables table in memory. `before_apply` is called ahead of each transaction, to inject faults.

    Without `usable` the host has no nft; with `refusing` its kernel says no to everything.
    """

    def __init__(self) -> None:
        self._state = _State()
        self.usable = True
        self.refusing = False
        self.transactions: list[tuple[Change, ...]] = []
        self.before_apply: Callable[[], None] = lambda: None
        self._generation = 1

    def available(self) -> bool:
        """Whether the program is there."""
        return self.usable

    def generation(self) -> int:
        """How often anything was changed."""
        return self._generation

    def apply(self, changes: Sequence[Change], since: int = 0) -> None:
        """All changes or none; none when anything was changed after the generation `since`."""
        self.before_apply()
        if since and since != self._generation:
            raise Refusal("changed", -1, "the rules were changed meanwhile")
        self._state = self._tried(changes)
        self._generation += 1
        self.transactions.append(tuple(changes))

    def dry_run(self, changes: Sequence[Change]) -> None:
        """As `apply`, not kept."""
        self._tried(changes)

    def has_chain(self, name: str) -> bool:
        """Whether the table has this chain."""
        return name in self._state.chains

    def chain_uses(self) -> dict[str, int]:
        """The rules of each chain, and what leads to it."""
        return {name: len(rules) + self._state.leading_to(name) for name, rules in self._state.chains.items()}

    def rule_count(self, chain: str) -> int:
        """How many rules a chain has."""
        return len(self.rules(chain))

    def rules(self, chain: str) -> list[Rule]:
        """A chain's rules."""
        return list(self._state.chains.get(chain, ()))

    def all_rules(self) -> dict[str, list[Rule]]:
        """The rules of every chain."""
        return {name: list(rules) for name, rules in self._state.chains.items()}

    def lookup(self, name: str, keys: Iterable[str]) -> dict[Element, str]:
        """The elements of a map that have one of these keys, and their comments."""
        wanted = set(keys)
        return {one: comment for one, comment in self.elements(name).items() if one.key in wanted}

    def elements(self, name: str, but: Collection[str] = ()) -> dict[Element, str]:
        """Every element of a map and its comment, less those whose comment is in `but`."""
        found = self._state.maps.get(name, {}).items()
        return {Element(name, key, value): said for key, (value, said) in found if said not in but}

    def flush_ruleset(self) -> None:
        """What `nft flush ruleset` does."""
        self._state = _State()
        self._generation += 1

    def put(self, element: Element) -> None:
        """Another program's doing: an element as given, whatever was there."""
        self._state.maps[element.map][element.key] = (element.value, "")
        self._generation += 1

    def empty(self, name: str) -> None:
        """Another program's doing: a map loses its elements."""
        self._state.maps[name].clear()
        self._generation += 1

    def dump(self) -> str:
        """Every element and rule, a line each, sorted."""
        state = self._state
        lines = [
            f"{name} {{ {key} : {value} }}" for name, found in state.maps.items() for key, (value, _) in found.items()
        ]
        lines += [f"{rule.chain}: {rule.text}" for rules in state.chains.values() for rule in rules]
        return "\n".join(sorted(lines))

    def _tried(self, changes: Sequence[Change]) -> _State:
        if self.refusing:
            raise Refusal("other", 0, "Operation not supported")
        state = self._state.copy()
        for index, change in enumerate(changes):
            kind = state.make(change)
            if kind:
                raise Refusal(kind, index, f"refused ({kind}): {change.render('TABLE')}")
        return state


class _State:
    """What a table holds."""

    def __init__(self) -> None:
        self.exists = False
        self.chains: dict[str, list[Rule]] = {}
        self.maps: dict[str, dict[str, tuple[str, str]]] = {}
        """(value, comment) by map and key."""
        self.handles = 0

    def copy(self) -> _State:
        """A state of its own with the same content."""
        other = _State()
        other.exists, other.handles = self.exists, self.handles
        other.chains = {name: list(rules) for name, rules in self.chains.items()}
        other.maps = {name: dict(elements) for name, elements in self.maps.items()}
        return other

    def leading_to(self, chain: str) -> int:
        """How many rules and elements lead to a chain."""
        ends = (f" jump {chain}", f" goto {chain}")
        texts = [rule.text for rules in self.chains.values() for rule in rules]
        texts += [value for elements in self.maps.values() for value, _ in elements.values()]
        return sum(f" {text}".endswith(ends) for text in texts)

    def make(self, change: Change) -> str:
        """Make one change; the kind of its refusal, empty for none."""
        item = change.item
        if isinstance(item, Table):
            self.exists = True
        elif not self.exists:
            return "missing"
        elif isinstance(item, Chain):
            return self._chain(change.verb, item)
        elif isinstance(item, Map):
            self.maps.setdefault(item.name, {})
        elif isinstance(item, Rule):
            return self._rule(change.verb, item)
        else:
            return self._element(change.verb, item, change.comment)
        return ""

    def _chain(self, verb: str, chain: Chain) -> str:
        there = chain.name in self.chains
        if verb in ("add", "create"):
            self.chains.setdefault(chain.name, [])
            return "exists" if there and verb == "create" else ""
        if not there:
            return "missing"
        if verb == "flush":
            self.chains[chain.name].clear()
        elif self.chains[chain.name] or self.leading_to(chain.name):
            return "other"  # it is in use
        else:
            del self.chains[chain.name]
        return ""

    def _rule(self, verb: str, rule: Rule) -> str:
        if rule.chain not in self.chains:
            return "missing"
        rules = self.chains[rule.chain]
        if verb == "delete":
            kept = [other for other in rules if other.handle != rule.handle]
            self.chains[rule.chain] = kept
            return "" if len(kept) < len(rules) else "missing"
        self.handles += 1
        rules.append(rule._replace(handle=str(self.handles)))
        return ""

    def _element(self, verb: str, element: Element, comment: str) -> str:
        if element.map not in self.maps:
            return "missing"
        elements = self.maps[element.map]
        if verb == "delete":
            return "" if elements.pop(element.key, None) is not None else "missing"
        target = element.value.removeprefix("goto ")
        if target != element.value and target not in self.chains:
            return "missing"
        held = elements.get(element.key)
        if held is not None:
            return "" if held[0] == element.value and verb == "add" else "exists"
        elements[element.key] = (element.value, comment)
        return ""


class Flow(NamedTuple):
    """A UDP flow: where it was sent, and who answers. Without `answering` it was not translated."""

    family: int
    port: int
    to: str = HOST
    answering: str = ""


class FakeConntrack:
    """UDP flows; what is forgotten is removed. `HOST` is an address of this host."""

    def __init__(self, flows: Iterable[Flow] = ()) -> None:
        self.flows = list(flows)

    def forget_udp(
        self, family: int, ports: Iterable[tuple[int, int, bytes]], translated_to: Collection[bytes] | None
    ) -> None:
        """As the kernel's."""
        wanted = list(ports)
        self.flows = [flow for flow in self.flows if not _is_stale(flow, family, wanted, translated_to)]


def _is_stale(
    flow: Flow, family: int, ports: Sequence[tuple[int, int, bytes]], translated_to: Collection[bytes] | None
) -> bool:
    if flow.family != family or not any(
        first <= flow.port <= last and (not where or (flow.to != HOST and parse_ip(flow.to).packed == where))
        for first, last, where in ports
    ):
        return False
    if translated_to is None:
        return flow.to == HOST
    return bool(flow.answering) and parse_ip(flow.answering).packed in translated_to


class FakeSysctl:
    """Kernel settings by name. Those in `missing` are not there; with `read_only` none can be changed."""

    def __init__(self, missing: Iterable[str] = ()) -> None:
        self.values: dict[str, str] = {}
        self.missing = set(missing)
        self.read_only = False
        self.files: dict[str, list[str]] = {}
        """What configuration files say, by name."""

    def ensure(self, name: str, value: str) -> None:
        """Set a value."""
        if name in self.missing:
            raise IoFailure(f"cannot set /proc/sys/{name} to {value}: No such file or directory")
        if self.values.get(name) != value:
            if self.read_only:
                raise IoFailure(f"cannot set /proc/sys/{name} to {value}: Read-only file system")
            self.values[name] = value

    def read(self, name: str) -> str:
        """The value; 0 when it was never set."""
        return self.values.get(name, "0")

    def configured(self, name: str) -> list[str]:
        """What files say of it."""
        return list(self.files.get(name, ()))
