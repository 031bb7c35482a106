"""Fakes of the packet filter's surroundings: nftables as dictionaries, flows as a list, kernel settings as a mapping.

`FakeNft` makes the same `Change`s as `cnimeta.host.nftables.program.NftProgram` and refuses the same ones in the
same way, so one suite of tests runs on both. `dump()` is text to compare.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cnimeta.host.nftables.values import Chain, Element, Map, Refusal, Rule, Table

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cnimeta.host.nftables.values import Change


class FakeNft:
    """One nftables table in memory. `before_apply` is called ahead of each transaction, to inject faults.

    Without `usable` the host has no nftables.
    """

    def __init__(self) -> None:
        self._state = _State()
        self.usable = True
        self.transactions: list[tuple[Change, ...]] = []
        self.before_apply: Callable[[], None] = lambda: None

    def available(self) -> bool:
        """Whether the program is there."""
        return self.usable

    def apply(self, changes: Sequence[Change]) -> None:
        """All changes or none."""
        self.before_apply()
        self._state = self._tried(changes)
        self.transactions.append(tuple(changes))

    def dry_run(self, changes: Sequence[Change]) -> None:
        """As `apply`, not kept."""
        self._tried(changes)

    def has_chain(self, name: str) -> bool:
        """Whether the table has this chain."""
        return name in self._state.chains

    def rules(self, chain: str) -> list[Rule]:
        """A chain's rules."""
        return list(self._state.chains.get(chain, ()))

    def elements(self, name: str) -> dict[Element, str]:
        """Every element of a map and its comment."""
        return {Element(name, key, value): said for key, (value, said) in self._state.maps.get(name, {}).items()}

    def flush_ruleset(self) -> None:
        """What `nft flush ruleset` does."""
        self._state = _State()

    def put(self, element: Element) -> None:
        """Another program's doing: an element as given, whatever was there."""
        self._state.maps[element.map][element.key] = (element.value, "")

    def empty(self, name: str) -> None:
        """Another program's doing: a map loses its elements."""
        self._state.maps[name].clear()

    def dump(self) -> str:
        """Every element and rule, a line each, sorted."""
        state = self._state
        lines = [
            f"{name} {{ {key} : {value} }}" for name, found in state.maps.items() for key, (value, _) in found.items()
        ]
        lines += [f"{rule.chain}: {rule.text}" for rules in state.chains.values() for rule in rules]
        return "\n".join(sorted(lines))

    def _tried(self, changes: Sequence[Change]) -> _State:
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
        if verb == "delete":
            del self.chains[chain.name]
        else:
            self.chains[chain.name].clear()
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


class FakeConntrack:
    """Flows as (family, port); what is forgotten is removed and remembered in `forgotten`."""

    def __init__(self, flows: Iterable[tuple[int, int]] = ()) -> None:
        self.flows = list(flows)
        self.forgotten: list[tuple[int, int, int, bytes]] = []

    def forget_udp(self, family: int, ports: Iterable[tuple[int, int, bytes]]) -> None:
        """As the kernel's."""
        for first, last, where in ports:
            self.forgotten.append((family, first, last, where))
            self.flows = [(f, port) for f, port in self.flows if f != family or not first <= port <= last]


class FakeSysctl:
    """Kernel settings by name."""

    def __init__(self) -> None:
        self.values: dict[str, str] = {}

    def ensure(self, name: str, value: str) -> None:
        """Set a value."""
        self.values[name] = value
