"""Fixtures for all tests. Kernel tests need root and make their own namespaces; missing tools are errors, not skips."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import hypothesis
import pytest

from cnimeta.testing.netns import Namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

# A clock tells what else the machine does. CI repeats itself; by hand, every run looks somewhere else.
hypothesis.settings.register_profile(
    "here",
    derandomize=bool(os.environ.get("CI")),
    deadline=None,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("here")

os.environ.setdefault("CNIMETA_OBSERVED", "/dev/null/none")  # nothing is counted where the machine does it
os.environ.pop("COLUMNS", None)  # tables are as wide as they are, whatever terminal the tests are run from


@pytest.fixture
def make_netns() -> Iterator[Callable[[str], Namespace]]:
    """A factory of network namespaces that are removed at the end."""
    made: list[Namespace] = []

    def make(label: str = "ns") -> Namespace:
        namespace = Namespace(label)
        made.append(namespace)
        return namespace

    yield make
    for namespace in made:
        namespace.close()


@pytest.fixture
def path_in_memory() -> Iterator[Path]:
    """A folder that no disk is waited for in, for thousands of commands that each end with an fsync."""
    folder = tempfile.mkdtemp(prefix="cnimeta-", dir="/dev/shm")
    yield Path(folder)
    shutil.rmtree(folder)
