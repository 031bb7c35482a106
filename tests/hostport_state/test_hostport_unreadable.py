"""A page that the disk does not give any more: what can be read is read, the rest is told, and every command goes on."""

from __future__ import annotations

import json
import os
import shutil
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hostport_state_kit import Node, demand, draft, key, mappings_of

from cnimeta.ports.mapper import MappedPort

if TYPE_CHECKING:
    from cnimeta_plugins.hostport_alloc.state.record import Record

pytestmark = [pytest.mark.crash, pytest.mark.timeout(3600)]

HERE = Path(__file__).parent
PAGE = 4096
CONTAINERS = 12
COMMAND = """
import json, sys
sys.path[:0] = json.loads(sys.argv[1])
from test_hostport_unreadable import commands
print(json.dumps(commands(sys.argv[2], sys.argv[3], sys.argv[4])))
"""


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> str:
    target = str(tmp_path_factory.mktemp("library") / "unreadable.so")
    source = HERE.parent / "harness" / "unreadable.c"
    subprocess.run(["cc", "-shared", "-fPIC", "-O1", "-o", target, str(source), "-ldl"], check=True)
    return target


def populated(folder: str, *, logged: bool) -> list[Record]:
    """Containers with two ports each and a document of some pages; `logged`: half of it in a log, as after a kill."""
    node = Node(folder)
    node.again().occupancy()
    if logged:
        kept = sqlite3.connect(f"{folder}/cnimeta.db")
        kept.execute("SELECT count(*) FROM sqlite_master").fetchone()
    records = []
    for number in range(CONTAINERS):
        record = (
            node.again()
            .hold(draft(f"c{number}", pod=f"p{number}"), demand("80/tcp", "81/udp", ports="20000-20099"))
            .record
        )
        record = record._replace(phase="mapped", undo={"filler": str(number) * 6000})
        node.again().settle(record)
        records.append(record)
        if logged and number == CONTAINERS // 2:
            kept.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    if logged:  # a copy has the log, which closing puts away
        shutil.copytree(folder, f"{folder}-copy")
        kept.close()
        shutil.rmtree(folder)
        os.rename(f"{folder}-copy", folder)
        os.unlink(f"{folder}/cnimeta.db-shm")
    return records


def commands(folder: str, boot: str, rules: str) -> dict[str, object]:
    """What a list, an ADD, a DEL of each container and GC find, each with a store of its own."""
    node = Node(folder, boot)
    node.rules = [MappedPort(*fields) for fields in json.loads(rules)]
    listed = sorted({row[7] for row in node.again().listed()})
    added = node.again().hold(draft("new"), demand("80/tcp", ports="20000-20099")).record
    held = {}
    for number in range(CONTAINERS):
        found = node.again().load(key(f"c{number}"))
        held[f"c{number}"] = sorted(found.held) if found is not None else []
        node.rules = [one for one in node.rules if one.container_id != f"c{number}"]
        node.again().release(key(f"c{number}"), quarantine_s=0)
    collected = [record.container_id for record in node.again().unlisted("net", {("new", "eth0")})]
    return {"listed": listed, "added": sorted(added.held), "held": held, "left": collected, "log": node.log}


def run(library: str, folder: Path, file: str, page: int, boot: str, records: list[Record]) -> dict:
    inode = os.stat(folder / file).st_ino
    paths = json.dumps([str(HERE), *[path for path in sys.path if path]])
    rules = json.dumps([list(one) for one in mappings_of(*records)])
    environ = {**os.environ, "LD_PRELOAD": library, "UNREADABLE": f"{inode} {page * PAGE} {(page + 1) * PAGE}"}
    done = subprocess.run(
        [sys.executable, "-c", COMMAND, paths, str(folder), boot, rules],
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: dict = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("boot", ["boot-1", "boot-2"])
@pytest.mark.parametrize("file", ["cnimeta.db", "cnimeta.db-wal"])
def test_commands_go_on_when_one_page_cannot_be_read(tmp_path: Path, library: str, file: str, boot: str) -> None:
    """Each page in its turn, in the database and in its log; in this boot and after another."""
    number = cases = 0
    step = 1 if os.environ.get("CNIMETA_EVERY") else 11
    while True:
        folder = tmp_path / str(number)
        records = populated(str(folder), logged=file != "cnimeta.db")
        if number * PAGE >= os.stat(folder / file).st_size:
            break
        living = records if boot == "boot-1" else []
        found = run(library, folder, file, number, boot, living)
        assert found["left"] == []
        taken = {tuple(port) for ports in found["held"].values() for port in ports} if living else set()
        assert not {tuple(port) for port in found["added"]} & taken
        if living:  # by the record, or by the rules: whoever is alive keeps its ports
            for record in records:
                assert {tuple(port) for port in found["held"][record.container_id]} == record.held, (
                    number,
                    found["log"],
                )
        cases += 1
        number += step
    print(f"{cases} pages of {file}, {boot}")
    assert cases > 3
