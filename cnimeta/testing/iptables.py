"""Tables in memory that speak the Iptables protocol."""

from __future__ import annotations

import contextlib
import copy
from typing import TYPE_CHECKING

from cnimeta.host.iptables.values import BUILT_IN, NAT, Change, Refused, Table, by_table, filtered, target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_TARGETS = frozenset({"ACCEPT", "DROP", "RETURN", "DNAT", "SNAT", "MASQUERADE", "MARK", "REDIRECT", "LOG"})


class FakeIptables:
    """Both families' tables: `tables` is nat, `others` what else is used.

    `commits` counts the batches; `fail_at` makes the batch of that number fail. `on_commit`, when set, runs before a
    batch is applied: what another program does in between.
    """

    def __init__(self, variant: str = "fake") -> None:
        self.variant = variant
        self.tables = {family: Table({name: [] for name in BUILT_IN[NAT]}) for family in (4, 6)}
        self.others: dict[tuple[int, str], Table] = {}
        self.commits = 0
        self.fail_at = 0
        self.on_commit: Callable[[], None] | None = None
        self.log: list[tuple[int, tuple[Change, ...]]] = []
        self._holding = False

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """The lock: taking it twice is a defect of the caller."""
        assert not self._holding, "the lock is not re-entrant"
        self._holding = True
        try:
            yield
        finally:
            self._holding = False

    def used(self, family: int) -> bool:
        """There is always a table."""
        return family in self.tables

    def chain(self, family: int, name: str, mentioning: tuple[str, ...] = ()) -> list[str] | None:
        """The rules of one chain."""
        found = self.tables[family].chains.get(name)
        return None if found is None else filtered(list(found), mentioning)

    def has_rules(self, family: int, name: str) -> bool:
        """Whether the chain is there and has a rule."""
        return bool(self.chain(family, name))

    def has_chain(self, family: int, name: str, table: str = NAT) -> bool:
        """Whether the chain is there."""
        return name in self.read(family, table)

    def read(self, family: int, table: str = NAT) -> dict[str, list[str]]:
        """A whole table; empty when it was never written."""
        found = self.tables[family] if table == NAT else self.others.get((family, table), Table({}))
        return copy.deepcopy(found.chains)

    def commit(self, family: int, changes: Sequence[Change]) -> None:
        """All or none."""
        assert self._holding, "a change without the lock"
        self.commits += 1
        if self.commits == self.fail_at:
            raise OSError(5, "made to fail")
        if self.on_commit is not None:
            self.on_commit()
        for table, ordered in by_table(changes).items():
            after = Table(self.read(family, table) or {name: [] for name in BUILT_IN[table]})
            for change in ordered:
                if change.action in ("append", "insert") and target(change.rule) not in {*_TARGETS, *after.chains}:
                    raise Refused(f"there is no chain {target(change.rule)}")
                after.apply(change)
            if table == NAT:
                self.tables[family] = after
            else:
                self.others[family, table] = after
        self.log.append((family, tuple(changes)))

    def has_rule(self, family: int, chain: str, rule: str) -> bool:
        """Whether the rule is in the chain."""
        return rule in (self.chain(family, chain) or [])

    def dump(self) -> str:
        """Both tables, as `iptables-save` would print them."""
        lines = []
        every = {**{(family, NAT): table for family, table in self.tables.items()}, **self.others}
        for (family, name), table in every.items():
            lines.append(f"# IPv{family}" + f" {name}" * (name != NAT))
            lines += [f":{chain}" for chain in sorted(table.chains)]
            lines += [f"-A {chain} {rule}" for chain in sorted(table.chains) for rule in table.chains[chain]]
        return "\n".join(lines) + "\n"
