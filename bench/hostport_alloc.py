"""hostport_alloc: what a random host port costs, and how long the node-wide lock is held, with few and many records.

python bench/hostport_alloc.py [FOLDER]     # FOLDER: the file system to judge the lock on; default /var/tmp
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from run import Row

from cnimeta.cli.install import install
from cnimeta.host.clock import SystemClock, boot_id
from cnimeta.host.files import PosixFiles
from cnimeta.host.lock import NodeLock
from cnimeta.testing.agent import RunningAgent
from cnimeta.testing.netns import namespaces
from cnimeta_plugins.hostport_alloc.allocate.expose import Exposure
from cnimeta_plugins.hostport_alloc.allocate.ranges import parse_range
from cnimeta_plugins.hostport_alloc.state.layout import Layout, name_of
from cnimeta_plugins.hostport_alloc.state.record import Pod, Port, Record, encode
from cnimeta_plugins.hostport_alloc.state.store import Demand, Store

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cnimeta.testing.netns import Namespace

TITLE = "hostport_alloc"
NOTE = """
ADD and DEL of a container with one random host port, wrapped around Debian's bridge, as whole processes in a namespace
of their own, median of 15; the reference is the same container with a fixed host port by Debian's bridge and portmap,
one process each. So the ratio holds the allocation, the durable record and the wrapper against Go's chain without any
of them. Lock: how long one command holds the node's lock, 200 rounds, on a disk; the rows with very many records have
our figure with 10 records as the reference.
"""
DEBIAN = "/usr/lib/cni"
RUNS, ROUNDS = 15, 200
FEW, MANY = 10, 60_000


# --- whole processes -----------------------------------------------------------------------------------------


def bridge(folder: str) -> dict[str, Any]:
    """The delegate's configuration."""
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]], "dataDir": f"{folder}/leases"}
    return {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": ipam}


class Processes:
    """Plugins started as a runtime does."""

    def __init__(self, folder: str, host: Namespace, container: Namespace) -> None:
        self.folder, self.host, self.container = folder, host, container
        for kind in ("bin", "asking"):
            install(f"{folder}/{kind}", ["hostport_alloc", "portmap"], agent=kind == "asking")
        self.agent = RunningAgent(Path(folder))
        self.base = {"cniVersion": "1.0.0", "name": "bench"}

    def run(self, path: str, verb: str, conf: dict[str, Any]) -> dict[str, Any]:
        """One plugin; its answer."""
        environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "PATH": os.environ["PATH"]}
        environ |= {"CNI_NETNS": self.container.path, "CNI_PATH": f"{self.folder}/bin:{DEBIAN}", **self.agent.environ}
        with self.host.entered():
            done = subprocess.run(
                [path], input=json.dumps({**self.base, **conf}).encode(), env=environ, check=True, capture_output=True
            )
        return json.loads(done.stdout or b"{}")

    def ours(self, verb: str, programs: str = "bin") -> None:
        """The wrapper."""
        conf = {"type": "hostport_alloc", "dataDir": f"{self.folder}/state", "expose": ["80/tcp"]}
        self.run(f"{self.folder}/{programs}/hostport_alloc", verb, {**conf, "delegates": [bridge(self.folder)]})

    def asking(self, verb: str) -> None:
        """The wrapper, served by the agent."""
        self.ours(verb, "asking")

    def theirs(self, verb: str) -> None:
        """The chain with a fixed port."""
        mapping = {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}
        portmap = {"type": "portmap", "runtimeConfig": {"portMappings": [mapping]}}
        if verb == "ADD":
            result = self.run(f"{DEBIAN}/bridge", verb, bridge(self.folder))
            self.run(f"{DEBIAN}/portmap", verb, {**portmap, "prevResult": result})
        else:
            self.run(f"{DEBIAN}/portmap", verb, portmap)
            self.run(f"{DEBIAN}/bridge", verb, bridge(self.folder))

    def times(self) -> Iterator[Row]:
        """ADD and DEL of both, in turn."""
        spent: dict[tuple[str, str], list[float]] = {}
        for _ in range(RUNS):
            for who, call in (("ours", self.ours), ("asking", self.asking), ("theirs", self.theirs)):
                for verb in ("ADD", "DEL"):
                    started = time.perf_counter()
                    call(verb)
                    spent.setdefault((who, verb), []).append((time.perf_counter() - started) * 1000)
        self.agent.close()
        for who, label in (("ours", ""), ("asking", ", served by the agent")):
            for verb in ("ADD", "DEL"):
                ours, theirs = (statistics.median(spent[one, verb]) for one in (who, "theirs"))
                yield Row(f"{verb}, bridge with a random port beside bridge and portmap{label}", ours, theirs, "ms")


# --- the lock ------------------------------------------------------------------------------------------------


class TimedLock:
    """A NodeLock that notes how long it is held, in milliseconds."""

    def __init__(self, path: str) -> None:
        self.lock = NodeLock(path)
        self.held_ms: list[float] = []

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """As NodeLock."""
        with self.lock.held():
            start = time.perf_counter()
            try:
                yield
            finally:
                self.held_ms.append((time.perf_counter() - start) * 1000)


def populate(folder: str, count: int) -> None:
    """Records of other containers."""
    layout = Layout(folder)
    os.makedirs(layout.records)
    undo = {"steps": ["x" * 900]}
    for number in range(count):
        ports = (Port(80, "tcp", 2000 + number, "default"),)
        pod = Pod("ns", f"p{number}")
        record = Record("net", f"{number:064x}", "eth0", boot_id=boot_id(), token="t", ports=ports, pod=pod, undo=undo)
        Path(layout.record(name_of(record.key))).write_bytes(encode(record))
    os.sync()  # or the disk would still be busy with these while we measure


def lock_held(folder: str, count: int) -> dict[str, list[float]]:
    """Per command, ascending, milliseconds; and one figure for making the index anew from all records."""
    populate(folder, count)
    lock = TimedLock(f"{folder}/lock")
    store = Store(folder, PosixFiles(exclusive=True), lock, SystemClock(), boot_id(), lambda _: None)
    store.rebuild()
    times: dict[str, list[float]] = {"rebuild": [lock.held_ms[-1]], "reserve": [], "update": [], "release": []}
    exposures = (Exposure("default", 80, ("tcp",)), Exposure("default", 53, ("tcp", "udp")))
    demand = Demand(exposures, {"default": parse_range("default", "1024-65535", "$")}, {}, lambda *_: True)
    for number in range(ROUNDS):
        draft = Record("net", f"new{number}", "eth0", pod=Pod("ns", f"new{number}"), undo={"steps": ["x" * 900]})
        record = store.reserve(draft, demand).record
        times["reserve"].append(lock.held_ms[-1])
        store.update(record._replace(phase="mapped"))
        times["update"].append(lock.held_ms[-1])
        store.release(record.key)
        times["release"].append(lock.held_ms[-1])
    return {verb: sorted(values) for verb, values in times.items()}


def lock_rows(base: str) -> Iterator[Row]:
    """The 50th and 99th percentile of each command."""
    few, many = (lock_held(f"{base}/{count}", count) for count in (FEW, MANY))
    for verb, label in (("reserve", "hold ports"), ("update", "settle"), ("release", "free ports")):
        for percent in (50, 99):
            small, large = (found[verb][ROUNDS * percent // 100] for found in (few, many))
            yield Row(f"lock held to {label}, {FEW} records, p{percent}", small, None, "ms")
            yield Row(f"lock held to {label}, {MANY:,} records, p{percent}, beside {FEW}", large, small, "ms")
    yield Row(f"lock held to make the index anew from {MANY:,} records", many["rebuild"][0], None, "ms")


def measure(base: str = "/var/tmp") -> list[Row]:
    """All of it."""
    with tempfile.TemporaryDirectory() as folder, namespaces("hphost", "hpcont") as (host, container):
        rows = list(Processes(folder, host, container).times())
    place = tempfile.mkdtemp(prefix="cnimeta-bench-", dir=base)
    try:
        return [*rows, *lock_rows(place)]
    finally:
        shutil.rmtree(place)


def main() -> int:
    """Print the rows."""
    for row in measure(*sys.argv[1:2]):
        reference = "" if row.reference is None else f"{row.reference:12,.2f}"
        print(f"{row.what:72} {row.ours:10,.2f} {reference} {row.unit}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
