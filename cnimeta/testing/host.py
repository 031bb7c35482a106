"""`request.host` in memory: a fake for everything that `cnimeta.plugin.host.Host` reaches."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from cnimeta.plugin.host import Host
from cnimeta.store.records import Records
from cnimeta.testing.clock import FakeClock
from cnimeta.testing.delegates import FakeExec
from cnimeta.testing.files import MemoryFiles
from cnimeta.testing.namespaces import FakeNamespaces
from cnimeta.testing.netfilter import FakeNft, FakeSysctl
from cnimeta.testing.network import FakeNetworks
from cnimeta.testing.sockets import FakeSockets
from cnimeta.testing.store import FakeLocks, MemoryDatabases

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cnimeta.host.protocols import Network, Nft
    from cnimeta.plugin.base import Plugin
    from cnimeta.testing.kube import FakePods


class FakeHost(Host):
    """The node in memory. `delegates` are the plugins that CNI_PATH leads to.

    Every part is a fake under its own name, to be filled, looked at, and told to fail.
    """

    def __init__(self, *delegates: Plugin) -> None:
        self.fakes = self
        self.folders: set[str] = set()
        """Those that records were kept in."""
        self.executor: FakeExec = FakeExec(*delegates)
        self._networks = FakeNetworks()
        self._namespaces = FakeNamespaces()
        self._sysctl = FakeSysctl()
        self._files = MemoryFiles()
        self._clock = FakeClock()
        self._sockets = FakeSockets()
        self.pod_api: FakePods | None = None
        """What `pods` gives; None until it is asked for: an API server costs time to import."""
        self.tables: dict[str, FakeNft] = {}
        """The nftables tables that were asked for, by name."""
        self.databases = MemoryDatabases()
        self.locks = FakeLocks()

    @property
    def networks(self) -> FakeNetworks:
        """Make a container's interface with `networks.veth(netns, ifname, host_name)`."""
        return self._networks

    def network(self, netns: str = "") -> contextlib.AbstractContextManager[Network]:
        """As the real one."""
        return self._networks.within(netns) if netns else self._here()

    @contextlib.contextmanager
    def _here(self) -> Iterator[Network]:
        yield self._networks.here()

    @property
    def namespaces(self) -> FakeNamespaces:
        """Where paths lead to."""
        return self._namespaces

    @property
    def sysctl(self) -> FakeSysctl:
        """The settings of the plugin's own namespace."""
        return self._sysctl

    def nft(self, table: str) -> Nft:
        """One of `tables`."""
        return self.tables.setdefault(table, FakeNft())

    @property
    def files(self) -> MemoryFiles:
        """Files; `files.disk` has what is there."""
        return self._files

    @property
    def clock(self) -> FakeClock:
        """Moves when told to."""
        return self._clock

    @property
    def sockets(self) -> FakeSockets:
        """Which ports are used."""
        return self._sockets

    def pods(self, kubeconfig: str = "") -> FakePods:  # noqa: ARG002 - as the real one
        """The same API server for each kubeconfig; its user may patch `pods/status` and get `pods`."""
        if self.pod_api is None:
            from cnimeta.testing.kube import ANNOTATE, FakePods

            self.pod_api = FakePods("cnimeta", {"cnimeta": ANNOTATE | {"get pods"}})
        return self.pod_api

    def records(self, folder: str, *, log: Callable[[str], None], version: int = 1, timeout_s: float = 10) -> Records:
        """In `databases`, under `locks`."""
        self.folders.add(folder)
        return Records(
            folder, log=log, version=version, timeout_s=timeout_s, open_database=self.databases, locks=self.locks
        )
