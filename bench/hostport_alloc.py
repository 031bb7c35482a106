"""hostport_alloc: what a random host port costs, for one container and for a hundred at once.

CNIMETA_BENCH_RUNS=31 runs of each, ours and the reference's in turn. What the state costs is in `state`.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from common import REFERENCE, RUNS, Spent

from cnimeta.agent.server import WORKERS
from cnimeta.cli.install import install
from cnimeta.testing.agent import RunningAgent, eventually
from cnimeta.testing.netns import namespaces

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping, Sequence

    from cnimeta.testing.netns import Namespace

TITLE = "hostport_alloc as a wrapper"
NOTE = """
ADD and DEL of containers with one random host port each, wrapped around Debian's bridge and host-local. The reference
is the same container with a fixed host port by Debian's bridge and portmap (1.1.1, iptables-nft), one process after the
other, as a runtime starts them. Whole processes, each contender with a network namespace as its node: first one
container at a time, median of {runs} runs (10th to 90th percentile); then {crowd} started at once, from the first start
to the last end, median of {rounds} rounds (least to most). "Alone" is the Python launcher, "agent" the native one with
`cnimeta agent`. Ratios are to the reference of the same row, in brackets the bars that the project set itself; "bridge"
is what Debian's bridge takes of the reference's by itself, and no wrapper can do without it. "CPU" is the processor
time of all that was started, and of the agent with its workers, beside the reference's: on a machine with other work,
read this one.
"""
ROUNDS = max(1, min(5, RUNS // 3))
CROWD = 100
VERBS = ("ADD", "DEL")
BARS = {
    (1, "ADD"): (1.1, 0.6),
    (1, "DEL"): (0.45, 0.3),
    (CROWD, "ADD"): (1.0, 0.35),
    (CROWD, "DEL"): (0.5, 0.15),
}
"""By number of containers and verb: alone, agent."""


class Call(NamedTuple):
    """One plugin to be started. `hand_on`: the next one's prevResult is what this one answers."""

    path: str
    conf: dict[str, Any]
    hand_on: bool = False


def bridge(folder: str) -> dict[str, Any]:
    """The delegate's configuration."""
    ipam = {"type": "host-local", "ranges": [[{"subnet": "10.88.0.0/16"}]], "dataDir": f"{folder}/leases"}
    return {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipam": ipam}


class Contender:
    """A node, and whose plugins are called on it. `calls`: what a runtime starts for a container, in order."""

    def __init__(
        self, node: Namespace, programs: str, calls: Callable[[str, int], list[Call]], agent: RunningAgent | None = None
    ) -> None:
        self.node = node
        self.calls = calls
        self.agent = agent
        self.base = {"cniVersion": "1.0.0", "name": "bench"}
        self.environ = {"CNI_IFNAME": "eth0", "PATH": os.environ["PATH"], "CNI_PATH": f"{programs}:{REFERENCE}"}
        self.environ |= agent.environ if agent is not None else {}

    def cpu_ms(self) -> float:
        """The processor time so far of the agent and all its workers, when none of them works any more."""
        if self.agent is None:
            return 0.0
        eventually(lambda: self.agent is None or (not self.agent.children() and len(self.agent.workers()) <= WORKERS))
        return sum(_cpu_of(pid) for pid in (self.agent.process.pid, *self.agent.workers()))

    def served(self, verb: str, containers: Sequence[Namespace]) -> Spent:
        """All containers at once."""
        waiting = [self.calls(verb, number) for number in range(len(containers))]
        running: dict[int, tuple[int, int]] = {}
        answers: list[bytes] = [b""] * len(containers)

        def start(number: int) -> None:
            call = waiting[number][0]
            conf = {**self.base, **call.conf}
            if answers[number]:
                conf["prevResult"] = json.loads(answers[number])
            output = os.memfd_create("stdout")
            running[self._start(call.path, verb, f"c{number}", containers[number].path, conf, output)] = number, output

        with self.node.entered():
            agent_ms, used_ms, started = self.cpu_ms(), 0.0, time.perf_counter()
            for number in range(len(containers)):
                start(number)
            while running:
                pid, status, usage = os.wait4(-1, 0)
                number, output = running.pop(pid)
                used_ms += (usage.ru_utime + usage.ru_stime) * 1000
                said = os.pread(output, 1 << 20, 0)
                os.close(output)
                done = waiting[number].pop(0)
                if status:
                    raise SystemExit(f"{done.path} {verb}: {said.decode()}")
                answers[number] = said if done.hand_on else b""
                if waiting[number]:
                    start(number)
            wall_ms = (time.perf_counter() - started) * 1000
        return Spent(wall_ms, used_ms + self.cpu_ms() - agent_ms)

    def _start(self, path: str, verb: str, container: str, netns: str, conf: dict[str, Any], output: int) -> int:
        stdin = os.memfd_create("stdin")
        try:
            os.pwrite(stdin, json.dumps(conf).encode(), 0)
            environ = {**self.environ, "CNI_COMMAND": verb, "CNI_CONTAINERID": container, "CNI_NETNS": netns}
            actions = [(os.POSIX_SPAWN_DUP2, stdin, 0), (os.POSIX_SPAWN_DUP2, output, 1)]
            return os.posix_spawn(path, [path], environ, file_actions=actions)
        finally:
            os.close(stdin)


def ours(programs: str, folder: str) -> Callable[[str, int], list[Call]]:
    """The wrapper."""
    conf = {"type": "hostport_alloc", "dataDir": f"{folder}/state", "expose": ["80/tcp"]}
    call = Call(f"{programs}/hostport_alloc", {**conf, "delegates": [bridge(folder)]})
    return lambda *_: [call]


def bridge_alone(folder: str) -> Callable[[str, int], list[Call]]:
    """What of it is the network plugin's."""
    call = Call(f"{REFERENCE}/bridge", bridge(folder))
    return lambda *_: [call]


def theirs(folder: str) -> Callable[[str, int], list[Call]]:
    """The chain with fixed ports."""

    def calls(verb: str, number: int) -> list[Call]:
        mapping = {"hostPort": 8080 + number, "containerPort": 80, "protocol": "tcp"}
        first = Call(f"{REFERENCE}/bridge", bridge(folder), hand_on=verb == "ADD")
        second = Call(f"{REFERENCE}/portmap", {"type": "portmap", "runtimeConfig": {"portMappings": [mapping]}})
        return [first, second] if verb == "ADD" else [second, first]

    return calls


def _cpu_of(pid: int) -> float:
    """Milliseconds of a process and its children that were waited for."""
    with open(f"/proc/{pid}/stat", encoding="ascii", errors="replace") as file:
        fields = file.read().rpartition(")")[2].split()
    return sum(int(field) for field in fields[11:15]) * 1000 / os.sysconf("SC_CLK_TCK")


def contenders(folder: str, nodes: Sequence[Namespace]) -> dict[str, Contender]:
    """Everybody, each with a node of its own."""
    for kind in ("alone", "agent"):
        install(f"{folder}/bin/{kind}", ["hostport_alloc", "portmap"], native=kind == "agent")
    agent = RunningAgent(Path(folder), under=["nsenter", f"--net={nodes[1].path}"])
    alone, asking = (f"{folder}/bin/{kind}" for kind in ("alone", "agent"))
    return {
        "alone": Contender(nodes[0], alone, ours(alone, f"{folder}/alone")),
        "agent": Contender(nodes[1], asking, ours(asking, f"{folder}/agent"), agent),
        "reference": Contender(nodes[2], REFERENCE, theirs(f"{folder}/reference")),
        "bridge": Contender(nodes[3], REFERENCE, bridge_alone(f"{folder}/bridge")),
    }


def times(
    found: Mapping[str, Contender], containers: Sequence[Namespace], runs: int
) -> dict[str, dict[str, list[Spent]]]:
    """By verb and who: each in turn, after one round that nobody counts."""
    spent: dict[str, dict[str, list[Spent]]] = {verb: {who: [] for who in found} for verb in VERBS}
    for run in range(runs + 1):
        for who, contender in found.items():
            for verb in VERBS:
                one = contender.served(verb, containers)
                if run:
                    spent[verb][who].append(one)
    return spent


def _text(times_of: Sequence[Spent], *, whole: bool) -> str:
    """`12.3 (11.9-13.0) ms`"""
    walls = sorted(one.wall_ms for one in times_of)
    cut = 0 if whole else len(walls) // 10
    return f"{statistics.median(walls):,.1f} ({walls[cut]:,.1f}-{walls[-1 - cut]:,.1f}) ms"


def _ratio(of: Mapping[str, Sequence[Spent]], who: str, field: str) -> float:
    ours, theirs = (statistics.median(getattr(one, field) for one in of[name]) for name in (who, "reference"))
    return ours / theirs


def _mean_cpu(of: Mapping[str, Sequence[Spent]], who: str) -> float:
    return statistics.fmean(one.cpu_ms for one in of[who])


def rows(crowd: int, spent: Mapping[str, Mapping[str, Sequence[Spent]]]) -> Iterator[str]:
    """Lines of the table."""
    for verb, of in spent.items():
        what = "one container" if crowd == 1 else f"{crowd} at once"
        cells = [f"{verb}, {what}"]
        for who, bar in zip(("alone", "agent"), BARS[crowd, verb], strict=True):
            cells.append(f"{_text(of[who], whole=crowd > 1)}, {_ratio(of, who, 'wall_ms'):.2f} x ({bar:g})")
        cells.append(_text(of["reference"], whole=crowd > 1))
        cells.append(f"{_ratio(of, 'bridge', 'wall_ms'):.2f} x")
        cpu = [_mean_cpu(of, who) / crowd for who in ("alone", "agent", "reference")]
        cells.append(" / ".join(f"{one:.1f}" for one in cpu) + f" ms, {cpu[0] / cpu[2]:.2f} x, {cpu[1] / cpu[2]:.2f} x")
        yield f"| {' | '.join(cells)} |"


def section() -> str:
    """The part of the document."""
    labels = ("alone", "agent", "ref", "bridge", *(f"c{number}" for number in range(CROWD)))
    with tempfile.TemporaryDirectory() as folder, namespaces(*labels) as made:
        found = contenders(folder, made[:4])
        agent = found["agent"].agent
        try:
            one = times(found, made[4:5], RUNS)
            many = times(found, made[4:], ROUNDS)
        finally:
            if agent is not None:
                agent.close()
    note = NOTE.format(runs=RUNS, crowd=CROWD, rounds=ROUNDS).strip()
    lines = [f"## {TITLE}", "", note, "", "| what | alone (bar) | agent (bar) | reference | bridge | CPU each |"]
    lines += ["|---|---|---|---|---|---|", *rows(1, one), *rows(CROWD, many)]
    return "\n".join(lines) + "\n"


if os.geteuid() != 0:
    raise SystemExit("this benchmark makes network namespaces and needs root")
if __name__ == "__main__":
    print(section())
