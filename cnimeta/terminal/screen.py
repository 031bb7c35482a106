"""A screen that is drawn again and again, as `top` has it, and left as it was found."""

from __future__ import annotations

import os
import select
import signal
import sys
import termios
import tty
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from types import FrameType, TracebackType
    from typing import NoReturn

_ENTER = "\x1b[?1049h\x1b[?25l"  # the alternate screen, no cursor
_LEAVE = "\x1b[?25h\x1b[?1049l"
_HOME, _REST_OF_LINE, _REST = "\x1b[H", "\x1b[K", "\x1b[J"
_TERMINATED = 128 + signal.SIGTERM


class Screen:
    """The whole terminal, for as long as the `with` statement lasts. stdout must be a terminal."""

    def __init__(self) -> None:
        self._input = sys.stdin.fileno() if sys.stdin.isatty() else -1
        self._before: list[object] = []

    def __enter__(self) -> Screen:
        if self._input >= 0:
            self._before = termios.tcgetattr(self._input)
            tty.setcbreak(self._input)
        signal.signal(signal.SIGTERM, _end)
        self._write(_ENTER)
        return self

    def __exit__(self, _kind: type[BaseException] | None, _error: object, _trace: TracebackType | None) -> None:
        self._write(_LEAVE)
        if self._before:
            termios.tcsetattr(self._input, termios.TCSADRAIN, self._before)  # type: ignore[arg-type]
        signal.signal(signal.SIGTERM, signal.SIG_DFL)

    @property
    def size(self) -> tuple[int, int]:
        """(columns, lines) as they are now."""
        found = os.get_terminal_size(sys.stdout.fileno())
        return found.columns or 80, found.lines or 24

    def show(self, text: str) -> None:
        """Draw these lines in place of what is there; what does not fit is left out."""
        columns, most = self.size
        lines = [line[:columns] + _REST_OF_LINE for line in text.splitlines()[: most - 1]]
        self._write(_HOME + "\r\n".join(lines) + _REST_OF_LINE + _REST)

    def wait(self, seconds: float) -> str:
        """The key that is pressed meanwhile; empty when none is, or nobody can."""
        if self._input < 0:
            select.select([], [], [], seconds)
            return ""
        ready, _, _ = select.select([self._input], [], [], seconds)
        return os.read(self._input, 1).decode("ascii", "replace") if ready else ""

    @staticmethod
    def _write(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()


def _end(_number: int, _frame: FrameType | None) -> NoReturn:
    raise SystemExit(_TERMINATED)
