"""Databases on a folder in memory: thousands of commands that each end with an fsync are made here."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from store_kit import Place

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def tmp_path() -> Iterator[Path]:
    """A folder that is removed afterwards."""
    folder = tempfile.mkdtemp(prefix="cnimeta-store-", dir="/dev/shm")
    yield Path(folder)
    shutil.rmtree(folder)


@pytest.fixture(params=["real", "memory"])
def place(request, tmp_path) -> Place:
    """Where databases are, of both kinds."""
    return Place(str(tmp_path / "state"), request.param)


@pytest.fixture
def real(tmp_path) -> Place:
    """Where real databases are."""
    return Place(str(tmp_path / "state"))
