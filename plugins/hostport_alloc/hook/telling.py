"""The hook as verbs and commands use it: what an attachment's event says, and when it is delivered."""

from __future__ import annotations

from cnimeta.errors import CniError, HookFailed
from cnimeta.spec.ip import parse_cidr
from cnimeta_plugins.hostport_alloc.hook.delivery import Told, deliver
from cnimeta_plugins.hostport_alloc.hook.event import body_of, mappings
from cnimeta_plugins.hostport_alloc.state.outbox import subject_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cnimeta.plugin.request import Request
    from cnimeta.spec.result import Result
    from cnimeta_plugins.hostport_alloc.config import Settings
    from cnimeta_plugins.hostport_alloc.hook.event import Notify
    from cnimeta_plugins.hostport_alloc.state.record import Key, Record
    from cnimeta_plugins.hostport_alloc.state.store import Store
    from cnimeta_plugins.hostport_alloc.wiring import Wiring


def event_of(
    wiring: Wiring, settings: Settings, record: Record, result: Result, outside: tuple[str, ...] | None
) -> str:
    """The body of an attachment's events. `outside`: the node's external addresses, None when they are not known."""
    families = {parse_cidr(ip.address).address.family for ip in result.ips}
    entries = mappings(record, settings.host_ips or wiring.primary_addresses(), families)
    external = settings.external
    if external is not None:
        entries = external.added(entries, external.addresses if outside is None else outside)
    return body_of(record, entries)


def tell_now(wiring: Wiring, folder: str, notify: Notify, store: Store, key: Key, log: Callable[[str], None]) -> None:
    """Deliver the attachment's events, older ones first. Raises HookFailed (106) when they are not taken in time."""
    lock, hook = wiring.telling(folder, notify.timeout_s), wiring.hook(notify)
    subject, timeout_s = subject_of(key), notify.timeout_s
    done = deliver(store, hook, lock, wiring.clock, timeout_s, timeout_s, log, subject)
    if done.failed or store.outbox.waiting(1, subject):
        raise HookFailed(
            'the hook did not take the event of this ADD and $.notify.policy is "required":'
            f" {done.why or 'no time was left'}"
        )


def tell_all(wiring: Wiring, settings: Settings, store: Store, total_s: float, log: Callable[[str], None]) -> Told:
    """Deliver what waits, unless another process does."""
    notify = settings.notify
    if notify is None or not store.outbox.count():
        return Told()
    lock = wiring.telling(settings.data_dir, 0)
    return deliver(store, wiring.hook(notify), lock, wiring.clock, notify.timeout_s, total_s, log)


def tell_earlier(wiring: Wiring, request: Request) -> None:
    """GC's part, on a node where nobody else delivers. Never fails."""
    from cnimeta_plugins.hostport_alloc.config import read_settings

    try:
        settings = read_settings(request.conf)
        store = wiring.store(settings.data_dir, settings.lock_timeout_s, request.log)
        if settings.notify is not None:
            tell_all(wiring, settings, store, settings.notify.timeout_s, request.log)
    except CniError as error:
        request.log(f"hostport_alloc: events of earlier containers stay in the outbox: {error}")
