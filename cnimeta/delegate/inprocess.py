"""Running a delegate that is itself a cnimeta plugin without a new process.

The executable found in CNI_PATH decides, not its name: only a launcher that `cnimeta install` wrote, for this very
installation, is short-cut, whoever wrote the plugin; anything else (Debian's portmap, say) runs as a process. The
protocol is the same text in and out, served by `cnimeta.plugin.dispatch.run`, so behaviour is identical.
"""

from __future__ import annotations

import os

from cnimeta.errors import IoFailure
from cnimeta.host.values import Completed
from cnimeta.plugin.bundle import take
from cnimeta.plugin.dispatch import run
from cnimeta.plugin.launcher import package_folder, read_target
from cnimeta.plugin.registry import load

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cnimeta.host.protocols import PluginExec


class InProcessExec:
    """A PluginExec that serves the launchers of this installation here and hands everything else to `fallback`."""

    def __init__(self, fallback: PluginExec, log: Callable[[str], None]) -> None:
        self.fallback = fallback
        self.log = log

    def run(self, path: str, environ: Mapping[str, str], stdin: bytes) -> Completed:
        """As `ProcessExec.run`."""
        target = read_target(path)
        if target is None:
            return self.fallback.run(path, environ, stdin)
        try:
            take(package_folder(), target, os.path.basename(path))
            plugin = load(target)
        except IoFailure as error:
            self.log(f"{path} runs as a process of its own: {error}")
            return self.fallback.run(path, environ, stdin)
        outcome = run(plugin, environ, stdin, self.log)
        return Completed(outcome.status, outcome.stdout.encode())
