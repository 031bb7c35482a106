"""A node whose state is a real database, and one whose state is in memory: what is promised holds for both."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hostport_state_kit import Node

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """In memory: thousands of commands that each end with an fsync are made here."""
    folder = tempfile.mkdtemp(prefix="cnimeta-state-", dir="/dev/shm")
    yield Path(folder)
    shutil.rmtree(folder)


@pytest.fixture(params=["real", "memory"])
def node(request, tmp_path) -> Node:
    return Node(str(tmp_path / "state") if request.param == "real" else "")
