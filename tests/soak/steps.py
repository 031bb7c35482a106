"""The steps of a soak: drawn from a seed, as values, so that a failing sequence can be shortened and run again."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import random

NETWORKS = ("pods", "old-pods", "plain", "noted")
"""hostport_alloc on nftables, the same on iptables, portmap alone, and hostport_alloc with an API server."""
EXPOSED = (("80/tcp",), ("80/tcp", "53/udp"), ("80/tcp", "81/tcp", "443/udp"))
CONTAINERS = 360
AT_ONCE = 12
WEIGHTS = {
    "ADD": 27,
    "AGAIN": 6,
    "DEL": 22,
    "CHECK": 14,
    "STATUS": 2,
    "GC": 3,
    "killed ADD": 8,
    "killed AGAIN": 3,
    "killed DEL": 6,
    "killed GC": 0.5,
    "lost": 3,
    "gone": 3,
    "config": 0.3,
    "rename": 0.3,
    "flush": 0.12,
    "repair": 0.3,
    "flip": 0.6,
    "cut": 0.3,
    "lose": 0.3,
    "reboot": 0.04,
    "outage": 0.4,
    "agent": 0.3,
}
"""lost: the runtime knows the container no more. gone: its namespace has ended. flip, cut, lose: a file of the state."""
ALONE = {"config", "rename", "flush", "repair", "flip", "cut", "lose", "reboot"}
"""Steps with no other at the same time: what they change is the whole node's."""
BETWEEN = {"lost", "gone", "outage", "agent"}
"""Steps that are no commands, and happen while commands run."""
LAUNCHED = 8
"""One command in so many starts a launcher, which asks the agent; the others are forks."""


class Step(NamedTuple):
    """`kind` of WEIGHTS, on a container (its number) and a network; `at` in [0, 1): when to kill, where to damage."""

    kind: str
    container: int
    network: str
    at: float
    choice: int


def drawn(chance: random.Random) -> Step:
    """The next step."""
    kind = chance.choices(list(WEIGHTS), list(WEIGHTS.values()))[0]
    network = chance.choices(NETWORKS, (10, 4, 4, 1))[0]
    return Step(kind, chance.randrange(CONTAINERS), network, chance.random(), chance.randrange(1 << 16))


def batches(steps: list[Step]) -> list[list[Step]]:
    """In order; those that may run at the same time together, no container twice, and GC once."""
    found: list[list[Step]] = []
    for step in steps:
        last: list[Step] = found[-1] if found else []
        fits = last and step.kind not in ALONE and last[0].kind not in ALONE and len(last) < AT_ONCE
        if fits and all(_may_meet(step, one) for one in last):
            last.append(step)
        else:
            found.append([step])
    return found


def _may_meet(step: Step, other: Step) -> bool:
    both_collect = step.kind.endswith("GC") and other.kind.endswith("GC")
    return step.container != other.container and not both_collect


def as_text(steps: list[Step]) -> str:
    """For a report; `read` takes it back."""
    return repr([tuple(step) for step in steps])


def read(text: str) -> list[Step]:
    """What `as_text` wrote."""
    import ast

    rows: Any = ast.literal_eval(text)
    return [Step(*row) for row in rows]
