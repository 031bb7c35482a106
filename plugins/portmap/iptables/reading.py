"""The tables of one variant as they were at one moment: each is read once, for however many containers.

It answers what looking asks of `Iptables`; nothing can be changed through it.
"""

from __future__ import annotations

from cnimeta.host.iptables.values import filtered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from contextlib import AbstractContextManager

    from cnimeta.host.iptables.values import Change
    from cnimeta.host.protocols import Iptables


class Reading:
    """What the adapter `tables` says when it is first asked."""

    def __init__(self, tables: Iptables) -> None:
        self._tables = tables
        self.variant = tables.variant
        self._read: dict[tuple[int, str], dict[str, list[str]]] = {}
        self._mentions: dict[tuple[int, str], dict[str, list[str]]] = {}

    def held(self) -> AbstractContextManager[None]:
        """Nothing has to be kept from changing: it has been read."""
        from contextlib import nullcontext

        return nullcontext()

    def used(self, family: int) -> bool:
        """As `Iptables`."""
        return self._tables.used(family)

    def read(self, family: int, table: str = "nat") -> dict[str, list[str]]:
        """As `Iptables`; the very same object each time."""
        if (family, table) not in self._read:
            with self._tables.held():
                self._read[family, table] = self._tables.read(family, table)
        return self._read[family, table]

    def chain(self, family: int, name: str, mentioning: tuple[str, ...] = ()) -> list[str] | None:
        """As `Iptables`. Rules that mention one chain are looked up; there may be one for each container."""
        rules = self.read(family).get(name)
        if rules is None or len(mentioning) != 1 or mentioning[0] not in self.read(family):
            return None if rules is None else filtered(rules, mentioning)
        if (family, name) not in self._mentions:
            found: dict[str, list[str]] = {}
            for rule in rules:
                for word in dict.fromkeys(rule.split(" ")):
                    found.setdefault(word, []).append(rule)
            self._mentions[family, name] = found
        return self._mentions[family, name].get(mentioning[0], [])

    def has_rules(self, family: int, name: str) -> bool:
        """As `Iptables`."""
        return bool(self.chain(family, name))

    def has_chain(self, family: int, name: str, table: str = "nat") -> bool:
        """As `Iptables`."""
        return name in self.read(family, table)

    def commit(self, _family: int, _changes: Sequence[Change]) -> None:
        """Never."""
        raise RuntimeError("a reading cannot be changed")

    def has_rule(self, family: int, chain: str, rule: str) -> bool:
        """As `Iptables`: the program is asked, for it alone can tell."""
        return self._tables.has_rule(family, chain, rule)
