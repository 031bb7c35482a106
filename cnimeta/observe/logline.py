"""One line of a log: for people and the journal (`key=value` behind the words), or JSON. Pure."""

from __future__ import annotations

from cnimeta.errors import legible

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import TypeAlias

    Value: TypeAlias = str | int | float | bool | None

TEXT, JSON_LINES = "text", "json"
FORMATS = (TEXT, JSON_LINES)
ERROR, WARNING, INFO = "error", "warning", "info"
_PRIORITIES = {ERROR: 3, WARNING: 4, INFO: 6}
"""Of syslog, which journald takes from the beginning of a line: sd-daemon(3)."""
_WORD, _LINE = 512, 4096


def text(level: str, message: str, fields: Mapping[str, Value], *, priority: bool) -> str:
    """`message key=value …`; `priority`: for the journal, with the level in front."""
    words = [legible(message, _LINE), *(f"{name}={_word(value)}" for name, value in fields.items() if value != "")]
    return (f"<{_PRIORITIES[level]}>" if priority else "") + f"cnimeta agent: {' '.join(words)}"


def body(level: str, message: str, fields: Mapping[str, Value], now_s: float) -> dict[str, Value]:
    """The object of a line of JSON."""
    from time import gmtime, strftime

    when = f"{strftime('%Y-%m-%dT%H:%M:%S', gmtime(now_s))}.{int(now_s % 1 * 1000):03d}Z"
    said = {name: legible(value, _WORD) if isinstance(value, str) else value for name, value in fields.items()}
    return {"time": when, "level": level, "message": legible(message, _LINE), **said}


def _word(value: Value) -> str:
    """In quotes where it would not be one word."""
    said = f"{value:g}" if isinstance(value, float) else str(value).lower() if isinstance(value, bool) else str(value)
    plain = legible(said, _WORD)
    if plain and not any(char in ' "=\\' for char in plain):
        return plain
    return '"' + plain.replace("\\", "\\\\").replace('"', '\\"') + '"'
