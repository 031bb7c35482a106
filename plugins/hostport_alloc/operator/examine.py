"""What `cnimeta validate`, `doctor` and `uninstall` ask: is a configuration good, and who has host ports."""

from __future__ import annotations

import os

from cnimeta.errors import AnnotationFailed, counted
from cnimeta.host.sockets import EPHEMERAL
from cnimeta.host.values import PodApiError
from cnimeta.ports.mapper import DATA_DIR
from cnimeta.store.database import FILE
from cnimeta_plugins.hostport_alloc.allocate.ranges import refuse_reserved
from cnimeta_plugins.hostport_alloc.config import (
    LOCK_TIMEOUT_S,
    read_chain,
    read_data_dir,
    read_portmap,
    read_settings,
    refuse_unreadable_credentials,
)
from cnimeta_plugins.hostport_alloc.keys import remarks
from cnimeta_plugins.hostport_alloc.operator import reserving
from cnimeta_plugins.hostport_alloc.verbs.steps import plan

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from cnimeta.spec.jsonio import JSON
    from cnimeta.spec.netconf import NetConf
    from cnimeta_plugins.hostport_alloc.config import ApiSettings, Settings
    from cnimeta_plugins.hostport_alloc.wiring import Wiring

_POD = "default", "cnimeta-doctor"
"""A Pod that is asked for to see whether the API server answers; nobody needs to have it."""
_MANY_EVENTS = 1000
_MEANS_NOTHING = (403, 404)
"""The server knew who asks: that there is no such Pod, or that this one may not be read, is as good an answer."""


def validate(conf: NetConf) -> list[str]:
    """As `Plugin.validate`. The node's ephemeral range is not known: the kernel's own stands for it."""
    settings = read_settings(conf)
    refuse_reserved(settings.ranges, settings.reserved(EPHEMERAL))
    return remarks(conf)


def examine(wiring: Wiring, conf: NetConf) -> list[str]:
    """As `Plugin.examine`."""
    settings = wiring.on_node(read_settings(conf))
    refuse_reserved(settings.ranges, settings.reserved(wiring.sockets.ephemeral()))
    refuse_unreadable_credentials(settings.api)
    told = remarks(conf)
    complaint = "" if settings.api is None else _tried(wiring, settings.api)
    if complaint and settings.api is not None and settings.api.required:
        raise AnnotationFailed(f'{complaint}, and $.kubernetes.policy is "required"')
    told += _damage(wiring, settings)
    told += reserving.remarks(wiring, conf, settings)
    return [*told, complaint] if complaint else told


def _damage(wiring: Wiring, settings: Settings) -> list[str]:
    """What is wrong with the state; nothing where there is none yet: opening a database makes one."""
    if not os.path.lexists(os.path.join(settings.data_dir, FILE)):
        return []
    store = wiring.store(settings.data_dir, settings.lock_timeout_s, lambda _: None)
    told = [f"{line}; `cnimeta ports repair` makes it anew" for line in store.damage()]
    waiting = 0 if told else store.outbox.count()
    if waiting and settings.notify is None:
        told.append(f"{counted(waiting, 'event')} in the outbox, and $.notify names no hook: nobody delivers them")
    elif waiting > _MANY_EVENTS:
        told.append(f"{counted(waiting, 'event')} in the outbox: the hook does not take them, or nobody delivers them")
    return told


def _tried(wiring: Wiring, api: ApiSettings) -> str:
    """Why Pods cannot be annotated; empty when the API server answers to these credentials."""
    try:
        wiring.pods(api.kubeconfig).read(*_POD, api.timeout_s)
    except PodApiError as error:
        if error.status not in _MEANS_NOTHING or "system:anonymous" in error.message:
            return f"Pods cannot be annotated: {error}"
    return ""


def delegates(conf: NetConf) -> list[Mapping[str, JSON]]:
    """As `Plugin.delegates`."""
    fields = conf.fields
    return [step.conf for step in plan(conf, read_chain(conf), read_portmap(fields), read_data_dir(fields))]


def in_use(wiring: Wiring, confs: Sequence[NetConf]) -> Iterator[str]:
    """As `Plugin.in_use`: from the records of this boot, in the default folder and in those that are configured."""
    for folder in {DATA_DIR, *(read_data_dir(conf.fields) for conf in confs)}:
        yield from on_record(wiring, folder)


def on_record(wiring: Wiring, folder: str) -> Iterator[str]:
    """The containers of this boot that a state has; there may be none, and then none is made."""
    if os.path.lexists(os.path.join(folder, FILE)):
        store = wiring.store(folder, LOCK_TIMEOUT_S, lambda _: None)
        yield from store.containers()
