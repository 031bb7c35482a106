"""Metrics as values, and Prometheus's text format for them. Pure.

https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
"""

from __future__ import annotations

from cnimeta.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from typing import TypeAlias

    Labels: TypeAlias = tuple[tuple[str, str], ...]
    """(name, value), in order."""

GAUGE, COUNTER, HISTOGRAM = "gauge", "counter", "histogram"


class Sample(NamedTuple):
    """One value of a metric. `suffix`: of its name, in a histogram."""

    value: float
    labels: Labels = ()
    suffix: str = ""


class Metric(NamedTuple):
    """What it is called, what it says, and its values now."""

    name: str
    about: str
    samples: Sequence[Sample]
    kind: str = GAUGE


def gauge(name: str, about: str, value: float) -> Metric:
    """A metric with one value and no labels."""
    return Metric(name, about, (Sample(value),))


def counter(name: str, about: str, *known: Labels) -> Metric:
    """A counter that a plugin counts by `cnimeta.observe.notes.count`: zeros for the labels that are known beforehand,
    so that the first time is seen as an increase.
    """
    return Metric(name, about, tuple(Sample(0, labels) for labels in known), COUNTER)


def merged(metrics: Iterable[Metric]) -> list[Metric]:
    """Metrics of one name as one; counters' samples with the same labels are added up."""
    found: dict[str, Metric] = {}
    for metric in metrics:
        before = found.get(metric.name)
        found[metric.name] = metric if before is None else _added(before, metric)
    return list(found.values())


def _added(one: Metric, other: Metric) -> Metric:
    values: dict[tuple[Labels, str], float] = {}
    for sample in (*one.samples, *other.samples):
        key = tuple(sorted(sample.labels)), sample.suffix
        before = values.get(key, 0) if one.kind != GAUGE else 0
        values[key] = before + sample.value
    samples = [Sample(value, labels, suffix) for (labels, suffix), value in values.items()]
    return Metric(one.name, one.about or other.about, samples, one.kind)


def render(metrics: Iterable[Metric]) -> str:
    """The text; a metric without samples is left out, since it says nothing."""
    lines = []
    for metric in metrics:
        if not metric.samples:
            continue
        about = metric.about.replace("\\", "\\\\").replace("\n", "\\n")
        lines += [f"# HELP {metric.name} {about}", f"# TYPE {metric.name} {metric.kind}"]
        lines += [f"{metric.name}{sample.suffix}{_labels(sample)} {sample.value + 0!r}" for sample in metric.samples]
    return "".join(f"{line}\n" for line in lines)


def _labels(sample: Sample) -> str:
    if not sample.labels:
        return ""
    pairs = (f'{name}="{_escaped(value)}"' for name, value in sample.labels)
    return f"{{{','.join(pairs)}}}"


def _escaped(value: str) -> str:
    plain = value.encode("utf-8", "replace").decode()  # half a surrogate pair is no UTF-8
    return plain.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
