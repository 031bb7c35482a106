"""How `cnimeta ports list` shows host ports: for people, for scripts, and as one change after the other. Pure."""

from __future__ import annotations

import json

from cnimeta.errors import legible
from cnimeta.terminal.table import age, laid_out, table_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cnimeta_plugins.hostport_alloc.operator.listing import Entry

FORMATS = ("table", "wide", "json", "yaml", "name")
SHORT_ID = 12
"""So much of a container ID is shown, as container runtimes do."""
HEADS = ("HOST PORT", "PROTOCOL", "RANGE", "PORT", "POD", "CONTAINER", "NETWORK", "AGE", "STATE", "ANNOTATION")
_WIDE_HEADS = (*HEADS, "HOST IP", "IFNAME", "POD UID", "ANNOTATION ERROR")
_NONE = "no host ports are allocated\n"


def rendered(entries: Sequence[Entry], form: str, most: int | None = None) -> str:
    """The entries in one of FORMATS. `most`: the columns of a line, for the table; the others are never cut."""
    if form == "json":
        return json_of(entries)
    if form == "yaml":
        return yaml_of(entries)
    if form == "name":
        return "".join(f"{name}\n" for name in dict.fromkeys(map(name_of, entries)))
    if not entries:
        return _NONE
    if form == "wide":
        return table_of(_WIDE_HEADS, _columns(entries, wide=True))
    return listing(entries, most)


def listing(entries: Sequence[Entry], most: int | None = None) -> str:
    """The table for people, in lines of at most so many columns."""
    return table_of(HEADS, _columns(entries), most) if entries else _NONE


def name_of(entry: Entry) -> str:
    """`23541/tcp`"""
    return f"{entry['hostPort']}/{entry['protocol']}"


def yaml_of(value: object) -> str:
    """A YAML document."""
    import yaml  # 20 ms

    text: str = yaml.safe_dump(value, sort_keys=False, allow_unicode=True, default_flow_style=False)
    return text


def json_of(entries: Sequence[Entry]) -> str:
    """A JSON array with a line for each entry: to indent them too takes four times as long."""
    lines = [json.dumps(entry, separators=(",", ":")) for entry in entries]
    return f"[{','.join(f'{chr(10)}  {line}' for line in lines)}\n]\n" if lines else "[]\n"


def _columns(entries: Sequence[Entry], *, wide: bool = False) -> list[Sequence[object]]:
    """The cells by column."""

    def column(key: str) -> list[str | int]:
        return [entry[key] for entry in entries]

    seconds = column("ageSeconds")
    ages = {each: age(float(each)) for each in set(seconds)}
    containers = column("containerID")
    return [
        *(column(key) for key in ("hostPort", "protocol", "range", "containerPort", "pod")),
        containers if wide else [str(container)[:SHORT_ID] for container in containers],
        column("network"),
        [ages[each] for each in seconds],
        column("state"),
        column("annotation"),
        *(column(key) for key in ("hostIP", "ifname", "podUID", "annotationError") if wide),
    ]


class Changes:
    """Changes as they come, in one of FORMATS: a head and what there is, then a line or a document for each."""

    def __init__(self, form: str) -> None:
        self._form = form
        self._widths: list[int] = []

    def shown(self, changes: Sequence[tuple[str, Entry]]) -> str:
        """The text for some more of them: (ADDED, MODIFIED or DELETED; entry)."""
        if self._form == "json":
            return "".join(json.dumps({"event": event, "entry": entry}) + "\n" for event, entry in changes)
        if self._form == "yaml":
            return "".join("---\n" + yaml_of({"event": event, "entry": entry}) for event, entry in changes)
        if self._form == "name":
            return "".join(f"{event} {name_of(entry)}\n" for event, entry in changes)
        wide = self._form == "wide"
        columns = _columns([entry for _, entry in changes], wide=wide)
        rows = [
            [legible(str(cell)) for cell in row] for row in zip((event for event, _ in changes), *columns, strict=True)
        ]
        heads = ["EVENT", *(_WIDE_HEADS if wide else HEADS)]
        lines = rows if self._widths else [heads, *rows]
        least = self._widths or [len("MODIFIED"), *(0 for _ in heads[1:])]
        self._widths = [max(known, *(len(line[at]) for line in lines), 0) for at, known in enumerate(least)]
        return laid_out(lines, self._widths) if lines else ""
