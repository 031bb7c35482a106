"""Everything the verbs touch outside this process, in one place: the real adapters by default, fakes in tests."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from cnimeta.delegate.call import Delegates
    from cnimeta.host.protocols import (
        Clock,
        Database,
        Files,
        Hook,
        Lock,
        Locks,
        Namespaces,
        NodeAddresses,
        PluginExec,
        PodApi,
        PortScan,
        Sockets,
        Sysctl,
    )
    from cnimeta.ports.mapper import MappedPort, PortMapper
    from cnimeta_plugins.hostport_alloc.allocate.blocked import Probe
    from cnimeta_plugins.hostport_alloc.allocate.ranges import PortSet
    from cnimeta_plugins.hostport_alloc.config import Settings
    from cnimeta_plugins.hostport_alloc.hook.event import Notify
    from cnimeta_plugins.hostport_alloc.state.reservation import Reservation
    from cnimeta_plugins.hostport_alloc.state.store import Store


_RESERVING_TIMEOUT_S = 5.0


class Wiring:
    """The seams of hostport_alloc. Each adapter is made when it is first needed: their imports cost time."""

    def __init__(
        self,
        *,
        executor: PluginExec | None = None,
        locate: Callable[[str, Sequence[str]], str] | None = None,
        open_database: Callable[..., Database] | None = None,
        locks: Locks | None = None,
        clock: Clock | None = None,
        sockets: Sockets | None = None,
        scan: PortScan | None = None,
        addresses: NodeAddresses | None = None,
        pods: Callable[[str], PodApi] | None = None,
        mapper: Callable[[str], PortMapper | None] | None = None,
        mapper_here: Callable[[str, Sequence[str]], PortMapper | None] | None = None,
        namespaces: Namespaces | None = None,
        files: Files | None = None,
        sysctl: Sysctl | None = None,
        reserving: Lock | None = None,
        hook: Hook | None = None,
        telling: Lock | None = None,
        boot_id: str | None = None,
        host_name: str | None = None,
    ) -> None:
        self._executor = executor
        self._locate = locate
        self._open_database = open_database
        self._locks = locks
        self._clock = clock
        self._sockets = sockets
        self._scan = scan
        self._addresses = addresses
        self._pods = pods
        self._mapper = mapper
        self._mapper_here = mapper_here
        self._namespaces = namespaces
        self._files = files
        self._sysctl = sysctl
        self._reserving = reserving
        self._hook = hook
        self._telling = telling
        self._boot_id = boot_id
        self._host_name = host_name

    # --- the state -------------------------------------------------------------------------------------

    def store(self, folder: str, timeout_s: float, log: Callable[[str], None]) -> Store:
        """The state under `folder`."""
        from cnimeta_plugins.hostport_alloc.state.contents import PortContents
        from cnimeta_plugins.hostport_alloc.state.store import Store

        contents = PortContents(lambda: self.mappings(folder, log), self.clock, self.boot_id, log)
        if self._open_database is not None:
            database = self._open_database(folder, contents, self.boot_id, log, timeout_s)
        else:
            from cnimeta.store.database import Database as SqliteDatabase

            database = SqliteDatabase(folder, contents, self.boot_id, log, timeout_s)
        return Store(database, self.clock, self.boot_id, log)

    def locks(self, folder: str, timeout_s: float) -> Locks:
        """The locks of attachments under `folder`."""
        if self._locks is not None:
            return self._locks
        from cnimeta.store.locks import AttachmentLocks

        return AttachmentLocks(os.path.join(folder, "locks"), timeout_s)

    @property
    def boot_id(self) -> str:
        """This boot."""
        if self._boot_id is None:
            from cnimeta.host.clock import boot_id

            self._boot_id = boot_id()
        return self._boot_id

    @property
    def clock(self) -> Clock:
        """Time."""
        if self._clock is None:
            from cnimeta.host.clock import SystemClock

            self._clock = SystemClock()
        return self._clock

    # --- ports -----------------------------------------------------------------------------------------

    @property
    def sockets(self) -> Sockets:
        """The node's sockets and port settings."""
        if self._sockets is None:
            from cnimeta.host.sockets import NodeSockets

            self._sockets = NodeSockets()
        return self._sockets

    def blocked(self, log: Callable[[str], None], settings: Settings | None = None) -> dict[str, PortSet]:
        """The ports the node itself or somebody's rules use, by the reservations of others among them.

        `settings`: of a configuration that may have reserved ports itself.
        """
        from cnimeta_plugins.hostport_alloc.allocate.blocked import blocked_ports

        return blocked_ports(self.sockets, self._scanning(log), self._reserved_by_us(settings))

    def set_aside(self, log: Callable[[str], None], settings: Settings) -> dict[str, PortSet]:
        """Those of them that somebody has reserved or redirects."""
        from cnimeta_plugins.hostport_alloc.allocate.blocked import set_aside

        return set_aside(self.sockets, self._scanning(log), self._reserved_by_us(settings))

    def probe(self) -> Probe:
        """Whether a port is one of the sockets'."""
        from cnimeta_plugins.hostport_alloc.allocate.blocked import Probe

        return Probe(self.sockets)

    def _scanning(self, log: Callable[[str], None]) -> PortScan:
        if self._scan is not None:
            return self._scan
        from cnimeta.host.portscan import RulesetScan

        return RulesetScan(log)

    def _reserved_by_us(self, settings: Settings | None) -> PortSet:
        return self.reservation(settings.data_dir).ours() if settings is not None and settings.reserve_ports else 0

    def reservation(self, folder: str) -> Reservation:
        """The ports that are reserved with the kernel, by us and by others."""
        from cnimeta_plugins.hostport_alloc.state.reservation import LOCK, Reservation

        sysctl, lock = self._sysctl, self._reserving
        if sysctl is None:
            from cnimeta.host.sysctl import ProcSysctl

            sysctl = ProcSysctl()
        if lock is None:
            from cnimeta.host.lock import NodeLock

            lock = NodeLock(os.path.join(folder, LOCK), _RESERVING_TIMEOUT_S)
        netns_id = self.namespaces.identity("/proc/thread-self/ns/net")
        return Reservation(folder, self.files, sysctl, lock, self.boot_id, netns_id)

    @property
    def files(self) -> Files:
        """Files on disk."""
        if self._files is None:
            from cnimeta.host.files import PosixFiles

            self._files = PosixFiles()
        return self._files

    def on_node(self, settings: Settings) -> Settings:
        """With the numbers of this node's own file, where the configuration names one.

        Raises TryAgainLater (11) when it cannot be read, since what it would say is unknown; NotOurs (104) for one that
        others may write to; InvalidNetworkConfig (7) for what it says.
        """
        path = settings.ranges_file
        if not path:
            return settings
        from cnimeta.errors import TryAgainLater, shown
        from cnimeta_plugins.hostport_alloc.range_config import on_node

        why = "there is no such file"
        try:
            text = self.files.read(path)
        except OSError as error:
            text, why = None, str(error.strerror or error)
        if text is None:
            raise TryAgainLater(f"the ranges of this node are not known: $.rangesFile {shown(path)}: {why}")
        return settings._replace(ranges=on_node(settings.ranges, path, text))

    def mapper(self, plugin_type: str) -> PortMapper | None:
        """What an installed port mapper offers beside the CNI verbs; None for one that offers nothing."""
        if self._mapper is not None:
            return self._mapper(plugin_type)
        from cnimeta.plugin.registry import port_mapper

        return port_mapper(plugin_type)

    def mapper_here(self, plugin_type: str, folders: Sequence[str]) -> PortMapper | None:
        """As `mapper`, of the plugin that `folders` have under this name; None unless it is of this installation."""
        if self._mapper_here is not None:
            return self._mapper_here(plugin_type, folders)
        from cnimeta.delegate.find import find
        from cnimeta.errors import CniError
        from cnimeta.plugin.launcher import read_target
        from cnimeta.plugin.registry import port_mapper

        try:
            target = read_target(find(plugin_type, folders)) if self._executor is None else None
            return port_mapper(plugin_type, target) if target is not None else None
        except CniError:  # unknown: it is not there, or cannot be loaded: its CHECK will tell
            return None

    def registered_mapper(self, plugin_type: str, log: Callable[[str], None]) -> PortMapper | None:
        """As `mapper`; one that cannot be loaded is told of, and None."""
        from cnimeta.errors import CniError

        try:
            return self.mapper(plugin_type)
        except CniError as error:
            log(f"hostport_alloc: {error.msg}")
            return None

    def mappings(self, folder: str, log: Callable[[str], None]) -> tuple[MappedPort, ...]:
        """What was mapped for hostport_alloc on this node, as the port mapper and the kernel know it.

        Where no interface is named, only the kernel knows of it, and it may be a foreign plugin's.
        """
        from cnimeta_plugins.hostport_alloc.config import PORTMAP_TYPE

        mapper = self.registered_mapper(PORTMAP_TYPE, log)
        return of_hostport_alloc(mapper.mappings(folder, log) if mapper is not None else ())

    # --- the container, its node and its Pod -------------------------------------------------------------

    @property
    def host_name(self) -> str:
        """The node's own name, which the kubelet registers it by unless told otherwise."""
        return os.uname().nodename if self._host_name is None else self._host_name

    @property
    def namespaces(self) -> Namespaces:
        """Which namespace a path leads to, and whether one is gone."""
        if self._namespaces is None:
            from cnimeta.host.namespaces import HostNamespaces

            self._namespaces = HostNamespaces()
        return self._namespaces

    def primary_addresses(self) -> tuple[str, ...]:
        """The node's own addresses, at most one per family."""
        if self._addresses is None:
            from cnimeta.host.addresses import RouteAddresses

            self._addresses = RouteAddresses()
        return self._addresses.primary()

    def pods(self, kubeconfig: str) -> PodApi:
        """The Pod API with the credentials of `kubeconfig`."""
        if self._pods is not None:
            return self._pods(kubeconfig)
        from cnimeta.host.kube.api import KubernetesPodApi

        return KubernetesPodApi(kubeconfig)

    def hook(self, notify: Notify) -> Hook:
        """Who is told of mappings."""
        if self._hook is not None:
            return self._hook
        from cnimeta.host.hook import ProgramHook, SocketHook

        return ProgramHook(notify.program) if notify.program else SocketHook(notify.socket)

    def telling(self, folder: str, timeout_s: float) -> Lock:
        """Who has it delivers events."""
        if self._telling is not None:
            return self._telling
        from cnimeta.host.lock import NodeLock
        from cnimeta_plugins.hostport_alloc.hook.delivery import LOCK

        return NodeLock(os.path.join(folder, LOCK), timeout_s)

    # --- other plugins ---------------------------------------------------------------------------------

    def delegates(self, environ: Mapping[str, str], folders: Sequence[str], log: Callable[[str], None]) -> Delegates:
        """The plugins in `folders`, which see `environ`: our own run in this process, others as processes."""
        from cnimeta.delegate.call import Delegates
        from cnimeta.delegate.find import find

        executor = self._executor
        if executor is None:
            from cnimeta.delegate.inprocess import InProcessExec
            from cnimeta.delegate.spawn import ProcessExec

            executor = InProcessExec(ProcessExec(), log)
        return Delegates(executor, environ, folders, self._locate or find)


def of_hostport_alloc(mappings: Iterable[MappedPort]) -> tuple[MappedPort, ...]:
    """Those that were made for hostport_alloc, or may have been: not every kind of rule tells."""
    from cnimeta_plugins.hostport_alloc.config import PLUGIN_TYPE

    return tuple(one for one in mappings if one.managed_by in (PLUGIN_TYPE, None))
