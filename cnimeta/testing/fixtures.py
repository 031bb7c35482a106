"""Pytest fixtures for plugin authors: `pytest_plugins = ["cnimeta.testing.fixtures"]` in a conftest.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cnimeta.testing.clock import FakeClock
from cnimeta.testing.delegates import FakeExec
from cnimeta.testing.memory import call
from cnimeta.testing.netns import namespaces
from cnimeta.testing.noop import write_noop

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from cnimeta.spec.jsonio import JSON
    from cnimeta.testing.netns import Namespace


@pytest.fixture
def cni_call() -> Callable[..., object]:
    """`cni_call(plugin, "ADD", conf, container_id=…)`: one verb in memory; see `cnimeta.testing.call`."""
    return call


@pytest.fixture
def cni_exec() -> FakeExec:
    """An executor without processes; put plugins in with `cni_exec.plugins[name] = plugin`."""
    return FakeExec()


@pytest.fixture
def cni_clock() -> FakeClock:
    """A clock that moves when told to."""
    return FakeClock()


@pytest.fixture
def cni_noop(tmp_path: Path) -> Callable[..., str]:
    """`cni_noop("bridge", {"ADD": {"result": …}})` makes a scripted executable under tmp_path; returns its path."""
    folder = tmp_path / "cni-bin"
    folder.mkdir()

    def make(name: str, script: Mapping[str, JSON] | None = None) -> str:
        return write_noop(str(folder), name, script)

    return make


@pytest.fixture
def cni_namespaces() -> Iterator[tuple[Namespace, Namespace]]:
    """Two network namespaces, (host, container), joined by a veth pair (host0, eth0). Needs root."""
    with namespaces("host", "pod") as (host, pod):
        host.veth("host0", pod, "eth0")
        yield host, pod
