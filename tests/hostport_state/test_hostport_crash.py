"""Kills and power losses at every step of every command: the next command restores rule => record => bit."""

from __future__ import annotations

import itertools

import pytest
from hostport_state_kit import Node, demand, draft, key
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from cnimeta.testing.files import Killed
from cnimeta_plugins.hostport_alloc.state.layout import name_of
from cnimeta_plugins.hostport_alloc.state.record import Annotation
from cnimeta_plugins.hostport_alloc.state.store import Rule

pytestmark = pytest.mark.crash


def populated() -> Node:
    node = Node()
    for number in range(3):
        node.again().reserve(draft(f"c{number}", pod=f"p{number}"), demand("80/tcp", "81/udp"))
    node.again().release(key("c2"), quarantine_s=600)
    return node


def rebooted() -> Node:
    node = populated()
    node.boot_id = "boot-2"
    node.clock.reboot()
    return node


def damaged() -> Node:
    node = populated()
    node.files.content[node.layout.slots[0]] = b""
    node.files.content[node.layout.record(name_of(key("c1")))] = b""
    node.rules = [Rule(*key("c0"), port) for port in node.again().load(key("c0")).ports]
    return node


def mark_pending(store):
    record = store.load(key("c0"))
    store.update(record._replace(phase="mapped", annotation=Annotation("pending", {"a": 1})))


COMMANDS = {
    "first use": (Node, lambda store: store.reserve(draft("c0"), demand())),
    "reserve": (populated, lambda store: store.reserve(draft("new", pod="p2"), demand("80/tcp", "81/udp"))),
    "reserve again": (populated, lambda store: store.reserve(draft("c0"), demand("80/tcp", "81/udp"))),
    "reserve other ports": (populated, lambda store: store.reserve(draft("c0"), demand("80/tcp", "82+2/udp"))),
    "update": (populated, mark_pending),
    "release": (populated, lambda store: store.release(key("c0"))),
    "rebuild": (populated, lambda store: store.rebuild()),
    "reserve after a reboot": (rebooted, lambda store: store.reserve(draft("new"), demand())),
    "release after a reboot": (rebooted, lambda store: store.release(key("c0"))),
    "release after damage": (damaged, lambda store: store.release(key("c1"))),
}


def killed_at(name: str, step: int) -> Node | None:
    """The node after a kill before the step-th step of a command, None when the command has fewer."""
    make, command = COMMANDS[name]
    node = make()
    node.files.kill_at(step)
    try:
        command(node.again())
    except Killed:
        return node
    return None


def assert_recovers(node: Node) -> None:
    node.settle()
    node.assert_whole()
    node.rules.clear()  # a DEL removes the rules before it releases the record
    for record in list(node.again().records()):  # every port can be had back
        node.again().release(record.key, quarantine_s=0)
    assert node.bits() == []
    got = node.again().reserve(draft("all"), demand("1+10/tcp", "1+10/udp")).record
    assert len(got.held) == 20
    node.again().release(key("all"))
    left = [path for path in node.files.content if "/.tmp-" in path]
    assert all(path.startswith(f"{node.layout.folder}/.tmp-hostports.") for path in left), left


@pytest.mark.parametrize("name", COMMANDS)
def test_next_command_restores_the_invariant_when_killed_at_any_step(name):
    steps = 0
    for step in itertools.count(1):
        node = killed_at(name, step)
        if node is None:
            break
        steps = step
        assert_recovers(node)
    assert steps >= 4


@pytest.mark.parametrize("name", COMMANDS)
@pytest.mark.parametrize("kept", ["nothing", "index", "records", "everything"])
def test_next_command_restores_the_invariant_when_power_is_lost_at_any_step(name, kept):
    choose = {
        "nothing": lambda _: False,
        "index": lambda path: "hostports." in path,
        "records": lambda path: "hostports." not in path,
        "everything": lambda _: True,
    }[kept]
    for step in itertools.count(1):
        node = killed_at(name, step)
        if node is None:
            break
        node.files.power_loss(choose)
        assert_recovers(node)


def test_mapped_container_keeps_record_and_bits_when_another_command_is_killed_at_any_step():
    """rule => record => bit for those not involved: c0 and c1 are mapped while others are killed."""
    for name in ("reserve", "rebuild"):
        for step in itertools.count(1):
            node = killed_at(name, step)
            if node is None:
                break
            node.settle()
            for container in ("c0", "c1"):
                assert node.again().load(key(container)).held <= set(node.bits())


def test_kill_between_index_and_record_is_noticed_without_reading_other_records():
    node = killed_at("reserve", 5)
    assert node is not None
    node.files.reads.clear()
    node.settle()
    assert not any(path.endswith("/") for path in node.files.reads)
    assert not any("c1:" in path for path in node.files.reads)


class Machine(RuleBasedStateMachine):
    """ADD, DEL, kills, power losses, damage, reboots and time in any order, against a model of what must hold."""

    containers = st.sampled_from([f"c{number}" for number in range(6)])
    wishes = st.sampled_from([("80/tcp",), ("80/tcp", "53/tcp+udp"), ("90+3/udp",)])

    @initialize()
    def start(self):
        self.node = Node()
        self.promised = {}  # container: what a reserve that returned has given it

    def _reserve(self, container, wish):
        record = self.node.again().reserve(draft(container, pod=container), demand(*wish, ports="20000-20019")).record
        self.promised[container] = record.held

    @rule(container=containers, wish=wishes)
    def reserve(self, container, wish):
        self._reserve(container, wish)

    @rule(container=containers, quarantine=st.sampled_from([0, 5, 600]))
    def release(self, container, quarantine):
        self.node.again().release(key(container), quarantine_s=quarantine)
        self.promised.pop(container, None)

    @rule(container=containers, state=st.sampled_from(["pending", "done"]))
    def update(self, container, state):
        record = self.node.again().load(key(container))
        if record is not None and self.node.again().is_alive(record) and not record.salvaged:
            self.node.again().update(record._replace(phase="mapped", annotation=Annotation(state, {"x": 1})))

    @rule(container=containers, wish=wishes, step=st.integers(1, 9), power=st.booleans())
    def reserve_killed(self, container, wish, step, power):
        self.node.files.kill_at(step)
        old = self.promised.pop(container, None)
        try:
            self._reserve(container, wish)
        except Killed:
            if power:
                self.node.files.power_loss(lambda path: hash(path) % 2 == 0)
            assert old is None or container not in self.promised
        self.node.files.heal()

    @rule(container=containers, step=st.integers(1, 8), power=st.booleans())
    def release_killed(self, container, step, power):
        self.node.files.kill_at(step)
        self.promised.pop(container, None)
        try:
            self.node.again().release(key(container))
        except Killed:
            if power:
                self.node.files.power_loss(lambda _: False)
        self.node.files.heal()

    @rule(slot=st.integers(0, 1), cut=st.integers(0, 30000))
    def damage_index(self, slot, cut):
        path = self.node.layout.slots[slot]
        if path in self.node.files.content:
            self.node.files.content[path] = self.node.files.content[path][:cut]

    @precondition(lambda self: self.promised)
    @rule(data=st.data())
    def damage_record(self, data):
        container = data.draw(st.sampled_from(sorted(self.promised)))
        path = self.node.layout.record(name_of(key(container)))
        self.node.settle()
        self.node.files.content[path] = self.node.files.content[path][:50]

    @rule(seconds=st.integers(1, 100))
    def wait(self, seconds):
        self.node.clock.advance(seconds)

    @rule()
    def reboot(self):
        self.node.boot_id += "x"
        self.node.clock.reboot()
        self.promised.clear()

    @invariant()
    def what_was_promised_is_held_once_and_stays(self):
        self.node.settle()
        bits = set(self.node.bits())
        seen: set[tuple[str, int]] = set()
        for container, held in self.promised.items():
            assert held <= bits, container
            assert not held & seen
            seen |= held
        assert self.node.again().inspect().problems == ()

    def teardown(self):
        if not hasattr(self, "node"):
            return
        for number in range(6):
            self.node.again().release(key(f"c{number}"), quarantine_s=0)
        self.node.settle()
        self.node.assert_whole()
        assert self.node.bits() == []


Machine.TestCase.settings = settings(
    max_examples=40, stateful_step_count=20, deadline=None, suppress_health_check=list(HealthCheck)
)
TestMachine = Machine.TestCase
