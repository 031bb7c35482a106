"""CHECK and STATUS."""

from __future__ import annotations

from cnimeta.errors import CheckFailed, CniError, PluginNotAvailable, shown
from cnimeta_plugins.hostport_alloc.allocate.expose import pod_annotations
from cnimeta_plugins.hostport_alloc.config import read_settings
from cnimeta_plugins.hostport_alloc.verbs import steps as chain
from cnimeta_plugins.hostport_alloc.verbs.add import wanted_by
from cnimeta_plugins.hostport_alloc.verbs.delete import planned

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.plugin.request import Request
    from cnimeta_plugins.hostport_alloc.config import Settings
    from cnimeta_plugins.hostport_alloc.wiring import Host


def check(host: Host, request: Request) -> None:
    """CHECK: the record is there and complete; delegates and portmap, with the recorded mappings, agree."""
    settings = read_settings(request.conf)
    delegates = host.delegates(request)
    store = host.store(settings.data_dir, settings.lock_timeout_s, request.log)
    where = shown(request.attachment.container_id)
    record = store.load(request.attachment.key)
    if record is None:
        if wanted_by(request, settings, pod_annotations(request.conf.runtime_config)):
            raise CheckFailed(f"container {where} has no record in {settings.data_dir}, though it exposes ports")
        chain.check(delegates, [step for step in planned(request) if not step.own], [], request.prev_result)
        return
    if not store.is_alive(record):
        raise CheckFailed(f"the record of container {where} is of an earlier boot: its port mappings are gone")
    undo = chain.decode_undo(record.undo)
    if undo is None or record.phase != "mapped":
        raise CheckFailed(f"the record of container {where} is incomplete (phase {record.phase}): ADD did not finish")
    steps = [step for step in undo.steps if settings.chain.check or step.own]
    chain.check(delegates, steps, chain.mappings_of(record), request.prev_result or undo.result)


def status(host: Host, request: Request) -> None:
    """STATUS: 50 when the state is unusable or a range has no free port left, else what the delegates say."""
    settings = read_settings(request.conf)
    store = host.store(settings.data_dir, settings.lock_timeout_s, request.log)
    inspection = store.inspect()
    unusable = inspection.unusable or host.refuses_writing(settings.data_dir)
    if unusable:
        raise PluginNotAvailable(f"ADD would fail: {unusable}")
    try:
        blocked = host.blocked(request.log)
    except CniError as error:
        raise PluginNotAvailable(f"ADD would fail: {error}") from error
    for problem in inspection.problems:
        request.log(f"hostport_alloc: {problem}")
    for found in settings.ranges:
        for protocol in _protocols(settings, found.name):
            if not found.ports & ~inspection.used.get(protocol, 0) & ~blocked.get(protocol, 0):
                raise PluginNotAvailable(
                    f"range {shown(found.name)} ({found.text}, {found.size} ports) has no free {protocol} port left"
                )
    delegates, steps = host.delegates(request), planned(request)
    for step in steps:
        try:
            delegates.locate(step.type, delegates.folders)
        except CniError as error:
            raise PluginNotAvailable(f"ADD would fail: {error}") from error
    chain.status(delegates, steps)


def _protocols(settings: Settings, name: str) -> list[str]:
    """The protocols this configuration needs of a range; TCP when only Pods know."""
    needed = {protocol for exposure in settings.expose if exposure.range == name for protocol in exposure.protocols}
    return sorted(needed) or ["tcp"]
