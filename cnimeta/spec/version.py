"""CNI spec versions: which exist, how they compare, how a plugin reconciles them."""

from __future__ import annotations

from cnimeta.errors import IncompatibleVersion, shown

CURRENT = "1.1.0"
ALL = ("0.1.0", "0.2.0", "0.3.0", "0.3.1", "0.4.0", "1.0.0", "1.1.0")
"""Every released spec version, oldest first."""

IMPLIED = "0.1.0"
"""What a missing or empty cniVersion means (the reference's version/reconcile.go)."""


def parse(version: str) -> tuple[int, int, int]:
    """`"1.0"` and `"1.0.0"` → (1, 0, 0). Raises ValueError for anything else."""
    parts = version.split(".")
    if not 1 <= len(parts) <= 3 or not all(part.isascii() and part.isdigit() and len(part) < 6 for part in parts):
        raise ValueError(version)
    numbers = [int(part) for part in parts] + [0, 0]
    return numbers[0], numbers[1], numbers[2]


def at_least(version: str, other: str) -> bool:
    """Whether spec `version` is `other` or later; both must be valid."""
    return parse(version) >= parse(other)


def reconcile(version: str, supported: tuple[str, ...]) -> None:
    """Raise IncompatibleVersion (code 1) unless `version` is one the plugin supports, exactly."""
    if version not in supported:
        raise IncompatibleVersion(
            f"incompatible CNI versions: config is {shown(version)}, plugin supports {list(supported)}"
        )
