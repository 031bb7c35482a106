"""DEL and GC: from the record alone. No API call, no namespace, no prevResult, no unchanged configuration."""

from __future__ import annotations

import os

from cnimeta.errors import CniError, joined, shown
from cnimeta_plugins.hostport_alloc.config import read_chain, read_data_dir, read_lock_timeout, read_portmap
from cnimeta_plugins.hostport_alloc.verbs import steps as chain

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

    from cnimeta.delegate.call import Delegates
    from cnimeta.plugin.request import Request
    from cnimeta.spec.jsonio import JSON
    from cnimeta.spec.result import Result
    from cnimeta_plugins.hostport_alloc.state.record import Record
    from cnimeta_plugins.hostport_alloc.state.store import Store
    from cnimeta_plugins.hostport_alloc.verbs.steps import Step
    from cnimeta_plugins.hostport_alloc.wiring import Host


def open_store(host: Host, request: Request) -> Store:
    """The state, by the two keys that a changed configuration must keep."""
    fields = request.conf.fields
    return host.store(read_data_dir(fields), read_lock_timeout(fields), request.log)


def planned(request: Request) -> tuple[Step, ...]:
    """The calls that the configuration as it is now would make."""
    fields = request.conf.fields
    return chain.plan(request.conf, read_chain(request.conf), read_portmap(fields), read_data_dir(fields))


def delete(host: Host, request: Request) -> None:
    """DEL. Everything is tried; failures are raised together at the end."""
    store = open_store(host, request)
    delegates = host.delegates(request)
    record = store.load(request.attachment.key) or _renamed(store, request)
    if record is None:
        errors = _without_record(delegates, request)
    else:
        errors = tear_down(store, delegates, record, request, _prev_result(request))
    failure = joined(errors)
    if failure is not None:
        raise failure


def _renamed(store: Store, request: Request) -> Record | None:
    """The container's record from when its network had another name.

    Only for the same namespace, or where one of the two is gone: a runtime may have used a container ID again.
    """
    record = store.renamed(request.attachment.key)
    if record is None:
        return None
    now = request.attachment.netns
    if now and record.netns and now != record.netns and os.path.exists(now) and os.path.exists(record.netns):
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


def _without_record(delegates: Delegates, request: Request) -> list[CniError]:
    """Nothing was allocated, or DEL was served before: the delegates still get theirs.

    portmap gets it when the runtime names mappings: on a node where hostport_alloc was put in front of a running
    portmap, containers from before have rules and no record.
    """
    given = [entry.raw for entry in request.conf.runtime_config.objects("portMappings") if entry.get("hostPort")]
    steps = [step for step in planned(request) if given or not step.own]
    return chain.undo(delegates, steps, given, _prev_result(request))[0]


def tear_down(
    store: Store, delegates: Delegates, record: Record, request: Request, prev: Result | None
) -> list[CniError]:
    """Undo what the record tells. Its ports are freed unless their rules could not be removed."""
    undo = chain.decode_undo(record.undo)
    steps: Sequence[Step] = undo.steps if undo is not None else planned(request)
    known = prev if prev is not None or undo is None else undo.result
    mappings: Sequence[JSON] = chain.mappings_of(record)
    errors, unmapped = chain.undo(delegates, steps, mappings, known)
    if unmapped:
        quarantine_s, sticky_s = (undo.quarantine_s, undo.sticky_s) if undo is not None else (30.0, 0.0)
        try:
            store.release(record.key, token=record.token, quarantine_s=quarantine_s, sticky_s=sticky_s)
        except CniError as error:
            errors.append(error)
    return errors


def gc(host: Host, request: Request) -> None:
    """GC: exactly this network's records that are not listed, then the delegates' own GC. An absent list frees none."""
    errors: list[CniError] = []
    keep = request.conf.valid_attachments()
    store = open_store(host, request)
    if keep is not None:
        for record in store.records():
            if record.network == request.conf.name and (record.container_id, record.ifname) not in keep:
                errors += tear_down(store, _as_attachment(host, request, record), record, request, None)
    where = read_chain(request.conf)
    steps = [step for step in planned(request) if where.gc or step.own]
    errors += chain.gc(host.delegates(request), steps, request.conf)
    failure = joined(errors)
    if failure is not None:
        raise failure


def _as_attachment(host: Host, request: Request, record: Record) -> Delegates:
    """Delegates that see the environment of the record's own DEL."""
    undo = chain.decode_undo(record.undo)
    environ = {
        **request.environ,
        "CNI_CONTAINERID": record.container_id,
        "CNI_IFNAME": record.ifname,
        "CNI_NETNS": "",
        "CNI_ARGS": undo.args if undo is not None else "",
    }
    return host.delegates(request, environ)
