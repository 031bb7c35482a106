"""A clock that moves only when told."""

from __future__ import annotations


class FakeClock:
    """Clock for tests: `advance` moves both times, `sleep` does so too and never waits."""

    def __init__(self, now: float = 1_700_000_000.0, boottime: float = 1000.0) -> None:
        self._now = now
        self._boottime = boottime
        self.slept: list[float] = []

    def now(self) -> float:
        """Seconds since the epoch."""
        return self._now

    def boottime(self) -> float:
        """Seconds since boot."""
        return self._boottime

    def sleep(self, seconds: float) -> None:
        """Advance by `seconds`."""
        self.slept.append(seconds)
        self.advance(seconds)

    def advance(self, seconds: float) -> None:
        """Let time pass."""
        self._now += seconds
        self._boottime += seconds

    def reboot(self) -> None:
        """Start the boot time anew."""
        self._boottime = 0.0
