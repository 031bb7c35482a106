"""Tables and ages for people, whole where a program reads them. Pure, but for what stdout is asked: how wide it is,
and what it can write.
"""

from __future__ import annotations

import os
import sys

from cnimeta.errors import legible

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

BETWEEN = "  "
_ELLIPSIS = "\N{HORIZONTAL ELLIPSIS}"
_LEAST = 4
"""No column is cut to less."""


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

    most: the columns of a line. The widest cells are cut to fit, ending in an ellipsis, numbers never; with None, or
    where even cells of a few characters do not fit, lines are as long as they are.
    """
    return table_of(heads, list(zip(*rows, strict=True)) or [()] * len(heads), most)


def table_of(heads: Sequence[str], columns: Sequence[Sequence[object]], most: int | None = None) -> str:
    """The same from columns, which is what a table of tens of thousands of lines is quickly made from."""
    found = [[head, *_legible(column)] for head, column in zip(heads, columns, strict=True)]
    widths = [max(map(len, column)) for column in found]
    least = [max(map(len, filter(str.isdigit, column[1:])), default=0) for column in found]
    narrow = widths if most is None else _shrunk(widths, most - len(BETWEEN) * (len(heads) - 1), least)
    if narrow != widths:
        ellipsis = _ellipsis()
        found = [[_cut(cell, wide, ellipsis) for cell in column] for column, wide in zip(found, narrow, strict=True)]
    return _joined(zip(*found, strict=True), narrow)


def _legible(column: Sequence[object]) -> list[str]:
    texts = list(map(str, column))
    return texts if "".join(texts).isprintable() else list(map(legible, texts))


def laid_out(lines: Sequence[Sequence[str]], widths: Sequence[int]) -> str:
    """Lines of cells under each other, each cell at least as wide as `widths` says. Cells are shown as they are."""
    return _joined(map(tuple, lines), widths)


def _joined(lines: Iterable[tuple[str, ...]], widths: Sequence[int]) -> str:
    form = BETWEEN.join(f"%-{wide}s" for wide in widths)
    return "".join([f"{(form % line).rstrip()}\n" for line in lines])


def _shrunk(widths: list[int], most: int, least: Sequence[int]) -> list[int]:
    """The widths with the widest made smaller, one by one, until they fit into `most`; none goes below its `least`."""
    found = list(widths)
    while sum(found) > most:
        spare = [wide if wide > max(_LEAST, low) else 0 for wide, low in zip(found, least, strict=True)]
        if not any(spare):
            break
        found[spare.index(max(spare))] -= 1
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
