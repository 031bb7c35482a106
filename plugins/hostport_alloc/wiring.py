"""Everything the verbs touch outside this process, in one place: the real adapters by default, fakes in tests."""

from __future__ import annotations

import os

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from cnimeta.delegate.call import Delegates
    from cnimeta.host.protocols import Clock, Files, Lock, NodeAddresses, PluginExec, PodApi, PortScan, Sockets
    from cnimeta.plugin.request import Request
    from cnimeta_plugins.hostport_alloc.allocate.allocator import PortSet
    from cnimeta_plugins.hostport_alloc.state.store import Rule, Store

LOCK_FILE = "lock"


class Host:
    """The seams of hostport_alloc. Each adapter is made when it is first needed: their imports cost time."""

    def __init__(
        self,
        *,
        executor: PluginExec | None = None,
        locate: Callable[[str, Sequence[str]], str] | None = None,
        files: Files | None = None,
        lock: Lock | None = None,
        clock: Clock | None = None,
        sockets: Sockets | None = None,
        scan: PortScan | None = None,
        addresses: NodeAddresses | None = None,
        pods: Callable[[str], PodApi] | None = None,
        rules: Callable[[], Iterable[Rule]] | None = None,
        boot_id: str | None = None,
    ) -> None:
        self._executor = executor
        self._locate = locate
        self._files = files
        self._lock = lock
        self._clock = clock
        self._sockets = sockets
        self._scan = scan
        self._addresses = addresses
        self._pods = pods
        self._rules = rules
        self._boot_id = boot_id

    @property
    def clock(self) -> Clock:
        """Time."""
        if self._clock is None:
            from cnimeta.host.clock import SystemClock

            self._clock = SystemClock()
        return self._clock

    @property
    def sockets(self) -> Sockets:
        """The node's sockets and port settings."""
        if self._sockets is None:
            from cnimeta.host.sockets import NodeSockets

            self._sockets = NodeSockets()
        return self._sockets

    def store(self, folder: str, lock_timeout_s: float, log: Callable[[str], None]) -> Store:
        """The state under `folder`."""
        from cnimeta.host.lock import NodeLock
        from cnimeta_plugins.hostport_alloc.state.store import Store

        lock = self._lock or NodeLock(os.path.join(folder, LOCK_FILE), lock_timeout_s)
        return Store(folder, self.files, lock, self.clock, self.boot_id, log, lambda: self.portmap_rules(folder, log))

    @property
    def files(self) -> Files:
        """Durable files. Written under the store's lock, so what a killed command left unfinished is used again."""
        if self._files is None:
            from cnimeta.host.files import PosixFiles

            return PosixFiles(exclusive=True)
        return self._files

    @property
    def boot_id(self) -> str:
        """This boot."""
        if self._boot_id is None:
            from cnimeta.host.clock import boot_id

            self._boot_id = boot_id()
        return self._boot_id

    def portmap_rules(self, folder: str, log: Callable[[str], None]) -> Iterable[Rule]:
        """The mappings that portmap, or else the kernel, says were made for us."""
        if self._rules is not None:
            return self._rules()
        from cnimeta_plugins.hostport_alloc.state.salvage import portmap_rules

        return portmap_rules(folder, self.files, self.boot_id, log)

    def refuses_writing(self, folder: str) -> str:
        """Why nothing can be written under `folder`; empty when it can. Tries it: permissions alone do not tell."""
        probe = os.path.join(folder, f"probe-{os.getpid()}")
        try:
            self.files.write(probe, b"")
            self.files.remove(probe)
        except OSError as error:
            return f"{folder} cannot be written: {error.strerror or error}; check $.dataDir and its file system"
        return ""

    def blocked(self, log: Callable[[str], None]) -> dict[str, PortSet]:
        """The ports the node itself or somebody's rules use."""
        from cnimeta_plugins.hostport_alloc.allocate.blocked import blocked_ports

        scan = self._scan
        if scan is None:
            from cnimeta.host.portscan import RulesetScan

            scan = RulesetScan(log)
        return blocked_ports(self.sockets, scan)

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
        from cnimeta.host.kube import KubernetesPodApi

        return KubernetesPodApi(kubeconfig)

    def delegates(self, request: Request, environ: Mapping[str, str] | None = None) -> Delegates:
        """The plugins of CNI_PATH, seeing the request's environment or another one."""
        return self.delegates_with(request.environ if environ is None else environ, request.cni_path, request.log)

    def delegates_with(
        self, environ: Mapping[str, str], folders: Sequence[str], log: Callable[[str], None]
    ) -> Delegates:
        """The plugins in `folders`: our own run in this process, others as processes of their own."""
        from cnimeta.delegate.call import Delegates
        from cnimeta.delegate.find import find

        executor = self._executor
        if executor is None:
            from cnimeta.delegate.inprocess import InProcessExec
            from cnimeta.delegate.spawn import ProcessExec

            executor = InProcessExec(ProcessExec(), log)
        return Delegates(executor, environ, folders, self._locate or find)
