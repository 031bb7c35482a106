"""Every host port as the text that a list prints, made by SQLite: tens of thousands of lines at no Python object each.

The forms are those of cnimeta_plugins.hostport_alloc.operator.formats, which prints what is not plain text: ASCII, all
of it printable.
"""

from __future__ import annotations

from cnimeta.terminal.table import BETWEEN, age
from cnimeta_plugins.hostport_alloc.state.listed import KEYS, ORDER, RELATION, values

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cnimeta.store.values import Connection

_AGE = """CASE WHEN ageSeconds < 0 THEN '0s' WHEN ageSeconds < 120 THEN ageSeconds || 's'
    WHEN ageSeconds < 7200 THEN (ageSeconds / 60) || 'm'
    WHEN ageSeconds < 172800 THEN (ageSeconds / 3600) || 'h' || (ageSeconds % 3600 / 60) || 'm'
    ELSE (ageSeconds / 86400) || 'd' END"""
"""As cnimeta.terminal.table.age."""
_CELLS = (
    *("hostPort", "protocol", "range", "containerPort", "pod", "substr(containerID, 1, 12)", "network", _AGE),
    *("state", "annotation"),
)
_OF_EXPOSED = """SELECT max(length(host_port)), max(length(protocol)), max(length(range)), max(length(container_port)),
    count(*) FROM exposed"""
_OF_ATTACHMENTS = """SELECT max(length(pod_namespace) + length(pod_name) + 1), max(length(substr(container_id, 1, 12))),
    max(length(network)), max(length(CASE boot_id WHEN ?1 THEN phase ELSE ?2 END)), max(length(annotation))
    FROM attachments INDEXED BY attachments_listed"""
_AGES = """SELECT DISTINCT CASE created WHEN 0 THEN 0 ELSE CAST(round(?1 - created) AS INTEGER) END
    FROM attachments INDEXED BY attachments_listed"""
_OBJECT = "json_object({})".format(", ".join(f"'{key}', {key}" for key in KEYS))


def table(connection: Connection, boot_id: str, now: float, heads: Sequence[str], most: int | None) -> str | None:
    """The table with these heads; None when there is none, when a line would have more than `most` columns, and when a
    cell is not plain. Columns are as wide as any attachment needs, one without ports too.
    """
    count, found = _widths(connection, boot_id, now)
    widths = [max(pair) for pair in zip(map(len, heads), found, strict=True)]
    if not count or (most is not None and sum(widths) + len(BETWEEN) * (len(widths) - 1) > most):
        return None
    form = BETWEEN.join(f"%-{width}s" for width in widths)
    text = _joined(connection, f"rtrim(printf('{form}', {', '.join(_CELLS)}))", boot_id, now)
    is_plain = text.isascii() and text.count("\n") == count - 1 and text.replace("\n", "").isprintable()
    if not is_plain:
        return None
    return f"{(form % tuple(heads)).rstrip()}\n{text}\n"


def _widths(connection: Connection, boot_id: str, now: float) -> tuple[int, list[int]]:
    """How many ports there are, and what the columns need without their heads. Each table is asked by
    itself, at a third of what a join costs.
    """
    known = values(boot_id, now)
    port, protocol, name, container_port, count = connection.execute(_OF_EXPOSED).fetchone()
    pod, container, network, state, annotation = connection.execute(_OF_ATTACHMENTS, known[:2]).fetchone()
    ages = (len(age(seconds)) for (seconds,) in connection.execute(_AGES, known[2:]))
    found = port, protocol, name, container_port, pod, container, network, max(ages, default=0), state, annotation
    return count, [width or 0 for width in found]


def json(connection: Connection, boot_id: str, now: float) -> str | None:
    """A JSON array with a line for each port; None when there is none, or one that Python would spell otherwise."""
    text = _joined(connection, f"'  ' || {_OBJECT} || ','", boot_id, now)
    return f"[\n{text[:-1]}\n]\n" if text and text.isascii() and "\x7f" not in text else None


def _joined(connection: Connection, line: str, boot_id: str, now: float) -> str:
    (text,) = connection.execute(
        f"SELECT group_concat(line, char(10)) FROM (SELECT {line} AS line FROM ({RELATION}) {ORDER})",
        values(boot_id, now),
    ).fetchone()
    return text or ""
