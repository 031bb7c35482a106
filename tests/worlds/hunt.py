"""Looking for worlds that break a law, with the open faults of found.py tolerated and counted."""

from __future__ import annotations

import collections
import contextlib
import re
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from found import FOUND, Found
from hypothesis import HealthCheck, Phase, given, seed, settings
from hypothesis.errors import Flaky
from laws import Breach
from sandbox import Failed

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypothesis import strategies as st
    from worlds import World

    Examine = Callable[[Any], list[Breach]]


_SHRINKING_S = 20
"""How long a finding is made smaller after its time."""


class Enough(BaseException):
    """The time is up. No Exception: hypothesis would take it for a finding."""


class Surprise(AssertionError):
    """A law that no open fault explains does not hold; the text is a case to run."""

    def __init__(self, world: World, breach: Breach, kind: str) -> None:
        command = f".venv/bin/python tests/worlds/run.py --kinds {kind} --world '{world!r}'"
        super().__init__(f"{breach}\n  to run it: {command}")
        self.world, self.breach, self.kind = world, breach, kind

    def __reduce__(self) -> tuple[type[Surprise], tuple[World, Breach, str]]:
        return Surprise, (self.world, self.breach, self.kind)


def fault_of(world: World, breach: Breach) -> str:
    """The open fault that explains a breach; empty when none does."""
    for found in FOUND:
        if found.open and found.explains(world, breach):
            return found.fault
    return ""


def outline(breach: Breach) -> str:
    """What two breaches of one kind have in common: the text without numbers and names."""
    text = re.sub(r"\[[^]]*\]|\"[^\"]*\"|'[^']*'", "…", breach.says)
    return f"{breach.law} {breach.step.split()[0]} {re.sub(r'[0-9a-f:./-]*[0-9][0-9a-zA-Z:./_-]*', 'N', text)[:80]}"


@dataclass
class Hunt:
    """Counts and findings of one session."""

    examples: collections.Counter[str] = field(default_factory=collections.Counter)
    tolerated: collections.Counter[str] = field(default_factory=collections.Counter)
    seconds: collections.Counter[str] = field(default_factory=collections.Counter)
    surprises: dict[str, Surprise] = field(default_factory=dict)
    only: Found | None = None
    """The one fault that is looked for; None for any."""

    def judge(self, kind: str, world: World, examine: Examine) -> None:
        """Raise Surprise for the first breach that is neither an open fault's nor found in this session."""
        self.examples[kind] += 1
        started = time.monotonic()
        try:
            breaches = examine(world)
        except Failed as error:
            breaches = [Breach("answer", "the whole", str(error))]
        self.seconds[kind] += time.monotonic() - started
        for breach in breaches:
            fault = fault_of(world, breach)
            if self.only is not None and not self.only.explains(world, breach):
                continue
            if fault:
                self.tolerated[fault] += 1
            elif outline(breach) not in self.surprises:
                raise Surprise(world, breach, kind)

    def search(
        self, kind: str, worlds: st.SearchStrategy[Any], examine: Examine, examples: int, number: int, until: float
    ) -> None:
        """One round of examples; a surprise is shrunk, kept, and the round ends."""

        smallest: list[Surprise] = []

        @seed(number)
        @settings(
            max_examples=examples,
            deadline=None,
            database=None,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
            report_multiple_bugs=False,
            print_blob=False,
        )
        @given(worlds)
        def look(world: World) -> None:
            if time.monotonic() > until + (_SHRINKING_S if smallest else 0):
                raise Enough
            try:
                self.judge(kind, world, examine)
            except Surprise as surprise:
                if not smallest or len(repr(world)) < len(repr(smallest[0].world)):
                    smallest[:] = [surprise]
                raise

        with contextlib.suppress(Surprise, Enough, Flaky):  # flaky: it is not so every time, and kept all the same
            look()
        for surprise in smallest:
            self.surprises[outline(surprise.breach)] = surprise
