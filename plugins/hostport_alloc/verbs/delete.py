"""DEL: from the record alone. No API call, no namespace, no prevResult, no unchanged configuration."""

from __future__ import annotations

from cnimeta.errors import CniError, DelegateFailed, Failures, StateUnusable, shown
from cnimeta_plugins.hostport_alloc.config import QUARANTINE_S, read_data_dir, read_lock_timeout
from cnimeta_plugins.hostport_alloc.verbs.steps import mappings_of, planned
from cnimeta_plugins.hostport_alloc.verbs.undo import decode_undo, is_gone, take_back

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cnimeta.delegate.call import Delegates
    from cnimeta.host.protocols import Lock
    from cnimeta.plugin.request import Request
    from cnimeta.spec.jsonio import JSON
    from cnimeta.spec.result import Result
    from cnimeta_plugins.hostport_alloc.state.record import Record
    from cnimeta_plugins.hostport_alloc.state.store import Store
    from cnimeta_plugins.hostport_alloc.verbs.steps import Step
    from cnimeta_plugins.hostport_alloc.wiring import Wiring


def delete(wiring: Wiring, request: Request) -> None:
    """DEL. Everything is tried; failures are raised together at the end."""
    fields = request.conf.fields
    folder, timeout_s = read_data_dir(fields), read_lock_timeout(fields)
    lock = wiring.locks(folder, timeout_s).of(request.attachment.key)
    store = wiring.store(folder, timeout_s, request.log)
    with _Unless(lock, request):
        _delete(wiring, store, request)


class _Unless:
    """The attachment's lock, unless the disk takes no lock file: then nobody else can change the record either."""

    def __init__(self, lock: Lock, request: Request) -> None:
        self._held = lock.held()
        self._log = request.log
        self._has = False

    def __enter__(self) -> None:
        try:
            self._held.__enter__()
            self._has = True
        except StateUnusable as error:
            self._log(f"hostport_alloc: DEL goes on without the lock: {error.msg}")

    def __exit__(self, *what: object) -> None:
        if self._has:
            self._held.__exit__(None, None, None)


def _delete(wiring: Wiring, store: Store, request: Request) -> None:
    delegates = wiring.delegates(request.environ, request.cni_path, request.log)
    failures = Failures()
    record = None
    with failures:  # what the configuration tells is undone all the same
        record = store.load(request.attachment.key) or _renamed(wiring, store, request)
    if record is None:
        failures.found += _without_record(wiring, delegates, request)
        if not failures.found and store.exists():
            with failures:  # a state that was made anew meanwhile may have one, of what was mapped until just now
                if store.load(request.attachment.key) is not None:
                    store.release(request.attachment.key)
    else:
        failures.found += tear_down(wiring, store, delegates, record, request, _prev_result(request))
    failures.raise_any()


def _renamed(wiring: Wiring, store: Store, request: Request) -> Record | None:
    """The container's record from when its network had another name.

    Only for the same namespace, or where one of the two is gone: a runtime may have used a container ID again.
    """
    record = store.renamed(request.attachment.key)
    if record is None:
        return None
    now = wiring.namespaces.identity(request.attachment.netns)
    if now and record.netns_id and now != record.netns_id and not is_gone(wiring, record):
        return None
    request.log(f"hostport_alloc: this container was added to the network {shown(record.network)}")
    return record


def _prev_result(request: Request) -> Result | None:
    """The runtime's prevResult if it can be read: DEL may come without, or with one that is out of date."""
    try:
        return request.prev_result
    except CniError as error:
        request.log(f"hostport_alloc: DEL goes on without prevResult: {error}")
        return None


def _without_record(wiring: Wiring, delegates: Delegates, request: Request) -> list[CniError]:
    """Nothing was allocated, or DEL was served before: the delegates still get theirs, and so does portmap.

    Its rules may be there all the same, and it finds them by name: those on iptables after records were lost, and those
    from before hostport_alloc was put in front of a running portmap.
    """
    given = [entry.raw for entry in request.conf.runtime_config.objects("portMappings") if entry.get("hostPort")]
    steps = [step for step in planned(request) if given or not step.own or _is_there(delegates, step)]
    return take_back(wiring, delegates, steps, given, _prev_result(request))[0]


def _is_there(delegates: Delegates, step: Step) -> bool:
    """Whether the plugin is installed. A node that has never mapped a port may do without."""
    try:
        delegates.locate(step.type, delegates.folders)
    except DelegateFailed:
        return False
    return True


def tear_down(
    wiring: Wiring, store: Store, delegates: Delegates, record: Record, request: Request, prev: Result | None
) -> list[CniError]:
    """Undo what the record tells. Its ports are freed unless their rules could not be removed."""
    undo = decode_undo(record.undo)
    steps: Sequence[Step] = undo.steps if undo is not None else planned(request)
    known = prev if prev is not None or undo is None else undo.result
    mappings: Sequence[JSON] = mappings_of(record)
    errors, unmapped = take_back(wiring, delegates, steps, mappings, known)
    if unmapped:
        quarantine_s, sticky_s = (undo.quarantine_s, undo.sticky_s) if undo is not None else (QUARANTINE_S, 0.0)
        try:
            store.release(record.key, token=record.token, quarantine_s=quarantine_s, sticky_s=sticky_s)
        except CniError as error:
            errors.append(error)
    return errors
