"""How `cnimeta ports` shows things to people: tables, ages, and a range drawn in the terminal.

Pure, but for what stdout is asked: how wide it is, and what it can write.
"""

from __future__ import annotations

import os
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cnimeta_plugins.hostport_alloc.allocate.ranges import PortRange, PortSet

SHORT_ID = 12
"""So much of a container ID is shown, as container runtimes do."""
WIDTH = 64
"""Cells in a line of a drawn range."""
_BETWEEN = "  "
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
_LEAST = 4
"""No column is cut to less."""
_LINES_MAX = 16
_SHADES = " .:-=#"
_QUARANTINED = "q"
_MARKS = "one cell is {per} ports: ' ' free, '.' to '=' partly used, '#' all used, 'x' blocked, 'q' in quarantine"


def width() -> int | None:
    """The columns there are: COLUMNS if it is set, else the terminal's; None where nobody looks, so nothing is cut."""
    given = os.environ.get("COLUMNS", "")
    if given.isascii() and given.isdigit() and int(given):
        return int(given)
    try:
        return os.get_terminal_size(sys.stdout.fileno()).columns or None
    except (OSError, ValueError):  # a pipe, a file, or a stream without a descriptor
        return None


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], most: int | None = None) -> str:
    """Left-aligned columns, two blanks apart; only the heads when there are no rows.

    most: the columns of a line. The widest cells are cut to fit, ending in an ellipsis; with None, or where even cells
    of a few characters do not fit, lines are as long as they are.
    """
    lines = [list(heads), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(heads))]
    if most is not None:
        widths = _shrunk(widths, most - len(_BETWEEN) * (len(heads) - 1))
    ellipsis = _ellipsis()
    cells = [
        [_cut(cell, wide, ellipsis).ljust(wide) for cell, wide in zip(line, widths, strict=True)] for line in lines
    ]
    return "".join(_BETWEEN.join(line).rstrip() + "\n" for line in cells)


def _shrunk(widths: list[int], most: int) -> list[int]:
    """The widths with the widest made smaller, one by one, until they fit into `most`."""
    found = list(widths)
    while sum(found) > most and max(found) > _LEAST:
        found[found.index(max(found))] -= 1
    return found


def _cut(cell: str, wide: int, ellipsis: str) -> str:
    return cell if len(cell) <= wide else cell[: wide - 1] + ellipsis


def _ellipsis() -> str:
    """A character that stdout can write."""
    try:
        _ELLIPSIS.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return "~"
    return _ELLIPSIS


def age(seconds: float) -> str:
    """`42s`, `7m`, `3h12m`, `9d` as kubectl writes ages."""
    total = max(0, int(seconds))
    if total < 120:
        return f"{total}s"
    if total < 7200:
        return f"{total // 60}m"
    if total < 172800:
        return f"{total // 3600}h{total % 3600 // 60}m"
    return f"{total // 86400}d"


def drawing(found: PortRange, used: PortSet, blocked: PortSet, quarantined: PortSet) -> str:
    """The range as lines of cells, the port each line begins with in front."""
    ports = [port for first, last in found.spans for port in range(first, last + 1)]
    per = max(1, -(-len(ports) // (WIDTH * _LINES_MAX)))
    lines = []
    for start in range(0, len(ports), WIDTH * per):
        line = ports[start : start + WIDTH * per]
        cells = [_cell(line[at : at + per], used, blocked, quarantined) for at in range(0, len(line), per)]
        lines.append(f"{line[0]:>6} |{''.join(cells)}|\n")
    return "".join(lines) + _MARKS.format(per=per) + "\n"


def _cell(ports: Sequence[int], used: PortSet, blocked: PortSet, quarantined: PortSet) -> str:
    taken = sum(used >> port & 1 for port in ports)
    if taken:
        return _SHADES[max(1, taken * (len(_SHADES) - 1) // len(ports))]
    if any(quarantined >> port & 1 for port in ports):
        return _QUARANTINED
    return "x" if all(blocked >> port & 1 for port in ports) else _SHADES[0]
