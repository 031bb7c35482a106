"""The Nft adapter on netlink: no process, whatever a command does with elements and plain rules.

The forms written here are those of nft, to the byte, so either reads what the other wrote. What is beyond them, rules
with conditions of the operator's above all, goes to the nft program, as does what this kernel will not take in this
form (EINVAL, EOPNOTSUPP): a transaction that was refused has changed nothing.
"""

from __future__ import annotations

import errno
import os

from cnimeta.errors import IoFailure
from cnimeta.host import netlink
from cnimeta.host.netlink import (
    DUMP,
    NETFILTER,
    NFT_ABSENT,
    attributes,
    nft_chain_exists,
    nft_chain_uses,
    nft_generation,
    nft_rule_count,
)
from cnimeta.host.nftables.batch import transact
from cnimeta.host.nftables.elements import Unwritable, elements_in, key_attributes, layout_of
from cnimeta.host.nftables.values import Refusal
from cnimeta.host.nftables.wire import GET_ELEMENT, GET_RULE, GET_SET, INET, nested, orders, text
from cnimeta.host.reading import told

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from cnimeta.host.netlink import Ask, Message
    from cnimeta.host.nftables.batch import Verdict
    from cnimeta.host.nftables.elements import Layout
    from cnimeta.host.nftables.program import NftProgram
    from cnimeta.host.nftables.values import Change, Element, Rule

_KINDS = {errno.EEXIST: "exists", errno.ENOENT: "missing", errno.ERESTART: "changed"}
_GONE = (errno.ENOENT,)
_OTHER_FORM = (errno.EINVAL, errno.EOPNOTSUPP, errno.ERANGE, errno.EPROTO)
"""What a kernel says that knows an object in another form, or not at all."""


class KernelNft:
    """The Nft adapter for one table of the inet family. `path` is where the nft program is looked for first.

    `ask`, `transact` and `program` are how the kernel is reached; tests put failures there.
    """

    def __init__(
        self,
        table: str,
        path: str = "",
        ask: Ask = netlink.ask,
        transact: Callable[..., Verdict] = transact,
        program: NftProgram | None = None,
    ) -> None:
        self.table = table
        self._path = path
        self._ask = ask
        self._transact = transact
        self._program = program

    @property
    def program(self) -> NftProgram:
        """The adapter for the rest."""
        if self._program is None:
            from cnimeta.host.nftables.program import NftProgram

            self._program = NftProgram(self.table, self._path)
        return self._program

    # --- writing ---------------------------------------------------------------------------------------------

    def available(self) -> bool:
        """Whether this kernel has nf_tables."""
        return self.generation() != 0

    def generation(self) -> int:
        """The number of the ruleset; 0 where there is no nf_tables."""
        return nft_generation(self._ask)

    def apply(self, changes: Sequence[Change], since: int = 0) -> None:
        """All changes or none; none when anything was changed after the generation `since`. Raises Refusal."""
        self._make(changes, keep=True, since=since)

    def dry_run(self, changes: Sequence[Change]) -> None:
        """As `apply`, judged by the kernel but not kept. It costs a grace period, as undoing does."""
        self._make(changes, keep=False)

    def _make(self, changes: Sequence[Change], *, keep: bool, since: int = 0) -> None:
        try:
            wanted = orders(self.table, changes)
        except Unwritable:
            self._by_program(changes, keep=keep, since=since)
            return
        if not wanted:
            return
        try:
            number, index = self._transact(wanted, keep=keep, since=since)
        except OSError as error:
            raise IoFailure(f"nftables did not answer: {error.strerror or error}") from None
        if number in _OTHER_FORM and self.program.available():
            self._by_program(changes, keep=keep, since=since)
        elif number:
            what = f" at: {changes[index].render('TABLE')}" if 0 <= index < len(changes) else ""
            kind = _KINDS.get(number, "other")
            raise Refusal(kind, index, f"nftables refused the rules: {os.strerror(number)}{what}")

    def _by_program(self, changes: Sequence[Change], *, keep: bool, since: int) -> None:
        if keep:
            self.program.apply(changes, since)
        else:
            self.program.dry_run(changes)

    # --- chains and rules ------------------------------------------------------------------------------------

    def has_chain(self, name: str) -> bool:
        """Whether the table has this chain."""
        return nft_chain_exists("inet", self.table, name, self._ask)

    def chain_uses(self) -> dict[str, int]:
        """How many rules each chain of the table has, plus those and the elements that lead to it."""
        return nft_chain_uses("inet", self.table, self._ask)

    def rule_count(self, chain: str) -> int:
        """How many rules a chain has, none when there is no such chain."""
        return nft_rule_count("inet", self.table, chain, self._ask)

    @netlink.understood("an nftables table")
    def rules(self, chain: str) -> list[Rule]:
        """The rules of a chain with their handles, none when there is no such chain."""
        try:
            return self._rules(text(2, chain))
        except Unwritable:
            return self.program.rules(chain)

    @netlink.understood("an nftables table")
    def all_rules(self) -> dict[str, list[Rule]]:
        """The rules of every chain, in one listing."""
        found: dict[str, list[Rule]] = {chain: [] for chain in self.chain_uses()}
        try:
            for rule in self._rules(b""):
                found.setdefault(rule.chain, []).append(rule)
        except Unwritable:
            return self.program.all_rules()
        return found

    def _rules(self, chain: bytes) -> list[Rule]:
        from cnimeta.host.nftables.listing import rule_in

        body = INET + text(1, self.table) + chain
        answers = self._read(f"the rules of the nftables table inet {self.table}", GET_RULE, DUMP, body) or ()
        mine = text(1, self.table)[4:]
        return [rule_in(one.body) for one in answers if attributes(one.body[4:]).get(1) == mine[: len(self.table) + 1]]

    # --- elements --------------------------------------------------------------------------------------------

    @netlink.understood("an nftables table")
    def lookup(self, name: str, keys: Iterable[str]) -> dict[Element, str]:
        """The elements of a map that have one of these keys, and their comments; costs nothing for the others."""
        try:
            layout = self._layout(name)
            return {} if layout is None else dict(self._found(name, layout, list(keys)))
        except Unwritable:
            wanted = set(keys)
            return {one: comment for one, comment in self.program.elements(name).items() if one.key in wanted}

    def _found(self, name: str, layout: Layout, keys: Sequence[str]) -> Iterable[tuple[Element, str]]:
        head = INET + text(1, self.table) + text(2, name)
        for key in keys:
            body = head + nested(3, nested(1, key_attributes(key)))
            for answer in self._read(f"an element of the nftables map {name}", GET_ELEMENT, 0, body, _GONE) or ():
                yield from elements_in(name, layout, answer.body)

    @netlink.understood("an nftables table")
    def elements(self, name: str, but: Collection[str] = ()) -> dict[Element, str]:
        """Every element of a map and its comment, none when there is no such map; costs in proportion to the map.

        Less those whose comment is in `but`, which are not taken apart. The kernel lists them part by part, and holds
        no lock meanwhile.
        """
        try:
            layout = self._layout(name)
            if layout is None:
                return {}
            body = INET + text(1, self.table) + text(2, name)
            answers = self._read(f"the nftables map {name}", GET_ELEMENT, DUMP, body, _GONE) or ()
            return dict(pair for answer in answers for pair in elements_in(name, layout, answer.body, but))
        except Unwritable:
            return self.program.elements(name, but)

    def _layout(self, name: str) -> Layout | None:
        """What the kernel says the map's keys and values are; None when there is no such map."""
        answers = self._read(f"the nftables map {name}", GET_SET, 0, INET + text(1, self.table) + text(2, name))
        return layout_of(answers[0].body) if answers else None

    def _read(
        self, what: str, kind: int, flags: int, body: bytes, absent: tuple[int, ...] = NFT_ABSENT
    ) -> list[Message] | None:
        return told(what, lambda: self._ask(NETFILTER, kind, flags, body), absent)
