"""Whether the node agent serves the launchers of this installation, asked as a launcher asks; and its last error."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from cnimeta import __version__
from cnimeta.agent.wire import SOCKET, VARIABLE
from cnimeta.errors import CniError, legible, shown
from cnimeta.node.doctor.finding import Finding
from cnimeta.node.monitor.collected import agent_is_alive
from cnimeta.node.monitor.ledger import Ledger
from cnimeta.observe import notes
from cnimeta.observe.totals import Totals
from cnimeta.plugin import launcher, registry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

_ASKED_S = 30.0
_ASKING = "import sys, cnimeta; from cnimeta.agent.client import hand_over; hand_over({!r}); print('alone')"
"""Ends with the agent's answer, or says that there is none."""
_VERB = "DOCTOR"
"""None that any plugin has: the answer is error 4, and nothing acts."""
_RECENT_S = 24 * 3600.0


def agent(bin_dirs: Sequence[str]) -> Iterator[Finding]:
    """The agent, beside the launchers that ask one; nothing where there is neither."""
    path = os.environ.get(VARIABLE) or SOCKET
    if os.path.exists(path):
        totals = Totals()
        try:
            totals = Ledger(os.environ.get(notes.VARIABLE) or notes.FOLDER).read()
        except CniError as error:
            yield Finding("agent log", "warn", str(error))
        yield _served(path, totals)
        yield from _last_error(totals)
        return
    asking = [name for name in registry.installed() if any(_asks(folder, name) for folder in bin_dirs)]
    if asking:
        said = f"{', '.join(asking)} ask one at {path}, and there is none: they work alone, which takes longer"
        yield Finding("agent", "warn", said)


def _asks(folder: str, name: str) -> bool:
    path = os.path.join(folder, name)
    return launcher.is_native(path) or launcher.asks_agent(path)


def _served(path: str, totals: Totals) -> Finding:
    from cnimeta.host.process import TooSlow, run_program

    (target, *_) = registry.installed().values()
    environ = {"CNI_COMMAND": _VERB, VARIABLE: path}
    try:
        done = run_program([sys.executable, "-P", "-c", _ASKING.format(target.plugin)], environ, timeout_s=_ASKED_S)
    except (CniError, TooSlow) as error:
        return Finding("agent", "warn", f"{path}: {error}")
    if f"unknown CNI_COMMAND: {shown(_VERB)}" in done.stdout.decode("utf-8", "replace").replace("\\", ""):
        running = str(totals.agent.get("version", "")) if agent_is_alive(totals) else ""
        return Finding("agent", "ok", f"{path}, process {totals.agent['pid']}, {running}" if running else path)
    if done.stdout.strip() == b"alone":
        why = f"gone, or of another installation than {launcher.package_folder()}, {__version__}"
        return Finding("agent", "warn", f"{path}: no launcher of ours is served: the agent is {why}; its log says more")
    return Finding("agent", "warn", f"{path} gives no answer: {done.complaint}")


def _last_error(totals: Totals) -> Iterator[Finding]:
    error = totals.last_error
    if error is not None and time.time() - error.at < _RECENT_S:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(error.at))
        yield Finding("agent log", "warn", f"its last error, {when}: {legible(error.text, 500)}")
