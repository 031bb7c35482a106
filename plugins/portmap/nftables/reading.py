"""The table as it was at one moment, for who holds thousands of attachments against it: each map is read once.

It answers what looking asks of `Nft`; nothing can be changed through it.
"""

from __future__ import annotations

from cnimeta.host.nftables.values import Element

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping, Sequence

    from cnimeta.host.nftables.values import Change, Rule
    from cnimeta.host.protocols import Nft


class Reading:
    """What `nft` says when it is first asked."""

    def __init__(self, nft: Nft) -> None:
        self._nft = nft
        self._elements: dict[str, Mapping[Element, str]] = {}
        self._values: dict[str, dict[str, str]] = {}
        self._rules: dict[str, list[Rule]] | None = None
        self._uses: dict[str, int] | None = None
        self.judged: dict[str, str] = {}
        """What is wrong with a chain that attachments share, by its name; empty for nothing. Kept by `checking`."""

    def available(self) -> bool:
        """As `Nft`."""
        return self._nft.available()

    def generation(self) -> int:
        """As `Nft`."""
        return self._nft.generation()

    def apply(self, _changes: Sequence[Change], _since: int = 0) -> None:
        """Never."""
        raise RuntimeError("a reading cannot be changed")

    def dry_run(self, _changes: Sequence[Change]) -> None:
        """Never: it would be judged by what is there now."""
        raise RuntimeError("a reading judges no changes")

    def has_chain(self, name: str) -> bool:
        """As `Nft`."""
        return name in self.chain_uses()

    def chain_uses(self) -> dict[str, int]:
        """As `Nft`."""
        if self._uses is None:
            self._uses = self._nft.chain_uses()
        return self._uses

    def rule_count(self, chain: str) -> int:
        """As `Nft`."""
        return len(self.rules(chain))

    def rules(self, chain: str) -> list[Rule]:
        """As `Nft`."""
        return self.all_rules().get(chain, [])

    def all_rules(self) -> dict[str, list[Rule]]:
        """As `Nft`; the very same object each time."""
        if self._rules is None:
            self._rules = self._nft.all_rules()
        return self._rules

    def elements(self, name: str, but: Collection[str] = ()) -> Mapping[Element, str]:
        """As `Nft`."""
        if name not in self._elements:
            self._elements[name] = self._nft.elements(name)
        found = self._elements[name]
        return {one: said for one, said in found.items() if said not in but} if but else found

    def lookup(self, name: str, keys: Iterable[str]) -> dict[Element, str]:
        """The elements of a map that have one of these keys, and their comments."""
        values, comments = self._of(name), self.elements(name)
        found = [Element(name, key, values[key]) for key in keys if key in values]
        return {one: comments[one] for one in found}

    def _of(self, name: str) -> dict[str, str]:
        """The values of a map by key."""
        if name not in self._values:
            self._values[name] = {one.key: one.value for one in self.elements(name)}
        return self._values[name]
