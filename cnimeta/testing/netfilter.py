"""Fakes of the packet filter's surroundings: nftables as dictionaries, flows as a list, kernel settings as a mapping.

`FakeNft` carries out the same `Change`s as `cnimeta.host.nftables.program.NftProgram` and refuses the same ones in the
same way, so one suite of tests runs on both. `dump()` is text to compare.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from cnimeta.errors import IoFailure
from cnimeta.host.nftables.values import Refusal

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cnimeta.host.nftables.values import Change


class _Tables:
    """What a table holds."""

    def __init__(self) -> None:
        self.exists = False
        self.chains: dict[str, list[tuple[str, str]]] = {}
        self.maps: dict[str, dict[str, tuple[str, str]]] = {}
        self.handles = 0


class FakeNft:
    """One nftables table in memory. `before_apply` is called ahead of each transaction, to inject faults."""

    def __init__(self, *, available: bool = True) -> None:
        self._state = _Tables()
        self._available = available
        self.transactions: list[tuple[Change, ...]] = []
        self.before_apply: Callable[[], None] = lambda: None

    def available(self) -> bool:
        """Whether the program is there."""
        return self._available

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

    def rules(self, chain: str) -> list[tuple[str, str]]:
        """(handle, text) of a chain's rules."""
        return list(self._state.chains.get(chain, ()))

    def elements(self, name: str) -> list[tuple[str, str, str]]:
        """(key, data, comment) of every element of a map."""
        return [(key, data, comment) for key, (data, comment) in self._state.maps.get(name, {}).items()]

    def flush_ruleset(self) -> None:
        """What `nft flush ruleset` does."""
        self._state = _Tables()

    def dump(self) -> str:
        """Every element and rule, a line each, sorted."""
        lines = [
            f"{name} {{ {key} : {data} }}"
            for name, elements in self._state.maps.items()
            for key, (data, _) in elements.items()
        ]
        lines += [f"{chain}: {text}" for chain, rules in self._state.chains.items() for _, text in rules]
        return "\n".join(sorted(lines))

    def _tried(self, changes: Sequence[Change]) -> _Tables:
        state = copy.deepcopy(self._state)
        for index, change in enumerate(changes):
            kind = _carry_out(state, change)
            if kind:
                raise Refusal(kind, index, f"refused ({kind}): {change.render('TABLE')}")
        return state


def _carry_out(state: _Tables, change: Change) -> str:
    """Do one change; what is wrong with it, or nothing."""
    if change.kind == "table":
        state.exists = True
        return ""
    if not state.exists:
        return "missing"
    return {"chain": _chain, "map": _map, "rule": _rule, "element": _element}[change.kind](state, change)


def _chain(state: _Tables, change: Change) -> str:
    there = change.name in state.chains
    if change.verb == "create" and there:
        return "exists"
    if change.verb in ("add", "create"):
        state.chains.setdefault(change.name, [])
        return ""
    if not there:
        return "missing"
    state.chains[change.name] = []
    if change.verb == "delete":
        del state.chains[change.name]
    return ""


def _map(state: _Tables, change: Change) -> str:
    state.maps.setdefault(change.name, {})
    return ""


def _rule(state: _Tables, change: Change) -> str:
    if change.name not in state.chains:
        return "missing"
    rules = state.chains[change.name]
    if change.verb == "delete":
        kept = [rule for rule in rules if rule[0] != change.data]
        state.chains[change.name] = kept
        return "" if len(kept) < len(rules) else "missing"
    state.handles += 1
    comment = f' comment "{change.comment}"' if change.comment else ""
    rules.append((str(state.handles), change.data + comment))
    return ""


def _element(state: _Tables, change: Change) -> str:
    if change.name not in state.maps:
        return "missing"
    elements = state.maps[change.name]
    if change.verb == "delete":
        return "" if elements.pop(change.key, None) is not None else "missing"
    if change.data.startswith("goto ") and change.data[5:] not in state.chains:
        return "missing"
    held = elements.get(change.key)
    if held is not None:
        return "" if held[0] == change.data and change.verb == "add" else "exists"
    elements[change.key] = (change.data, change.comment)
    return ""


class FakeConntrack:
    """UDP flows as (family, port) or (family, port, packed address); what is forgotten is removed and kept in
    `forgotten`.
    """

    def __init__(self, flows: Iterable[tuple[int, int] | tuple[int, int, bytes]] = ()) -> None:
        self.flows = list(flows)
        self.forgotten: list[tuple[int, int, int, bytes]] = []

    def forget_udp(self, family: int, ports: Iterable[tuple[int, int, bytes]]) -> None:
        """As the kernel's; a flow without an address is to every one."""
        for first, last, where in ports:
            self.forgotten.append((family, first, last, where))
            self.flows = [
                flow
                for flow in self.flows
                if not (flow[0] == family and first <= flow[1] <= last and where in (b"", *(flow[2:] or (where,))))
            ]


class FakeSysctl:
    """Kernel settings by name. Those in `missing` are not there, as when their interface is gone."""

    def __init__(self, missing: Iterable[str] = ()) -> None:
        self.values: dict[str, str] = {}
        self.missing = set(missing)

    def ensure(self, name: str, value: str) -> None:
        """Set a value."""
        if name in self.missing:
            raise IoFailure(f"cannot set /proc/sys/{name} to {value}: No such file or directory")
        self.values[name] = value
