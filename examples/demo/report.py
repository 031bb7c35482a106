"""What the demo says: numbered steps, plain sentences, tables, and checks that decide the exit status."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

_INDENT = "   "


class Report:
    """Prints as it goes and counts what was checked."""

    def __init__(self) -> None:
        self.steps = 0
        self.passed = 0
        self.failed: list[str] = []

    def step(self, title: str) -> None:
        """A numbered heading."""
        self.steps += 1
        self._line(f"\n{self.steps}. {title}")

    def say(self, text: str) -> None:
        """One or more sentences of explanation, or the output of something."""
        for line in text.splitlines():
            self._line(f"{_INDENT}{line}")

    def command(self, words: Iterable[str]) -> None:
        """A command the reader could type; long arguments are quoted so that it can be copied."""
        self.say("$ " + " ".join(_quoted(word) for word in words))

    def table(self, head: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Columns as wide as their widest cell."""
        lines = [tuple(head), *(tuple(row) for row in rows)]
        widths = [max(len(line[column]) for line in lines) for column in range(len(head))]
        for number, line in enumerate(lines):
            self.say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())
            if number == 0:
                self.say("  ".join("-" * width for width in widths))

    def check(self, passed: bool, claim: str, seen: str = "") -> None:
        """A claim that was looked at; `seen` is what there was instead, shown when it does not hold."""
        if passed:
            self.passed += 1
            self.say(f"ok      {claim}")
        else:
            self.failed.append(claim)
            self.say(f"FAILED  {claim}" + (f": {seen}" if seen else ""))

    @staticmethod
    def _line(text: str) -> None:
        sys.stdout.write(text + "\n")
        sys.stdout.flush()


def _quoted(word: str) -> str:
    plain = word and all(letter.isalnum() or letter in "-_./:=,@%+" for letter in word)
    return word if plain else "'" + word.replace("'", "'\\''") + "'"
