"""Colours, on a terminal alone: what goes into a pipe or a file is plain text."""

from __future__ import annotations

import os
import sys

_CODES = {"ok": "32", "warn": "33", "fail": "31", "faint": "2", "strong": "1"}


def has_colours() -> bool:
    """Whether stdout is a terminal whose user wants colours (https://no-color.org)."""
    if os.environ.get("NO_COLOR") or os.environ.get("TERM", "dumb") == "dumb":
        return False
    return sys.stdout.isatty()


def painted(text: str, meaning: str) -> str:
    """The text in the colour of `meaning`: ok, warn, fail, faint, strong; as it is where there are no colours."""
    return f"\x1b[{_CODES[meaning]}m{text}\x1b[0m" if has_colours() else text
