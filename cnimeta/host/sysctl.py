"""Kernel settings under /proc/sys, of this process's network namespace."""

from __future__ import annotations

import os

from cnimeta.errors import IoFailure
from cnimeta.host.reading import read_setting

_FOLDERS = ("/etc/sysctl.d", "/run/sysctl.d", "/usr/local/lib/sysctl.d", "/usr/lib/sysctl.d", "/lib/sysctl.d")
_FILE_MAX_BYTES = 1 << 20


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
            if read_setting(path).decode().strip() == value:
                return
            with open(path, "w", encoding="ascii") as file:
                file.write(value + "\n")  # an empty write is none: without the line end a list could not be emptied
        except OSError as error:
            raise IoFailure(f"cannot set {path} to {value}: {error.strerror or error}") from None

    def read(self, name: str) -> str:
        """The value; empty when there is no such setting. Raises IoFailure (code 5)."""
        path = f"{self._root}/{name}"
        try:
            return read_setting(path).decode().strip()
        except FileNotFoundError:
            return ""
        except OSError as error:
            raise IoFailure(f"cannot read {path}: {error.strerror or error}") from None

    def configured(self, name: str) -> list[str]:
        """The values that files of sysctl.d(5) have for a setting. Raises IoFailure (code 5)."""
        from cnimeta.host.reading import read_plain

        found = []
        for path in _configuration_files():
            try:
                lines = read_plain(path, _FILE_MAX_BYTES).decode("utf-8", "replace").splitlines()
            except FileNotFoundError:
                continue
            except OSError as error:
                raise IoFailure(f"cannot read {path}: {error.strerror or error}") from None
            for line in lines:
                key, _, value = line.strip().removeprefix("-").partition("=")
                if key.strip().replace(".", "/") == name:
                    found.append(value.strip())
        return found


def _configuration_files() -> list[str]:
    found = ["/etc/sysctl.conf"]
    for folder in _FOLDERS:
        try:
            found += [f"{folder}/{file}" for file in sorted(os.listdir(folder)) if file.endswith(".conf")]
        except (FileNotFoundError, NotADirectoryError):
            continue
        except OSError as error:
            raise IoFailure(f"cannot read {folder}: {error.strerror or error}") from None
    return found
