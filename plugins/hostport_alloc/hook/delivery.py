"""From the outbox to the hook: in order for each attachment, each event until it is taken.

One process at a time delivers, under a lock: two could exchange the order. An event that is not taken holds up only
those of its attachment; a hook that fails three times in a row is left alone until the next time, when attachments
whose events were refused come last: some are refused for what is in them.
"""

from __future__ import annotations

from cnimeta.errors import CniError, TryAgainLater
from cnimeta.namedtuple import NamedTuple
from cnimeta_plugins.hostport_alloc.hook.event import rendered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cnimeta.host.protocols import Clock, Hook, Lock
    from cnimeta_plugins.hostport_alloc.state.store import Store

LOCK = "outbox.lock"
_IN_A_ROW = 3


class Told(NamedTuple):
    """What became of the events that were tried."""

    told: int = 0
    failed: int = 0
    why: str = ""
    """Of the last failure."""


def deliver(
    store: Store,
    hook: Hook,
    lock: Lock,
    clock: Clock,
    timeout_s: float,
    total_s: float,
    log: Callable[[str], None],
    subject: str = "",
    limit: int = 1000,
) -> Told:
    """Tell the hook of what waits, what was refused last; `subject`: of one attachment only. Ends after `total_s`
    seconds.

    When another process delivers, nothing is done: what waits is told by that one, or the next time.
    """
    end = clock.boottime() + total_s
    told = failed = in_a_row = 0
    why, held_up = "", set()
    try:
        with lock.held():
            for event in store.outbox.waiting(limit, subject):
                left_s = end - clock.boottime()
                if left_s <= 0 or in_a_row >= _IN_A_ROW:
                    break
                if event.subject in held_up:
                    continue
                text = rendered(event.number, event.kind, event.created, event.body)
                refusal = hook.tell(text, min(timeout_s, left_s))
                store.outbox.settle(event.number, refusal)
                if refusal:
                    failed, in_a_row, why = failed + 1, in_a_row + 1, refusal
                    held_up.add(event.subject)
                    log(f"hostport_alloc: event {event.number} of {event.subject} is not taken: {refusal}")
                else:
                    told, in_a_row = told + 1, 0
    except TryAgainLater as error:
        return Told(told, failed + 1, error.msg)
    except CniError as error:
        log(f"hostport_alloc: events stay in the outbox: {error}")
        return Told(told, failed + 1, error.msg)
    return Told(told, failed, why)
