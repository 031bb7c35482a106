"""Putting back the rules of every recorded attachment, after another program flushed them.

Loaded by name by `cnimeta ports repair`. A record keeps the configuration of its ADD, and ADD can be repeated, so
repair is ADD again: it works for either backend and changes nothing where all is in place.
"""

from __future__ import annotations

import os

from cnimeta.errors import CniError
from cnimeta.host.clock import boot_id
from cnimeta.host.files import PosixFiles
from cnimeta.namedtuple import NamedTuple
from cnimeta.plugin.request import Attachment, Request
from cnimeta.spec.netconf import NetConf
from cnimeta_plugins.portmap.main import Portmap
from cnimeta_plugins.portmap.records import Record, Records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection


class Repaired(NamedTuple):
    """One attachment, and why its rules could not be put back; empty when they are in place."""

    container_id: str
    ifname: str
    network: str
    error: str = ""


def repair(
    data_dir: str, log: Callable[[str], None], skip: Collection[str] = (), plugin: Portmap | None = None
) -> list[Repaired]:
    """Repair every live attachment recorded under `data_dir`, but those of the containers in `skip`.

    Records of an earlier boot, or whose namespace is gone, are left for DEL and GC.
    """
    found = []
    for record in list(Records(data_dir, PosixFiles(), log).every()):
        if record.container_id in skip or not _alive(record) or not isinstance(record.conf, dict):
            continue
        error = _add_again(plugin or Portmap(), record, log)
        found.append(Repaired(record.container_id, record.ifname, record.network, error))
    return found


def _alive(record: Record) -> bool:
    return record.boot_id == boot_id() and (not record.netns or os.path.exists(record.netns))


def _add_again(plugin: Portmap, record: Record, log: Callable[[str], None]) -> str:
    attachment = Attachment(record.network, record.container_id, record.ifname, record.netns, {})
    assert isinstance(record.conf, dict)  # noqa: S101 - the caller has looked
    request = Request("ADD", NetConf(dict(record.conf)), attachment, dict(os.environ), log)
    try:
        plugin.add(request)
    except CniError as error:
        return str(error)
    return ""
