"""What a command costs on a node with very many containers: every verb, and the operator's commands."""

from __future__ import annotations

import tempfile
from typing import TYPE_CHECKING

import picture
from common import PICTURES, QUICK, RUNS, Spent, middle
from populated import Populated

from cnimeta.testing.netns import namespaces

if TYPE_CHECKING:
    from collections.abc import Iterator

TITLE = "Cost against size"
NOTE = """
hostport_alloc with portmap behind it (chained, one random port each, Python launcher) on a node that has so many
containers with a random port already: whole processes, time on the clock and, in brackets, processor time; medians.
GC is told of all containers but ten and undoes these; its input alone is 7 MB at 60,000. `ports check` and
`ports repair` find nothing wrong. The project's bars: `ports list` of 60,000 in 300 ms; `ports check` of 2,000 in 2 s,
`ports repair` in 3 s.
"""
SIZES = (0, 1000, 2000) if QUICK else (0, 1000, 2000, 10_000, 60_000)
_GONE = 10
_LONG = 10_000
"""From so many containers on, what looks at each of them is run once."""


def commands(node: Populated, size: int) -> Iterator[tuple[str, list[Spent]]]:
    """Each command's runs."""
    verbs = [(verb, node.call(verb)) for _ in range(max(3, RUNS // 3)) for verb in ("ADD", "CHECK", "DEL")]
    for verb in ("ADD", "CHECK", "DEL"):
        yield verb, [times for name, times in verbs if name == verb]
    gone, collected = range(min(_GONE, size)), []
    for _ in range(3):
        collected.append(node.call("GC", gone=gone))
        node.again(gone)
    yield f"GC of {_GONE}", collected
    yield "`ports list`", [node.ports("list") for _ in range(5)]
    yield "`ports list -o json`", [node.ports("list", "-o", "json") for _ in range(5)]
    for word in ("check", "repair"):
        yield f"`ports {word}`", [node.ports(word) for _ in range(1 if size >= _LONG else 3)]


def section() -> str:
    """The part of the document."""
    found: dict[str, list[Spent]] = {}
    with namespaces("node", "ctr") as (host, container), tempfile.TemporaryDirectory(dir="/var/tmp") as folder:
        node = Populated(host, container, folder)
        for size in SIZES:
            node.grow(size)
            for what, times in commands(node, size):
                found.setdefault(what, []).append(middle(times))
    lines = [f"## {TITLE}", "", NOTE.strip(), ""]
    lines += ["| command | " + " | ".join(f"{size:,}" for size in SIZES) + " |", "|---|" + "---|" * len(SIZES)]
    for what, row in found.items():
        lines.append(f"| {what} | " + " | ".join(f"{one.wall_ms:,.0f} ({one.cpu_ms:,.0f}) ms" for one in row) + " |")
    series = {what.strip("`"): [one.cpu_ms for one in row] for what, row in found.items()}
    picture.lines(PICTURES / "growth.svg", "Processor time by containers on the node", SIZES, series, "ms")
    lines += ["", "![processor time of each command by containers on the node](pictures/growth.svg)"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(section())
