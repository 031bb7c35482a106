"""A node whose state is a real database, and one whose state is in memory: what is promised holds for both."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hostport_state_kit import Node

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def tmp_path(path_in_memory: Path) -> Path:
    """In memory: thousands of commands that each end with an fsync are made here."""
    return path_in_memory


@pytest.fixture(params=["real", "memory"])
def node(request, tmp_path) -> Node:
    return Node(str(tmp_path / "state") if request.param == "real" else "")
