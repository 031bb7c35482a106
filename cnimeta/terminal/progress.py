"""One line that says how far something is, on a terminal alone, and that is gone when it is done."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import TracebackType

_WHOLE_LINE = "\r\x1b[K"
_EVERY_S = 0.1  # faster than that nobody reads, and writing to a terminal costs


class Progress:
    """Call it with each step's name, inside the `with` statement. It writes to stderr, so that results stay apart."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._count = 0
        self._next = 0.0
        self._shown = False

    def __enter__(self) -> Progress:
        return self

    def __call__(self, step: str) -> None:
        """The next step begins."""
        self._count += 1
        if not sys.stderr.isatty() or time.monotonic() < self._next:
            return
        self._next = time.monotonic() + _EVERY_S
        self._shown = True
        print(f"{_WHOLE_LINE}{self._what} {self._count}: {step[:60]}", end="", file=sys.stderr, flush=True)

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        if self._shown:
            print(_WHOLE_LINE, end="", file=sys.stderr, flush=True)
