"""The node as a verb reaches it: `request.host`. Each part is made when it is first asked for.

What a plugin needs beyond these it takes from `cnimeta.host` itself. `cnimeta.testing.node.FakeHost` is the same in
memory, so that a plugin which goes through `request.host` alone needs no wiring of its own to be tested.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from cnimeta.host.protocols import (
        Clock,
        Files,
        Namespaces,
        Network,
        Networks,
        Nft,
        PluginExec,
        PodApi,
        Sockets,
        Sysctl,
    )
    from cnimeta.store.records import Records


class Host:
    """The real node. Failures are CniErrors, as the Protocols of cnimeta.host.protocols say; files fail as OSError, and
    Pods as PodApiError.
    """

    executor: PluginExec | None = None
    """What runs delegates; None: what `cnimeta.delegate.Delegates` takes by itself."""

    @property
    def networks(self) -> Networks:
        """Interfaces, addresses, routes and settings, here and in other namespaces."""
        from cnimeta.host.network.kernel import KernelNetworks

        return KernelNetworks()

    def network(self, netns: str = "") -> AbstractContextManager[Network]:
        """The network of the namespace at a path, or of the plugin's own, for a `with` block.

        This thread is in that namespace until the block ends. NoNamespace (`cnimeta.host.values`) without it.
        """
        return self.networks.within(netns) if netns else _Here(self.networks.here())

    @property
    def namespaces(self) -> Namespaces:
        """Which namespace a path leads to, and whether one is gone."""
        from cnimeta.host.namespaces import HostNamespaces

        return HostNamespaces()

    @property
    def sysctl(self) -> Sysctl:
        """Kernel settings of the namespace this thread is in."""
        from cnimeta.host.sysctl import ProcSysctl

        return ProcSysctl()

    def nft(self, table: str) -> Nft:
        """An nftables table of the family inet; changes are values of `cnimeta.host.nftables.values`."""
        from cnimeta.host.nftables.program import NftProgram

        return NftProgram(table)

    @property
    def files(self) -> Files:
        """Durable, atomic files."""
        from cnimeta.host.files import PosixFiles

        return PosixFiles()

    @property
    def clock(self) -> Clock:
        """Time."""
        from cnimeta.host.clock import SystemClock

        return SystemClock()

    @property
    def sockets(self) -> Sockets:
        """Which ports the node itself uses."""
        from cnimeta.host.sockets import NodeSockets

        return NodeSockets()

    def pods(self, kubeconfig: str = "") -> PodApi:
        """The cluster's Pods, with the credentials of a kubeconfig; empty: those of a Pod, or else the node's own.

        Needs the package `kubernetes` once it is used. Each call makes another, with a connection of its own: keep it.
        """
        from cnimeta.host.kube.api import KubernetesPodApi

        return KubernetesPodApi(kubeconfig)

    def records(self, folder: str, *, log: Callable[[str], None], version: int = 1, timeout_s: float = 10) -> Records:
        """The plugin's records in a folder of its own, and their locks."""
        from cnimeta.store.records import Records

        return Records(folder, log=log, version=version, timeout_s=timeout_s)


class _Here:
    """A block in this very namespace."""

    def __init__(self, network: Network) -> None:
        self._network = network

    def __enter__(self) -> Network:
        return self._network

    def __exit__(self, *_: object) -> None:
        """Nothing to leave."""
