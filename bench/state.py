"""hostport_alloc's state: what a command costs with few and very many records, and how long it keeps others out.

python bench/state.py [FOLDER]     # FOLDER: on the file system to judge it on; default /var/tmp
"""

from __future__ import annotations

import _sqlite3
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from typing import TYPE_CHECKING

from common import QUICK

from cnimeta.host.clock import SystemClock, boot_id
from cnimeta.spec.netconf import VALID_ATTACHMENTS, NetConf
from cnimeta.store.database import Database
from cnimeta.store.sql import migrate
from cnimeta_plugins.hostport_alloc.allocate.expose import Exposure
from cnimeta_plugins.hostport_alloc.allocate.picks import Port
from cnimeta_plugins.hostport_alloc.allocate.ranges import parse_range
from cnimeta_plugins.hostport_alloc.state import rows
from cnimeta_plugins.hostport_alloc.state.contents import PortContents
from cnimeta_plugins.hostport_alloc.state.record import Pod, Record
from cnimeta_plugins.hostport_alloc.state.schema import SCHEMA
from cnimeta_plugins.hostport_alloc.state.store import Demand, Store

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TITLE = "State of hostport_alloc"
NOTE = """
The database on a disk, with few and with very many attachments of a port each. Commands: 300 of each kind by one
process that has the database open, and 40 by processes that open it, do one thing and close it, the way a plugin does
(the start of Python left out). Write lock: from the moment it is had to the commit; nobody else can write meanwhile,
and the project's bar is 2 ms for 99 of 100 commands.
"""
BARS_MS = {"GC: find 10 records to collect": 20, "cnimeta ports list -o table, whole process": 300}
FEW, MANY, ROUNDS, PROCESSES = 10, 2_000 if QUICK else 60_000, 300, 40
UNDO = {"steps": [{"conf": {"type": "bridge", "ipam": {"type": "host-local", "pad": "x" * 700}}, "maps": False}]}
DEMAND = Demand(
    (Exposure("default", 80, ("tcp",)), Exposure("default", 53, ("tcp", "udp"))),
    {"default": parse_range("default", "1024-65535", "$")},
    {},
    lambda *_: True,
)


class Timed(Database):
    """Notes how long the write lock is held, in milliseconds."""

    held_ms: list[float]

    def _in_transaction(self, connection: _sqlite3.Connection, work: Callable[[_sqlite3.Connection], object]) -> object:
        began: list[float] = []

        def timed(connection: _sqlite3.Connection) -> object:
            began.append(time.perf_counter())
            return work(connection)

        connection.execute("PRAGMA wal_autocheckpoint=0").fetchall()  # that is after the lock, and timed apart
        found = super()._in_transaction(connection, timed)
        self.held_ms.append((time.perf_counter() - began[-1]) * 1000)
        return found


def opened(folder: str) -> tuple[Store, Timed]:
    """The state in a folder."""
    clock, boot = SystemClock(), boot_id()
    database = Timed(folder, PortContents(lambda: (), clock, boot, print), boot, print)
    database.held_ms = []
    return Store(database, clock, boot, print), database


def populate(folder: str, count: int) -> None:
    """Records of other containers."""
    _, database = opened(folder)

    def work(connection: _sqlite3.Connection) -> None:
        for number in range(count):
            ports = (Port(80, "tcp", 2000 + number, "default"),)
            key = "net", f"{number:064x}", "eth0"
            rows.insert(
                connection,
                Record(*key, "", "4:7", boot_id(), "t", 1.0, "mapped", Pod("ns", f"p{number}"), ports, undo=UNDO),
            )
        rows.renew_bits(connection)

    database.write(work)


def milliseconds(run: Callable[[], object]) -> float:
    """How long it takes."""
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1000


def commands(folder: str) -> tuple[dict[str, list[float]], dict[str, list[float]]]:
    """Per command, ascending: the whole of it, and the write lock."""
    store, database = opened(folder)
    whole: dict[str, list[float]] = {"hold": [], "settle": [], "release": []}
    lock: dict[str, list[float]] = {"hold": [], "settle": [], "release": []}
    for number in range(ROUNDS):
        draft = Record("net", f"new{number}", "eth0", pod=Pod("ns", f"new{number}"), undo=UNDO)
        found: list[Record] = []

        def hold(draft: Record = draft, found: list[Record] = found) -> None:
            found.append(store.hold(draft, DEMAND).record)

        def settle(found: list[Record] = found) -> None:
            store.settle(found[0]._replace(phase="mapped"))

        def release(draft: Record = draft) -> None:
            store.release(draft.key)

        for verb, run in (("hold", hold), ("settle", settle), ("release", release)):
            whole[verb].append(milliseconds(run))
            lock[verb].append(database.held_ms[-1])
    return {verb: sorted(times) for verb, times in whole.items()}, {verb: sorted(times) for verb, times in lock.items()}


def alone(folder: str) -> list[float]:
    """Processes that open the database, hold and settle, and close it."""
    times = []
    for number in range(PROCESSES):
        reader, writer = os.pipe()
        if os.fork() == 0:
            start = time.perf_counter()
            store, database = opened(folder)
            record = store.hold(Record("net", f"alone{number}", "eth0", undo=UNDO), DEMAND).record
            store.settle(record._replace(phase="mapped"))
            del store, database
            os.write(writer, repr((time.perf_counter() - start) * 1000).encode())
            os._exit(0)
        times.append(float(os.read(reader, 100)))
        os.close(reader)
        os.close(writer)
        os.wait()
    return sorted(times)


def syncs(folder: str) -> float:
    """How often such a process waits for the disk."""
    program = f"import sys; sys.path[:0] = {sys.path!r}; import state; state.PROCESSES = 1; state.alone({folder!r})"
    done = subprocess.run(
        ["strace", "-f", "-qq", "-e", "trace=fsync,fdatasync", sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
    )
    return float(done.stderr.count("sync("))


def looking(folder: str, count: int) -> Iterator[tuple[str, float]]:
    """Commands that read much."""
    store, database = opened(folder)
    listed = [{"containerID": f"{number:064x}", "ifname": "eth0"} for number in range(10, count)]
    conf = NetConf({"name": "net", VALID_ATTACHMENTS[0]: listed})
    keep = conf.valid_attachments() or frozenset()
    yield "read every record", min(milliseconds(lambda: list(store.records())) for _ in range(3))
    yield "what a list shows, as a query", min(milliseconds(store.listed) for _ in range(5))
    for form in ("table", "json"):
        yield f"cnimeta ports list -o {form}, whole process", command("list", "-o", form, "--data-dir", folder)
    yield "cnimeta ports list, whole process, no records", command("list", "--data-dir", f"{folder}/none")
    yield "GC: read the runtime's list", min(milliseconds(conf.valid_attachments) for _ in range(5))
    yield "GC: find 10 records to collect", min(milliseconds(lambda: store.unlisted("net", keep)) for _ in range(9))
    yield "check everything", milliseconds(store.problems)
    database._connection.execute("UPDATE bitmaps SET crc=0")  # noqa: SLF001
    yield (
        "make all anew after damage",
        milliseconds(lambda: store.load(("net", "x", "y")) or store.try_writing() or store.occupancy()),
    )


def command(*words: str) -> float:
    """`cnimeta ports` as a process: the quickest of five."""
    argv = [f"{os.path.dirname(sys.executable)}/cnimeta", "ports", *words]
    return min(milliseconds(lambda: subprocess.run(argv, check=True, stdout=subprocess.DEVNULL)) for _ in range(5))


def migration(folder: str) -> float:
    """From the first version of the tables to this one, with everything that `folder` has."""
    with tempfile.TemporaryDirectory(dir=os.path.dirname(folder)) as place:
        path = shutil.copy(f"{folder}/cnimeta.db", place)
        connection = _sqlite3.connect(path, isolation_level=None)
        for statement in (
            *("DROP INDEX attachments_listed", "DROP TRIGGER attachments_hidden", "DROP TABLE exposed"),
            *(f"ALTER TABLE attachments DROP COLUMN {name}" for name in ("pod_uid", "phase", "created")),
            *("ALTER TABLE attachments DROP COLUMN annotation_error", "PRAGMA user_version=1", "BEGIN"),
        ):
            connection.execute(statement).fetchall()
        spent = milliseconds(lambda: migrate(connection, SCHEMA))
        connection.execute("COMMIT")
        connection.close()
    return spent


def import_ms() -> float:
    """The C module of the database, beside an interpreter without it."""
    times = []
    for statement in ("pass", "import _sqlite3"):
        found = [
            milliseconds(lambda: subprocess.run([sys.executable, "-I", "-S", "-c", statement], check=True))  # noqa: B023
            for _ in range(30)
        ]
        times.append(statistics.median(found))
    return times[1] - times[0]


def section(base: str = "/var/tmp") -> str:
    """The part of the document."""
    place = tempfile.mkdtemp(prefix="cnimeta-bench-", dir=base)
    try:
        for count in (FEW, MANY):
            populate(f"{place}/{count}", count)
        measured = [of for count in (FEW, MANY) for of in commands(f"{place}/{count}")]
        lone = [statistics.median(alone(f"{place}/{count}")) for count in (FEW, MANY)]
        single = {
            "import of the database's module": import_ms(),
            f"migrate from version 1, {MANY:,} records": migration(f"{place}/{MANY}"),
            **{f"{what}, {MANY:,} records": ms for what, ms in looking(f"{place}/{MANY}", MANY)},
        }
        disk = syncs(f"{place}/{FEW}")
    finally:
        shutil.rmtree(place)
    heads = [f"{what}{count:,} records" for count in (FEW, MANY) for what in ("", "write lock, ")]
    lines = [
        f"## {TITLE}",
        "",
        NOTE.strip(),
        "",
        f"| command: p50 / p99 | {' | '.join(heads)} |",
        "|---|---|---|---|---|",
    ]
    for verb, label in (("hold", "hold three ports"), ("settle", "settle"), ("release", "free ports")):
        lines.append(f"| {label} | " + " | ".join(percentiles(of[verb]) for of in measured) + " |")
    lines.append(
        f"| open, hold, settle, close in a process of its own (p50) | {lone[0]:.1f} ms | | {lone[1]:.1f} ms | |"
    )
    lines += ["", f"Such a process waits for the disk (fsync) {disk:.0f} times.", ""]
    lines += ["| what | time | bar |", "|---|---|---|"]
    for what, ms in single.items():
        bar = next((f"{bar} ms" for label, bar in BARS_MS.items() if what.startswith(label)), "")
        lines.append(f"| {what} | {ms:,.1f} ms | {bar} |")
    return "\n".join(lines) + "\n"


def percentiles(times: list[float]) -> str:
    """Of times that ascend."""
    return " / ".join(f"{times[len(times) * percent // 100]:.2f}" for percent in (50, 99)) + " ms"


def main() -> int:
    """Print it."""
    print(section(*sys.argv[1:2]))
    return 0


if __name__ == "__main__":
    sys.exit(main())
