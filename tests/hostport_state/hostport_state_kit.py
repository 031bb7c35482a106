"""What the state's tests share: a store on fakes, requests, and the invariant."""

from __future__ import annotations

from cnimeta.testing.clock import FakeClock
from cnimeta.testing.files import MemoryFiles
from cnimeta.testing.lock import FakeLock
from cnimeta_plugins.hostport_alloc.allocate.expose import Explicit, Exposure
from cnimeta_plugins.hostport_alloc.allocate.ranges import PortRange, parse_range
from cnimeta_plugins.hostport_alloc.state import index as state
from cnimeta_plugins.hostport_alloc.state.layout import Layout, name_of
from cnimeta_plugins.hostport_alloc.state.record import DamagedRecord, Pod, Record, decode
from cnimeta_plugins.hostport_alloc.state.recovery import members
from cnimeta_plugins.hostport_alloc.state.store import Demand, Store

FOLDER = "/state"
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


class Node:
    """A store on fakes; `again()` is the next command's store, in a process of its own."""

    def __init__(self, boot_id: str = BOOT) -> None:
        self.files = MemoryFiles()
        self.lock = FakeLock()
        self.clock = FakeClock()
        self.boot_id = boot_id
        self.log: list[str] = []
        self.rules: list = []
        self.rules_read = 0
        self.layout = Layout(FOLDER)

    def _kernel_rules(self):
        assert not self.lock.is_held, "the kernel must not be asked under the lock"
        self.rules_read += 1
        return list(self.rules)

    def again(self) -> Store:
        return Store(FOLDER, self.files, self.lock, self.clock, self.boot_id, self.log.append, self._kernel_rules)

    def index(self) -> state.Index:
        slots = [state.decode(self.files.content[path]) for path in self.layout.slots]
        return max(slots, key=lambda index: index.generation)

    def alive(self) -> dict[str, Record]:
        """The records on disk that hold ports, by name."""
        found = {}
        for path, data in self.files.content.items():
            if path.startswith(self.layout.records + "/") and "/.tmp-" not in path:
                try:
                    record = decode(data)
                except DamagedRecord:
                    continue
                assert path == self.layout.record(name_of(record.key))
                if record.boot_id == self.boot_id:
                    found[name_of(record.key)] = record
        return found

    def held(self) -> list[tuple[str, int]]:
        return sorted(pair for record in self.alive().values() for pair in record.held)

    def bits(self) -> list[tuple[str, int]]:
        return sorted((protocol, port) for protocol, ports in self.index().bits.items() for port in members(ports))

    def settle(self) -> None:
        """Any next command: it restores the invariant."""
        store = self.again()
        store.reserve(draft("settler"), demand("1/tcp", ports="40000-40999"))
        store.release(key("settler"), quarantine_s=0, sticky_s=0)

    def assert_whole(self) -> None:
        """The index says exactly what the records say; no port is held twice."""
        held = self.held()
        assert len(held) == len(set(held)), held
        # What a damaged record may have held stays held until DEL, also when the attachment was added again.
        lost = [(pin.protocol, pin.port) for pin in self.index().pins]
        assert self.bits() == sorted({*held, *lost})
        assert [line for line in self.again().disagreements() if "cannot be read" not in line] == []
