"""CHECK: the record is there and complete; delegates and portmap, with the recorded mappings, agree."""

from __future__ import annotations

from cnimeta.errors import CheckFailed, shown
from cnimeta_plugins.hostport_alloc.allocate.expose import pod_annotations
from cnimeta_plugins.hostport_alloc.config import read_settings
from cnimeta_plugins.hostport_alloc.verbs import steps as calls
from cnimeta_plugins.hostport_alloc.verbs.steps import mappings_of, planned
from cnimeta_plugins.hostport_alloc.verbs.undo import decode_undo
from cnimeta_plugins.hostport_alloc.verbs.wanted import wanted_by

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.plugin.request import Request
    from cnimeta_plugins.hostport_alloc.wiring import Wiring


def check(wiring: Wiring, request: Request) -> None:
    """CHECK."""
    settings = read_settings(request.conf)
    delegates = wiring.delegates(request.environ, request.cni_path, request.log)
    store = wiring.store(settings.data_dir, settings.lock_timeout_s, request.log)
    where = shown(request.attachment.container_id)
    record = store.load(request.attachment.key)
    if record is None:
        if wanted_by(request, settings, pod_annotations(request.conf.runtime_config)):
            raise CheckFailed(f"container {where} has no record in {settings.data_dir}, though it exposes ports")
        calls.check(delegates, [step for step in planned(request) if not step.own], [], request.prev_result)
        return
    if not store.is_alive(record):
        raise CheckFailed(f"the record of container {where} is of an earlier boot: its port mappings are gone")
    undo = decode_undo(record.undo)
    if undo is None or record.phase != "mapped":
        raise CheckFailed(f"the record of container {where} is incomplete (phase {record.phase}): ADD did not finish")
    steps = [step for step in undo.steps if settings.chain.check or step.own]
    calls.check(delegates, steps, mappings_of(record), request.prev_result or undo.result)
