"""A lock for tests in one process, which notices when it is taken twice."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from cnimeta.errors import TryAgainLater

if TYPE_CHECKING:
    from collections.abc import Iterator


class FakeLock:
    """Lock for tests. `busy` makes it time out; `is_held` tells whether code runs under it; `times` counts holds."""

    def __init__(self) -> None:
        self.busy = False
        self.is_held = False
        self.times = 0

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Hold it; a second hold inside the first is a deadlock in the making and fails the test."""
        assert not self.is_held, "the lock is already held by this process"
        if self.busy:
            raise TryAgainLater("the lock could not be acquired within 0 s: another process holds it")
        self.is_held = True
        self.times += 1
        try:
            yield
        finally:
            self.is_held = False
