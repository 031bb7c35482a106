"""A hook in memory."""

from __future__ import annotations

import json
from typing import Any


class FakeHook:
    """Hook for tests: `events` it has taken, and `refusals`, of which each of the next calls gets one."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.refusals: list[str] = []
        self.calls = 0
        """How often it was told anything."""

    def tell(self, event: bytes, timeout_s: float) -> str:
        """Take the event, unless a refusal is set."""
        assert timeout_s > 0
        self.calls += 1
        refusal = self.refusals.pop(0) if self.refusals else ""
        if not refusal:
            self.events.append(json.loads(event))
        return refusal
