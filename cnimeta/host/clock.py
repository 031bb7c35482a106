"""The system's clock."""

from __future__ import annotations

import time


class SystemClock:
    """Clock on the real time sources."""

    def now(self) -> float:
        """Seconds since the epoch."""
        return time.time()

    def boottime(self) -> float:
        """Seconds since boot, suspend included (CLOCK_BOOTTIME)."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def sleep(self, seconds: float) -> None:
        """Wait."""
        time.sleep(seconds)


def boot_id() -> str:
    """A text that is the same until the next boot, from /proc; host rules and namespaces do not outlive it."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""
