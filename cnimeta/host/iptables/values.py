"""The host's iptables, both families, as values. Pure.

Rules are text as `iptables-save` prints it, without `-A CHAIN`. Changes are data; an adapter applies a list of them
to one family, those of a table atomically: all or none. A variant is "nft" (iptables over nf_tables) or "legacy"
(ip_tables); their rules are invisible to each other, so writing both would leave half of a host's mappings to nobody.
"""

from __future__ import annotations

from cnimeta.errors import IoFailure, shown
from cnimeta.namedtuple import NamedTuple
from cnimeta.spec.ip import parse_ip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable


FAMILIES = (4, 6)
NAT, RAW = "nat", "raw"
BUILT_IN = {NAT: ("PREROUTING", "INPUT", "OUTPUT", "POSTROUTING"), RAW: ("PREROUTING", "OUTPUT")}
"""The tables that are used here, and the chains that each has by itself."""

_PLAIN = frozenset("_-0123456789abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ.,:/[]!=+%@")
_FLAGS = {
    "require": "-C",
    "new": "-N",
    "flush": "-F",
    "remove": "-X",
    "append": "-A",
    "insert": "-I",
    "delete": "-D",
}


class Refused(IoFailure):
    """A batch was not applied: a chain was there or not, a rule was missing, or a parameter was not understood."""


class Change(NamedTuple):
    """One step. `action`: `require` (the rule must be there), `new`, `flush`, `remove` (a chain), `append`,
    `insert` (first), `delete` (a rule).
    """

    action: str
    chain: str
    rule: str = ""
    table: str = NAT


def by_table(changes: Iterable[Change]) -> dict[str, list[Change]]:
    """The changes of each table, raw first: a guard stands before what it guards."""
    found: dict[str, list[Change]] = {}
    for change in changes:
        found.setdefault(change.table, []).append(change)
    return {table: found[table] for table in sorted(found, key=lambda table: table != RAW)}


def render(changes: Iterable[Change]) -> str:
    """The input of `iptables-restore --noflush`."""
    lines = []
    for table, ordered in by_table(changes).items():
        lines.append(f"*{table}")
        for change in ordered:
            place = " 1" if change.action == "insert" else ""
            lines.append(f"{_FLAGS[change.action]} {change.chain}{place} {change.rule}".rstrip())
        lines.append("COMMIT")
    return "\n".join([*lines, ""])


def quote(word: str) -> str:
    """A word as `iptables-save` prints it and `iptables-restore` reads it. Raises Refused for control characters."""
    if word and _PLAIN.issuperset(word):
        return word
    if not word.isprintable():
        raise Refused(f"iptables rules cannot carry {shown(word)}: remove the control characters")
    escaped = word.replace("\\", "\\\\").replace('"', '\\"').replace("'", "\\'")
    return f'"{escaped}"'


def split(rule: str) -> list[str]:
    """The words of a rule: the reverse of joining quoted words with spaces."""
    words: list[str] = []
    word, quoted, escaped, started = "", False, False, False
    for char in rule:
        if escaped:
            word, escaped = word + char, False
        elif char == "\\":
            escaped = True
        elif char == '"':
            quoted, started = not quoted, True
        elif char == " " and not quoted:
            if word or started:
                words.append(word)
            word, started = "", False
        else:
            word += char
    return [*words, word] if word or started else words


class Table:
    """A table as data: chains and their rules. What `iptables-save` shows, and how changes alter it."""

    def __init__(self, chains: dict[str, list[str]]) -> None:
        self.chains = chains

    @classmethod
    def parse(cls, text: str) -> Table:
        """Read the output of `iptables-save -t TABLE` (or `-S CHAIN`)."""
        chains: dict[str, list[str]] = {}
        for line in text.splitlines():
            if line.startswith(":"):
                chains[line[1:].partition(" ")[0]] = []
            elif line[:3] in ("-N ", "-P "):
                chains[line[3:].partition(" ")[0]] = []
            elif line.startswith("-A "):
                chain, _, rule = line[3:].partition(" ")
                chains.setdefault(chain, []).append(respelled(rule))
        return cls(chains)

    def apply(self, change: Change) -> int:
        """Make one change as iptables would; the place (from 0) of the rule concerned. Raises Refused."""
        action, chain, rule, _ = change
        rules = self.chains.get(chain)
        if action == "new":
            if rules is not None:
                raise Refused(f"iptables chain {chain} exists already")
            self.chains[chain] = []
            return 0
        if rules is None:
            raise Refused(f"iptables chain {chain} does not exist")
        if action in ("delete", "require") and rule not in rules:
            raise Refused(f"iptables chain {chain} has no rule {rule}")
        place = len(rules) if action == "append" else rules.index(rule) if action in ("delete", "require") else 0
        if action == "delete":
            del rules[place]
        elif action in ("append", "insert"):
            rules.insert(place, rule)
        elif action == "flush":
            rules.clear()
        elif action == "remove":
            self._remove(chain)
        return place

    def _remove(self, chain: str) -> None:
        if self.chains[chain] or any(target(rule) == chain for rules in self.chains.values() for rule in rules):
            raise Refused(f"iptables chain {chain} is not empty or still used")
        del self.chains[chain]


def respelled(rule: str) -> str:
    """A rule with IPv6 addresses as we write them: iptables prints ::1.2.3.4 for ::102:304."""
    if "::" not in rule or rule.count(".") < 3:  # nearly every rule
        return rule
    return " ".join(_respelled(word) if "::" in word and "." in word else word for word in rule.split(" "))


def _respelled(word: str) -> str:
    bracket, rest = ("[", word[1:]) if word.startswith("[") else ("", word)
    end = "]" if bracket else "/"
    address, found, tail = rest.partition(end)
    try:
        return f"{bracket}{parse_ip(address).text}{found}{tail}"
    except ValueError:
        return word


def target(rule: str) -> str:
    """The chain or target a rule jumps to; empty for none."""
    return rule.rpartition("-j ")[2].partition(" ")[0] if "-j " in rule else ""


def filtered(rules: list[str], mentioning: tuple[str, ...]) -> list[str]:
    """The rules with any of the words; all of them for no words."""
    return [rule for rule in rules if any(word in rule for word in mentioning)] if mentioning else rules
