"""The node's ports as sets to fill in: sockets, settings, redirect rules."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


class FakeSockets:
    """Sockets for tests. `busy` ports are seen and cannot be bound; `hidden` ones are only met by the probe."""

    def __init__(
        self,
        busy: Iterable[tuple[str, int]] = (),
        hidden: Iterable[tuple[str, int]] = (),
        reserved: Iterable[tuple[int, int]] = (),
        ephemeral: tuple[int, int] = (32768, 60999),
    ) -> None:
        self.busy = set(busy)
        self.hidden = set(hidden)
        self.reserved_spans = list(reserved)
        self.ephemeral_range = ephemeral
        self.probed: list[tuple[str, int]] = []

    def in_use(self) -> Iterable[tuple[str, int]]:
        """The busy ports."""
        return set(self.busy)

    def reserved(self) -> Iterable[tuple[int, int]]:
        """The reserved spans."""
        return list(self.reserved_spans)

    def ephemeral(self) -> tuple[int, int]:
        """The ephemeral range."""
        return self.ephemeral_range

    def can_listen(self, protocol: str, port: int) -> bool:
        """False for busy and hidden ports; every question is kept in `probed`."""
        self.probed.append((protocol, port))
        return (protocol, port) not in self.busy | self.hidden

    def is_unused(self, protocol: str, port: int) -> bool:
        """As `can_listen`: nothing here is in TIME_WAIT."""
        return self.can_listen(protocol, port)


class FakePortScan:
    """PortScan for tests: the spans it is given."""

    def __init__(self, spans: Iterable[tuple[str, int, int]] = ()) -> None:
        self.spans = list(spans)

    def redirected(self) -> list[tuple[str, int, int]]:
        """The spans."""
        return list(self.spans)
