"""What portmap tells operators: what is wrong with a configuration, and which containers it maps ports for.

It stands beside the way of a command: nothing here is loaded by ADD, DEL or CHECK.
"""

from __future__ import annotations

import functools
import os

from cnimeta.errors import CniError, IoFailure
from cnimeta.host.clock import boot_id
from cnimeta.host.files import PosixFiles
from cnimeta.spec.jsonio import loads_object
from cnimeta_plugins.portmap.backends import Backends
from cnimeta_plugins.portmap.config import DEFAULTS, read_data_dir, read_settings
from cnimeta_plugins.portmap.keys import remarks
from cnimeta_plugins.portmap.records import Records
from cnimeta_plugins.portmap.wiring import node_defaults, read_node_defaults

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from cnimeta.spec.fields import Fields
    from cnimeta.spec.jsonio import JSON
    from cnimeta.spec.netconf import NetConf


def validate(conf: NetConf) -> Iterable[str]:
    """As `Plugin.validate`: with any of the backends there are, and no node-wide defaults."""
    read_settings(conf, backends=Backends().names)
    return remarks(conf)


def examine(conf: NetConf) -> Iterable[str]:
    """As `Plugin.examine`. A backend is asked for only where there is no choice: the others are the doctor's own."""
    backends = Backends(os.environ.get("PATH", ""))
    settings = read_settings(conf, node_defaults(os.environ, backends.names), backends.names)
    if settings.backends == ("nftables",):
        backends["nftables"].ready()
    elif settings.backends == ("iptables",):
        from cnimeta.host.iptables.variant import detect

        if not detect():
            raise IoFailure("the configuration needs iptables, which is not installed")
    return remarks(conf)


def examine_node(section: Fields) -> str:
    """As `Plugin.examine_node`."""
    return f"portmap on {read_node_defaults(section, Backends().names).backend}"


def in_use(confs: Sequence[NetConf]) -> Iterator[str]:
    """As `Plugin.in_use`: from the records of this boot, in the node's folder and in those that are configured."""
    node = node_defaults(os.environ, Backends().names)
    for folder in {node.data_dir or DEFAULTS.data_dir, *(read_data_dir(conf.fields, node) for conf in confs)}:
        for record in Records(folder, PosixFiles(), lambda _: None).every():
            if record.boot_id == boot_id():
                yield record.owner.container_id


def dump(confs: Sequence[NetConf]) -> Iterator[tuple[str, Callable[[], JSON]]]:
    """As `Plugin.dump`: every record as it lies on the disk, damaged ones too."""
    node = node_defaults(os.environ, Backends().names)
    configured = (read_data_dir(conf.fields, node) for conf in confs)
    for folder in dict.fromkeys([node.data_dir or DEFAULTS.data_dir, *configured]):
        yield f"{folder.strip('/').replace('/', '_')}/records.json", functools.partial(_documents, folder)


def _documents(folder: str) -> JSON:
    files, place = PosixFiles(), Records(folder, PosixFiles(), lambda _: None).folder
    found: dict[str, JSON] = {}
    for name in files.names(place):
        data = files.read(os.path.join(place, name)) or b""
        try:
            found[name] = loads_object(data, name)
        except CniError:
            found[name] = data.decode("utf-8", "replace")
    return found
