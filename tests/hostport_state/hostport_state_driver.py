"""A process that uses the store on the real file system, as a plugin would: run by the crash and stress tests.

driver.py FOLDER reserve|update|release CONTAINER    one command
driver.py FOLDER stress PROCESSES PORTS_EACH RANGE   many processes at once; prints one JSON line of what happened
"""

from __future__ import annotations

import json
import os
import sys
import time

from cnimeta.errors import CniError
from cnimeta.host.clock import SystemClock, boot_id
from cnimeta.host.files import PosixFiles
from cnimeta.host.lock import NodeLock
from cnimeta_plugins.hostport_alloc.allocate.expose import Exposure
from cnimeta_plugins.hostport_alloc.allocate.ranges import parse_range
from cnimeta_plugins.hostport_alloc.state.record import Annotation, Record
from cnimeta_plugins.hostport_alloc.state.store import Demand, Store


def open_store(folder: str, log=None) -> Store:
    files = PosixFiles(exclusive=True)
    return Store(folder, files, NodeLock(f"{folder}/lock", 60), SystemClock(), boot_id(), log or (lambda _: None))


def demand(count: int = 1, ports: str = "20000-20999") -> Demand:
    exposures = tuple(Exposure("default", 80 + number, ("tcp",)) for number in range(count))
    return Demand(exposures, {"default": parse_range("default", ports, "$")}, {}, lambda *_: True)


def key(container: str) -> tuple[str, str, str]:
    return "net", container, "eth0"


def command(folder: str, verb: str, container: str) -> None:
    store = open_store(folder)
    if verb == "reserve":
        store.reserve(Record(*key(container)), demand(2))
    elif verb == "update":
        record = store.load(key(container))
        assert record is not None
        store.update(record._replace(phase="mapped", annotation=Annotation("pending", {"a": 1})))
    else:
        store.release(key(container))


def stress_child(folder: str, name: str, count: int, ports: str, start: float, churn: int) -> dict:
    time.sleep(max(0.0, start - time.time()))
    answer: dict = {"ports": [], "error": None}
    try:
        for round_number in range(churn):
            container = f"{name}-{round_number}"
            open_store(folder).reserve(Record(*key(container)), demand(count, ports))
            open_store(folder).release(key(container), quarantine_s=0)
        record = open_store(folder).reserve(Record(*key(name)), demand(count, ports)).record
        answer["ports"] = [port.host_port for port in record.ports]
    except CniError as error:
        answer["error"] = [error.code, error.msg]
    return answer


def stress(folder: str, processes: int, count: int, ports: str, churn: int) -> None:
    import filelock  # noqa: F401 - once here instead of in every child

    start = time.time() + 0.2 + processes * 0.004
    pipes = []
    for number in range(processes):
        reader, writer = os.pipe()
        if os.fork() == 0:
            os.write(writer, json.dumps(stress_child(folder, f"c{number}", count, ports, start, churn)).encode())
            os._exit(0)
        os.close(writer)
        pipes.append(reader)
    answers = []
    for reader in pipes:
        with os.fdopen(reader) as pipe:
            answers.append(json.loads(pipe.read()))
    for _ in range(processes):
        os.wait()
    print(json.dumps(answers))


if __name__ == "__main__":
    if sys.argv[2] == "stress":
        stress(sys.argv[1], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5], int(sys.argv[6]))
    else:
        command(*sys.argv[1:4])
