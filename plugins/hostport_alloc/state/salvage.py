"""What portmap and the kernel know of the mappings made for us, for when our own records are lost or do not agree.

No plugin imports another: portmap's records are read through its module, loaded by name, and only when files of ours
were lost or are checked. For attachments of which portmap has no record either, the names on the rules tell. Another
make of portmap keeps no records and writes no such names; then there is nothing here.
"""

from __future__ import annotations

import os

from cnimeta.errors import CniError
from cnimeta.host.nodeconfig import read_section
from cnimeta.spec.fields import Fields
from cnimeta_plugins.hostport_alloc.allocate.expose import PROTOCOLS
from cnimeta_plugins.hostport_alloc.config import DATA_DIR, PLUGIN_TYPE
from cnimeta_plugins.hostport_alloc.state.record import Port
from cnimeta_plugins.hostport_alloc.state.recovery import Rule
from cnimeta_plugins.hostport_alloc.verbs.steps import MANAGED_BY

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from typing import Any

    from cnimeta.host.protocols import Files

_RECORDS = "cnimeta_plugins.portmap.records"
_TAGGED = "cnimeta_plugins.portmap.tagged"


def portmap_rules(folder: str, files: Files, boot_id: str, log: Callable[[str], None]) -> tuple[Rule, ...]:
    """The mappings that portmap made for hostport_alloc in this boot, by its records under `folder`, and those in the
    kernel that it has no record of: neither there nor where a portmap without hostport_alloc keeps them.
    """
    from importlib import import_module

    try:
        records = import_module(_RECORDS).Records
        tagged = import_module(_TAGGED).tagged
    except (ImportError, AttributeError):
        return ()
    rules: list[Rule] = []
    known = set()
    try:
        for place in {folder, DATA_DIR, read_section("portmap", os.environ).text("dataDir")} - {""}:
            for record in records(place, files, log).every():
                known.add((record.network, record.container_id, record.ifname))
                if place == folder and record.boot_id == boot_id:
                    rules.extend(_rules_of(record))
    except CniError as error:
        log(f"hostport_alloc: portmap's records cannot be read: {error}")
        return tuple(rules)
    for one in tagged(log):
        if (one.network, one.container_id, one.ifname) not in known and one.protocol in PROTOCOLS:
            port = Port(one.container_port, one.protocol, one.host_port, "", one.host_ip)
            rules.append(Rule(one.network, one.container_id, one.ifname, port))
    return tuple(rules)


def _rules_of(record: Any) -> Iterator[Rule]:
    conf = record.conf if isinstance(record.conf, dict) else {}
    if conf.get(MANAGED_BY) != PLUGIN_TYPE:
        return
    for entry in Fields(conf).object("runtimeConfig").objects("portMappings"):
        host_port = entry.integer("hostPort", 0, 65535)
        container_port = entry.integer("containerPort", 0, 65535)
        protocol = entry.text("protocol").lower() or PROTOCOLS[0]
        if host_port and container_port and protocol in PROTOCOLS:
            port = Port(container_port, protocol, host_port, "", entry.text("hostIP"))
            yield Rule(record.network, record.container_id, record.ifname, port)
