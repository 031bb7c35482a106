"""The agent's log: a line on stderr for each thing that it does, and the last error where `cnimeta doctor` finds it."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from cnimeta.observe.logline import ERROR, INFO, JSON_LINES, TEXT, WARNING, body, text
from cnimeta.plugin.report import event, line
from cnimeta.spec.jsonio import dumps
from cnimeta.spec.trace import TraceContext

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cnimeta.host.spool import Spool
    from cnimeta.observe.logline import Value
    from cnimeta.spec.jsonio import JSON

_STDERR = 2
_IDENTITY = ("plugin", "verb", "containerID", "ifname", "network", "pod")


class Log:
    """Writes whole lines to a descriptor. `spool`: where errors are left too."""

    def __init__(self, form: str = TEXT, spool: Spool | None = None, descriptor: int = _STDERR) -> None:
        self.form = form
        self._spool = spool
        self._descriptor = descriptor
        self._journal = form == TEXT and _is_journal(descriptor)

    def __call__(self, message: str) -> None:
        """Something is not as it should be, and goes on all the same."""
        self.warning(message)

    def kept(self) -> Log:
        """The same, for a process whose stderr becomes somebody else's."""
        return Log(self.form, self._spool, os.dup(self._descriptor))

    def info(self, message: str, **fields: Value) -> None:
        """Something was done."""
        self._write(INFO, message, fields)

    def warning(self, message: str, **fields: Value) -> None:
        """As calling it."""
        self._write(WARNING, message, fields)
        self._leave("agent warning", message)

    def error(self, message: str, **fields: Value) -> None:
        """Something failed."""
        self._write(ERROR, message, fields)
        self._leave("agent error", message)

    def served(self, report: Mapping[str, JSON]) -> None:
        """An invocation was answered: its report."""
        identity: dict[str, Value] = {name: str(report[name]) for name in _IDENTITY if name in report}
        identity["code"] = _number(report.get("code"))
        identity["seconds"] = _number(report.get("seconds"))
        trace = report.get("trace")
        if isinstance(trace, str):
            context = TraceContext(trace)
            identity.update(traceID=context.trace_id, spanID=context.span_id)
        said = report.get("message")
        self._write(ERROR if said else INFO, f"error: {said}" if said else "served", identity)

    def _leave(self, name: str, message: str) -> None:
        if self._spool is not None:
            self._spool.append(line(event(name, text=message[:1000])))

    def _write(self, level: str, message: str, fields: Mapping[str, Value]) -> None:
        if self.form == JSON_LINES:
            written = dumps(dict(body(level, message, fields, time.time())))
        else:
            written = text(level, message, fields, priority=self._journal)
        try:
            os.write(self._descriptor, (written + "\n").encode("utf-8", "backslashreplace"))
        except OSError:  # refused: nobody reads
            pass


def _number(value: object) -> int | float:
    return value if isinstance(value, int | float) else 0


def _is_journal(descriptor: int) -> bool:
    """Whether it is the journal's socket: systemd.exec(5), JOURNAL_STREAM."""
    try:
        found = os.fstat(descriptor)
    except OSError:
        return False
    return os.environ.get("JOURNAL_STREAM", "") == f"{found.st_dev}:{found.st_ino}"
