"""`cnimeta ports list`, `show` and `top`: filters, forms, changes as they come, a live screen."""

from __future__ import annotations

import itertools
import json
import os
import pty
import select
import subprocess
import sys
import termios
import time
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hostport_harness import Node, conf
from hypothesis import given
from hypothesis import strategies as st
from test_ports_cli import API, Shell

from cnimeta.errors import StateUnusable
from cnimeta.testing.clock import FakeClock
from cnimeta.testing.kube import Fault
from cnimeta.testing.sockets import FakeSockets
from cnimeta_plugins.hostport_alloc.allocate.ranges import parse_range, ports_of
from cnimeta_plugins.hostport_alloc.operator.drawing import drawing, in_words, runs_of
from cnimeta_plugins.hostport_alloc.operator.formats import FORMATS, Changes
from cnimeta_plugins.hostport_alloc.operator.listing import RangeView
from cnimeta_plugins.hostport_alloc.operator.overview import Overview, bar, percent
from cnimeta_plugins.hostport_alloc.operator.watching import changes, stamp, watch

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.unit


def args(namespace: str, name: str) -> str:
    return f"IgnoreUnknown=1;K8S_POD_NAMESPACE={namespace};K8S_POD_NAME={name}"


@pytest.fixture
def node() -> Node:
    node = Node()
    node.call("ADD", conf(), container_id="c1", args=args("shop", "web"))
    node.call("ADD", conf(expose=["games:9000/udp"]), container_id="c2", args=args("play", "arena"))
    node.call("ADD", conf(name="other"), container_id="c3")
    return node


@pytest.fixture
def shell(node: Node, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Shell:
    return Shell(node, tmp_path, capsys)


@pytest.mark.parametrize(
    ("words", "containers"),
    [
        ([], {"c1", "c2", "c3"}),
        (["-n", "shop"], {"c1"}),
        (["--namespace", "nowhere"], set()),
        (["--pod", "arena"], {"c2"}),
        (["--pod", "play/arena"], {"c2"}),
        (["--pod", "shop/arena"], set()),
        (["--range", "games"], {"c2"}),
        (["--range", "7000-7999"], {"c2"}),
        (["--range", "games", "--range", "20000-24999"], {"c1", "c2", "c3"}),
        (["--container", "c3"], {"c3"}),
        (["--network", "other"], {"c3"}),
        (["--network", "pods", "--range", "default"], {"c1"}),
        (["--pending"], set()),
    ],
)
def test_a_filter_leaves_what_it_names_when_it_stands_before_or_after_list(
    shell: Shell, words: list[str], containers: set[str]
) -> None:
    for order in (["list", *words], [*words, "list"], words):
        assert {entry["containerID"] for entry in shell.json(*order)} == containers


def test_an_option_of_list_is_wrong_usage_when_the_action_is_another(shell: Shell) -> None:
    assert shell("--pending", "check") == (2, "cnimeta: check takes no --pending: that is an option of list\n")
    assert shell("--range", "games", "repair")[0] == 2
    assert shell("list", "--range", "7000-")[0] == 2
    assert shell("list", "--json", "-o", "yaml")[0] == 2


def test_a_range_that_nobody_has_is_wrong_usage(node: Node, shell: Shell) -> None:
    status, said = shell("list", "--range", "nope")
    assert status == 2
    assert said.startswith('cnimeta: there is no range "nope": default, games')
    assert "explicit" in said
    assert shell("list", "--range", "explicit")[0] == 0
    assert shell("list", "--watch", "--range", "nope")[0] == 2
    assert shell("show", "nope")[0] == 2
    node.call("ADD", conf(ranges={"once": "7000-7999"}, expose=["once:1/tcp"]), container_id="c9")
    assert {entry["containerID"] for entry in shell.json("list", "--range", "once")} == {"c9"}


def test_every_form_tells_of_the_same_ports_when_it_is_chosen(shell: Shell) -> None:
    said = {form: shell("list", "-o", form) for form in FORMATS}
    assert {status for status, _ in said.values()} == {0}
    entries = json.loads(said["json"][1])
    assert entries == yaml.safe_load(said["yaml"][1]) == shell.json("list")
    assert said["name"][1].splitlines() == [f"{entry['hostPort']}/{entry['protocol']}" for entry in entries]
    heads, *rows = said["wide"][1].splitlines()
    assert heads.endswith("HOST IP  IFNAME  POD UID  ANNOTATION ERROR")
    assert len(rows) == len(said["table"][1].splitlines()) - 1 == 3
    assert all(entry["ifname"] in row for entry, row in zip(entries, rows, strict=True))


def test_wide_is_whole_when_the_terminal_is_narrow(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    assert max(map(len, shell("list")[1].splitlines())) < 80
    assert "HOST IP  IFNAME" in shell("list", "-o", "wide")[1]


def test_a_terminal_injection_is_harmless_when_yaml_is_read_back() -> None:
    entry = {"pod": "a: b\n- c", "hostPort": 1}
    text = Changes("yaml").shown([("ADDED", entry), ("DELETED", entry)])
    assert list(yaml.safe_load_all(text)) == [{"event": event, "entry": entry} for event in ("ADDED", "DELETED")]


# --- watching


class Stopped(Exception):
    pass


class Watched:
    """A list of ports that changes while it is watched; each round does one thing."""

    def __init__(self, *rounds: Callable[[], None]) -> None:
        self.entries: list[dict[str, Any]] = []
        self.looks = 0
        self.stamp: tuple[object, ...] | None = (0,)
        self.seen: list[tuple[str, int]] = []
        self.log: list[str] = []
        self.fails = ""
        self._rounds = list(rounds)

    def add(self, port: int, **more: Any) -> None:
        base = dict.fromkeys(("network", "containerID", "ifname", "protocol", "containerPort", "hostIP", "state"), "x")
        self.entries = [entry for entry in self.entries if entry["hostPort"] != port]
        self.entries.append({**base, "hostPort": port, "ageSeconds": self.looks, **more})

    def empty(self) -> None:
        self.entries = []

    def run(self, *rounds: Callable[[], None]) -> Watched:
        waiting = list(rounds)

        class Clock(FakeClock):
            def sleep(self, seconds: float) -> None:
                if not waiting:
                    raise Stopped
                waiting.pop(0)()

        def look() -> list[Any]:
            self.looks += 1
            if self.fails:
                raise StateUnusable(self.fails)
            return list(self.entries)

        with pytest.raises(Stopped):
            watch(look, lambda: self.stamp, self._show, Clock(), 1, self.log.append)
        return self

    def commit(self, work: Callable[[], None]) -> Callable[[], None]:
        def both() -> None:
            work()
            self.stamp = (*(self.stamp or ()), 0)

        return both

    def _show(self, found: Any) -> None:
        self.seen += [(event, entry["hostPort"]) for event, entry in found]


def test_each_change_is_told_once_when_ports_come_and_go() -> None:
    world = Watched()
    world.add(1)
    world.run(
        world.commit(lambda: world.add(2)),
        world.commit(lambda: world.add(1, state="y")),
        world.commit(world.empty),
    )
    assert world.seen[:3] == [("ADDED", 1), ("ADDED", 2), ("MODIFIED", 1)]
    assert sorted(world.seen[3:]) == [("DELETED", 1), ("DELETED", 2)]


def test_nothing_is_read_when_nothing_was_committed() -> None:
    world = Watched()
    world.run(lambda: None, lambda: None, lambda: None)
    assert world.looks == 1
    world.stamp = None
    world.run(lambda: None, lambda: None)
    assert world.looks == 1 + 3


def test_nothing_counts_as_deleted_when_it_cannot_be_read() -> None:
    world = Watched()
    world.add(1)

    def fail() -> None:
        world.fails = "the disk is gone"

    def heal() -> None:
        world.fails = ""
        world.add(2)

    world.run(world.commit(fail), world.commit(lambda: None), world.commit(heal))
    assert world.seen == [("ADDED", 1), ("ADDED", 2)]
    assert world.log == ["cnimeta: the disk is gone"]


@given(st.sets(st.integers(1, 9)), st.sets(st.integers(1, 9)))
def test_applying_the_changes_gives_the_new_list_when_lists_are_of_any_kind(before: set[int], after: set[int]) -> None:
    one, other = Watched(), Watched()
    for port in before:
        one.add(port)
    for port in after:
        other.add(port)
    state = set(before)
    for event, entry in changes(one.entries, other.entries):
        {"ADDED": state.add, "DELETED": state.remove}[event](int(entry["hostPort"]))
    assert state == after


def test_columns_stand_under_each_other_when_longer_cells_come_later(node: Node, shell: Shell) -> None:
    entries = shell.json("list")
    shown = Changes("table")
    head, first = shown.shown([("ADDED", entries[0])]).splitlines()
    (second,) = shown.shown([("MODIFIED", {**entries[1], "pod": "p" * 60})]).splitlines()
    (third,) = shown.shown([("DELETED", entries[0])]).splitlines()
    assert head.index("HOST PORT") == first.index(str(entries[0]["hostPort"]))
    assert second.index("mapped") == third.index("mapped")
    assert Changes("table").shown([]).startswith("EVENT")


def test_the_stamp_differs_when_something_was_committed(tmp_path: Path) -> None:
    assert stamp(str(tmp_path)) is None
    (tmp_path / "sequence").write_text("1")
    before = stamp(str(tmp_path))
    assert before is not None
    assert before == stamp(str(tmp_path))
    (tmp_path / "sequence").write_text("22")
    assert stamp(str(tmp_path)) != before


# --- a range in words


PORTS = st.sets(st.integers(1, 400)).map(lambda found: ports_of((port, port) for port in found))


@given(PORTS)
def test_runs_are_the_set_when_they_are_put_together(ports: int) -> None:
    runs = list(runs_of(ports))
    assert ports_of(runs) == ports
    assert all(one[1] + 1 < other[0] for one, other in itertools.pairwise(runs))


def test_words_and_drawing_say_the_same_when_a_range_is_half_full() -> None:
    found = parse_range("r", "20000-20019", "r")
    ports = (ports_of([(20000, 20003), (20010, 20010)]), ports_of([(20004, 20005)]), ports_of([(20011, 20011)]))
    assert drawing(found, *ports).splitlines()[-1] == (
        "one cell is 1 port: ' ' free, '#' all used, 'x' blocked, 'q' in quarantine"
    )
    assert in_words(found, *ports).splitlines() == [
        "used: 20000-20003 (4 ports), 20010",
        "in quarantine: 20011",
        "blocked: 20004-20005 (2 ports)",
        "longest free stretch: 20012-20019 (8 ports)",
    ]


def test_it_is_said_that_nothing_is_free_when_a_range_is_full() -> None:
    found = parse_range("r", "1-19", "r")
    odd = ports_of((port, port) for port in range(1, 20, 2))
    assert "and 2 more" in in_words(found, odd, 0, 0)
    assert in_words(found, found.ports, 0, 0).endswith("no port is free\n")


# --- top


def test_top_counts_and_ranks_when_it_is_printed(node: Node, shell: Shell) -> None:
    node.sockets.busy = {("tcp", port) for port in range(20090, 20100)}
    body = shell.json("top")
    ranges = {one["range"]: one for one in body["ranges"]}
    assert ranges["games"]["used"] == 1
    assert ranges["games"]["usedPercent"] == 10
    assert ranges["default"]["used"] == 2
    assert body["hostPorts"] == body["containers"] == 3
    assert {one["namespace"]: one["hostPorts"] for one in body["namespaces"]} == {"": 1, "play": 1, "shop": 1}
    status, text = shell("top")
    assert status == 0
    assert text.startswith("3 host ports of 3 containers\n")
    assert "(no Pod)" in text
    assert shell("top", "--count", "3")[1].count("3 host ports of") == 3
    assert node.clock.slept[-2:] == [2.0, 2.0]


def test_top_counts_an_annotation_once_when_it_has_several_ports(node: Node, shell: Shell) -> None:
    node.pods.faults += [Fault(drop=True)] * 2
    several = conf(expose=["80/tcp", "81/tcp"], kubernetes=API)
    node.call("ADD", several, container_id="c4", args=f"{args('shop', 'two')};K8S_POD_UID=2-2")
    assert ", 1 annotation pending" in shell("top")[1]
    assert shell.json("top")["pendingAnnotations"] == 1


def test_top_names_ranges_that_the_configuration_has_no_more(node: Node, shell: Shell) -> None:
    given = [{"hostPort": 8080, "containerPort": 80}]
    node.call("ADD", conf(runtimeConfig={"portMappings": given}), container_id="c4")
    assert shell.json("top")["otherRanges"] == [{"range": "explicit", "used": 1}]


@pytest.mark.parametrize("used", [0, 1, 50, 99, 100])
def test_a_bar_is_full_or_empty_only_when_the_range_is(used: int) -> None:
    found = parse_range("r", "1-100", "r")
    view = RangeView(found, ports_of([(1, used)]) if used else 0, 0, 0)
    assert len(bar(view)) == 20
    assert (bar(view) == "." * 20, percent(view) == 0) == (used == 0, used == 0)
    assert percent(view) == 100 or used < 100
    assert Overview([view], []).text(80)


@pytest.mark.parametrize("option", ["--interval=0", "--interval=x", "--count=0", "--count=x"])
def test_an_option_is_wrong_usage_when_its_value_is_none(shell: Shell, option: str) -> None:
    with pytest.raises(SystemExit) as ended:
        shell("top", option)
    assert ended.value.code == 2


def read_until(terminal: int, text: bytes, seconds: float = 20) -> bytes:
    found, deadline = b"", time.monotonic() + seconds
    while text not in found and time.monotonic() < deadline:
        if select.select([terminal], [], [], 0.2)[0]:
            try:
                found += os.read(terminal, 1 << 16)
            except OSError:
                break
    return found


@pytest.mark.kernel
@pytest.mark.parametrize("end", ["q", "SIGTERM"])
def test_the_terminal_is_as_it_was_when_top_ends(tmp_path: Path, end: str) -> None:
    ours, theirs = pty.openpty()
    before = termios.tcgetattr(theirs)
    words = [sys.executable, "-m", "cnimeta.cli.main", "ports", "top", "--data-dir", str(tmp_path / "none")]
    environment = {"PATH": os.environ["PATH"], "TERM": "xterm"}
    process = subprocess.Popen(words, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    shown = read_until(ours, b"q ends")
    assert b"\x1b[?1049h" in shown
    assert b"0 host ports of 0 containers" in shown
    if end == "q":
        os.write(ours, b"q")
    else:
        process.terminate()
    assert b"\x1b[?1049l" in read_until(ours, b"\x1b[?1049l")
    assert process.wait(20) == (0 if end == "q" else 143)
    assert termios.tcgetattr(theirs) == before
    assert not (tmp_path / "none").exists()
    for descriptor in (ours, theirs):
        os.close(descriptor)


PROGRESS = """
import sys
from cnimeta.terminal.progress import Progress
with Progress("repairing") as progress:
    progress("c1")
print("done")
"""


@pytest.mark.kernel
def test_progress_is_for_a_terminal_alone_and_gone_in_the_end() -> None:
    ours, theirs = pty.openpty()
    for stderr in (theirs, subprocess.PIPE):
        done = subprocess.run(
            [sys.executable, "-c", PROGRESS], stdout=subprocess.PIPE, stderr=stderr, text=True, check=True
        )
        assert done.stdout == "done\n"
        assert not done.stderr
    shown = read_until(ours, b"repairing 1: c1\r\x1b[K")
    assert shown == b"\r\x1b[Krepairing 1: c1\r\x1b[K"
    for descriptor in (ours, theirs):
        os.close(descriptor)


@pytest.mark.parametrize(
    ("environment", "painted"),
    [({"TERM": "xterm"}, True), ({"TERM": "xterm", "NO_COLOR": "1"}, False), ({"TERM": "dumb"}, False), ({}, False)],
)
def test_colours_are_for_a_terminal_that_wants_them(environment: dict[str, str], painted: bool) -> None:
    program = "from cnimeta.terminal.colour import painted; print(painted('x', 'fail'))"
    ours, theirs = pty.openpty()
    subprocess.run([sys.executable, "-c", program], stdout=theirs, env=environment, check=True)
    assert (b"\x1b[31mx\x1b[0m" in read_until(ours, b"x")) == painted
    piped = subprocess.run([sys.executable, "-c", program], capture_output=True, env=environment, check=True)
    assert piped.stdout == b"x\n"
    for descriptor in (ours, theirs):
        os.close(descriptor)


def test_looking_makes_no_state_when_there_is_none(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    node = Node()
    shell = Shell(node, tmp_path, capsys)
    node.sockets = FakeSockets()
    assert shell("list")[1] == "no host ports are allocated\n"
    assert shell.json("top")["hostPorts"] == 0
    assert shell.json("show", "default")["free"] == 100
    assert node.databases.connections == {}
