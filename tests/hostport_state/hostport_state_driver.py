"""Many processes that use the store on one folder at once, as plugins would: run by the race tests and benchmarks.

driver.py FOLDER PROCESSES PORTS_EACH RANGE CHURN    prints one JSON document of what happened
"""

from __future__ import annotations

import json
import os
import sys
import time

from cnimeta.errors import CniError
from cnimeta.host.clock import SystemClock, boot_id
from cnimeta.store.database import Database
from cnimeta_plugins.hostport_alloc.allocate.expose import Exposure
from cnimeta_plugins.hostport_alloc.allocate.ranges import parse_range
from cnimeta_plugins.hostport_alloc.state.contents import PortContents
from cnimeta_plugins.hostport_alloc.state.record import Record
from cnimeta_plugins.hostport_alloc.state.store import Demand, Store


def open_store(folder: str, log=None) -> Store:
    """The next command's store."""
    log = log or (lambda _: None)
    contents = PortContents(lambda: (), SystemClock(), boot_id(), log)
    return Store(Database(folder, contents, boot_id(), log, 60), SystemClock(), boot_id(), log)


def demand(count: int = 1, ports: str = "20000-20999") -> Demand:
    exposures = tuple(Exposure("default", 80 + number, ("tcp",)) for number in range(count))
    return Demand(exposures, {"default": parse_range("default", ports, "$")}, {}, lambda *_: True)


def key(container: str) -> tuple[str, str, str]:
    return "net", container, "eth0"


def add(folder: str, container: str, count: int, ports: str, log) -> list[int]:
    """As ADD: hold, settle."""
    store = open_store(folder, log)
    record = store.hold(Record(*key(container)), demand(count, ports)).record
    store.settle(record._replace(phase="mapped"))
    return [port.host_port for port in record.ports]


def one_of_many(folder: str, name: str, count: int, ports: str, start: float, churn: int) -> dict:
    time.sleep(max(0.0, start - time.time()))
    log: list[str] = []
    answer: dict = {"ports": [], "error": None, "log": log}
    began = time.monotonic()
    try:
        for round_number in range(churn):
            container = f"{name}-{round_number}"
            add(folder, container, count, ports, log.append)
            open_store(folder, log.append).release(key(container), quarantine_s=0)
        answer["ports"] = add(folder, name, count, ports, log.append)
    except CniError as error:
        answer["error"] = [error.code, error.msg]
    answer["seconds"] = time.monotonic() - began
    return answer


def race(folder: str, processes: int, count: int, ports: str, churn: int) -> list[dict]:
    """What each process tells."""
    import filelock  # noqa: F401 - once here instead of in every child

    start = time.time() + 0.2 + processes * 0.004
    pipes = []
    for number in range(processes):
        reader, writer = os.pipe()
        if os.fork() == 0:
            answer = json.dumps(one_of_many(folder, f"c{number}", count, ports, start, churn)).encode()
            while answer:
                answer = answer[os.write(writer, answer) :]
            os._exit(0)
        os.close(writer)
        pipes.append(reader)
    answers = []
    for reader in pipes:
        with os.fdopen(reader) as pipe:
            answers.append(json.loads(pipe.read()))
    for _ in range(processes):
        os.wait()
    return answers


if __name__ == "__main__":
    print(json.dumps(race(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]), sys.argv[4], int(sys.argv[5]))))
