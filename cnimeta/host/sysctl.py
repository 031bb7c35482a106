"""Kernel settings under /proc/sys, of this process's network namespace."""

from __future__ import annotations

from cnimeta.errors import IoFailure


class ProcSysctl:
    """The Sysctl adapter on /proc/sys, or what stands there in its place."""

    def __init__(self, root: str = "/proc/sys") -> None:
        self._root = root

    def ensure(self, name: str, value: str) -> None:
        """Set `name` (with slashes: `net/ipv4/conf/eth0/route_localnet`) unless it is `value` already.

        Raises IoFailure (code 5).
        """
        path = f"{self._root}/{name}"
        try:
            with open(path, encoding="ascii") as file:
                if file.read().strip() == value:
                    return
            with open(path, "w", encoding="ascii") as file:
                file.write(value)
        except OSError as error:
            raise IoFailure(f"cannot set {path} to {value}: {error.strerror or error}") from None

    def read(self, name: str) -> str:
        """The value; empty when there is no such setting. Raises IoFailure (code 5)."""
        path = f"{self._root}/{name}"
        try:
            with open(path, encoding="ascii") as file:
                return file.read().strip()
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise IoFailure(f"cannot read {path}: {error.strerror or error}") from None
