"""`cnimeta ports deliver`: pending annotations to their Pods, waiting events to the hook."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from cnimeta.errors import InvalidNetworkConfig, counted
from cnimeta_plugins.hostport_alloc.operator.conf import log, opened, wants_json

if TYPE_CHECKING:
    import argparse

    from cnimeta_plugins.hostport_alloc.config import Settings
    from cnimeta_plugins.hostport_alloc.state.store import Store
    from cnimeta_plugins.hostport_alloc.wiring import Wiring

_LIMIT = 10_000
_TOTAL_S = 60.0


def deliver(args: argparse.Namespace, wiring: Wiring) -> int:
    """`ports deliver`: status 1 while anything is left."""
    settings, store = opened(args, wiring)
    if settings is None or (settings.api is None and settings.notify is None):
        raise InvalidNetworkConfig('no configuration with "kubernetes" or "notify" was found: use --conf')
    if args.again and settings.notify is None:
        raise InvalidNetworkConfig('--again is about the hook, and the configuration has no "notify"')
    body: dict[str, object] = {}
    texts = []
    left = 0
    if settings.api is not None:
        left, text = _annotations(wiring, settings, store, body)
        texts.append(text)
    if settings.notify is not None:
        waiting, text = _events(wiring, settings, store, body, again=args.again)
        left += waiting
        texts.append(text)
    print(json.dumps(body) if wants_json(args) else "; ".join(texts))
    return 1 if left else 0


def _annotations(wiring: Wiring, settings: Settings, store: Store, body: dict[str, object]) -> tuple[int, str]:
    from cnimeta_plugins.hostport_alloc.pod.annotation import Deadline
    from cnimeta_plugins.hostport_alloc.pod.publish import deliver_amended

    api = wiring.pods(settings.api.kubeconfig if settings.api is not None else "")
    deadline = Deadline(wiring.clock, _TOTAL_S)
    done = deliver_amended(wiring, settings, store, api, deadline, _LIMIT, log, fresh_s=0)
    left = len(store.pending(_LIMIT))
    body |= {**done._asdict(), "pending": left}
    text = f"{counted(done.written, 'annotation')} written, {done.dropped} of Pods that are gone, {left} still pending"
    return left, text


def _events(
    wiring: Wiring, settings: Settings, store: Store, body: dict[str, object], *, again: bool
) -> tuple[int, str]:
    from cnimeta_plugins.hostport_alloc.hook.telling import tell_all

    if again:
        _put_in_again(wiring, settings, store)
    done = tell_all(wiring, settings, store, _TOTAL_S, log)
    left = store.outbox.count()
    body["events"] = {"told": done.told, "failed": done.failed, "waiting": left}
    return left, f"{counted(done.told, 'event')} told, {left} still waiting"


def _put_in_again(wiring: Wiring, settings: Settings, store: Store) -> None:
    """An event for every attachment of this boot: those from before the hook was configured too."""
    from cnimeta_plugins.hostport_alloc.hook.telling import event_of
    from cnimeta_plugins.hostport_alloc.verbs.undo import decode_undo

    for record in store.records():
        undo = decode_undo(record.undo)
        if record.phase != "mapped" or not store.is_alive(record) or undo is None or undo.result is None:
            continue
        store.outbox.add(record, event_of(wiring, settings, record, undo.result, None))
