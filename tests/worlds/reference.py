"""The same world served by Debian's Go portmap: where it answers 0 and packets arrive, so must ours, or a reason says why."""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

from exchange import Cell, Outcome
from laws import Breach
from model import conflict, is_link_local
from node import Answer, read_answer
from sandbox import inside
from traffic import TrafficNode, cells, expected, served_ports

if TYPE_CHECKING:
    from collections.abc import Callable

    from worlds import Attachment, World

PORTMAP = "/usr/lib/cni/portmap"
VERSIONS = ("1.0.0", "0.4.0", "0.3.1")
"""What Debian's 1.1.1 speaks."""

REASONS: tuple[tuple[str, Callable[[World, int], bool]], ...] = (
    (
        "docs/portmap.md, Errors: 7 when the container has no address for any mapping (the reference maps nothing)",
        lambda world, number: not world.attachments[number].served(),
    ),
    (
        "docs/portmap.md, Errors: 7 for a hostIP of fe80::/10, which no packet can be told by",
        lambda world, number: any(is_link_local(mapping.ip) for mapping in world.attachments[number].mappings),
    ),
    (
        "docs/portmap.md, The verbs: a port of another container is refused (the reference hides it behind the first)",
        lambda world, number: any(conflict(world.attachments[number], other) for other in before(world, number)),
    ),
)
"""Why an ADD may be refused here that the reference takes."""


def before(world: World, number: int) -> list[Attachment]:
    """The attachments of other containers that the world ADDs."""
    own = world.attachments[number]
    added = [int(step.split()[1]) for step in world.steps if step.startswith("ADD")]
    return [world.attachments[n] for n in added if world.attachments[n].container != own.container]


class ReferenceNode(TrafficNode):
    """A node where the calls go to Debian's plugin."""

    def ask(self, environ: dict[str, str], conf: dict[str, Any]) -> Answer:
        command = [PORTMAP]
        done = subprocess.run(command, input=json.dumps(conf), env=environ, capture_output=True, text=True, check=False)
        return read_answer(done.returncode, done.stdout)


def take(world: World, make: Callable[[World], TrafficNode]) -> tuple[list[Answer], dict[Cell, Outcome]]:
    """The answers of every ADD, and what then happens in every cell."""
    node = make(world)
    answers, added = [], []
    for step in world.steps:
        if step.startswith("ADD"):
            attachment = world.attachments[int(step.split()[1])]
            answers.append(node.call("ADD", attachment))
            if answers[-1].status == 0:
                added.append(attachment)
    wanted = {cell: expected(added, cell) for cell in cells(tuple(added))}
    return answers, node.try_cells(wanted, served_ports(added))


def examine_reference(world: World) -> list[Breach]:
    """Every ADD and every cell that the reference serves and we do not, without a reason."""
    theirs, reached = inside(lambda: take(world, ReferenceNode))
    ours, here = inside(lambda: take(world, TrafficNode))
    found = []
    adds = [step for step in world.steps if step.startswith("ADD")]
    for step, their, our in zip(adds, theirs, ours, strict=True):
        number = int(step.split()[1])
        if their.status == 0 and our.status != 0 and not any(holds(world, number) for _, holds in REASONS):
            found.append(Breach("reference", step, f"the reference answers 0, we {our.code}: {our.msg}"))
    if [answer.status for answer in theirs] == [answer.status for answer in ours]:
        for cell, outcome in reached.items():
            if outcome.who and here[cell].who != outcome.who:
                says = f"{cell}: the reference reaches {outcome.who} and we {here[cell].who or 'nobody'}"
                found.append(Breach("reference", "packets", says))
    return found
