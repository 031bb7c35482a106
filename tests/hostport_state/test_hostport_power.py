"""Power lost at any moment: the next boot's first command finds a state that works, and what can be read is right.

CNIMETA_EVERY=1 replays every moment, eight ways each; the ordinary run a sample of them.
"""

from __future__ import annotations

import os
import random
import shutil

import power
import pytest
import tracing
from hostport_state_kit import Node, demand, draft, key

from cnimeta_plugins.hostport_alloc.state.record import encode

pytestmark = pytest.mark.crash

SHARES = (0.0, 0.1, 0.3, 0.5, 0.7, 0.9, 0.97, 1.0)


def life(node: Node, seen: list[str]):
    """The commands of a node, each in a process of its own as far as files can tell."""

    def add(container: str) -> None:
        store = node.again()
        record = store.hold(draft(container, pod=container), demand("80/tcp", "81/udp", ports="20000-20999")).record
        seen.append(encode(record))
        record = record._replace(phase="mapped", undo={"x": "y" * 900})
        store.settle(record)
        seen.append(encode(record))

    def run() -> dict:
        for number in range(3):
            add(f"c{number}")
        node.again().release(key("c0"))
        add("c3")
        keeper = node.again()  # the log grows while somebody has the database open, and is begun anew
        keeper.try_writing()
        keeper._database._connection.execute("PRAGMA wal_autocheckpoint=10").fetchall()
        for number in range(4, 7):
            add(f"c{number}")
            keeper.try_writing()
        del keeper
        node.damage_document("c1", "x")
        node.again().release(key("c1"))
        add("c7")
        with open(f"{node.folder}-seen", "w", encoding="ascii") as file:
            file.write("\n".join(seen))
        return {"done": True}

    return run


def assert_recovers(folder: str, seen: set[str]) -> int:
    """How many records were read."""
    node = Node(folder, "boot-2")
    node.clock.reboot()
    store = node.again()
    new = store.hold(draft("new"), demand("80/tcp", "81/udp", ports="20000-20999")).record
    found = list(node.again().records())
    for record in found:
        if record.key != new.key:
            assert encode(record) in seen or record.salvaged, record
            assert not store.is_alive(record)
    assert node.again().problems() == []
    assert sorted(node.bits()) == sorted(new.held)
    for record in found:
        assert node.again().release(record.key) is not None
    assert list(node.again().records()) == []
    assert not [line for line in node.log if "transactions are lost" in line], node.log
    return len(found) - 1


@pytest.mark.timeout(7200)
def test_next_boot_finds_a_state_that_works_when_power_is_lost_at_any_moment(tmp_path):
    node = Node(str(tmp_path / "state"))
    trace = str(tmp_path / "trace")
    outcome = tracing.run(life(node, []), f"trace={','.join(power.CALLS)}", trace, hexadecimal=True)
    assert outcome.answer == {"done": True}, outcome
    seen = set((tmp_path / "state-seen").read_text().splitlines())
    operations = power.operations(trace, node.folder)
    syncs = sum(operation.kind == "sync" for operation in operations)
    assert len(operations) > 200
    assert syncs > 10
    cases = [(moment, share) for moment in range(len(operations) + 1) for share in SHARES]
    if not os.environ.get("CNIMETA_EVERY"):
        cases = sorted(random.Random(1).sample(cases, 250))
    read = 0
    disk, at = power.Disk(node.folder), 0
    for moment, share in cases:
        for operation in operations[at:moment]:
            disk.apply(operation)
        at = moment
        folder = str(tmp_path / "case")
        os.mkdir(folder, 0o700)
        disk.after_power_loss(folder, random.Random(f"{moment} {share}"), share)
        try:
            read += assert_recovers(folder, seen)
        except BaseException as error:
            error.add_note(
                f"after {moment} of {len(operations)} operations, {share} kept: {operations[moment - 1][:3]}"
            )
            raise
        shutil.rmtree(folder)
    print(f"{len(cases)} power losses in {len(operations)} operations with {syncs} syncs, {read} records read")
