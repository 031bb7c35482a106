"""The Nft adapter on the `nft` program: one process a transaction.

A transaction that deletes something costs a kernel grace period (8-20 ms) when its socket closes; one that only adds
does not.
"""

from __future__ import annotations

from cnimeta.errors import IoFailure
from cnimeta.host.netlink import nft_chain_exists, nft_chain_uses, nft_generation, nft_rule_count
from cnimeta.host.nftables.values import Element, Refusal, Rule
from cnimeta.host.process import find_program, run_program
from cnimeta.spec.ip import parse_ip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from cnimeta.host.nftables.values import Change

_TIMEOUT_S = 60.0
_MISSING = "No such file or directory"
_HIDE = {ord(char): number for number, char in enumerate(",}{", 1)}
_SHOW = {number: chr(char) for char, number in _HIDE.items()}
_HANDLE, _COMMENT = " # handle ", ' comment "'


class NftProgram:
    """The Nft adapter on the `nft` program, for one table of the inet family."""

    def __init__(self, table: str, path: str = "") -> None:
        self.table = table
        self._path = path
        self._program: str | None = None

    def available(self) -> bool:
        """Whether the program is there."""
        return self._find() is not None

    def generation(self) -> int:
        """The number of the ruleset; one netlink request, no process."""
        return nft_generation()

    def apply(self, changes: Sequence[Change], since: int = 0) -> None:
        """All changes or none. Raises Refusal.

        nft cannot be told `since`: it is looked at before nft is started, so what changes after that goes unnoticed.
        """
        if since and self.generation() != since:
            raise Refusal("changed", -1, "the nftables rules were changed meanwhile")
        self._run(["-f", "-"], changes)

    def dry_run(self, changes: Sequence[Change]) -> None:
        """As `apply`, judged by the kernel but not kept."""
        self._run(["-c", "-f", "-"], changes)

    def has_chain(self, name: str) -> bool:
        """Whether the table has this chain; one netlink request, no process."""
        return nft_chain_exists("inet", self.table, name)

    def chain_uses(self) -> dict[str, int]:
        """How many rules each chain of the table has, plus those and the elements that lead to it; no process."""
        return nft_chain_uses("inet", self.table)

    def rule_count(self, chain: str) -> int:
        """How many rules a chain has, none when there is no such chain; one netlink request."""
        return nft_rule_count("inet", self.table, chain)

    def rules(self, chain: str) -> list[Rule]:
        """The rules of a chain with their handles, none when there is no such chain."""
        return self.all_rules().get(chain, [])

    def all_rules(self) -> dict[str, list[Rule]]:
        """The rules of every chain, in one listing: of all tables of the family, tersely.

        To list a single table or chain, nft 1.0.6 fetches every element of its sets.
        """
        found: dict[str, list[Rule]] = {}
        table = chain = ""
        for line in self._listing("-a", "-t", "list", "ruleset", "inet").split("\n"):
            words = line.split(None, 3)
            if line.startswith("table ") and len(words) > 2:
                table, chain = words[2], ""
            elif (
                words[:1] in (["chain"], ["map"], ["set"])
                and words[1:]
                and line.startswith("\t")
                and not line.startswith("\t\t")
            ):
                chain = words[1] if words[0] == "chain" and table == self.table else ""
                if chain:
                    found[chain] = []
            elif chain and _HANDLE in line:
                found[chain].append(_rule(chain, line))
        return found

    def lookup(self, name: str, keys: Iterable[str]) -> dict[Element, str]:
        """The elements of a map that have one of these keys, and their comments; as costly as all of them."""
        wanted = set(keys)
        return {one: comment for one, comment in self.elements(name).items() if one.key in wanted}

    def elements(self, name: str, but: Collection[str] = ()) -> dict[Element, str]:
        """Every element of a map and its comment, none when there is no such map; costs in proportion to the map.

        Less those whose comment is in `but`.
        """
        _, _, body = _hidden(self._listing("list", "map", "inet", self.table, name)).partition("elements = {")
        texts = (text for line in body.partition("}")[0].split(",\n") for text in line.split(", ") if text)
        return {one: said for one, said in (_element(name, text) for text in texts) if said not in but}

    def _listing(self, *words: str) -> str:
        done = run_program([self._require(), *words], {}, b"", _TIMEOUT_S)
        if done.status != 0 and _MISSING.encode() not in done.stderr:
            raise IoFailure(f"nft cannot {' '.join(words[words.index('list') :])}: {done.complaint}")
        return done.stdout.decode("utf-8", "replace") if done.status == 0 else ""

    def _run(self, flags: list[str], changes: Sequence[Change]) -> None:
        script = "".join(change.render(self.table) + "\n" for change in changes)
        done = run_program([self._require(), *flags], {}, script.encode(), _TIMEOUT_S)
        if done.status != 0:
            raise _refusal(done.stderr.decode("utf-8", "replace"), changes)

    def _find(self) -> str | None:
        if self._program is None:
            self._program = find_program("nft", self._path)
        return self._program

    def _require(self) -> str:
        program = self._find()
        if program is None:
            raise IoFailure("nft is not installed: install nftables, or set backend to iptables")
        return program


def _hidden(listing: str) -> str:
    """The listing with what divides elements hidden inside quotes: an interface may be called `a},b`."""
    parts = listing.split('"')
    parts[1::2] = [part.translate(_HIDE) for part in parts[1::2]]
    return '"'.join(parts)


def _rule(chain: str, line: str) -> Rule:
    """`TEXT comment "C" # handle N`, the comment optional."""
    text, _, handle = line.strip().rpartition(_HANDLE)
    if text.endswith('"'):
        text = text.rpartition(_COMMENT)[0] or text
    return Rule(chain, text, handle)


def _element(name: str, text: str) -> tuple[Element, str]:
    """`KEY comment "C" : VALUE`, the comment optional; it holds no quotes."""
    key, marker, rest = text.strip().partition(_COMMENT)
    if not marker:
        key, _, value = key.partition(" : ")
        return Element(name, _spelled(key), _spelled(value)), ""
    comment, _, value = rest.partition('"')
    comment = comment.translate(_SHOW)
    return Element(name, _spelled(key), _spelled(value.strip().removeprefix(":"))), comment


def _spelled(text: str) -> str:
    """Keys and values with addresses as we write them: nft still prints ::1.2.3.4 for ::102:304."""
    text = text.strip()
    if "::" not in text or text.count(".") < 3:  # what is left is fast to tell, and maps are long
        return text
    return " . ".join(_canonical(part) if ":" in part and "." in part else part for part in text.split(" . "))


def _canonical(text: str) -> str:
    try:
        return parse_ip(text).text
    except ValueError:
        return text


def _refusal(stderr: str, changes: Sequence[Change]) -> Refusal:
    """Nft names the line: `/dev/stdin:2:30-39: Error: Could not process rule: File exists`."""
    first = next((line for line in stderr.splitlines() if ": Error: " in line), stderr.strip())
    place, _, reason = first.partition(": Error: ")
    digits = place.split(":")[1] if place.count(":") >= 2 else ""
    index = int(digits) - 1 if digits.isdigit() else -1
    kind = "other"
    if reason.endswith("File exists"):
        kind = "exists"
    elif _MISSING in reason:
        kind = "missing"
    what = f" at: {changes[index].render('TABLE')}" if 0 <= index < len(changes) else ""
    return Refusal(kind, index, f"nft refused the rules: {reason or first}{what}")
