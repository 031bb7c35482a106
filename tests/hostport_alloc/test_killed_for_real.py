"""The real process, killed or failed by strace at every state-changing system call of ADD, DEL and GC, with real rules.

A first run is traced: it tells which calls change something (a file under dataDir, a process started, a netlink request
that is no query, the answer) and which call of its kind each is. Then one run for each: strace kills at that call before it has any
effect, so the next one comes after the effect of the one before.
"""

from __future__ import annotations

import os
import random
import re
import shutil
from collections import Counter
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from kernel_node import Failed, KernelNode, Killed, assert_nothing_left

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator
    from pathlib import Path

    from cnimeta.testing.netns import Namespace

pytestmark = [pytest.mark.crash, pytest.mark.timeout(400)]

SAMPLE = 3
ALWAYS_MADE = {"openat", "pwrite64", "flock"}
FILES = [
    "openat",
    "write",
    "pwrite64",
    "writev",
    "truncate",
    "ftruncate",
    "fallocate",
    "mkdir",
    "mkdirat",
    "rmdir",
    "chmod",
    "fchmod",
    "fchmodat",
    "fsync",
    "fdatasync",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "link",
    "linkat",
    "symlink",
    "symlinkat",
    "flock",
]
OTHERS = ["fork", "vfork", "clone", "clone3", "sendto", "sendmsg", "sendmmsg"]
STARTS = {"fork", "vfork", "clone", "clone3"}
QUERIES = {"NLM_F_REQUEST", "NLM_F_REQUEST|0x300", "NLM_F_REQUEST|NLM_F_DUMP"}
"""Flags of netlink requests that only ask: what changes something also asks for an acknowledgement."""


class Point(NamedTuple):
    """A system call, and the how-many-th of its kind."""

    call: str
    number: int
    on_file: bool
    """On a file under dataDir."""


def under_strace(*words: str) -> tuple[str, ...]:
    return ("strace", "-qq", "-y", *words)


def injected(call: str, number: int, what: str) -> tuple[str, ...]:
    return under_strace("-o", "/dev/null", "-e", f"trace={call}", "-e", f"inject={call}:{what}:when={number}")


def killed_at(call: str, number: int) -> tuple[str, ...]:
    return injected(call, number, "signal=KILL")


def unfinished(state: Path) -> list[str]:
    """Temporary files that no later command will use again."""
    return [path.name for path in (*state.rglob(".tmp-*"), *state.rglob("*.new*"))]


class Pods:
    """Containers of a network chained after others' interfaces, whose host ports are all of a short range."""

    def __init__(self, make: Callable[[str], Namespace], folder: Path, ports: str) -> None:
        self.node = KernelNode(make, folder, ("hostport_alloc", "portmap"))
        self.state = folder / "state"
        self.conf = self.node.conf(cniVersion="1.1.0", ranges={"default": ports}, quarantineSeconds=0, sticky=False)
        del self.conf["delegates"]

    def call(self, verb: str, name: str, under: tuple[str, ...] = (), **keys: Any) -> None:
        number = int(name[1:]) % 200 + 1
        inside = {"name": "eth0", "sandbox": self.node.container("c0").path}
        ips = [{"address": f"10.88.0.{number}/16", "interface": 0}]
        prev = {"prevResult": {"cniVersion": "1.1.0", "interfaces": [inside], "ips": ips}} if verb != "GC" else {}
        self.node.call(verb, {**self.conf, **prev, **keys}, name, netns=self.node.container("c0").path, under=under)

    def gc(self, *valid: str, under: tuple[str, ...] = ()) -> None:
        self.call("GC", "c0", under=under, **valid_attachments(valid))

    def points(self, run: Callable[[tuple[str, ...]], None]) -> list[Point]:
        """A sample of all; every one with CNIMETA_EVERY=1."""
        found = list(points_of(run, self.state))
        assert_all_kinds(found)
        return some(found)

    def assert_every_rule_has_a_record(self) -> None:
        for name in self.mapped():
            assert self.node.record(name) is not None, "rule => record"

    def mapped(self) -> set[str]:
        """The containers that rules name."""
        return {f"c{int(number) - 1}" for number in re.findall(r"10\.88\.0\.([1-9]\d*)", self.node.rules())}

    def forget_everything(self) -> None:
        """As before the first use of the node."""
        shutil.rmtree(self.state, ignore_errors=True)
        self.node.node.run("nft", "flush", "ruleset")

    def assert_free(self, *names: str) -> None:
        """Nothing is left, and every port of the range can be had."""
        assert_nothing_left(self.node)
        for name in names:
            self.call("ADD", name)
        for name in names:
            self.call("DEL", name)
        assert_nothing_left(self.node)
        assert unfinished(self.state) == []


def some(found: list[Any]) -> list[Any]:
    """What an ordinary run takes of the cases: always the same."""
    if os.environ.get("CNIMETA_EVERY"):
        return found
    return [case for case in found if case in random.Random(len(found)).sample(found, min(SAMPLE, len(found)))]


def assert_all_kinds(points: list[Point]) -> None:
    """The trace was understood: every command makes calls of all these kinds, and starts nft."""
    calls = {point.call for point in points}
    assert calls >= ALWAYS_MADE
    assert calls & STARTS


def valid_attachments(names: Iterable[str]) -> dict[str, Any]:
    return {"cni.dev/valid-attachments": [{"containerID": name, "ifname": "eth0"} for name in names]}


def points_of(run: Callable[[tuple[str, ...]], object], state: Path) -> Iterator[Point]:
    """Every state-changing call that `run` makes, given the words to run it under."""
    trace = state.parent / "trace"
    calls = ",".join(f"?{call}" for call in (*FILES, *OTHERS))  # ?: architectures have not all of them
    run(under_strace("-o", str(trace), "-e", f"trace={calls}"))
    count: Counter[str] = Counter()
    for line in trace.read_text().splitlines():
        call = line.partition("(")[0]
        if call not in (*FILES, *OTHERS):
            continue
        count[call] += 1
        reads = call == "openat" and not re.search("O_CREAT|O_WRONLY|O_RDWR", line)
        on_file = str(state) in line and not reads
        answers = call == "write" and "<pipe:" in line
        if on_file or answers or (call in OTHERS and not only_asks(line)):
            yield Point(call, count[call], on_file)


def only_asks(line: str) -> bool:
    flags = set(re.findall(r"nlmsg_flags=([^,]+)", line))
    return bool(flags) and flags <= QUERIES and "BATCH" not in line


@pytest.fixture
def pods(make_netns: Callable[[str], Namespace], tmp_path: Path) -> Pods:
    """One port for all: a container that keeps it is in the next one's way."""
    return Pods(make_netns, tmp_path, "20000")


@pytest.mark.parametrize("first", [True, False])
def test_del_leaves_nothing_when_add_was_killed(pods: Pods, first: bool) -> None:
    if not first:
        pods.assert_free("c1")
    points = pods.points(lambda under: pods.call("ADD", "c1", under))
    pods.call("DEL", "c1")
    for other, (call, number, _) in enumerate(points, 2):
        if first:
            pods.forget_everything()
        with pytest.raises(Killed):
            pods.call("ADD", f"c{other}", killed_at(call, number))
        pods.assert_every_rule_has_a_record()
        pods.call("DEL", f"c{other}")
        assert_nothing_left(pods.node)
    pods.assert_free("c1")


def test_add_serves_when_the_same_add_was_killed_before(pods: Pods) -> None:
    pods.assert_free("c1")
    points = pods.points(lambda under: pods.call("ADD", "c1", under))
    pods.call("DEL", "c1")
    for call, number, _ in points:
        with pytest.raises(Killed):
            pods.call("ADD", "c1", killed_at(call, number))
        pods.call("ADD", "c1")
        assert pods.node.ports() == [20000]
        assert pods.mapped() == {"c1"}
        pods.call("DEL", "c1")
        assert_nothing_left(pods.node)
    pods.assert_free("c1")


def test_del_leaves_nothing_when_del_was_killed_before(pods: Pods) -> None:
    pods.call("ADD", "c1")
    points = pods.points(lambda under: pods.call("DEL", "c1", under))
    for call, number, _ in points:
        pods.call("ADD", "c1")
        with pytest.raises(Killed):
            pods.call("DEL", "c1", killed_at(call, number))
        pods.assert_every_rule_has_a_record()
        pods.call("DEL", "c1")
        assert_nothing_left(pods.node)
    pods.assert_free("c1")


@pytest.mark.parametrize("then", ["GC", "DEL"])
def test_only_what_is_listed_is_left_when_gc_was_killed(
    then: str, make_netns: Callable[[str], Namespace], tmp_path: Path
) -> None:
    pods = Pods(make_netns, tmp_path, "20000-20002")
    for name in ("c1", "c2", "c3"):
        pods.call("ADD", name)
    points = pods.points(lambda under: pods.gc("c1", under=under))
    kept = pods.node.ports("c1")
    for call, number, _ in points:
        for name in ("c2", "c3"):
            pods.call("ADD", name)
        with pytest.raises(Killed):
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
    pods.assert_free("c1", "c2", "c3")


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_add_fails_and_del_leaves_nothing_when_a_file_operation_of_add_failed(pods: Pods, error: str) -> None:
    pods.assert_free("c1")
    points = pods.points(lambda under: pods.call("ADD", "c1", under))
    pods.call("DEL", "c1")
    refused = 0
    for call, number, on_file in points:
        if not on_file or call in {"flock", "mkdir"}:  # mkdir: of folders that are there
            continue
        code = 0
        try:
            pods.call("ADD", "c1", injected(call, number, f"error={error}"))
        except Failed as failed:
            code = failed.code
        assert code in (0, 104)
        assert pods.mapped() == ({"c1"} if code == 0 else set()), "a failed ADD took its rules back"
        refused += code != 0
        pods.call("DEL", "c1")
        assert_nothing_left(pods.node)
    assert refused >= 3 or not os.environ.get("CNIMETA_EVERY")
    pods.assert_free("c1")


@pytest.mark.parametrize("error", ["ENOSPC", "EIO"])
def test_del_succeeds_or_can_be_repeated_when_a_file_operation_failed(pods: Pods, error: str) -> None:
    pods.call("ADD", "c1")
    points = pods.points(lambda under: pods.call("DEL", "c1", under))
    for call, number, on_file in points:
        if not on_file or call == "flock":
            continue
        pods.call("ADD", "c1")
        code = 0
        try:
            pods.call("DEL", "c1", injected(call, number, f"error={error}"))
        except Failed as failed:
            code = failed.code
        if code:
            assert code == 104
            pods.assert_every_rule_has_a_record()
            pods.call("DEL", "c1")
        assert_nothing_left(pods.node)
    pods.assert_free("c1")


@pytest.mark.parametrize("call", ["rename", "unlink", "vfork,clone,clone3", "flock"])
@pytest.mark.parametrize("verb", ["ADD", "DEL"])
def test_wrapped_bridge_leaves_nothing_when_killed(
    verb: str, call: str, make_netns: Callable[[str], Namespace], tmp_path: Path
) -> None:
    node = KernelNode(make_netns, tmp_path, ("hostport_alloc", "portmap"))
    conf = node.conf(ranges={"default": "20000"}, quarantineSeconds=0)
    number, reached = 0, 0
    for number in some(list(range(1, 20))):
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
            reached = number
            continue
        except Failed as error:
            pytest.fail(f"{verb} with call {number} to be killed: {error} {error.details}")
        node.call("DEL", conf, name)
    assert reached < 19
    assert_nothing_left(node)
    assert unfinished(tmp_path / "state") == []


def test_wrapped_bridge_leaves_only_what_is_listed_when_gc_was_killed(
    make_netns: Callable[[str], Namespace], tmp_path: Path
) -> None:
    node = KernelNode(make_netns, tmp_path, ("hostport_alloc", "portmap"))
    conf = node.conf(cniVersion="1.1.0", ranges={"default": "20000-20001"}, quarantineSeconds=0)
    del conf["delegates"]
    conf["delegate"] = {"cniVersion": "1.0.0", **node.bridge()}
    valid = {**conf, **valid_attachments(["c1"])}
    for name in ("c1", "c2"):
        node.call("ADD", conf, name)
    points = list(points_of(lambda under: node.call("GC", valid, "c0", under=under), tmp_path / "state"))
    kept = node.rules(), node.leases(), node.ports("c1")
    starts = [point for point in points if point.call in STARTS]
    assert len(starts) >= 2, "bridge, and what portmap starts"
    for other, (call, number, _) in enumerate(starts, 3):
        node.call("ADD", conf, f"c{other}")
        with pytest.raises(Killed):
            node.call("GC", valid, "c0", under=killed_at(call, number))
        assert node.rules() == kept[0] or node.record(f"c{other}") is not None, "rule => record"
        node.call("GC", valid, "c0")
        assert node.record(f"c{other}") is None
        assert (node.rules(), node.leases(), node.ports("c1")) == kept
    node.call("DEL", conf, "c1")
    assert_nothing_left(node)
    assert unfinished(tmp_path / "state") == []
