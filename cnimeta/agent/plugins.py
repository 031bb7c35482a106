"""What the agent serves: the installed plugins, all they need imported, as long as their files stay the same."""

from __future__ import annotations

import gc
import os
import sys
from typing import TYPE_CHECKING

from cnimeta.agent.wire import identity
from cnimeta.errors import CniError
from cnimeta.plugin.launcher import package_folder
from cnimeta.plugin.registry import installed, load, preload

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cnimeta.plugin.base import Plugin

_INSTALLED = ("site-packages", "dist-packages")


class Served:
    """The installed plugins, in memory that all forks share. `log` is told of those that cannot be loaded."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self.plugins: dict[bytes, Plugin] = {}
        """By identity. Each is as it was made: whoever serves one is a fork."""
        targets = installed()
        files = {os.path.join(package_folder(), "__init__.py"), *(target.file for target in targets.values())}
        self.code = Code(source for file in files for source in _sources(file))
        for target in targets.values():
            try:
                plugin = load(target)
                preload(plugin, log)
            except CniError as error:
                log(f"{target.plugin} is left out: {error}")
            else:
                self.plugins[identity(package_folder(), target.plugin)] = plugin
        self.code.loaded()
        gc.collect()
        gc.freeze()  # a collection in a fork would copy every page


class Code:
    """The files of what is loaded: the sources of the plugins and of cnimeta themselves; of all else that they import
    the folders, which an upgrade changes. What a file was is noted before it is loaded.
    """

    def __init__(self, sources: Iterable[str]) -> None:
        self._files = sorted(set(sources))
        self._folders = sorted({os.path.dirname(file) for file in self._files})
        self._of_files = self._seen = _stamps(self._files)
        self._of_folders = _stamps(self._folders)
        self._others: list[str] = []
        self._of_others = _stamps([])

    def loaded(self) -> None:
        """Everything is imported by now."""
        modules = (module for name, module in list(sys.modules.items()) if name != "__main__")
        homes = {os.path.dirname(getattr(module, "__file__", None) or "") for module in modules}
        homes |= {folder for folder in sys.path if os.path.basename(folder) in _INSTALLED}
        self._others = sorted(folder for folder in homes.difference(self._folders) if os.path.isdir(folder))
        self._of_others = _stamps(self._others)

    def is_current(self) -> bool:
        """Whether none of the sources was added, replaced or removed: an upgrade is noticed. Some 0.2 ms.

        `is_the_same` sees more: what was written anew in its place, and what others have upgraded.
        """
        found = _stamps(self._folders)
        if found != self._of_folders:
            if _stamps(self._files) != self._of_files:
                return False
            self._of_folders = found  # a __pycache__ was made, say
        return True

    def is_the_same(self) -> bool:
        """Whether everything is as it was loaded. Some 2 ms."""
        return _stamps(self._files) == self._of_files and _stamps(self._others) == self._of_others

    def is_settled(self) -> bool:
        """Whether the sources are as when this was asked last: nobody is at work on them."""
        before, self._seen = self._seen, _stamps([*self._files, *self._folders, *self._others])
        return before == self._seen


def _sources(file: str) -> Iterator[str]:
    """The source files of a package, given its `__init__.py`, or of a module; none for a package that has no file."""
    if os.path.basename(file) != "__init__.py":
        yield from [file] if file else []
        return
    for folder, _, names in os.walk(os.path.dirname(file)):
        yield from (os.path.join(folder, name) for name in names if name.endswith(".py"))


def _stamps(paths: list[str]) -> list[tuple[int, int, int] | None]:
    """What changes when a file does; None for one that is gone."""
    return [_stamp(path) for path in paths]


def _stamp(path: str) -> tuple[int, int, int] | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_ino, found.st_size, found.st_mtime_ns
