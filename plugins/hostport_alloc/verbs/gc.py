"""GC: what DEL would have done for every attachment that the runtime no longer lists; then the delegates' own GC."""

from __future__ import annotations

from cnimeta.errors import Failures, TryAgainLater, shown
from cnimeta_plugins.hostport_alloc.config import read_chain, read_data_dir, read_lock_timeout
from cnimeta_plugins.hostport_alloc.pod.publish import deliver_earlier
from cnimeta_plugins.hostport_alloc.verbs import steps as calls
from cnimeta_plugins.hostport_alloc.verbs.delete import tear_down
from cnimeta_plugins.hostport_alloc.verbs.steps import planned
from cnimeta_plugins.hostport_alloc.verbs.undo import decode_undo, delegates_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.errors import CniError
    from cnimeta.host.protocols import Locks
    from cnimeta.plugin.request import Request
    from cnimeta_plugins.hostport_alloc.state.record import Record
    from cnimeta_plugins.hostport_alloc.state.store import Store
    from cnimeta_plugins.hostport_alloc.wiring import Wiring


def gc(wiring: Wiring, request: Request) -> None:
    """Undo every attachment of this network that is not listed; without a list GC removes none."""
    fields = request.conf.fields
    folder, timeout_s = read_data_dir(fields), read_lock_timeout(fields)
    store, locks = wiring.store(folder, timeout_s, request.log), wiring.locks(folder, timeout_s)
    keep = request.conf.valid_attachments()
    failures = Failures()
    try:
        if keep is not None:
            with failures:
                for record in store.unlisted(request.conf.name, keep):
                    with failures:
                        failures.found += _collect(wiring, store, locks, record, request)
        where = read_chain(request.conf)
        steps = [step for step in planned(request) if where.gc or step.own]
        delegates = wiring.delegates(request.environ, request.cni_path, request.log)
        failures.found += calls.gc(delegates, steps, request.conf)
    finally:
        deliver_earlier(wiring, request)
        if fields.has("notify"):
            from cnimeta_plugins.hostport_alloc.hook.telling import tell_earlier

            tell_earlier(wiring, request)
    failures.raise_any()


def _collect(wiring: Wiring, store: Store, locks: Locks, record: Record, request: Request) -> list[CniError]:
    """Undo one attachment, if it is still what was read. One that another command works on is left to that."""
    try:
        with locks.try_of(record.key).held():
            now = store.load(record.key)
            if now is None or now.token != record.token:
                return []
            undo = decode_undo(record.undo)
            delegates = delegates_of(wiring, record, undo, request.environ, request.cni_path, request.log)
            return tear_down(wiring, store, delegates, record, request, None)
    except TryAgainLater as error:
        request.log(f"hostport_alloc: GC leaves container {shown(record.container_id)} alone: {error.msg}")
        return []
