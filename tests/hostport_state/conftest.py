"""A node whose state is a real database, and one whose state is in memory: what is promised holds for both."""

from __future__ import annotations

import pytest
from hostport_state_kit import Node


@pytest.fixture(params=["real", "memory"])
def node(request, tmp_path) -> Node:
    return Node(str(tmp_path / "state") if request.param == "real" else "")
