"""Kills and failures at every step of every command on the database in memory, and any commands in any order.

The next command finds rule => record => bit. Kills of real processes are in test_hostport_kills.
"""

from __future__ import annotations

import itertools
import tempfile

import pytest
from hostport_state_kit import Node, demand, draft, key, mappings_of
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cnimeta.errors import StateUnusable
from cnimeta.testing.files import Killed
from cnimeta_plugins.hostport_alloc.state.record import Annotation

pytestmark = pytest.mark.crash


def populated() -> Node:
    node = Node()
    for number in range(3):
        node.again().hold(draft(f"c{number}", pod=f"p{number}"), demand("80/tcp", "81/udp"))
    node.again().release(key("c2"), quarantine_s=600)
    return node


def rebooted() -> Node:
    node = populated()
    node.boot_id = "boot-2"
    node.clock.reboot()
    return node


def damaged() -> Node:
    node = populated()
    node.rules = mappings_of(node.again().load(key("c0")))
    node.damage_document("c1", "")
    return node


def mark_pending(store):
    record = store.load(key("c0"))
    store.settle(record._replace(phase="mapped", annotation=Annotation("pending", {"a": 1})))


COMMANDS = {
    "first use": (Node, lambda store: store.hold(draft("c0"), demand())),
    "hold": (populated, lambda store: store.hold(draft("new", pod="p2"), demand("80/tcp", "81/udp"))),
    "hold again": (populated, lambda store: store.hold(draft("c0"), demand("80/tcp", "81/udp"))),
    "hold other ports": (populated, lambda store: store.hold(draft("c0"), demand("80/tcp", "82+2/udp"))),
    "settle": (populated, mark_pending),
    "release": (populated, lambda store: store.release(key("c0"))),
    "rebuild": (damaged, lambda store: store.rebuild()),
    "hold after a reboot": (rebooted, lambda store: store.hold(draft("new"), demand())),
    "release after a reboot": (rebooted, lambda store: store.release(key("c0"))),
    "release after damage": (damaged, lambda store: store.release(key("c1"))),
}


def assert_recovers(node: Node) -> None:
    node.assert_whole()
    node.rules.clear()  # a DEL removes the rules before it releases the record
    for record in list(node.again().records()):  # every port can be had back
        node.again().release(record.key, quarantine_s=0)
    assert node.bits() == []
    got = node.again().hold(draft("all"), demand("1+10/tcp", "1+10/udp")).record
    assert len(got.held) == 20
    node.again().release(key("all"))


@pytest.mark.parametrize("name", COMMANDS)
def test_next_command_restores_the_invariant_when_killed_at_any_step(name):
    make, command = COMMANDS[name]
    for step in itertools.count(1):
        node = make()
        node.databases.kill_at(step)
        try:
            command(node.again())
        except Killed:
            assert_recovers(node)
            continue
        break
    assert step >= 4


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("lasting", [False, True])
def test_command_fails_clean_and_is_repeated_with_success_when_any_step_fails(name, lasting):
    make, command = COMMANDS[name]
    for step in itertools.count(1):
        node = make()
        node.again().load(key("none"))  # a database that has to be made first is another case
        before = node.contents()
        node.databases.fail_at(step, lasting=lasting)
        try:
            command(node.again())
        except StateUnusable:
            node.databases.heal()
            # What failed after the commit stands: a whole record that DEL and GC can see.
            # A damaged database was made anew by then, in a transaction of its own.
            assert step == 3 or name in ("release after damage", "rebuild") or node.contents() == before
            command(node.again())
            assert_recovers(node)
            continue
        break
    assert step >= 4


def test_mapped_container_keeps_record_and_bits_when_another_command_is_killed_at_any_step():
    for name in ("hold", "rebuild", "release after damage"):
        make, command = COMMANDS[name]
        for step in range(1, 5):
            node = make()
            node.databases.kill_at(step)
            try:
                command(node.again())
            except Killed:
                pass
            assert node.again().load(key("c0")).held <= set(node.bits())


class Machine(RuleBasedStateMachine):
    """ADD, DEL, kills, lost and damaged databases, reboots and time in any order, against a model of what must hold."""

    kind = "memory"
    containers = st.sampled_from([f"c{number}" for number in range(6)])
    wishes = st.sampled_from([("80/tcp",), ("80/tcp", "53/tcp+udp"), ("90+3/udp",)])

    @initialize()
    def start(self):
        self.folder = tempfile.TemporaryDirectory(dir="/dev/shm") if self.kind == "real" else None
        self.node = Node(f"{self.folder.name}/state" if self.folder is not None else "")
        self.promised = {}  # container: what a hold that returned has given it

    def _hold(self, container, wish):
        record = self.node.again().hold(draft(container, pod=container), demand(*wish, ports="20000-20019")).record
        self.promised[container] = record.held
        self._map(container, record)

    def _map(self, container, record=None):
        """What the kernel has: the mappings of this container are those of its record."""
        self.node.rules = [rule for rule in self.node.rules if rule.container_id != container]
        if record is not None:
            self.node.rules += mappings_of(record)

    @rule(container=containers, wish=wishes)
    def hold(self, container, wish):
        self._hold(container, wish)

    @rule(container=containers, quarantine=st.sampled_from([0, 5, 600]))
    def release(self, container, quarantine):
        self._map(container)
        self.node.again().release(key(container), quarantine_s=quarantine)
        self.promised.pop(container, None)

    @rule(container=containers, state=st.sampled_from(["pending", "done"]))
    def settle(self, container, state):
        record = self.node.again().load(key(container))
        if record is not None and self.node.again().is_alive(record) and not record.salvaged:
            self.node.again().settle(record._replace(phase="mapped", annotation=Annotation(state, {"x": 1})))

    @precondition(lambda self: self.kind == "memory")
    @rule(container=containers, wish=wishes, step=st.integers(1, 4))
    def hold_killed(self, container, wish, step):
        self.node.databases.kill_at(step)
        old = self.promised.pop(container, None)
        self._map(container)
        try:
            self._hold(container, wish)
        except Killed:
            assert old is None or container not in self.promised
        self.node.databases.heal()

    @precondition(lambda self: self.kind == "memory")
    @rule(container=containers, step=st.integers(1, 4))
    def release_killed(self, container, step):
        self.node.databases.kill_at(step)
        self.promised.pop(container, None)
        self._map(container)
        try:
            self.node.again().release(key(container))
        except Killed:
            pass
        self.node.databases.heal()

    @precondition(lambda self: self.promised)
    @rule(data=st.data(), text=st.sampled_from(["", "x", '{"version":1,"crc":1,"record":{}}']))
    def damage_record(self, data, text):
        self.node.damage_document(data.draw(st.sampled_from(sorted(self.promised))), text)

    @rule(table=st.sampled_from(["bitmaps", "ports", "meta"]))
    def damage_table(self, table):
        self.node.again().try_writing()
        self.node.sql(f"DELETE FROM {table}")

    @rule()
    def lose_everything(self):
        self.node.again().try_writing()
        self.node.lose()

    @rule(seconds=st.integers(1, 100))
    def wait(self, seconds):
        self.node.clock.advance(seconds)

    @rule()
    def reboot(self):
        self.node.boot_id += "x"
        self.node.clock.reboot()
        self.node.rules.clear()
        self.promised.clear()

    @invariant()
    def what_was_promised_is_held_once_and_stays(self):
        self.node.again().rebuild()
        bits = set(self.node.bits())
        seen: set[tuple[str, int]] = set()
        for container, held in self.promised.items():
            assert held <= bits, container
            assert not held & seen
            seen |= held
        assert self.node.again().problems() == []

    def teardown(self):
        if not hasattr(self, "node"):
            return
        self.node.rules.clear()
        for number in range(6):
            self.node.again().release(key(f"c{number}"), quarantine_s=0)
        self.node.assert_whole()
        assert self.node.bits() == []
        if self.folder is not None:
            self.folder.cleanup()


Machine.TestCase.settings = settings(
    max_examples=60, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestMachine = Machine.TestCase


class RealMachine(Machine):
    """The same on a real database."""

    kind = "real"


RealMachine.TestCase.settings = settings(
    max_examples=15, stateful_step_count=15, deadline=None, suppress_health_check=list(HealthCheck)
)
TestRealMachine = RealMachine.TestCase
