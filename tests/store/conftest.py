"""Databases on a folder in memory: thousands of commands that each end with an fsync are made here."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from store_kit import Place

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def tmp_path(path_in_memory: Path) -> Path:
    """In memory."""
    return path_in_memory


@pytest.fixture(params=["real", "memory"])
def place(request, tmp_path) -> Place:
    """Where databases are, of both kinds."""
    return Place(str(tmp_path / "state"), request.param)


@pytest.fixture
def real(tmp_path) -> Place:
    """Where real databases are."""
    return Place(str(tmp_path / "state"))
