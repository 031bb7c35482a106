"""What each plugin of a chain got and gave, and how long it took: an executor that writes it down, and its pictures."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from cnimeta.errors import CniError
from cnimeta.namedtuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cnimeta.host.protocols import PluginExec
    from cnimeta.host.values import Completed


class Step(NamedTuple):
    """One run of a plugin. `status` is None when it could not be run, and `failure` says why."""

    plugin: str
    verb: str
    got: str
    """Its stdin."""
    gave: str
    """Its stdout."""
    said: str
    """Its stderr."""
    status: int | None
    took_ms: float
    failure: str = ""


class Recording:
    """A PluginExec that hands everything to another one. `steps` are the runs so far."""

    def __init__(self, executor: PluginExec) -> None:
        self.executor = executor
        self.steps: list[Step] = []

    def run(self, path: str, environ: Mapping[str, str], stdin: bytes) -> Completed:
        """As the other one."""
        started = time.monotonic()
        done: Completed | None = None
        failure = ""
        try:
            done = self.executor.run(path, environ, stdin)
            return done
        except CniError as error:
            failure = str(error)
            raise
        finally:
            took_ms = (time.monotonic() - started) * 1000
            texts = (stdin, done.stdout if done else b"", done.stderr if done else b"")
            got, gave, said = (text.decode("utf-8", "replace").strip() for text in texts)
            status = None if done is None else done.status
            verb = environ.get("CNI_COMMAND", "")
            self.steps.append(Step(os.path.basename(path), verb, got, gave, said, status, took_ms, failure))


def picture(steps: Iterable[Step]) -> str:
    """The chain as a line for each verb: what ran in which order, how long each took, and where it broke."""
    lines: list[str] = []
    verb = ""
    for step in steps:
        word = f"[{step.plugin} {step.took_ms:.1f} ms{'' if step.status == 0 else ' FAILED'}]"
        if step.verb == verb:
            lines[-1] += f" ─▶ {word}"
        else:
            lines.append(f"{step.verb:<7} {word}")
        verb = step.verb
    return "\n".join(lines)


def story(steps: Iterable[Step]) -> str:
    """Everything that was said, a paragraph for each run."""
    found = []
    for step in steps:
        how = step.failure or f"exit status {step.status}"
        found.append(f"{step.verb} {step.plugin}: {how}, {step.took_ms:.1f} ms")
        parts = (("got", step.got), ("gave", step.gave), ("stderr", step.said))
        found += [f"  {what:<7} {line}" for what, text in parts for line in text.splitlines()]
    return "\n".join(found)
