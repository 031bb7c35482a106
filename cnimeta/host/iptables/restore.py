"""iptables over nf_tables: read over netlink, written with one `iptables-restore --noflush -w` batch.

A batch is one kernel transaction for each table in it. nf_tables has no lock of its own for this, so the xtables lock
(which iptables-nft leaves alone) is what keeps this project's processes apart between reading and writing; other
programs' writes in between make a batch fail, never half apply: chains are made with -N, rules are removed by what they
say.
"""

from __future__ import annotations

from cnimeta.host import netlink
from cnimeta.host.iptables.lock import XtablesLock
from cnimeta.host.iptables.netlink import Unreadable, chain_exists, entry_rules, table_names
from cnimeta.host.iptables.programs import program, run
from cnimeta.host.iptables.values import NAT, Table, filtered, render

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from cnimeta.host.iptables.values import Change
    from cnimeta.host.netlink import Ask


class NftIptables:
    """The Iptables adapter of hosts whose iptables is the nft one. `path` is a PATH to look for programs in first."""

    variant = "nft"

    def __init__(self, path: str = "", lock: XtablesLock | None = None, ask: Ask = netlink.ask) -> None:
        self.path = path
        self._lock = lock or XtablesLock()
        self._ask = ask

    def held(self) -> AbstractContextManager[None]:
        """The xtables lock."""
        return self._lock

    def used(self, family: int) -> bool:
        """Whether there is a nat table."""
        return (family, "nat") in table_names(self._ask)

    def chain(self, family: int, name: str, mentioning: tuple[str, ...] = ()) -> list[str] | None:
        """The rules of one chain; the program is only asked for rules that are not plain entry rules."""
        try:
            return entry_rules(family, name, mentioning, self._ask)
        except Unreadable:
            text = run([program(family, self.variant, "", self.path), "-w", "-t", "nat", "-S", name])
            return filtered(Table.parse(text).chains.get(name, []), mentioning)

    def has_chain(self, family: int, name: str, table: str = NAT) -> bool:
        """Whether the chain is there."""
        return chain_exists(family, name, self._ask, table)

    def read(self, family: int, table: str = NAT) -> dict[str, list[str]]:
        """A whole table; empty when there is none."""
        if (family, table) not in table_names(self._ask):
            return {}
        return Table.parse(run([program(family, self.variant, "-save", self.path), "-t", table])).chains

    def commit(self, family: int, changes: Sequence[Change]) -> None:
        """One batch, one process."""
        run([program(family, self.variant, "-restore", self.path), "--noflush", "-w"], render(changes))

    def has_rule(self, family: int, chain: str, rule: str) -> bool:
        """What `iptables -C` says."""
        from cnimeta.host.iptables.variant import holds

        return holds(family, self.variant, self.path, chain, rule)
