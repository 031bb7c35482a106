"""hostport_alloc: the verbs."""

from __future__ import annotations

from cnimeta.plugin.base import Plugin
from cnimeta_plugins.hostport_alloc.wiring import Wiring

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from cnimeta.observe.metrics import Metric
    from cnimeta.plugin.base import Commands
    from cnimeta.plugin.described import Key
    from cnimeta.plugin.request import Request
    from cnimeta.spec.jsonio import JSON
    from cnimeta.spec.netconf import NetConf
    from cnimeta.spec.result import Result


class HostportAlloc(Plugin):
    """Random free host ports for containers, in front of or after other plugins. See docs/hostport_alloc.md."""

    name = "hostport_alloc"
    about = "gives containers random free host ports and writes the addresses to their Pods"
    reusable = True

    def __init__(self, wiring: Wiring | None = None) -> None:
        self.wiring = Wiring() if wiring is None else wiring

    def add(self, request: Request) -> Result:
        from cnimeta_plugins.hostport_alloc.verbs.add import add

        return add(self.wiring, request)

    def delete(self, request: Request) -> None:
        from cnimeta_plugins.hostport_alloc.verbs.delete import delete

        delete(self.wiring, request)

    def check(self, request: Request) -> None:
        from cnimeta_plugins.hostport_alloc.verbs.check import check

        check(self.wiring, request)

    def gc(self, request: Request) -> None:
        from cnimeta_plugins.hostport_alloc.verbs.gc import gc

        gc(self.wiring, request)

    def status(self, request: Request) -> None:
        from cnimeta_plugins.hostport_alloc.verbs.status import status

        status(self.wiring, request)

    def describe(self) -> Iterable[Key]:
        """Its keys."""
        from cnimeta_plugins.hostport_alloc.described import KEYS

        return KEYS

    def validate(self, conf: NetConf) -> Iterable[str]:
        """Keys and values."""
        from cnimeta_plugins.hostport_alloc.operator.examine import validate

        return validate(conf)

    def examine(self, conf: NetConf) -> Iterable[str]:
        """Keys and values, ranges beside those of the node, credentials."""
        from cnimeta_plugins.hostport_alloc.operator.examine import examine

        return examine(self.wiring, conf)

    def examine_networks(self, net_dir: str) -> Iterable[str]:
        """Configurations and containers that go past it."""
        from cnimeta_plugins.hostport_alloc.operator.unserved import unserved

        return unserved(self.wiring, net_dir)

    def delegates(self, conf: NetConf) -> Iterable[Mapping[str, JSON]]:
        """The delegates, and the portmap that comes after them."""
        from cnimeta_plugins.hostport_alloc.operator.examine import delegates

        return delegates(conf)

    def in_use(self, confs: Sequence[NetConf]) -> Iterable[str]:
        """Containers on record."""
        from cnimeta_plugins.hostport_alloc.operator.examine import in_use

        return in_use(self.wiring, confs)

    def leave(self, confs: Sequence[NetConf]) -> Iterable[str]:
        """Ports reserved with the kernel."""
        from cnimeta_plugins.hostport_alloc.operator.reserving import leave

        return leave(self.wiring, confs)

    def metrics(self, net_dir: str) -> Iterable[Metric]:
        """Ranges, annotations, whose configuration is first."""
        from cnimeta_plugins.hostport_alloc.operator.metrics import metrics

        return metrics(self.wiring, net_dir)

    def keeper(self, net_dir: str, log: Callable[[str], None]) -> Callable[[], object]:
        """Our own configuration beside the primary network's, in step with it."""
        from cnimeta_plugins.hostport_alloc.operator.own import Keeper

        return Keeper(net_dir, self.wiring.clock, log).look

    def dump(self, confs: Sequence[NetConf]) -> Iterable[tuple[str, Callable[[], JSON]]]:
        """Records, ports and problems."""
        from cnimeta_plugins.hostport_alloc.operator.dumping import dump

        return dump(self.wiring, confs)

    def add_commands(self, commands: Commands) -> None:
        """`cnimeta ports` and `cnimeta wrap`."""
        from cnimeta_plugins.hostport_alloc.operator.commands import add_commands

        add_commands(commands)

    def preload(self) -> Iterable[str]:
        """What its verbs import on their way."""
        host = ("addresses", "clock", "hook", "kube.api", "kube.client", "lock", "portscan", "sockets")
        own = ("allocate.blocked", "pod.annotation", "state.contents", "state.store")
        asked = ("allocate.ordinal", "allocate.quotas", "hook.telling", "pod.external", "pod.outside", "state.held")
        also = ("state.outbox", "state.reservation")
        verbs = ("add", "check", "delete", "gc", "repeat", "status")
        return (
            *("filelock", "kubernetes.client", "kubernetes.config", "ssl", "json", "difflib"),
            *(f"cnimeta.host.{name}" for name in host),
            *(f"cnimeta.delegate.{name}" for name in ("call", "inprocess", "spawn")),
            *("cnimeta.store.database", "cnimeta.store.locks"),
            *(f"cnimeta_plugins.hostport_alloc.{name}" for name in (*own, *asked, *also)),
            *(f"cnimeta_plugins.hostport_alloc.verbs.{name}" for name in verbs),
        )
