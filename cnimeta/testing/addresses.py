"""The node's addresses, as told."""

from __future__ import annotations


class FakeAddresses:
    """NodeAddresses for tests."""

    def __init__(self, *addresses: str) -> None:
        self.addresses = addresses

    def primary(self) -> tuple[str, ...]:
        """The addresses it was given."""
        return self.addresses
