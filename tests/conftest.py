"""Fixtures for all tests. Kernel tests need root and make their own namespaces; missing tools are errors, not skips."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cnimeta.testing.netns import Namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


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
