"""One agent for the tests that only ask it, and the launchers of one folder."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from agent_kit import Programs

from cnimeta.testing.agent import RunningAgent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


@pytest.fixture(scope="session")
def agent(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningAgent]:
    made = RunningAgent(tmp_path_factory.mktemp("agent"))
    yield made
    made.close()


@pytest.fixture(scope="session")
def programs(tmp_path_factory: pytest.TempPathFactory) -> Programs:
    return Programs(tmp_path_factory.mktemp("programs"))


@pytest.fixture
def own(tmp_path: Path) -> Iterator[RunningAgent]:
    made = RunningAgent(tmp_path / "own")
    yield made
    if made.process.poll() is None:
        made.close()
