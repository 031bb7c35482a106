"""What the doctor says of one thing."""

from __future__ import annotations

from typing import NamedTuple


class Finding(NamedTuple):
    """One thing looked at. state: ok, warn (something works less well) or fail (something does not work)."""

    what: str
    state: str
    message: str
