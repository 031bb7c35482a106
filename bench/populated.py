"""A node with very many attachments, each with a random host port: what their ADDs would have left, made at once.

The first attachment is a real ADD, through hostport_alloc as a chained plugin and portmap in its process; the others
are its records and its elements with other names, addresses and ports.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING

from common import PATH, Spent, spent

from cnimeta.cli.install import install
from cnimeta.host.clock import SystemClock, boot_id
from cnimeta.host.files import PosixFiles
from cnimeta.host.nftables.kernel import KernelNft
from cnimeta.spec.ip import parse_cidr
from cnimeta.store.database import Database
from cnimeta_plugins.hostport_alloc.allocate.picks import Port
from cnimeta_plugins.hostport_alloc.state import rows
from cnimeta_plugins.hostport_alloc.state.contents import PortContents
from cnimeta_plugins.hostport_alloc.state.store import Store
from cnimeta_plugins.portmap.config import PortMapping, Settings
from cnimeta_plugins.portmap.nftables.rules import TABLE, add_changes, plan_elements
from cnimeta_plugins.portmap.plan import FamilyPlan, Owner, Plan
from cnimeta_plugins.portmap.records import Records

if TYPE_CHECKING:
    import _sqlite3
    from collections.abc import Iterable

    from cnimeta.testing.netns import Namespace

NETWORK = "bench"
TEMPLATE = "10.64.0.2/10"
_CHUNK = 2000
_PORT = 5000
_OWN_RANGE = "2000-4999"
"""Of the container that is measured. The others' ports are from 5000 on."""


class Populated:
    """The node. `count` attachments are there; more can be added."""

    def __init__(self, node: Namespace, container: Namespace, folder: str) -> None:
        self.node, self.container, self.folder = node, container, folder
        self.data_dir, self.count = f"{folder}/state", 0
        node.run("ip", "link", "add", "cni0", "type", "bridge")
        node.run("ip", "addr", "add", "10.64.0.1/10", "dev", "cni0")
        node.run("ip", "link", "set", "cni0", "up")
        install(f"{folder}/bin", ["hostport_alloc", "portmap"])
        self.call("ADD", "template")

    # --- commands --------------------------------------------------------------------------------------------

    def conf(self, verb: str, container_id: str, gone: Iterable[int] = ()) -> bytes:
        """A configuration; GC's lists all attachments but some."""
        conf: dict[str, object] = {"cniVersion": "1.1.0", "name": NETWORK, "type": "hostport_alloc"}
        conf |= {"dataDir": self.data_dir, "ranges": {"default": _OWN_RANGE}, "expose": ["80/tcp"]}
        conf |= {"capabilities": {"portMappings": True}}
        if verb == "GC":
            skipped = set(gone)
            listed = [name(number) for number in range(self.count) if number not in skipped]
            conf["cni.dev/valid-attachments"] = [
                {"containerID": one, "ifname": "eth0"} for one in ("template", "measured", *listed)
            ]
        else:
            interfaces = [{"name": "eth0", "sandbox": self.container.path}]
            addresses = [{"address": TEMPLATE if container_id == "template" else "10.64.0.3/10", "interface": 0}]
            conf["prevResult"] = {"cniVersion": "1.1.0", "interfaces": interfaces, "ips": addresses}
        return json.dumps(conf).encode()

    def call(self, verb: str, container_id: str = "measured", gone: Iterable[int] = ()) -> Spent:
        """One verb of hostport_alloc."""
        environ = {"CNI_COMMAND": verb, "CNI_PATH": f"{self.folder}/bin", "PATH": PATH}
        if verb != "GC":
            environ |= {"CNI_CONTAINERID": container_id, "CNI_NETNS": self.container.path, "CNI_IFNAME": "eth0"}
        return spent([f"{self.folder}/bin/hostport_alloc"], environ, self.conf(verb, container_id, gone), self.node)

    def ports(self, *words: str) -> Spent:
        """`cnimeta ports`."""
        program = f"{os.path.dirname(sys.executable)}/cnimeta"
        return spent([program, "ports", *words, "--data-dir", self.data_dir], os.environ, node=self.node)

    # --- the others ------------------------------------------------------------------------------------------

    def grow(self, count: int) -> None:
        """Have so many other attachments."""
        with self.node.entered():
            for first in range(self.count, count, _CHUNK):
                self._add(range(first, min(first + _CHUNK, count)))
        self.count = max(self.count, count)

    def again(self, numbers: Iterable[int]) -> None:
        """Add those that were collected."""
        with self.node.entered():
            self._add(numbers)

    def _add(self, numbers: Iterable[int]) -> None:
        clock, boot = SystemClock(), boot_id()
        database = Database(self.data_dir, PortContents(lambda: (), clock, boot, print), boot, print)
        template = Store(database, clock, boot, print).load((NETWORK, "template", "eth0"))
        files = Records(self.data_dir, PosixFiles(durable=False), print)
        mapped = files.find(Owner(NETWORK, "template", "eth0")).record
        if template is None or mapped is None:
            raise SystemExit("the template has no record")
        (own,) = template.ports
        plans = {number: plan_of(number) for number in numbers}

        def work(connection: _sqlite3.Connection) -> None:
            for number, plan in plans.items():
                mapping = plan.settings.mappings[0]
                undo = json.loads(json.dumps(template.undo).replace(json.dumps(TEMPLATE), json.dumps(cidr(number))))
                port = Port(80, mapping.protocol, mapping.first, own.range)
                record = template._replace(container_id=name(number), ports=(port,), undo=undo)
                rows.insert(connection, record._replace(token=f"{number:016x}"))
            rows.renew_bits(connection)

        database.write(work)
        changes = []
        for plan in plans.values():
            elements = plan_elements(plan)
            changes += add_changes(plan, elements, ())
            conf = json.dumps(mapped.conf).replace(json.dumps(TEMPLATE), json.dumps(plan.families[0].container.text))
            given = json.loads(conf)
            mapping = plan.settings.mappings[0]
            given["runtimeConfig"]["portMappings"][0] |= {"hostPort": mapping.first, "protocol": mapping.protocol}
            files.store(
                mapped._replace(
                    owner=plan.owner,
                    addresses=(plan.families[0].container,),
                    mappings=plan.settings.mappings,
                    payload=elements,
                    conf=given,
                )
            )
        KernelNft(TABLE).apply(changes)


def name(number: int) -> str:
    """The ID of another container."""
    return f"{number:064x}"


def cidr(number: int) -> str:
    """Its address."""
    return f"10.{65 + number // 62500}.{number // 250 % 250}.{number % 250 + 1}/10"


def plan_of(number: int) -> Plan:
    """Its one mapping."""
    protocol, port = ("tcp", _PORT + number) if number < 60_000 else ("udp", number - 55_000)
    mappings = (PortMapping(port, port, 80, protocol),)
    owner, family = Owner(NETWORK, name(number), "eth0"), FamilyPlan(parse_cidr(cidr(number)), mappings)
    return Plan(owner, Settings(mappings), (family,))
