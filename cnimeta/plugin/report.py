"""What one invocation tells of itself when its answer is out: a line of JSON for metrics, logs and traces.

It has who asked for what, for which container, how it ended and how long everything took. Words of others are cut, and
have nothing in them that a terminal or a log would act on.
"""

from __future__ import annotations

import os
import time

from cnimeta.errors import legible
from cnimeta.observe import notes
from cnimeta.plugin.base import VERBS
from cnimeta.spec.jsonio import dumps
from cnimeta.spec.trace import TraceContext

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping, MutableMapping

    from cnimeta.observe.notes import Notes
    from cnimeta.spec.jsonio import JSON

AGENT, FALLBACK, ALONE = "agent", "fallback", "alone"
"""How a launcher's work was done: by a worker of the agent; by itself, though it asks agents; by itself, as always."""
_WORD, _MESSAGE = 256, 300
_DIGITS = 6


def leave(noted: Notes, environ: Mapping[str, str], folder: str, way: str) -> None:
    """Leave the report of this process in a folder. Never raises."""
    body = report(noted, environ, way)
    if body is not None:
        from cnimeta.host.spool import Spool

        Spool(folder).append(line(body))


def enter_span(environ: MutableMapping[str, str]) -> None:
    """Make this invocation a span of the trace that it is in; from here on the environment says so, to delegates."""
    context = TraceContext.of(environ)
    if context is not None:
        child = context.child()
        notes.within(context.parent, child.span_id)
        environ.update(child.environ())


def leave_event(name: str, environ: Mapping[str, str], **fields: JSON) -> None:
    """Leave what was noted of something that is no invocation, such as a command; it ends the notes. Never raises."""
    noted = notes.end()
    folder = environ.get(notes.VARIABLE) or notes.FOLDER
    # unknown: as if nobody wants to know
    if os.path.isdir(folder) and (fields or (noted is not None and noted.counted)):
        from cnimeta.host.spool import Spool

        Spool(folder).append(line(event(name, noted, **fields)))


def event(name: str, noted: Notes | None = None, **fields: JSON) -> dict[str, JSON]:
    """Such a report."""
    return {"event": name, "at": round(time.time(), _DIGITS), **fields, "counted": _counted(noted)}


def line(body: Mapping[str, JSON]) -> bytes:
    """As it is left."""
    return (dumps(dict(body)) + "\n").encode()


def report(noted: Notes, environ: Mapping[str, str], way: str) -> dict[str, JSON] | None:
    """The report; None for a call that is not about a network: VERSION, and what is no verb."""
    verb = environ.get("CNI_COMMAND", "")
    if verb not in VERBS:
        return None
    failure = noted.failure
    trace = TraceContext.of(environ)
    words = {
        "network": noted.network,
        "containerID": environ.get("CNI_CONTAINERID", ""),
        "ifname": environ.get("CNI_IFNAME", ""),
        "pod": _pod(environ.get("CNI_ARGS", "")),
    }
    return {
        "plugin": noted.plugin or "unknown",
        "verb": verb,
        "code": failure.code if failure is not None else 0,
        **({"message": legible(str(failure), _MESSAGE)} if failure is not None else {}),
        **{name: legible(word, _WORD) for name, word in words.items() if word},
        "began": round(noted.began_s, _DIGITS),
        "seconds": round(noted.elapsed_s(), _DIGITS),
        "way": way,
        **({"trace": noted.parent or trace.parent, "traceState": trace.state[:512]} if trace is not None else {}),
        **({"span": noted.span} if noted.span else {}),
        "called": [
            [one.plugin, one.verb, one.code, round(one.after_s, _DIGITS), round(one.seconds, _DIGITS)]
            for one in noted.called
        ],
        "waits": [[lock, round(seconds, _DIGITS)] for lock, seconds in noted.waits],
        "counted": _counted(noted),
    }


def _counted(noted: Notes | None) -> JSON:
    return [[one.name, [list(pair) for pair in one.labels]] for one in (noted.counted if noted is not None else ())]


def _pod(args: str) -> str:
    """namespace/name of CNI_ARGS, as far as they are there."""
    given = dict(pair.partition("=")[::2] for pair in args.split(";"))
    names = (given.get("K8S_POD_NAMESPACE", ""), given.get("K8S_POD_NAME", ""))
    return "/".join(name for name in names if name)
