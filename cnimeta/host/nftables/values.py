"""nftables: changes as data, and the kernel's refusal. Pure: a planner imports this and nothing that starts a process.

A `Change` is one line of nft's language in parts; the adapter writes the lines, the fake (`cnimeta.testing.netfilter`)
carries them out on dictionaries. What is known about nft 1.0.6 shapes the interface: adding an element costs the same
whatever a map holds, but listing a map, or getting one element of it, fetches all of it. So writing is blind, and the
kernel's own rules tell what is there: adding an element with other data fails (EEXIST), deleting a missing one fails
(ENOENT), a failed line undoes the whole transaction, and a dry run is judged by the kernel like a real one.
"""

from __future__ import annotations

from cnimeta.errors import CniError, IoFailure
from cnimeta.namedtuple import NamedTuple


class Change(NamedTuple):
    """One change to a table of the inet family.

    verb: add, create, delete, flush. kind: table, chain, map, rule, element. `name` is the table's, chain's or map's;
    for an element `key`, `data` and `comment`; for a rule, chain or map `data` is its text (for a deleted rule its
    handle).
    """

    verb: str
    kind: str
    name: str
    key: str = ""
    data: str = ""
    comment: str = ""

    def render(self, table: str) -> str:
        """The line of nft's language."""
        if self.kind == "table":
            return f"{self.verb} table inet {self.name}"
        head = f"{self.verb} {self.kind} inet {table} {self.name}"
        if self.kind == "element":
            comment = f' comment "{self.comment}"' if self.comment else ""
            value = f" : {self.data}" if self.data else ""
            return f"{head} {{ {self.key}{comment}{value} }}"
        if self.kind == "rule":
            if self.verb == "delete":
                return f"{head} handle {self.data}"
            return f"{head} {self.data}" + (f' comment "{self.comment}"' if self.comment else "")
        return f"{head} {{ {self.data} }}" if self.data else head


class Refusal(CniError):
    """The kernel refused one change, and with it the whole transaction.

    kind: "exists" (EEXIST), "missing" (ENOENT) or "other"; `index` of the change, -1 when unknown.
    """

    code = IoFailure.code

    def __init__(self, kind: str, index: int, msg: str) -> None:
        super().__init__(msg)
        self.kind = kind
        self.index = index
