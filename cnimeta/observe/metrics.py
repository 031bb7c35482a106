"""Metrics as values, and Prometheus's text format for them. Pure.

https://prometheus.io/docs/instrumenting/exposition_formats/#text-based-format
"""

from __future__ import annotations

from cnimeta.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence


class Sample(NamedTuple):
    """One value of a metric. `labels`: (name, value), in order."""

    value: float
    labels: tuple[tuple[str, str], ...] = ()


class Metric(NamedTuple):
    """A gauge: what it is called, what it says, and its values now."""

    name: str
    about: str
    samples: Sequence[Sample]


def gauge(name: str, about: str, value: float) -> Metric:
    """A metric with one value and no labels."""
    return Metric(name, about, (Sample(value),))


def render(metrics: Iterable[Metric]) -> str:
    """The text; a metric without samples is left out, since it says nothing."""
    lines = []
    for metric in metrics:
        if not metric.samples:
            continue
        about = metric.about.replace("\\", "\\\\").replace("\n", "\\n")
        lines += [f"# HELP {metric.name} {about}", f"# TYPE {metric.name} gauge"]
        lines += [f"{metric.name}{_labels(sample)} {sample.value + 0!r}" for sample in metric.samples]
    return "".join(f"{line}\n" for line in lines)


def _labels(sample: Sample) -> str:
    if not sample.labels:
        return ""
    pairs = (f'{name}="{_escaped(value)}"' for name, value in sample.labels)
    return f"{{{','.join(pairs)}}}"


def _escaped(value: str) -> str:
    plain = value.encode("utf-8", "replace").decode()  # half a surrogate pair is no UTF-8
    return plain.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
