"""iptables over nf_tables: read over netlink, written with one `iptables-restore --noflush -w` batch.

What is only taken away goes over netlink too, by the kernel's numbers of the rules, which are never given again: the
program would list thousands of rules once more to find one. Where that is refused, the program does it, or says why.

A batch is one kernel transaction for each table in it. nf_tables has no lock of its own for this, so the xtables lock
(which iptables-nft leaves alone) is what keeps this project's processes apart between reading and writing; other
programs' writes in between make a batch fail, never half apply: chains are made with -N, rules are removed by what they
say.
"""

from __future__ import annotations

from cnimeta.errors import IoFailure
from cnimeta.host import netlink
from cnimeta.host.iptables.lock import XtablesLock
from cnimeta.host.iptables.netlink import Unreadable, chain_exists, entry_rules, has_rules, removal, table_names
from cnimeta.host.iptables.programs import program, run
from cnimeta.host.iptables.values import NAT, Table, filtered, render
from cnimeta.host.nftables.batch import transact

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from contextlib import AbstractContextManager

    from cnimeta.host.iptables.values import Change
    from cnimeta.host.netlink import Ask, First
    from cnimeta.host.nftables.batch import Verdict


class NftIptables:
    """The Iptables adapter of hosts whose iptables is the nft one. `path` is a PATH to look for programs in first."""

    variant = "nft"

    def __init__(
        self,
        path: str = "",
        lock: XtablesLock | None = None,
        ask: Ask = netlink.ask,
        first: First = netlink.first,
        transact: Callable[..., Verdict] = transact,
    ) -> None:
        self.path = path
        self._lock = lock or XtablesLock()
        self._ask, self._first, self._transact = ask, first, transact
        self._numbers: dict[int, dict[tuple[str, str], list[int]]] = {}
        """By family, the kernel's numbers of the rules that were listed last."""

    def held(self) -> AbstractContextManager[None]:
        """The xtables lock."""
        return self._lock

    def used(self, family: int) -> bool:
        """Whether there is a nat table."""
        return (family, "nat") in table_names(self._ask)

    def chain(self, family: int, name: str, mentioning: tuple[str, ...] = ()) -> list[str] | None:
        """The rules of one chain; the program is only asked for rules that are not plain entry rules."""
        try:
            found = entry_rules(family, name, mentioning, self._ask)
        except Unreadable:
            text = run([program(family, self.variant, "", self.path), "-w", "-t", "nat", "-S", name])
            return filtered(Table.parse(text).chains.get(name, []), mentioning)
        if found is None:
            return None
        numbers = self._numbers[family] = {}
        for rule, number in found:
            numbers.setdefault((name, rule), []).append(number)
        return [rule for rule, _ in found]

    def has_rules(self, family: int, name: str) -> bool:
        """Whether the chain is there and has a rule; one is looked at."""
        return has_rules(family, name, self._first)

    def has_chain(self, family: int, name: str, table: str = NAT) -> bool:
        """Whether the chain is there."""
        return chain_exists(family, name, self._ask, table)

    def read(self, family: int, table: str = NAT) -> dict[str, list[str]]:
        """A whole table; empty when there is none."""
        if (family, table) not in table_names(self._ask):
            return {}
        return Table.parse(run([program(family, self.variant, "-save", self.path), "-t", table])).chains

    def commit(self, family: int, changes: Sequence[Change]) -> None:
        """One batch: with one process, or with none where it only takes away what was just looked at."""
        orders = removal(family, changes, self._numbers.get(family, {}))
        try:
            if orders and self._transact(orders, keep=True).number == 0:
                return
        except OSError as error:
            raise IoFailure(f"it is unknown whether the chains were changed: {error.strerror or error}") from None
        run([program(family, self.variant, "-restore", self.path), "--noflush", "-w"], render(changes))

    def has_rule(self, family: int, chain: str, rule: str) -> bool:
        """What `iptables -C` says."""
        from cnimeta.host.iptables.variant import holds

        return holds(family, self.variant, self.path, chain, rule)
