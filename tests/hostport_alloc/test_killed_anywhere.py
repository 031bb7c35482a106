"""Killed or refused at every single effect of ADD, DEL and GC; the next command restores *rule => record => bit*.

An effect is a step of a transaction, a plugin started, a request sent: the process dies just before or just after it, or
the effect fails, or the power does. Whatever it was, DEL must then leave nothing, and the only port of the range be had
again.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hostport_harness import POD_ARGS, Node, conf

from cnimeta.errors import CniError, IoFailure, StateUnusable
from cnimeta.spec.netconf import NetConf
from cnimeta.testing.delegates import FakeDelegate
from cnimeta_plugins.hostport_alloc.config import read_settings
from cnimeta_plugins.hostport_alloc.hook.telling import tell_all

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.crash

EFFECTS_MAX = 60
SETTINGS = conf(
    cniVersion="1.1.0",
    delegates=[{"type": "bridge"}, {"type": "tuning"}],
    ranges={"default": "20000"},
    quarantineSeconds=0,
    kubernetes={"kubeconfig": "/k", "policy": "required"},
    notify={"program": "/usr/bin/tell", "policy": "required"},
)
NOTHING_VALID = {"cni.dev/valid-attachments": []}


class Killed(BaseException):
    """The process is gone: no handler of ours runs any more."""


class Guarded:
    """Something of the node's, one method of which goes through a guard."""

    def __init__(self, inner: Any, method: str, guard: Callable[..., Any]) -> None:
        self.inner = inner
        setattr(self, method, guard)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.inner, name)


class Fate:
    """Counts effects; something happens at the k-th, and after a kill nothing has any effect."""

    def __init__(self, node: Node, at: int, how: str) -> None:
        self.at = at
        self.how = how
        self.count = 0
        self.struck = False
        node.databases.hook = self._around(lambda _: None, StateUnusable("state: disk I/O error"))
        node.executor = Guarded(node.executor, "run", self._around(node.executor.run, IoFailure("cannot start")))
        node.pods = Guarded(node.pods, "patch_status", self._around(node.pods.patch_status, None))
        node.hook = Guarded(node.hook, "tell", self._around(node.hook.tell, None))

    def _around(self, effect: Callable[..., Any], failure: Exception | None) -> Callable[..., Any]:
        def guarded(*args: Any) -> Any:
            if self.struck and self.how != "refused":
                raise Killed
            self.count += 1
            if self.count != self.at:
                return effect(*args)
            if self.how == "refused":
                if failure is None:
                    return effect(*args)
                self.struck = True
                raise failure
            self.struck = True
            if self.how == "after":
                effect(*args)
            raise Killed

        return guarded


def a_node() -> Node:
    node = Node(FakeDelegate("tuning"))
    node.pods.create("default", "web", uid="0a-1b")
    return node


def revived(node: Node, how: str) -> Node:
    """The same node, seen by a new process; after a loss of power, in a new boot without rules."""
    after = Node()
    if how == "power":
        node.portmap.attachments.clear()
        after.boot = "boot-2"
    after.databases.connections = node.databases.connections
    after.executor.plugins = node.executor.plugins
    after.bridge, after.portmap = node.bridge, node.portmap
    after.pods.objects = node.pods.objects
    after.hook.events = node.hook.events
    return after


def holds(node: Node) -> None:
    for key in node.portmap.attachments:
        assert node.store.load(key) is not None, "rule => record"
    assert node.store.problems() == [], "record <=> bit"


def all_gone(node: Node) -> None:
    for plugin in node.executor.plugins.values():
        assert plugin.attachments == {}
    assert list(node.store.records()) == []
    holds(node)
    told_to_be_gone(node)


def told_to_be_gone(node: Node) -> None:
    """What the hook was told to be there, it is told to be gone; twice is no harm."""
    tell_all(node.wiring, read_settings(NetConf(SETTINGS)), node.store, 60, node.log.append)
    assert node.store.outbox.count() == 0
    last = {event["attachment"]["containerID"]: event["event"] for event in node.hook.events}
    assert set(last.values()) <= {"removed"}
    node.pods.objects["default", "web"]["metadata"].pop("annotations", None)
    node.call("ADD", SETTINGS, container_id="c9", args=POD_ARGS)
    assert node.ports("c9") == [20000]
    assert node.store.problems() == []


@pytest.mark.parametrize("how", ["before", "after", "refused", "power"])
@pytest.mark.parametrize("verb", ["ADD", "DEL", "GC"])
def test_nothing_is_left_when_the_next_command_comes(verb: str, how: str) -> None:
    reached = 0
    for at in range(1, EFFECTS_MAX):
        node = a_node()
        if verb != "ADD":
            node.call("ADD", SETTINGS, args=POD_ARGS)
        fate = Fate(node, at, how)
        try:
            node.call(verb, {**SETTINGS, **(NOTHING_VALID if verb == "GC" else {})}, args=POD_ARGS)
        except (Killed, CniError):
            pass
        if fate.count < at:
            break
        reached = at
        after = revived(node, how)
        holds(after)
        after.call("DEL", SETTINGS, args=POD_ARGS, netns="")
        all_gone(after)
    assert EFFECTS_MAX - 1 > reached >= 5


def test_add_again_after_a_kill_serves_as_if_nothing_had_happened() -> None:
    for at in range(1, EFFECTS_MAX):
        node = a_node()
        fate = Fate(node, at, "after")
        try:
            node.call("ADD", SETTINGS, args=POD_ARGS)
        except Killed:
            pass
        if fate.count < at:
            break
        after = revived(node, "after")
        after.call("ADD", SETTINGS, args=POD_ARGS)
        assert after.ports() == [20000]
        holds(after)
        after.call("DEL", SETTINGS, args=POD_ARGS)
        all_gone(after)
    assert at > 7
