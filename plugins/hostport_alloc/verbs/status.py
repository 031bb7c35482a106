"""STATUS: 50 when the state is unusable or a range has no free port left, else what the delegates say."""

from __future__ import annotations

from cnimeta.errors import CniError, PluginNotAvailable, counted, shown
from cnimeta_plugins.hostport_alloc.allocate.ranges import refuse_reserved
from cnimeta_plugins.hostport_alloc.config import read_settings, refuse_unreadable_credentials
from cnimeta_plugins.hostport_alloc.verbs import steps as calls
from cnimeta_plugins.hostport_alloc.verbs.steps import planned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.plugin.request import Request
    from cnimeta_plugins.hostport_alloc.config import Settings
    from cnimeta_plugins.hostport_alloc.wiring import Wiring


def status(wiring: Wiring, request: Request) -> None:
    """STATUS."""
    settings = read_settings(request.conf)
    store = wiring.store(settings.data_dir, settings.lock_timeout_s, request.log)
    delegates, steps = wiring.delegates(request.environ, request.cni_path, request.log), planned(request)
    try:
        settings = wiring.on_node(settings)
        refuse_reserved(settings.ranges, settings.reserved(wiring.sockets.ephemeral()))
        refuse_unreadable_credentials(settings.api)
        store.try_writing()
        used = store.occupancy().used
        blocked = wiring.blocked(request.log, settings)
        for step in steps:
            delegates.locate(step.type, delegates.folders)
    except CniError as error:
        raise PluginNotAvailable(f"ADD would fail: {error}") from error
    for found in settings.ranges:
        for protocol in _protocols(settings, found.name):
            if not found.ports & ~used.get(protocol, 0) & ~blocked.get(protocol, 0):
                size = counted(found.size, "port")
                raise PluginNotAvailable(
                    f"range {shown(found.name)} ({found.text}, {size}) has no free {protocol} port left"
                )
    calls.status(delegates, steps)


def _protocols(settings: Settings, name: str) -> list[str]:
    """The protocols this configuration needs of a range; TCP when only Pods know."""
    needed = {protocol for exposure in settings.expose if exposure.range == name for protocol in exposure.protocols}
    return sorted(needed) or ["tcp"]
