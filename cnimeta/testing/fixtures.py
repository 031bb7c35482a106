"""Pytest fixtures for plugin authors. `cnimeta.testing.pytest_plugin` brings them along where cnimeta is installed.

Each imports what it gives when it is asked for: pytest loads this module in every project of the environment.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping
    from pathlib import Path

    from cnimeta.spec.jsonio import JSON
    from cnimeta.testing.bridge import Bridge
    from cnimeta.testing.clock import FakeClock
    from cnimeta.testing.delegates import FakeExec
    from cnimeta.testing.host import FakeHost
    from cnimeta.testing.netns import Namespace
    from cnimeta.testing.node import Node


@pytest.fixture
def cni_call() -> Callable[..., object]:
    """`cni_call(plugin, "ADD", conf, container_id=…)`: one verb in memory; see `cnimeta.testing.call`."""
    from cnimeta.testing.memory import call

    return call


@pytest.fixture
def cni_exec() -> FakeExec:
    """An executor without processes; put plugins in with `cni_exec.plugins[name] = plugin`."""
    from cnimeta.testing.delegates import FakeExec

    return FakeExec()


@pytest.fixture
def cni_clock() -> FakeClock:
    """A clock that moves when told to."""
    from cnimeta.testing.clock import FakeClock

    return FakeClock()


@pytest.fixture
def cni_noop(tmp_path: Path) -> Callable[..., str]:
    """`cni_noop("bridge", {"ADD": {"result": …}})` makes a scripted executable under tmp_path; returns its path."""
    from cnimeta.testing.noop import write_noop

    folder = tmp_path / "cni-bin"
    folder.mkdir()

    def make(name: str, script: Mapping[str, JSON] | None = None) -> str:
        return write_noop(str(folder), name, script)

    return make


@pytest.fixture
def cni_namespaces() -> Iterator[tuple[Namespace, Namespace]]:
    """Two network namespaces, (host, container), joined by a veth pair (host0, eth0). Needs root."""
    from cnimeta.testing.netns import namespaces

    with namespaces("host", "pod") as (host, pod):
        host.veth("host0", pod, "eth0")
        yield host, pod


@pytest.fixture
def cni_host() -> FakeHost:
    """`request.host` in memory."""
    from cnimeta.testing.host import FakeHost

    return FakeHost()


@pytest.fixture
def cni_node() -> Node:
    """A node with one container: /run/netns/c1, eth0 there, veth0 on the node."""
    from cnimeta.testing.node import Node

    return Node.of()


@pytest.fixture
def cni_bridge() -> Iterator[Bridge]:
    """A node in namespaces: a bridge with one container, and a client that reaches the node. Needs root."""
    from cnimeta.testing.bridge import bridge

    with bridge() as made:
        yield made
