"""What all of these commands import is imported once, before the sandboxes are forked."""

from __future__ import annotations

import pytest
from stage import preload


@pytest.fixture(autouse=True, scope="session")
def _preloaded() -> None:
    preload()
