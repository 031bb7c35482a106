"""The real process, killed or failed by strace at every state-changing system call of ADD, DEL and GC, with real rules.

A first run is traced: it tells which calls change something (a file under dataDir, a process started, a netlink request)
and which call of its kind each is. Then one run for each: strace kills at that call before it has any effect, so the
next one comes after the effect of the one before.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from typing import TYPE_CHECKING, Any

import pytest
from kernel_node import Failed, KernelNode, Killed, assert_nothing_left

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cnimeta.testing.netns import Namespace

pytestmark = pytest.mark.crash

FILES = ("openat", "write", "mkdir", "fsync", "rename", "unlink", "flock")
OTHERS = ("vfork", "clone", "clone3", "sendto", "sendmsg")
Point = tuple[str, int]
"""A system call, and the how-many-th of its kind."""


def under_strace(*words: str) -> tuple[str, ...]:
    return ("strace", "-qq", "-y", *words)


def killed_at(call: str, number: int) -> tuple[str, ...]:
    return under_strace("-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:signal=KILL:when={number}")


def failed_at(call: str, number: int, error: str) -> tuple[str, ...]:
    return under_strace("-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:error={error}:when={number}")


class Pods:
    """Containers of a network chained after others' interfaces, whose host ports are all of a short range."""

    def __init__(self, make: Callable[[str], Namespace], folder: Path, ports: str) -> None:
        self.node = KernelNode(make, folder, ("hostport_alloc", "portmap"))
        self.state = str(folder / "state")
        self.conf = self.node.conf(cniVersion="1.1.0", ranges={"default": ports}, quarantineSeconds=0, sticky=False)
        del self.conf["delegates"]

    def call(self, verb: str, name: str, under: tuple[str, ...] = (), **keys: Any) -> None:
        number = int(name[1:]) % 200 + 1
        inside = {"name": "eth0", "sandbox": self.node.container("c0").path}
        ips = [{"address": f"10.88.0.{number}/16", "interface": 0}]
        prev = {"prevResult": {"cniVersion": "1.1.0", "interfaces": [inside], "ips": ips}} if verb != "GC" else {}
        self.node.call(verb, {**self.conf, **prev, **keys}, name, netns=self.node.container("c0").path, under=under)

    def gc(self, *valid: str, under: tuple[str, ...] = ()) -> None:
        attachments = [{"containerID": name, "ifname": "eth0"} for name in valid]
        self.call("GC", "c0", under=under, **{"cni.dev/valid-attachments": attachments})

    def points(self, run: Callable[[tuple[str, ...]], None]) -> Iterator[Point]:
        """Every state-changing call that `run` makes, given the words to run it under."""
        trace = self.node.folder / "trace"
        run(under_strace("-o", str(trace), "-e", f"trace={','.join((*FILES, *OTHERS))}"))
        count: Counter[str] = Counter()
        for line in trace.read_text().splitlines():
            call = line.partition("(")[0]
            if call not in (*FILES, *OTHERS):
                continue
            count[call] += 1
            reads = call == "openat" and not re.search("O_CREAT|O_WRONLY|O_RDWR", line)
            if call in OTHERS or (self.state in line and not reads):
                yield call, count[call]

    def assert_every_rule_has_a_record(self) -> None:
        for name in self.mapped():
            assert self.node.record(name) is not None, "rule => record"

    def mapped(self) -> set[str]:
        """The containers that rules name."""
        return {f"c{int(number) - 1}" for number in re.findall(r"10\.88\.0\.([1-9]\d*)", self.node.rules())}

    def assert_free(self, names: tuple[str, ...]) -> None:
        """Nothing is left, and every port of the range can be had."""
        assert_nothing_left(self.node)
        for name in names:
            self.call("ADD", name)
        for name in names:
            self.call("DEL", name)
        assert_nothing_left(self.node)


def test_del_leaves_nothing_when_add_was_killed(make_netns: Callable[[str], Namespace], tmp_path: Path) -> None:
    pods = Pods(make_netns, tmp_path, "20000")
    pods.assert_free(("c1",))
    points = list(pods.points(lambda under: pods.call("ADD", "c1", under)))
    pods.call("DEL", "c1")
    assert {call for call, _ in points} >= {"openat", "write", "fsync", "rename", "flock", "sendto"}
    assert len(points) > 20
    for call, number in points:
        with contextlib.suppress(Killed):
            pods.call("ADD", "c1", killed_at(call, number))
        pods.assert_every_rule_has_a_record()
        pods.call("DEL", "c1")
        assert_nothing_left(pods.node)
    pods.assert_free(("c1",))


def test_add_serves_when_the_same_add_was_killed_before(make_netns: Callable[[str], Namespace], tmp_path: Path) -> None:
    pods = Pods(make_netns, tmp_path, "20000")
    pods.assert_free(("c1",))
    points = list(pods.points(lambda under: pods.call("ADD", "c1", under)))
    pods.call("DEL", "c1")
    for call, number in points:
        with contextlib.suppress(Killed):
            pods.call("ADD", "c1", killed_at(call, number))
        pods.call("ADD", "c1")
        assert pods.node.ports() == [20000]
        assert pods.mapped() == {"c1"}
        pods.call("DEL", "c1")
        assert_nothing_left(pods.node)


def test_del_leaves_nothing_when_del_was_killed_before(make_netns: Callable[[str], Namespace], tmp_path: Path) -> None:
    pods = Pods(make_netns, tmp_path, "20000")
    pods.call("ADD", "c1")
    points = list(pods.points(lambda under: pods.call("DEL", "c1", under)))
    assert {call for call, _ in points} >= {"openat", "write", "fsync", "rename", "unlink", "flock"}
    for call, number in points:
        pods.call("ADD", "c1")
        with contextlib.suppress(Killed):
            pods.call("DEL", "c1", killed_at(call, number))
        pods.assert_every_rule_has_a_record()
        pods.call("DEL", "c1")
        assert_nothing_left(pods.node)
    pods.assert_free(("c1",))


@pytest.mark.parametrize("then", ["GC", "DEL"])
def test_only_what_is_listed_is_left_when_gc_was_killed(
    then: str, make_netns: Callable[[str], Namespace], tmp_path: Path
) -> None:
    pods = Pods(make_netns, tmp_path, "20000-20002")
    for name in ("c1", "c2", "c3"):
        pods.call("ADD", name)
    points = list(pods.points(lambda under: pods.gc("c1", under=under)))
    assert {call for call, _ in points} >= {"openat", "write", "fsync", "rename", "unlink", "flock"}
    kept = pods.node.ports("c1")
    for call, number in points:
        for name in ("c2", "c3"):
            pods.call("ADD", name)
        with contextlib.suppress(Killed):
            pods.gc("c1", under=killed_at(call, number))
        pods.assert_every_rule_has_a_record()
        if then == "GC":
            pods.gc("c1")
        else:
            for name in ("c2", "c3"):
                pods.call("DEL", name)
        assert [pods.node.ports(name) for name in ("c1", "c2", "c3")] == [kept, [], []]
        assert pods.mapped() == {"c1"}
    pods.call("CHECK", "c1")
    pods.call("DEL", "c1")
    pods.assert_free(("c1", "c2", "c3"))


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_del_leaves_nothing_when_a_file_operation_failed(
    error: str, make_netns: Callable[[str], Namespace], tmp_path: Path
) -> None:
    pods = Pods(make_netns, tmp_path, "20000")
    pods.assert_free(("c1",))
    for verb in ("ADD", "DEL"):
        if verb == "DEL":
            pods.call("ADD", "c1")
        points = list(pods.points(lambda under, verb=verb: pods.call(verb, "c1", under)))  # type: ignore[misc]
        pods.call("DEL", "c1")
        for call, number in points:
            if call in OTHERS or call == "flock":
                continue
            if verb == "DEL":
                pods.call("ADD", "c1")
            with contextlib.suppress(Failed):  # an error document and no traceback, or it did without the file
                pods.call(verb, "c1", failed_at(call, number, error))
            pods.assert_every_rule_has_a_record()
            pods.call("DEL", "c1")
            assert_nothing_left(pods.node)
    pods.assert_free(("c1",))


@pytest.mark.parametrize("call", ["fsync", "rename", "unlink", "vfork,clone,clone3", "flock"])
@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_wrapped_bridge_leaves_nothing_when_killed(
    verb: str, call: str, make_netns: Callable[[str], Namespace], tmp_path: Path
) -> None:
    node = KernelNode(make_netns, tmp_path, ("hostport_alloc", "portmap"))
    conf = node.conf(ranges={"default": "20000"}, quarantineSeconds=0)
    number = 0
    for number in range(1, 20):
        name = f"c{number}"
        if verb == "DEL":
            node.call("ADD", conf, name)
        try:
            node.call(verb, conf, name, under=killed_at(call, number))
        except Killed:
            rules = node.rules()
            assert rules == "" or node.record(name) is not None, "rule => record"
            node.call("DEL", conf, name, netns="")
            assert_nothing_left(node)
            continue
        except Failed as error:
            pytest.fail(f"{verb} after {number - 1} kills: {error} {error.details}")
        node.call("DEL", conf, name)
        break
    assert number < 19
    assert_nothing_left(node)
