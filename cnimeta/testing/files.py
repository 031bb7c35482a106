"""Files in memory, with a fault or a kill at any step, and with what a power loss would leave.

Each write takes four steps, as the real adapter's does: the temporary file, its fsync, the rename, the folder's fsync;
each removal two: the unlink, the folder's fsync. `fail_at` and `kill_at` count steps from the moment they are set.
"""

from __future__ import annotations

import errno
import os
from typing import TYPE_CHECKING

from cnimeta.testing.faults import Killed as Killed
from cnimeta.testing.faults import Steps

if TYPE_CHECKING:
    from collections.abc import Callable

_TEMPORARY = ".tmp-"


class MemoryFiles(Steps):
    """Files for tests. `content` is what a reader sees, by path."""

    def __init__(self) -> None:
        super().__init__()
        self.content: dict[str, bytes] = {}
        self.reads: list[str] = []
        """Every path read and every folder listed (with a slash behind it)."""
        self.unreadable: dict[str, int] = {}
        """Paths (a folder's with a slash behind it) whose reading fails, with the errno."""
        self._older: dict[str, list[bytes | None]] = {}

    # --- the Files protocol ----------------------------------------------------------------------------

    def read(self, path: str) -> bytes | None:
        """The content, or None."""
        self._noted(path)
        if self._is_folder(path):
            raise _refused(errno.EISDIR, path)
        return self.content.get(path)

    def write(self, path: str, data: bytes) -> None:
        """Replace `path`, in four steps."""
        folder, name = os.path.split(path)
        temporary = f"{folder}/{_TEMPORARY}{name}"
        if folder in self.content or self._is_folder(path):
            raise _refused(errno.ENOTDIR if folder in self.content else errno.EISDIR, path)
        try:
            self._step(f"create {temporary}")
            self.content[temporary] = b""
            self._step(f"fsync {temporary}")
            self._step(f"rename {path}")
        except OSError:
            self.content.pop(temporary, None)
            raise
        self.content.pop(temporary, None)
        self._change(path, data)
        self._step(f"fsync {folder}/")
        self._settle(folder)

    def remove(self, path: str) -> None:
        """Remove `path`, in two steps; none for a missing file."""
        folder, name = os.path.split(path)
        if self._is_folder(path):
            raise _refused(errno.EISDIR, path)
        self.content.pop(f"{folder}/{_TEMPORARY}{name}", None)
        if path not in self.content:
            return
        self._step(f"unlink {path}")
        self._change(path, None)
        self._step(f"fsync {folder}/")
        self._settle(folder)

    def names(self, folder: str) -> list[str]:
        """The files of a folder, unfinished ones left out."""
        self._noted(folder + "/")
        if folder in self.content:
            raise _refused(errno.ENOTDIR, folder)
        names = [os.path.basename(path) for path in self.content if os.path.dirname(path) == folder]
        return sorted(name for name in names if not name.startswith(_TEMPORARY))

    def any_name(self, folder: str, suffix: str) -> bool:
        """Whether the folder has a file whose name ends so."""
        return any(name.endswith(suffix) for name in self.names(folder))

    # --- what tests do to it ---------------------------------------------------------------------------

    def fail_at(self, step: int, number: int = errno.ENOSPC, *, lasting: bool = False) -> None:
        """Let the step-th step from now (1 for the next) fail with this errno; `lasting`: and all after it."""
        self._arm(step, lambda: _refused(number), lasting=lasting)

    def power_loss(self, keep: Callable[[str], bool] = lambda _: False) -> None:
        """Lose what was never synchronised: each such path falls back, unless `keep` says its rename got through."""
        for path, versions in self._older.items():
            if not keep(path):
                self._set(path, versions[0])
        self._older.clear()
        for path in [path for path in self.content if os.path.basename(path).startswith(_TEMPORARY)]:
            del self.content[path]

    # --- inside ----------------------------------------------------------------------------------------

    def _noted(self, path: str) -> None:
        self.reads.append(path)
        if path in self.unreadable:
            raise _refused(self.unreadable[path], path)

    def _is_folder(self, path: str) -> bool:
        return any(other.startswith(path + "/") for other in self.content)

    def _change(self, path: str, data: bytes | None) -> None:
        self._older.setdefault(path, []).append(self.content.get(path))
        self._set(path, data)

    def _set(self, path: str, data: bytes | None) -> None:
        if data is None:
            self.content.pop(path, None)
        else:
            self.content[path] = data

    def _settle(self, folder: str) -> None:
        for path in [path for path in self._older if os.path.dirname(path) == folder]:
            del self._older[path]


def _refused(number: int, path: str | None = None) -> OSError:
    return OSError(number, os.strerror(number), path)
