"""The spans of a trace that a report comes to: one for the invocation, one for each plugin that it called. Pure."""

from __future__ import annotations

from cnimeta.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

_SAMPLED = 1


class Span(NamedTuple):
    """IDs are numbers; `parent` 0: it is the first of its trace. Times are nanoseconds since 1970."""

    name: str
    trace: int
    id: int
    parent: int
    began_ns: int
    ended_ns: int
    attributes: Mapping[str, str | int]
    error: str = ""
    """Why it failed, if it did."""
    is_call: bool = False
    """Of a plugin that another one called."""
    state: str = ""
    """The trace state that goes with it, as the caller gave it."""


_ATTRIBUTES = {
    "plugin": "cni.plugin",
    "verb": "cni.command",
    "network": "cni.network",
    "containerID": "cni.container_id",
    "ifname": "cni.ifname",
    "way": "cnimeta.way",
}


def spans(report: Mapping[str, object], new_id: Callable[[int], int]) -> list[Span]:
    """Of a report of an invocation, unless its caller's trace is not sampled. `new_id(bits)` gives an ID that is no 0.

    Raises ValueError, TypeError or KeyError for a report that is not as `cnimeta.plugin.report` makes it.
    """
    if "verb" not in report:
        return []
    trace, parent = _context(str(report.get("trace", "")), new_id)
    if trace == 0:
        return []
    began, seconds, code = _number(report["began"]), _number(report["seconds"]), int(_number(report["code"]))
    own = int(str(report.get("span", "")) or "0", 16) or new_id(64)
    attributes: dict[str, str | int] = {name: str(report[key]) for key, name in _ATTRIBUTES.items() if key in report}
    attributes["cni.code"] = code
    namespace, slash, pod = str(report.get("pod", "")).partition("/")
    if slash:
        attributes.update({"k8s.namespace.name": namespace, "k8s.pod.name": pod})
    state = str(report.get("traceState", ""))
    whole = Span(
        f"{report['plugin']} {report['verb']}",
        trace,
        own,
        parent,
        _ns(began),
        _ns(began + seconds),
        attributes,
        str(report.get("message", "") or code) if code else "",
        state=state,
    )
    called = report.get("called")
    return [whole, *(_call(whole, one, new_id) for one in (called if isinstance(called, list) else ()))]


def _call(whole: Span, item: list[object], new_id: Callable[[int], int]) -> Span:
    plugin, verb, code, after, seconds = item
    began_ns = whole.began_ns + _ns(_number(after))
    attributes: dict[str, str | int] = {
        "cni.plugin": str(plugin),
        "cni.command": str(verb),
        "cni.code": int(_number(code)),
    }
    return whole._replace(
        name=f"{plugin} {verb}",
        id=new_id(64),
        parent=whole.id,
        began_ns=began_ns,
        ended_ns=began_ns + _ns(_number(seconds)),
        attributes=attributes,
        error=f"error {code}" if code else "",
        is_call=True,
    )


def _context(given: str, new_id: Callable[[int], int]) -> tuple[int, int]:
    """(trace, parent); (0, 0) for a trace that is not sampled."""
    if not given:
        return new_id(128), 0
    _, trace, parent, flags = given.split("-")[:4]
    return (int(trace, 16), int(parent, 16)) if int(flags, 16) & _SAMPLED else (0, 0)


def _ns(seconds: float) -> int:
    return round(seconds * 1e9)


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError("no number")
    return float(value)
