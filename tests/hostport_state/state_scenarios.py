"""Commands on real folders that are killed, failed and interrupted, and what has to hold after each."""

from __future__ import annotations

import os
import shutil
from collections import Counter
from typing import TYPE_CHECKING, NamedTuple

from hostport_state_kit import Node, demand, draft, key, mappings_of

from cnimeta.errors import CniError
from cnimeta.store.values import Schema
from cnimeta_plugins.hostport_alloc.state.contents import PortContents
from cnimeta_plugins.hostport_alloc.state.record import Annotation
from cnimeta_plugins.hostport_alloc.state.schema import SCHEMA
from cnimeta_plugins.hostport_alloc.state.store import Store

if TYPE_CHECKING:
    from collections.abc import Callable

RANGE = "20000-20999"
LEFT = {"cnimeta.db", "sequence", "reserve", "locks", "cnimeta.db-wal", "cnimeta.db-shm"}


class Scenario(NamedTuple):
    """A folder is prepared, and a command is run on it as the next process."""

    prepare: Callable[[Node], None]
    command: Callable[[Store], object]
    schema: Schema = SCHEMA
    boot_id: str = "boot-1"


def two_demands():
    return demand("80/tcp", "81/udp", ports=RANGE)


def populate(node: Node) -> None:
    """Two mapped containers of others, and one that was released."""
    for container in ("a", "b", "gone"):
        record = node.again().hold(draft(container, pod=container), two_demands()).record
        node.again().settle(record._replace(phase="mapped", undo={"x": "y" * 900}))
    node.again().release(key("gone"), quarantine_s=600)


def with_target(node: Node) -> None:
    populate(node)
    node.again().hold(draft("target", pod="target"), two_demands())


def torn_log(node: Node) -> None:
    """A command was killed after its commit: its log is still there."""
    with_target(node)
    if os.fork() == 0:
        store = node.again()
        store.settle(store.load(key("target"))._replace(phase="mapped"))
        os._exit(0)
    os.wait()


def damaged_row(node: Node) -> None:
    with_target(node)
    node.damage_document("target", "x")


def damaged_header(node: Node) -> None:
    with_target(node)
    with open(f"{node.folder}/cnimeta.db", "r+b") as file:
        file.write(b"not a database, nor was it one ever" * 3)


def lost(node: Node) -> None:
    with_target(node)
    for name in ("cnimeta.db", "cnimeta.db-wal", "sequence"):
        if os.path.exists(f"{node.folder}/{name}"):
            os.unlink(f"{node.folder}/{name}")


def nothing(_node: Node) -> None:
    pass


def hold(store: Store) -> object:
    return store.hold(draft("target", pod="target"), two_demands())


def settle(store: Store) -> object:
    record = store.load(key("target"))
    assert record is not None
    return store.settle(record._replace(phase="mapped", annotation=Annotation("pending", {"a": 1})))


def release(store: Store) -> object:
    return store.release(key("target"))


SECOND = Schema(
    (
        *SCHEMA.steps,
        (
            "CREATE TABLE extra (number INTEGER)",
            "INSERT INTO extra SELECT id FROM attachments",
            "ALTER TABLE attachments ADD COLUMN more TEXT NOT NULL DEFAULT 'x'",
        ),
    )
)

SCENARIOS = {
    "hold": Scenario(populate, hold),
    "hold again": Scenario(with_target, hold),
    "settle": Scenario(with_target, settle),
    "release": Scenario(with_target, release),
    "first use": Scenario(nothing, hold),
    "release with a log": Scenario(torn_log, release),
    "migration": Scenario(with_target, release, SECOND),
    "another boot": Scenario(with_target, hold, SCHEMA, "boot-2"),
    "damaged record": Scenario(damaged_row, release),
    "damaged header": Scenario(damaged_header, hold),
    "lost": Scenario(lost, hold),
}


class Stage:
    """A scenario, prepared once and copied for each case."""

    def __init__(self, name: str, folder: str) -> None:
        self.name = name
        self.scenario = SCENARIOS[name]
        self.folder = folder
        self.template = Node(f"{folder}/template")
        self.scenario.prepare(self.template)
        self.mapped = [record for name in ("a", "b") if (record := self._load(name)) is not None]
        self.template.log.clear()
        self._cases = 0

    def _load(self, container: str):
        if not os.path.exists(f"{self.folder}/template/cnimeta.db") or self.scenario.prepare in (lost, damaged_header):
            return None
        return self.template.again().load(key(container))

    def copy(self) -> Node:
        """The prepared folder, for a case."""
        self._cases += 1
        folder = f"{self.folder}/{self._cases}"
        if os.path.exists(self.template.folder):
            shutil.copytree(self.template.folder, folder)
        node = Node(folder, self.scenario.boot_id)
        node.timeout_s = 2.0
        node.rules = mappings_of(*self.mapped) if self.scenario.boot_id == "boot-1" else []
        node.clock.advance(10)
        return node

    def command(self, node: Node) -> Callable[[], dict]:
        """The command as a process runs it."""

        def run() -> dict:
            try:
                self.scenario.command(self.store(node))
            except CniError as error:
                return {"error": [error.code, error.msg]}
            return {"done": True}

        return run

    def store(self, node: Node) -> Store:
        """The next command's store, of the scenario's version."""
        contents = PortContents(node._mappings, node.clock, node.boot_id, node.log.append)
        contents.schema = self.scenario.schema
        database = node.open(node.folder, contents, node.boot_id, node.log.append, node.timeout_s)
        return Store(database, node.clock, node.boot_id, node.log.append)

    def assert_recovers(self, node: Node) -> None:
        """The next plain command finds everything whole; nothing is leaked once all is released."""
        store = self.store(node)
        got = store.hold(draft("next"), two_demands()).record
        if self.name == "damaged record" and store.problems():  # looking reports what nobody has read yet
            store.rebuild()
        assert store.problems() == []
        held = Counter(pair for record in store.records() if store.is_alive(record) for pair in record.held)
        assert set(held.values()) == {1}, held
        for record in self.mapped:
            found = store.load(record.key)
            assert found is not None, record.key
            assert not store.is_alive(found) or found.held == record.held
            assert not got.held & record.held or node.boot_id != "boot-1"
        node.rules = []
        for record in list(store.records()):
            store.release(record.key, quarantine_s=0)
        assert not any(store.occupancy().used.values())
        assert list(store.records()) == []
        del store
        left = {name for name in os.listdir(node.folder) if not name.startswith("cnimeta.db.damaged-")}
        assert left <= LEFT, left
        shutil.rmtree(node.folder)
