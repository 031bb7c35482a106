"""What hostport_alloc gives to `cnimeta sysdump`: records, ports, ranges, and what the database itself finds wrong."""

from __future__ import annotations

import functools
import json
import os

from cnimeta.ports.mapper import DATA_DIR
from cnimeta.store.database import FILE
from cnimeta_plugins.hostport_alloc.config import LOCK_TIMEOUT_S, read_data_dir
from cnimeta_plugins.hostport_alloc.operator.listing import entries_of
from cnimeta_plugins.hostport_alloc.state.record import encode

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cnimeta.spec.jsonio import JSON
    from cnimeta.spec.netconf import NetConf
    from cnimeta_plugins.hostport_alloc.state.store import Store
    from cnimeta_plugins.hostport_alloc.wiring import Wiring


def dump(wiring: Wiring, confs: Sequence[NetConf]) -> Iterator[tuple[str, Callable[[], JSON]]]:
    """As `Plugin.dump`: of the default folder, and of those that are configured."""
    folders = dict.fromkeys([DATA_DIR, *(read_data_dir(conf.fields) for conf in confs)])
    for folder in folders:
        name = folder.strip("/").replace("/", "_")
        yield f"{name}/files.json", functools.partial(_files, folder)
        if os.path.lexists(os.path.join(folder, FILE)):  # opening a database makes one
            said: list[str] = []
            store = wiring.store(folder, LOCK_TIMEOUT_S, said.append)
            yield f"{name}/problems.json", functools.partial(_problems, store, said)
            yield f"{name}/records.json", functools.partial(_records, store)
            yield f"{name}/ports.json", functools.partial(_ports, store)


def _problems(store: Store, said: list[str]) -> JSON:
    return [*store.problems(), *said]


def _records(store: Store) -> JSON:
    return [json.loads(encode(record)) for record in store.records()]


def _ports(store: Store) -> JSON:
    return [dict(entry) for entry in entries_of(store)]


def _files(folder: str) -> JSON:
    """What lies in the folder: owner, mode and size."""
    found: list[JSON] = []
    for place, folders, names in os.walk(folder):
        for name in sorted([*folders, *names]):
            path = os.path.join(place, name)
            status = os.lstat(path)
            mode, owner = oct(status.st_mode), f"{status.st_uid}:{status.st_gid}"
            found.append({"file": path, "mode": mode, "owner": owner, "bytes": status.st_size})
    return found
