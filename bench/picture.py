"""Pictures of measurements as SVG, without any package: lines over sizes, bars beside one another, stacked bars."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

_WIDTH, _HEIGHT, _LEFT, _BOTTOM, _TOP = 720, 360, 70, 50, 40
_COLOURS = ("#1f6feb", "#d1242f", "#1a7f37", "#9a6700", "#8250df", "#57606a", "#bf3989", "#0a7ea4", "#953800")
_TICKS = (0.1, 1, 10, 100, 1000, 10_000, 100_000)


def lines(path: Path, title: str, sizes: Sequence[int], series: Mapping[str, Sequence[float]], unit: str) -> None:
    """One line a name, over the first of `sizes`, on a logarithmic scale of `unit`."""
    low, high = _range([value for values in series.values() for value in values])
    parts = [*_frame(title, unit, low, high)]
    step = (_WIDTH - _LEFT - 160) / max(1, len(sizes) - 1)
    for at, size in enumerate(sizes):
        parts.append(_text(_LEFT + at * step, _HEIGHT - _BOTTOM + 20, f"{size:,}", "middle"))
    for number, (name, values) in enumerate(series.items()):
        colour = _COLOURS[number % len(_COLOURS)]
        points = [(_LEFT + at * step, _height(value, low, high)) for at, value in enumerate(values)]
        drawn = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        parts.append(f'<polyline points="{drawn}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{colour}"/>' for x, y in points]
        parts.append(_text(_WIDTH - 140, _TOP + 16 * (number + 1), name, "start", colour))
    _write(path, parts)


def bars(path: Path, title: str, groups: Mapping[str, Mapping[str, float]], unit: str) -> None:
    """A group of bars a name, on a logarithmic scale of `unit`."""
    low, high = _range([value for group in groups.values() for value in group.values()])
    parts = [*_frame(title, unit, low, high)]
    kinds = list(dict.fromkeys(kind for group in groups.values() for kind in group))
    room = (_WIDTH - _LEFT - 20) / max(1, len(groups))
    for place, (name, group) in enumerate(groups.items()):
        width = room * 0.8 / len(kinds)
        for number, kind in enumerate(kinds):
            if kind in group:
                x, y = _LEFT + place * room + 6 + number * width, _height(group[kind], low, high)
                colour = _COLOURS[number % len(_COLOURS)]
                height = _HEIGHT - _BOTTOM - y
                parts.append(
                    f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" fill="{colour}"/>'
                )
        parts.append(_text(_LEFT + (place + 0.4) * room, _HEIGHT - _BOTTOM + 16, name, "middle", size=9))
    for number, kind in enumerate(kinds):
        parts.append(_text(_LEFT + 10 + 160 * number, _HEIGHT - 10, kind, "start", _COLOURS[number % len(_COLOURS)]))
    _write(path, parts)


def stacked(path: Path, title: str, groups: Mapping[str, Mapping[str, float]], unit: str) -> None:
    """A lying bar a name, of its parts one after the other, on a linear scale of `unit`."""
    most = max(sum(group.values()) for group in groups.values())
    left, room, line = 230, _WIDTH - 230 - 80, (_HEIGHT - _TOP - _BOTTOM) / len(groups)
    kinds = list(dict.fromkeys(kind for group in groups.values() for kind in group))
    parts = [_text(10, 20, title, "start", size=14)]
    for place, (name, group) in enumerate(groups.items()):
        x, y = float(left), _TOP + place * line
        parts.append(_text(left - 8, y + line * 0.55, name, "end"))
        for kind, value in group.items():
            wide, colour = value / most * room, _COLOURS[kinds.index(kind) % len(_COLOURS)]
            parts.append(
                f'<rect x="{x:.1f}" y="{y:.1f}" width="{wide:.1f}" height="{line * 0.75:.1f}" fill="{colour}">'
                f"<title>{kind}: {value:.2f} {unit}</title></rect>"
            )
            x += wide
        parts.append(_text(x + 6, y + line * 0.55, f"{sum(group.values()):.2f} {unit}", "start"))
    step = (_WIDTH - 20) / len(kinds)
    for number, kind in enumerate(kinds):
        colour = _COLOURS[number % len(_COLOURS)]
        parts.append(_text(10 + step * number, _HEIGHT - 12, kind, "start", colour, size=10))
    _write(path, parts)


def _range(values: Sequence[float]) -> tuple[float, float]:
    """The decades that hold the values."""
    least, most = max(min(values), 0.1), max(values)
    return 10 ** math.floor(math.log10(least)), 10 ** math.ceil(math.log10(most) + 1e-9)


def _height(value: float, low: float, high: float) -> float:
    share = math.log(max(value, low) / low) / math.log(high / low)
    return _HEIGHT - _BOTTOM - share * (_HEIGHT - _BOTTOM - _TOP)


def _frame(title: str, unit: str, low: float, high: float) -> list[str]:
    parts = [_text(_LEFT, 20, title, "start", size=14)]
    for tick in _TICKS:
        if low <= tick <= high:
            y = _height(tick, low, high)
            parts.append(f'<line x1="{_LEFT}" y1="{y:.1f}" x2="{_WIDTH - 20}" y2="{y:.1f}" stroke="#d0d7de"/>')
            parts.append(_text(_LEFT - 6, y + 4, f"{tick:g} {unit}", "end"))
    return parts


def _text(x: float, y: float, text: str, anchor: str, colour: str = "#24292f", size: int = 11) -> str:
    escaped = text.replace("&", "&amp;").replace("<", "&lt;")
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="{colour}"'
        f' font-family="sans-serif">{escaped}</text>'
    )


def _write(path: Path, parts: Sequence[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}">'
    background = f'<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>'
    path.write_text("\n".join([head, background, *parts, "</svg>", ""]), encoding="utf-8")
