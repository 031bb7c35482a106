"""How long hostport_alloc holds the node-wide lock, with few and with very many records.

    python bench/hostport_lock.py [FOLDER]      # on the file system to judge; default: a folder in /var/tmp

Prints one JSON line per population: milliseconds at the 50th and 99th percentile for reserve, update and release, the
processor time of all three, and the time to make the index anew from all records.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import sys
import tempfile
import time
from typing import TYPE_CHECKING

from cnimeta.host.clock import SystemClock, boot_id
from cnimeta.host.files import PosixFiles
from cnimeta.host.lock import NodeLock
from cnimeta_plugins.hostport_alloc.allocator import parse_range
from cnimeta_plugins.hostport_alloc.expose import Exposure
from cnimeta_plugins.hostport_alloc.layout import Layout, name_of
from cnimeta_plugins.hostport_alloc.record import Pod, Port, Record, encode
from cnimeta_plugins.hostport_alloc.store import Demand, Store

if TYPE_CHECKING:
    from collections.abc import Iterator

ROUNDS = 200


class TimedLock:
    """A NodeLock that notes how long it is held, in milliseconds: wall clock and processor time."""

    def __init__(self, path: str) -> None:
        self.lock = NodeLock(path)
        self.held_ms: list[float] = []
        self.cpu_ms: list[float] = []

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        with self.lock.held():
            start, cpu = time.perf_counter(), time.thread_time()
            try:
                yield
            finally:
                self.cpu_ms.append((time.thread_time() - cpu) * 1000)
                self.held_ms.append((time.perf_counter() - start) * 1000)


def populate(folder: str, count: int) -> None:
    layout = Layout(folder)
    os.makedirs(layout.records)
    undo = {"steps": ["x" * 900]}
    for number in range(count):
        port = Port(80, "tcp", 2000 + number, "default")
        record = Record(
            "net",
            f"{number:064x}",
            "eth0",
            boot_id=boot_id(),
            token="t",
            ports=(port,),
            pod=Pod("ns", f"p{number}"),
            undo=undo,
        )
        with open(layout.record(name_of(record.key)), "wb") as file:
            file.write(encode(record))
    os.sync()  # or the disk would still be busy with these while we measure


def measure(folder: str, count: int) -> dict[str, object]:
    populate(folder, count)
    lock = TimedLock(f"{folder}/lock")
    store = Store(folder, PosixFiles(exclusive=True), lock, SystemClock(), boot_id(), lambda _: None)
    start = time.perf_counter()
    store.rebuild()
    answer: dict[str, object] = {"records": count, "rebuild_ms": round((time.perf_counter() - start) * 1000)}
    demand = Demand(
        (Exposure("default", 80, ("tcp",)), Exposure("default", 53, ("tcp", "udp"))),
        {"default": parse_range("default", "1024-65535", "$")},
        {},
        lambda *_: True,
    )
    times: dict[str, list[float]] = {"reserve": [], "update": [], "release": []}
    lock.cpu_ms.clear()
    for number in range(ROUNDS):
        draft = Record("net", f"new{number}", "eth0", pod=Pod("ns", f"new{number}"), undo={"steps": ["x" * 900]})
        record = store.reserve(draft, demand).record
        times["reserve"].append(lock.held_ms[-1])
        store.update(record._replace(phase="mapped"))
        times["update"].append(lock.held_ms[-1])
        store.release(record.key)
        times["release"].append(lock.held_ms[-1])
    for verb, values in times.items():
        values.sort()
        answer[verb] = {
            "p50_ms": round(values[len(values) // 2], 2),
            "p99_ms": round(values[len(values) * 99 // 100], 2),
        }
    cpu = sorted(lock.cpu_ms)
    answer["cpu"] = {"p50_ms": round(cpu[len(cpu) // 2], 2), "p99_ms": round(cpu[len(cpu) * 99 // 100], 2)}
    return answer


def main() -> None:
    base = tempfile.mkdtemp(prefix="cnimeta-bench-", dir=sys.argv[1] if len(sys.argv) > 1 else "/var/tmp")
    try:
        for count in (10, 1000, 60000):
            print(json.dumps(measure(f"{base}/{count}", count)), flush=True)
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    main()
