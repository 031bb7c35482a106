"""Flipped bytes and cut-off files: no port twice, no empty start without a word, every DEL works.

CNIMETA_FLIPS=1000 makes so many of each file; the ordinary run makes fewer, with the same seeds.
"""

from __future__ import annotations

import os
import random
import shutil

import pytest
from hostport_state_kit import Node, demand, draft, key, mappings_of

pytestmark = pytest.mark.crash

FILES = ("cnimeta.db", "cnimeta.db-wal", "cnimeta.db-shm", "sequence", "reserve")
ATTACHMENTS = 12
PORTS = "20000-20059"


def prepare(node: Node) -> list:
    """Mapped containers, most of them in the database and the last few in the log of a command that was killed."""
    records = []
    for number in range(ATTACHMENTS):
        if number == ATTACHMENTS - 4:
            records += in_the_log(node, number)
            break
        records.append(add(node, number))
    assert all(os.path.getsize(f"{node.folder}/{name}") for name in FILES)
    return records


def add(node: Node, number: int):
    store = node.again()
    record = store.hold(draft(f"c{number}", pod=f"p{number}"), demand("80/tcp", "81/udp", ports=PORTS)).record
    record = record._replace(phase="mapped", undo={"x": f"{number}" * 900})
    store.settle(record)
    return record


def in_the_log(node: Node, first: int) -> list:
    child = os.fork()
    if child == 0:
        keeper = node.again()  # while it has the database open, nobody copies the log into it
        keeper.try_writing()
        for number in range(first, ATTACHMENTS):
            add(node, number)
        os._exit(0)
    os.waitpid(child, 0)
    shutil.copytree(node.folder, f"{node.folder}-copy")
    node = Node(f"{node.folder}-copy")
    records = [node.again().load(key(f"c{number}")) for number in range(first, ATTACHMENTS)]
    shutil.rmtree(node.folder)
    return records


def strike(path: str, chance: random.Random) -> str:
    """Damage a file; says how."""
    size = os.path.getsize(path)
    if chance.random() < 0.2:
        end = chance.randrange(size)
        os.truncate(path, end)
        return f"cut off at {end} of {size}"
    place, mask = chance.randrange(size), chance.randrange(1, 256)
    with open(path, "r+b") as file:
        file.seek(place)
        old = file.read(1)[0]
        file.seek(place)
        file.write(bytes([old ^ mask]))
    return f"byte {place} of {size} changed from {old} to {old ^ mask}"


def assert_served(node: Node, records: list) -> bool:
    """Whether the damage was noticed."""
    live = {pair for record in records for pair in record.held}
    new = []
    for number in range(3):
        got = node.again().hold(draft(f"new{number}", pod=f"p{number}"), demand("80/tcp", "81/udp", ports=PORTS)).record
        assert not got.held & live, "a port was given twice"
        live |= got.held
        new.append(got)
        node.rules += mappings_of(got)
    found = {record.key: record for record in node.again().records()}
    same = all(found.get(record.key) == record for record in (*records, *new))
    assert same or any("state:" in line for line in node.log), "records are gone without a word"
    for record in records:
        node.rules = [rule for rule in node.rules if rule.container_id != record.container_id]
        node.again().release(record.key, quarantine_s=0)
    node.again().rebuild()  # `ports repair`, where a broken index hid something
    for record in records:
        node.again().release(record.key, quarantine_s=0)
        assert node.again().load(record.key) is None
    assert node.again().problems() == []
    assert set(node.bits()) == {pair for record in new for pair in record.held}
    return bool(node.log)


@pytest.mark.timeout(7200)
@pytest.mark.parametrize("name", FILES)
def test_no_port_is_given_twice_and_every_del_works_when_a_file_is_damaged(tmp_path, name):
    template = Node(str(tmp_path / "template"))
    records = prepare(template)
    cases = int(os.environ.get("CNIMETA_FLIPS", "25"))
    noticed = 0
    for case in range(cases):
        node = Node(str(tmp_path / "case"))
        node.clock.advance(100)
        shutil.copytree(template.folder, node.folder)
        node.rules = mappings_of(*records)
        how = strike(f"{node.folder}/{name}", random.Random(f"{name} {case}"))
        try:
            noticed += assert_served(node, records)
        except BaseException as error:
            error.add_note(f"{name}, case {case}: {how}; log: {node.log}")
            raise
        shutil.rmtree(node.folder)
    print(f"{name}: {cases} cases, {noticed} with a line in the log")
