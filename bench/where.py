"""Where the milliseconds of a command go, beside what the machine takes for the least of its parts."""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING

import picture
from common import PICTURES, RUNS, middle, spent
from speed import WARM_S, Where, once, portmap_conf

from cnimeta.cli.install import install, interpreter
from cnimeta.host.netlink import nft_generation
from cnimeta.testing.agent import RunningAgent
from cnimeta.testing.netns import namespaces

if TYPE_CHECKING:
    from cnimeta.testing.netns import Namespace

TITLE = "Where a millisecond goes"
NOTE = """
portmap's ADD and DEL of one port on an empty node, taken apart in the process itself: means of {runs} runs of the
Python launcher, each part without those inside it. *Interpreter* is what the process takes before the launcher's first
line and after its answer; *code* is reading the modules from the launcher's bundle; *configuration* reading, checking
and planning; *state* and *locks* the files under dataDir; *kernel* every netlink conversation; *answer* what is left.
Below them the native launcher with the agent as a whole, and the machine's own limits.
"""
_PARTS = ("interpreter", "code", "configuration", "locks", "state", "kernel", "answer")
_PROBE = """
import os as _os, sys as _sys, time as _time
_spent, _stack = {"code": _time.perf_counter() - _first}, []

def _timed(place, name, part):
    inner = getattr(place, name)
    def run(*args, **named):
        _stack.append(0.0)
        start = _time.perf_counter()
        try:
            return inner(*args, **named)
        finally:
            took = _time.perf_counter() - start
            _spent[part] = _spent.get(part, 0.0) + took - _stack.pop()
            if _stack:
                _stack[-1] += took
    setattr(place, name, run)

import builtins
_timed(builtins, "__import__", "code")
_plugin = load(Target(*TARGET))
from cnimeta.plugin import dispatch
from cnimeta_plugins.portmap import mapper, records
from cnimeta.host import lock, netlink
from cnimeta.store import locks
_timed(dispatch, "loads_object", "configuration")
_timed(mapper.Mapper, "settings", "configuration")
_timed(mapper, "plan_mappings", "configuration")
for _name in ("find", "store", "forget", "leave", "take_followers", "any", "of_container"):
    _timed(records.Records, _name, "state")
_timed(locks.OwnLock, "held", "locks")
for _name in ("__enter__", "__exit__", "send", "receive"):
    _timed(netlink.Conversation, _name, "kernel")
_answer = dispatch.run(_plugin, dict(_os.environ), _sys.stdin.buffer.read(), lambda _: None)
_os.write(1, _answer.stdout.encode() if isinstance(_answer.stdout, str) else _answer.stdout)
_inside = _time.perf_counter() - _first
_told = {**_spent, "answer": _inside - sum(_spent.values()), "inside": _inside}
import json as _json
_os.write(2, _json.dumps(_told).encode())
_os._exit(0)
"""
"""What stands in a launcher's file in place of its last line."""


def probe(launcher: str, folder: str) -> str:
    """A launcher that tells on stderr what it spent, in milliseconds by part."""
    text = Path(launcher).read_text(encoding="utf-8")
    head, _, target = text.rpartition("start(lambda: load(Target")
    lines = head.split("\n")
    lines.insert(lines.index("import sys"), "import time as _clock\n_first = _clock.perf_counter()")
    body = _PROBE.replace("TARGET", target.rpartition("))")[0])
    path = f"{folder}/portmap"
    Path(path).write_text("\n".join(lines) + body, encoding="utf-8")
    Path(path).chmod(0o755)
    return path


def parts(program: str, node: Namespace, container: Namespace, conf: bytes) -> dict[str, dict[str, float]]:
    """By verb, milliseconds by part."""
    found: dict[str, list[dict[str, float]]] = {"ADD": [], "DEL": []}
    environ = {"CNI_CONTAINERID": "measured", "CNI_NETNS": container.path, "CNI_IFNAME": "eth0", "CNI_PATH": "/nowhere"}
    for _ in range(RUNS):
        for verb, runs in found.items():
            with node.entered():
                started = time.perf_counter()
                done = subprocess.run(
                    [program], env={**environ, "CNI_COMMAND": verb}, input=conf, capture_output=True, check=False
                )
                whole = time.perf_counter() - started
            try:
                told = json.loads(done.stderr)
            except ValueError:
                raise SystemExit((done.stdout + done.stderr).decode()) from None
            runs.append({**told, "interpreter": whole - told["inside"]})
    return {
        verb: {part: statistics.mean(run.get(part, 0.0) for run in runs) * 1000 for part in _PARTS}
        for verb, runs in found.items()
    }


def limits(folder: str) -> dict[str, float]:
    """The machine's own, in milliseconds."""
    Path(f"{folder}/nothing.c").write_text("int main(void) { return 0; }\n", encoding="utf-8")
    subprocess.run(["cc", "-O2", "-static", "-o", f"{folder}/nothing", f"{folder}/nothing.c"], check=True)
    bare = middle([spent([f"{folder}/nothing"], {}) for _ in range(RUNS)]).wall_ms
    python = middle([spent([interpreter(), "-I", "-S", "-c", "pass"], {}) for _ in range(RUNS)]).wall_ms
    trips, syncs = [], []
    for _ in range(RUNS):
        started = time.perf_counter()
        nft_generation()
        trips.append(time.perf_counter() - started)
        with open(f"{folder}/synced", "wb") as file:
            file.write(b"x")
            started = time.perf_counter()
            os.fsync(file.fileno())
            syncs.append(time.perf_counter() - started)
    return {
        "a static program that does nothing": bare,
        "python -I -S that does nothing": python,
        "one netlink round trip": statistics.median(trips) * 1000,
        "one fsync": statistics.median(syncs) * 1000,
    }


def section() -> str:
    """The part of the document."""
    with tempfile.TemporaryDirectory(dir="/var/tmp") as folder, namespaces("node", "agent", "ctr") as made:
        node, served, container = made
        for kind in ("alone", "agent"):
            install(f"{folder}/{kind}", ["portmap"], native=kind == "agent")
        agent = RunningAgent(Path(folder), under=["nsenter", f"--net={made[1].path}"])
        time.sleep(WARM_S)
        try:
            where = Where(f"{folder}/agent", served, agent.environ)
            whole: dict[str, list[float]] = {"ADD": [], "DEL": []}
            for _ in range(RUNS):
                for verb, times in whole.items():
                    conf = portmap_conf(f"{folder}/served")
                    times.append(once(where, "portmap", verb, container.path, conf).wall_ms)
        finally:
            agent.close()
        os.mkdir(f"{folder}/probe")
        program = probe(f"{folder}/alone/portmap", f"{folder}/probe")
        alone = parts(program, node, container, portmap_conf(f"{folder}/state"))
        own = limits(folder)
    bars = {f"{verb}, alone": found for verb, found in alone.items()}
    bars |= {f"{verb}, native + agent": {"whole": statistics.median(times)} for verb, times in whole.items()}
    bars |= {what: {"limit": value} for what, value in own.items()}
    picture.stacked(PICTURES / "where.svg", "Where a millisecond goes", bars, "ms")
    lines = [f"## {TITLE}", "", NOTE.format(runs=RUNS).strip(), "", "| part | ADD | DEL |", "|---|---|---|"]
    lines += [f"| {part} | {alone['ADD'][part]:.2f} ms | {alone['DEL'][part]:.2f} ms |" for part in _PARTS]
    sums = " | ".join(f"{sum(alone[verb].values()):.2f} ms" for verb in ("ADD", "DEL"))
    agents = " | ".join(f"{statistics.median(whole[verb]):.2f} ms" for verb in ("ADD", "DEL"))
    lines += [f"| all of it | {sums} |", f"| native launcher and agent, as a whole | {agents} |"]
    lines += ["", "| limit of the machine | time |", "|---|---|"]
    lines += [f"| {what} | {value:.3f} ms |" for what, value in own.items()]
    lines += ["", "![the parts of ADD and DEL beside the machine's limits](pictures/where.svg)"]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(section())
