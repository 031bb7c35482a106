"""A range of host ports drawn in the terminal, and the same said in words. Pure."""

from __future__ import annotations

from cnimeta.errors import counted

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cnimeta_plugins.hostport_alloc.allocate.ranges import PortRange, PortSet

WIDTH = 64
"""Cells in a line of a drawn range."""
_LINES_MAX = 16
_SHADES = " .:-=#"
_QUARANTINED = "q"
_BLOCKED = "x"
_MEANINGS = (
    (" ", "free"),
    (".", "up to a fifth used"),
    (":", "up to two fifths"),
    ("-", "up to three fifths"),
    ("=", "less than all"),
    ("#", "all used"),
    (_BLOCKED, "blocked"),
    (_QUARANTINED, "in quarantine"),
)
_RUNS_MAX = 8
"""So many stretches of ports are named, then it is said how many more there are."""


def drawing(found: PortRange, used: PortSet, blocked: PortSet, quarantined: PortSet) -> str:
    """The range as lines of cells, the port each line begins with in front; then what the marks in it mean."""
    ports = [port for first, last in found.spans for port in range(first, last + 1)]
    per = max(1, -(-len(ports) // (WIDTH * _LINES_MAX)))
    lines, seen = [], set()
    for start in range(0, len(ports), WIDTH * per):
        line = ports[start : start + WIDTH * per]
        cells = [_cell(line[at : at + per], used, blocked, quarantined) for at in range(0, len(line), per)]
        seen.update(cells)
        lines.append(f"{line[0]:>6} |{''.join(cells)}|\n")
    marks = ", ".join(f"'{mark}' {meaning}" for mark, meaning in _MEANINGS if mark in seen)
    return "".join(lines) + f"one cell is {counted(per, 'port')}: {marks}\n"


def _cell(ports: Sequence[int], used: PortSet, blocked: PortSet, quarantined: PortSet) -> str:
    taken = sum(used >> port & 1 for port in ports)
    if taken:
        return _SHADES[max(1, taken * (len(_SHADES) - 1) // len(ports))]
    if any(quarantined >> port & 1 for port in ports):
        return _QUARANTINED
    return _BLOCKED if all(blocked >> port & 1 for port in ports) else _SHADES[0]


def in_words(found: PortRange, used: PortSet, blocked: PortSet, quarantined: PortSet) -> str:
    """What the drawing shows, a line for each kind of port that there is."""
    ports = found.ports
    quarantined &= ports & ~used
    blocked &= ports & ~used & ~quarantined
    free = ports & ~used & ~quarantined & ~blocked
    said = [
        f"{what}: {_named(runs)}\n"
        for what, members in (("used", used & ports), ("in quarantine", quarantined), ("blocked", blocked))
        if (runs := list(runs_of(members)))
    ]
    widest = max(runs_of(free), key=lambda run: run[1] - run[0], default=None)
    said.append("no port is free\n" if widest is None else f"longest free stretch: {_run(widest)}\n")
    return "".join(said)


def runs_of(ports: PortSet) -> Iterator[tuple[int, int]]:
    """(first, last) of each stretch of consecutive ports."""
    while ports:
        first = (ports & -ports).bit_length() - 1
        length = (~(ports >> first) & -(~(ports >> first))).bit_length() - 1
        yield first, first + length - 1
        ports &= ~((1 << first + length) - 1)


def _named(runs: Sequence[tuple[int, int]]) -> str:
    more = f" and {len(runs) - _RUNS_MAX} more" if len(runs) > _RUNS_MAX else ""
    return ", ".join(_run(run) for run in runs[:_RUNS_MAX]) + more


def _run(run: tuple[int, int]) -> str:
    first, last = run
    return str(first) if first == last else f"{first}-{last} ({last - first + 1} ports)"
