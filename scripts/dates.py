"""The date that everything of a release has, so that two builds are the same bytes."""

from __future__ import annotations

import functools
import os
import subprocess
from pathlib import Path

_FIRST_OF_ARCHIVES = 315532800
"""1980: a zip knows no earlier one. For a tree without a history."""


@functools.cache
def date() -> int:
    """SOURCE_DATE_EPOCH, or the commit's; asked once, though every file is given it."""
    given = os.environ.get("SOURCE_DATE_EPOCH")
    if given:
        return int(given)
    here = Path(__file__).parent
    done = subprocess.run(["git", "log", "-1", "--format=%ct"], cwd=here, check=False, capture_output=True, text=True)
    return int(done.stdout or _FIRST_OF_ARCHIVES)
