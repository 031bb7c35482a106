"""The node's addresses, as told."""

from __future__ import annotations


class FakeAddresses:
    """NodeAddresses for tests: the first one of each family that is not local to the node, IPv4 before IPv6."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    def primary(self) -> tuple[str, ...]:
        """At most one address per family."""
        usable = [one for one in self.addresses if not one.lower().startswith(("fe80:", "127.", "169.254.", "::1"))]
        firsts = [next((one for one in usable if (":" in one) == six), "") for six in (False, True)]
        return tuple(filter(None, firsts))
