"""hostport_alloc: verbs and wiring."""

from __future__ import annotations

from cnimeta.plugin.base import Plugin
from cnimeta_plugins.hostport_alloc.wiring import Host

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from cnimeta.plugin.base import Commands
    from cnimeta.plugin.request import Request
    from cnimeta.spec.result import Result


class HostportAlloc(Plugin):
    """Random free host ports for containers, in front of or after other plugins. See docs/hostport_alloc.md."""

    name = "hostport_alloc"
    about = "gives containers random free host ports and writes the addresses to their Pods"

    def __init__(self, host: Host | None = None) -> None:
        self.host = Host() if host is None else host

    def add(self, request: Request) -> Result:
        from cnimeta_plugins.hostport_alloc.config import read_settings
        from cnimeta_plugins.hostport_alloc.verbs.add import Add

        return Add(self.host, request, read_settings(request.conf)).run()

    def delete(self, request: Request) -> None:
        from cnimeta_plugins.hostport_alloc.verbs.delete import delete

        delete(self.host, request)

    def check(self, request: Request) -> None:
        from cnimeta_plugins.hostport_alloc.verbs.check import check

        check(self.host, request)

    def gc(self, request: Request) -> None:
        from cnimeta_plugins.hostport_alloc.pod.publish import deliver_earlier
        from cnimeta_plugins.hostport_alloc.verbs.delete import gc

        try:
            gc(self.host, request)
        finally:
            deliver_earlier(self.host, request)

    def status(self, request: Request) -> None:
        from cnimeta_plugins.hostport_alloc.verbs.check import status

        status(self.host, request)

    def add_commands(self, commands: Commands) -> None:
        """`cnimeta ports` and `cnimeta wrap`."""
        from cnimeta_plugins.hostport_alloc.operator.commands import add_commands

        add_commands(commands)

    def preload(self) -> Iterable[str]:
        """What its verbs import on their way."""
        return (
            *("filelock", "kubernetes.client", "kubernetes.config", "ssl", "json"),
            *("cnimeta.host.kube", "cnimeta.host.lock", "cnimeta.host.portscan", "cnimeta.host.sockets"),
            *("cnimeta.host.addresses", "cnimeta.delegate.call", "cnimeta.delegate.inprocess"),
            *("cnimeta_plugins.hostport_alloc.verbs.add", "cnimeta_plugins.hostport_alloc.verbs.delete"),
            *("cnimeta_plugins.hostport_alloc.pod.annotation", "cnimeta_plugins.hostport_alloc.state.store"),
        )
