"""Running a delegate that is itself a cnimeta plugin without a new process.

The executable found in CNI_PATH decides, not its name: only a launcher that `cnimeta install` wrote, for this very
installation, is short-cut; anything else (Debian's portmap under the same name, say) runs as a process. The
protocol is the same text in and out, served by `cnimeta.plugin.dispatch.run`, so behaviour is identical.
"""

from __future__ import annotations

from cnimeta.host.values import Completed
from cnimeta.launcher import read_target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cnimeta.host.protocols import PluginExec


class InProcessExec:
    """A PluginExec that serves cnimeta's own launchers here and hands everything else to `fallback`."""

    def __init__(self, fallback: PluginExec, log: Callable[[str], None]) -> None:
        self.fallback = fallback
        self.log = log

    def run(self, path: str, environ: Mapping[str, str], stdin: bytes) -> Completed:
        """As `ProcessExec.run`."""
        target = read_target(path)
        if target is None:
            return self.fallback.run(path, environ, stdin)
        from cnimeta.plugin.dispatch import run

        outcome = run(target.load(), environ, stdin, self.log)
        return Completed(outcome.status, outcome.stdout.encode())
