"""Soaks: from a seed, until a number of steps or a time is up; what fails is shortened."""

from __future__ import annotations

import functools
import random
import time
from typing import TYPE_CHECKING, NamedTuple

from sandbox import Failed, inside
from soak_node import Finding, Soak
from steps import Step, as_text, batches, drawn

if TYPE_CHECKING:
    from collections.abc import Sequence

LOOK_EVERY = 100
"""Steps between two looks from outside."""


class Report(NamedTuple):
    """`served`: steps that were taken. `failed`: the steps up to the finding, empty without one."""

    served: int
    codes: dict[str, int]
    """By verb and answer."""
    kinds: dict[str, int]
    """By kind of step."""
    finding: str
    failed: list[Step]


def soak(steps: Sequence[Step], until: float) -> Report:
    """Take the steps on a node of their own; to be called inside a sandbox."""
    node = Soak()
    taken: list[Step] = []
    looked = 0
    try:
        for batch in batches(list(steps)):
            taken += batch
            node.take(batch)
            if node.served - looked >= LOOK_EVERY:
                looked = node.served
                node.look()
                if time.monotonic() > until:
                    break
        node.look()
        node.end()
    except Finding as finding:
        text = f"{finding}\n{node.told_of(str(finding))}"
        return Report(node.served, dict(node.codes), dict(node.kinds), text, taken)
    finally:
        node.close()
    return Report(node.served, dict(node.codes), dict(node.kinds), "", [])


def run(steps: Sequence[Step], seconds: float) -> Report:
    """As `soak`, in a sandbox."""
    try:
        return inside(functools.partial(soak, steps, time.monotonic() + seconds), seconds + 600)
    except Failed as error:
        return Report(0, {}, {}, f"the soak itself: {error}", list(steps))


def seeded(seed: str, count: int) -> list[Step]:
    """The steps of a seed."""
    chance = random.Random(seed)
    return [drawn(chance) for _ in range(count)]


def shortened(steps: list[Step], seconds: float) -> list[Step]:
    """A shorter sequence that fails too, as far as time allows. (Kills come at another moment each time.)"""
    until, size = time.monotonic() + seconds, len(steps) // 2
    while size and time.monotonic() < until:
        at = 0
        while at < len(steps) and time.monotonic() < until:
            fewer = steps[:at] + steps[at + size :]
            if fewer and run(fewer, 120).finding:
                steps = fewer
            else:
                at += size
        size //= 2
    return steps


def told(seed: str, report: Report, shorten_s: float) -> str:
    """What is printed of a finding: the shortest sequence that can be had in that time."""
    shortest = shortened(report.failed, shorten_s)
    return f"seed {seed}, step {len(report.failed)}: {report.finding}\nagain: make soak STEPS='{as_text(shortest)}'"
