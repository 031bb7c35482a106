"""What the state's tests share: a store on a real database or on one in memory, requests, and the invariant."""

from __future__ import annotations

import _sqlite3
import os
from collections import Counter
from typing import TYPE_CHECKING

from cnimeta.ports.mapper import MappedPort
from cnimeta.store.database import Database
from cnimeta.testing.clock import FakeClock
from cnimeta.testing.store import MemoryDatabases
from cnimeta_plugins.hostport_alloc.allocate.expose import Explicit, Exposure
from cnimeta_plugins.hostport_alloc.allocate.ranges import PortRange, parse_range
from cnimeta_plugins.hostport_alloc.state.contents import PortContents
from cnimeta_plugins.hostport_alloc.state.record import Pod, Record
from cnimeta_plugins.hostport_alloc.state.rows import members
from cnimeta_plugins.hostport_alloc.state.store import Demand, Store

if TYPE_CHECKING:
    from collections.abc import Callable

    from cnimeta.store.values import Connection

BOOT = "boot-1"
RANGE = "20000-20009"


def always(_protocol: str, _port: int) -> bool:
    return True


def exposure(text: str = "80/tcp", name: str = "default") -> Exposure:
    """`PORT[+LENGTH]/PROTO[+PROTO]`"""
    port, _, protocols = text.partition("/")
    first, _, length = port.partition("+")
    return Exposure(name, int(first), tuple(protocols.split("+")), int(length or 1))


def demand(*exposures: str, ports: str = RANGE, blocked=None, probe=always, sticky: bool = True) -> Demand:
    ranges: dict[str, PortRange] = {"default": parse_range("default", ports, "$.ranges.default")}
    return Demand(tuple(map(exposure, exposures or ("80/tcp",))), ranges, blocked or {}, probe, sticky)


def draft(container: str = "c1", pod: str = "", explicit: tuple[Explicit, ...] = (), network: str = "net") -> Record:
    return Record(network, container, "eth0", pod=Pod("ns", pod, "uid") if pod else None, explicit=explicit)


def key(container: str = "c1", network: str = "net") -> tuple[str, str, str]:
    return network, container, "eth0"


def mappings_of(*records: Record) -> list[MappedPort]:
    """The records' ports as a port mapper tells them."""
    return [
        MappedPort(*record.key, port.protocol, port.host_port, port.container_port, port.host_ip)
        for record in records
        for port in (*record.ports, *record.explicit)
    ]


class Node:
    """A store on a node; `again()` is the next command's store, in a process of its own."""

    def __init__(self, folder: str = "", boot_id: str = BOOT) -> None:
        self.folder = folder or "/state"
        self.databases = MemoryDatabases()
        self.open: Callable[..., object] = Database if folder else self.databases
        self.is_real = bool(folder)
        self.clock = FakeClock()
        self.boot_id = boot_id
        self.log: list[str] = []
        self.rules: list[MappedPort] = []
        self.rules_read = 0
        self.timeout_s = 10.0

    def _mappings(self) -> list[MappedPort]:
        assert not self.databases.in_transaction, "others must not be asked in a transaction"
        self.rules_read += 1
        return list(self.rules)

    def again(self) -> Store:
        contents = PortContents(self._mappings, self.clock, self.boot_id, self.log.append)
        database = self.open(self.folder, contents, self.boot_id, self.log.append, self.timeout_s)
        return Store(database, self.clock, self.boot_id, self.log.append)

    # --- looking into it, and changing it, past the store ------------------------------------------------

    def sql(self, statement: str, *values: object) -> list[tuple]:
        """Run a statement past the store."""
        if not self.is_real:
            return self.databases.connections[self.folder].execute(statement, values).fetchall()
        connection: Connection = _sqlite3.connect(f"{self.folder}/cnimeta.db", isolation_level=None)
        try:
            return connection.execute(statement, values).fetchall()
        finally:
            connection.close()

    def lose(self) -> None:
        """Everything of the state is gone."""
        if not self.is_real:
            self.databases.lose(self.folder)
            return
        for name in os.listdir(self.folder):
            if not os.path.isdir(f"{self.folder}/{name}"):
                os.unlink(f"{self.folder}/{name}")

    def damage_document(self, container: str, text: str | bytes) -> None:
        """Write something else where the record of a container was."""
        self.sql("UPDATE attachments SET document=? WHERE container_id=?", text, container)

    def contents(self) -> dict[str, list[tuple]]:
        """Every row of every table but the count of transactions."""
        return {
            table: sorted(self.sql(f"SELECT * FROM {table}"), key=repr)
            for table in ("attachments", "ports", "bitmaps", "quarantine", "remembered")
        }

    def held(self) -> list[tuple[str, int]]:
        """What the records of this boot hold, one by one."""
        store = self.again()
        return sorted(pair for record in store.records() if store.is_alive(record) for pair in record.held)

    def bits(self) -> list[tuple[str, int]]:
        """The bitmaps."""
        rows = self.sql("SELECT protocol, bits FROM bitmaps")
        return sorted((protocol, port) for protocol, data in rows for port in members(int.from_bytes(data, "little")))

    def assert_whole(self) -> None:
        """The bitmaps say exactly what the records say; no port is held twice."""
        held = self.held()
        assert [pair for pair, times in Counter(held).items() if times > 1] == []
        assert self.bits() == held
        assert self.again().problems() == []
