"""The system's clock."""

from __future__ import annotations

import time

from cnimeta.errors import IoFailure
from cnimeta.host.reading import read_file

_BOOT_ID = "/proc/sys/kernel/random/boot_id"


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


def boot_id(path: str = _BOOT_ID) -> str:
    """A text that is the same until the next boot; host rules and namespaces do not outlive it.

    IoFailure (code 5) when it cannot be read: every record would look like one of another boot.
    """
    found = (read_file(path) or b"").decode("ascii", "replace").strip()
    if not found:
        raise IoFailure(f"{path} does not tell the boot: is /proc there?")
    return found
