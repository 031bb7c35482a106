"""Container namespaces in memory."""

from __future__ import annotations


class FakeNamespaces:
    """Every path leads to a namespace of its own, unless said otherwise.

    `gone`: the namespaces of these paths have ended, and nothing is there; `hidden`: these paths cannot be seen here.
    `leads_to`: what a path leads to now; the one it led to before is gone.
    """

    def __init__(self) -> None:
        self.gone: set[str] = set()
        self.hidden: set[str] = set()
        self.leads_to: dict[str, str] = {}

    def identity(self, path: str) -> str:
        """Which namespace a path leads to."""
        return "" if path in self.gone | self.hidden or not path else self.leads_to.get(path, f"4:{path}")

    def is_gone(self, path: str, identity: str) -> bool:
        """Whether that one is known to have ended."""
        return bool(identity) and path not in self.hidden and self.identity(path) != identity
