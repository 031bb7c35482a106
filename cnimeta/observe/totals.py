"""What reports add up to: counters and histograms that only grow until the node is started again. Pure."""

from __future__ import annotations

from cnimeta.namedtuple import NamedTuple
from cnimeta.observe.metrics import COUNTER, HISTOGRAM, Metric, Sample

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cnimeta.observe.metrics import Labels

BUCKETS_S = (0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
SERIES_MAX = 2000
"""Of all names and labels together; what would be more is counted by `DROPPED`."""

OPERATIONS = "cnimeta_operation_duration_seconds"
DELEGATES = "cnimeta_delegate_duration_seconds"
WAITS = "cnimeta_lock_wait_seconds"
LAUNCHES = "cnimeta_launches_total"
LOGGED = "cnimeta_agent_log_total"
DROPPED = "cnimeta_reports_dropped_total"
ABOUT = {
    OPERATIONS: "Seconds that a verb of a plugin took, by the code that it answered with (0: it succeeded)",
    DELEGATES: "Seconds that a plugin took which another one called",
    WAITS: "Seconds waited for a lock that was not free",
    LAUNCHES: "Invocations by how they were served: by the agent, alone in vain of one (fallback), or alone",
    LOGGED: "Lines that the agent has logged of what is not as it should be, by level",
    DROPPED: "Reports that could not be read or would make too many series",
}
_AGENT_EVENTS = {"agent warning": "warning", "agent error": "error"}
_NAME = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_")
_LABEL_MAX = 128


class Said(NamedTuple):
    """Something that the agent has logged, and when."""

    at: float
    text: str


class Totals:
    """Sums. `folded`: what the last lines that are in them are known by."""

    def __init__(self) -> None:
        self.folded = ""
        self.counters: dict[tuple[str, Labels], float] = {}
        self.histograms: dict[tuple[str, Labels], list[float]] = {}
        """For each bucket how many are in it and not in a smaller one, those above all, and their sum."""
        self.last_error: Said | None = None
        self.agent: dict[str, object] = {}
        """What the agent said of itself when it last started."""

    def add(self, report: Mapping[str, object]) -> None:
        """Add one report, by whomever it was written: one that is not as it should be is counted as dropped."""
        try:
            if "verb" in report:
                self._add_operation(report)
            else:
                self._add_event(report)
            for name, labels in _items(report.get("counted"), 2):
                self._count(_name(name), tuple((_name(one), _text(value)) for one, value in _items(labels, 2)))
        except (TypeError, ValueError, KeyError):
            self.drop()

    def drop(self) -> None:
        """A report is lost."""
        self.counters[DROPPED, ()] = self.counters.get((DROPPED, ()), 0) + 1

    def _add_operation(self, report: Mapping[str, object]) -> None:
        plugin, verb = _text(report["plugin"]), _text(report["verb"])
        self._observe(OPERATIONS, _operation(plugin, verb, report["code"]), report["seconds"])
        self._count(LAUNCHES, (("plugin", plugin), ("way", _text(report["way"]))))
        for name, asked, code, _, seconds in _items(report.get("called"), 5):
            self._observe(DELEGATES, _operation(_text(name), _text(asked), code), seconds)
        for lock, seconds in _items(report.get("waits"), 2):
            self._observe(WAITS, (("lock", _text(lock)),), seconds)

    def _add_event(self, report: Mapping[str, object]) -> None:
        name = _text(report["event"])
        if name in _AGENT_EVENTS:
            self._count(LOGGED, (("level", _AGENT_EVENTS[name]),))
            if _AGENT_EVENTS[name] == "error":
                self.last_error = Said(_number(report["at"]), str(report.get("text", "")))
        if name == "agent started":
            self.agent = {key: value for key, value in report.items() if key not in ("event", "counted")}

    def _count(self, name: str, labels: Labels) -> None:
        key = name, labels
        if key in self.counters or self._may_grow():
            self.counters[key] = self.counters.get(key, 0) + 1

    def _observe(self, name: str, labels: Labels, seconds: object) -> None:
        value, key = _number(seconds), (name, labels)
        if key not in self.histograms and not self._may_grow():
            return
        sums = self.histograms.setdefault(key, [0.0] * (len(BUCKETS_S) + 2))
        sums[next((at for at, bound in enumerate(BUCKETS_S) if value <= bound), len(BUCKETS_S))] += 1
        sums[-1] += value

    def _may_grow(self) -> bool:
        if len(self.counters) + len(self.histograms) < SERIES_MAX:
            return True
        self.drop()
        return False

    # --- as metrics, and as JSON -----------------------------------------------------------------------

    def metrics(self) -> Iterator[Metric]:
        """All of them; counters that only plugins know have no help here."""
        yield Metric(DROPPED, ABOUT[DROPPED], [Sample(0)], COUNTER)
        names = {name for name, _ in self.histograms}
        for name in sorted(names):
            samples = [
                sample
                for (of, labels), sums in sorted(self.histograms.items())
                if of == name
                for sample in _histogram(labels, sums)
            ]
            yield Metric(name, ABOUT.get(name, ""), samples, HISTOGRAM)
        for name in sorted({name for name, _ in self.counters}):
            values = [Sample(value, labels) for (of, labels), value in sorted(self.counters.items()) if of == name]
            yield Metric(name, ABOUT.get(name, ""), values, COUNTER)

    def as_json(self) -> dict[str, object]:
        """For `read`."""
        return {
            "version": 1,
            "folded": self.folded,
            "counters": [[name, labels, value] for (name, labels), value in self.counters.items()],
            "histograms": [[name, labels, sums] for (name, labels), sums in self.histograms.items()],
            "lastError": self.last_error,
            "agent": self.agent,
        }

    @classmethod
    def read(cls, document: Mapping[str, object]) -> Totals:
        """From `as_json`. What another version wrote, or nobody, begins anew. Raises ValueError, TypeError."""
        found = cls()
        if document.get("version") != 1:
            return found
        found.folded = str(document.get("folded", ""))
        for name, labels, value in _items(document.get("counters"), 3):
            found.counters[_name(name), _labels(labels)] = _number(value)
        for name, labels, sums in _items(document.get("histograms"), 3):
            numbers = [_number(one) for one in sums] if isinstance(sums, list) else []
            if len(numbers) == len(BUCKETS_S) + 2:
                found.histograms[_name(name), _labels(labels)] = numbers
        error, agent = document.get("lastError"), document.get("agent")
        if isinstance(error, list) and len(error) == 2:
            found.last_error = Said(_number(error[0]), str(error[1]))
        found.agent = agent if isinstance(agent, dict) else {}
        return found


def zeros(plugins: Mapping[str, object]) -> Iterator[Metric]:
    """What is counted of every plugin before anything was: so that the first time is seen as an increase."""
    empty = [0.0] * (len(BUCKETS_S) + 2)
    labels = [_operation(plugin, verb, 0) for plugin in plugins for verb in ("ADD", "DEL", "CHECK")]
    yield Metric(OPERATIONS, ABOUT[OPERATIONS], [one for of in labels for one in _histogram(of, empty)], HISTOGRAM)
    ways = [(("plugin", plugin), ("way", way)) for plugin in plugins for way in ("agent", "fallback", "alone")]
    yield Metric(LAUNCHES, ABOUT[LAUNCHES], [Sample(0, of) for of in ways], COUNTER)
    locks = [(("lock", lock),) for lock in ("attachment", "database", "xtables")]
    yield Metric(WAITS, ABOUT[WAITS], [one for of in locks for one in _histogram(of, empty)], HISTOGRAM)
    levels = [(("level", level),) for level in ("warning", "error")]
    yield Metric(LOGGED, ABOUT[LOGGED], [Sample(0, of) for of in levels], COUNTER)


def _histogram(labels: Labels, sums: list[float]) -> Iterator[Sample]:
    count = 0.0
    for bound, more in zip((*BUCKETS_S, float("inf")), sums[:-1], strict=True):
        count += more
        yield Sample(count, (*labels, ("le", "+Inf" if bound == float("inf") else f"{bound:g}")), "_bucket")
    yield Sample(sums[-1], labels, "_sum")
    yield Sample(count, labels, "_count")


def _operation(plugin: str, verb: str, code: object) -> Labels:
    return ("plugin", plugin), ("verb", verb), ("code", str(int(_number(code))))


def _labels(value: object) -> Labels:
    return tuple((_name(name), _text(said)) for name, said in _items(value, 2))


def _items(value: object, length: int) -> Iterator[list[object]]:
    """Lists of so many items each; none where there is nothing."""
    for item in value if isinstance(value, list | tuple) else ():
        if not isinstance(item, list | tuple) or len(item) != length:
            raise ValueError("not of its shape")
        yield list(item)


def _name(value: object) -> str:
    text = _text(value)
    if not text or not _NAME.issuperset(text) or text[0].isdigit():
        raise ValueError("no name of a metric")
    return text


def _text(value: object) -> str:
    if not isinstance(value, str) or len(value) > _LABEL_MAX:
        raise ValueError("no label")
    return value


def _number(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e15:
        raise ValueError("no number")
    return float(value)
