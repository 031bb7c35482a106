"""A nat table in memory that speaks the Iptables protocol."""

from __future__ import annotations

import contextlib
import copy
from typing import TYPE_CHECKING

from cnimeta.host.iptables.values import Change, NatTable, Refused, filtered, target

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

_TARGETS = frozenset({"ACCEPT", "DROP", "RETURN", "DNAT", "SNAT", "MASQUERADE", "MARK", "REDIRECT", "LOG"})
BUILT_IN = ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING")


class FakeIptables:
    """Both families' nat tables. `commits` counts the batches; `fail_at` makes the batch of that number fail.

    `on_commit`, when set, runs before a batch is applied: what another program does in between.
    """

    def __init__(self, variant: str = "fake") -> None:
        self.variant = variant
        self.tables = {family: NatTable({name: [] for name in BUILT_IN}) for family in (4, 6)}
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

    def has_chain(self, family: int, name: str) -> bool:
        """Whether the chain is there."""
        return name in self.tables[family].chains

    def read(self, family: int) -> dict[str, list[str]]:
        """The whole table."""
        return copy.deepcopy(self.tables[family].chains)

    def commit(self, family: int, changes: Sequence[Change]) -> None:
        """All or none."""
        assert self._holding, "a change without the lock"
        self.commits += 1
        if self.commits == self.fail_at:
            raise OSError(5, "made to fail")
        if self.on_commit is not None:
            self.on_commit()
        after = NatTable(self.read(family))
        for change in changes:
            if change.action in ("append", "insert") and target(change.rule) not in {*_TARGETS, *after.chains}:
                raise Refused(f"there is no chain {target(change.rule)}")
            after.apply(change)
        self.log.append((family, tuple(changes)))
        self.tables[family] = after

    def has_rule(self, family: int, chain: str, rule: str) -> bool:
        """Whether the rule is in the chain."""
        return rule in (self.chain(family, chain) or [])

    def dump(self) -> str:
        """Both tables, as `iptables-save` would print them."""
        lines = []
        for family, table in self.tables.items():
            lines.append(f"# IPv{family}")
            lines += [f":{name}" for name in sorted(table.chains)]
            lines += [f"-A {name} {rule}" for name in sorted(table.chains) for rule in table.chains[name]]
        return "\n".join(lines) + "\n"
