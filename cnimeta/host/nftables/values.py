"""nftables as typed values: what a table of the inet family holds, and changes to it. Pure.

A planner imports this and nothing that starts a process. The adapter writes each `Change` as a line of nft's
language, the fake (`cnimeta.testing.netfilter`) carries it out on dictionaries. What is known about nft 1.0.6 shapes
the interface: adding an element costs the same whatever a map holds, but listing a map, or getting one element of it,
fetches all of it. So writing is blind, and the kernel's own rules tell what is there: adding an element with another
value fails (EEXIST), deleting a missing one fails (ENOENT), a failed line undoes the whole transaction, and a dry run
is judged by the kernel like a real one.
"""

from __future__ import annotations

from cnimeta.errors import CniError, IoFailure, shown
from cnimeta.namedtuple import NamedTuple

COMMENT_MAX_BYTES = 127
"""What nft's own limit of 128 leaves beside the end."""


class Table(NamedTuple):
    """The table itself."""

    name: str

    def render(self, verb: str, _table: str, _comment: str) -> str:
        """The line of nft's language."""
        return f"{verb} table inet {self.name}"


class Hook(NamedTuple):
    """Where a base chain is called: its type ("nat"), its hook ("prerouting"), its priority ("dstnat" or a number)."""

    type: str
    point: str
    priority: str


class Chain(NamedTuple):
    """A chain; one with a hook is a base chain and accepts what its rules do not decide."""

    name: str
    hook: Hook | None = None

    def render(self, verb: str, table: str, _comment: str) -> str:
        """The line of nft's language."""
        line = f"{verb} chain inet {table} {self.name}"
        if self.hook is None:
            return line
        return (
            f"{line} {{ type {self.hook.type} hook {self.hook.point} priority {self.hook.priority}; policy accept; }}"
        )


class Map(NamedTuple):
    """A map; `key` and `value` are types ("inet_proto . inet_service"). With `interval` a key may be a range."""

    name: str
    key: str
    value: str
    interval: bool = False

    def render(self, verb: str, table: str, _comment: str) -> str:
        """The line of nft's language."""
        flags = " flags interval;" if self.interval else ""
        return f"{verb} map inet {table} {self.name} {{ type {self.key} : {self.value};{flags} }}"


class Rule(NamedTuple):
    """A rule of a chain. `handle` is the kernel's number for it, which a listed rule has; it is deleted by that."""

    chain: str
    text: str
    handle: str = ""

    def render(self, verb: str, table: str, comment: str) -> str:
        """The line of nft's language."""
        if verb == "delete":
            return f"delete rule inet {table} {self.chain} handle {self.handle}"
        return f"{verb} rule inet {table} {self.chain} {self.text}{_said(comment)}"


class Element(NamedTuple):
    """An element of a map; it is deleted by its key alone."""

    map: str
    key: str
    value: str

    def render(self, verb: str, table: str, comment: str) -> str:
        """The line of nft's language."""
        if verb == "delete":
            return f"delete element inet {table} {self.map} {{ {self.key} }}"
        said = _said(comment)
        return f"{verb} element inet {table} {self.map} {{ {self.key}{said} : {self.value} }}"


class Change(NamedTuple):
    """One change to a table.

    add: it may be there, but then it must be equal; create: it must not be there; delete: it must be there;
    flush (a chain): its rules go, the chain stays. The comment, on a rule or an element that is added, is for people:
    to the kernel, elements with other comments are equal.
    """

    verb: str
    item: Table | Chain | Map | Rule | Element
    comment: str = ""

    def render(self, table: str) -> str:
        """The line of nft's language."""
        return self.item.render(self.verb, table, self.comment)


class Refusal(CniError):
    """The kernel refused one change, and with it the whole transaction.

    kind: "exists" (EEXIST), "missing" (ENOENT), "changed" (ERESTART: since the generation that was named) or "other";
    `index` of the change, -1 when unknown.
    """

    code = IoFailure.code

    def __init__(self, kind: str, index: int, msg: str) -> None:
        super().__init__(msg)
        self.kind = kind
        self.index = index


def _said(comment: str) -> str:
    """A comment in nft's language."""
    return f' comment "{require_comment(comment)}"' if comment else ""


def require_comment(comment: str) -> str:
    """The comment. IoFailure (code 5) for one that nft could not print or read again.

    Its language has no way to quote a quote: what follows one would be read as rules.
    """
    if '"' in comment or not comment.isprintable() or len(comment.encode()) > COMMENT_MAX_BYTES:
        raise IoFailure(f"nftables rules cannot carry the comment {shown(comment)}")
    return comment
