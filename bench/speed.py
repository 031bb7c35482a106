"""What a verb costs as a whole process, beside the reference: alone and through the agent; and what size adds.

CNIMETA_BENCH_RUNS=31 runs of each, ours and the reference's in turn.
"""

from __future__ import annotations

import os
import resource
import statistics
import subprocess
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import picture

from cnimeta.cli.install import install
from cnimeta.host.nftables.kernel import KernelNft
from cnimeta.spec.ip import parse_cidr
from cnimeta.spec.jsonio import dumps
from cnimeta.testing.agent import RunningAgent
from cnimeta.testing.netns import namespaces
from cnimeta_plugins.portmap.config import PortMapping, Settings
from cnimeta_plugins.portmap.iptables.rules import chain_name, container_rules
from cnimeta_plugins.portmap.nftables.rules import TABLE, add_changes, plan_elements
from cnimeta_plugins.portmap.plan import FamilyPlan, Owner, Plan

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cnimeta.testing.netns import Namespace

TITLE = "speed"
NOTE = """
Whole processes, each in a network namespace of its own, median of {runs} runs (10th to 90th percentile), ours and the
reference's in turn; the reference is Debian's 1.1.1 (iptables-nft). "Alone" is the Python launcher, "agent" the native
one with `cnimeta agent`. Ratios are to the reference of the same row, in brackets the bars that the project set itself.
"CPU" is the processor time of the launcher alone and all it starts beside the reference: on a machine with other work,
read this one. "Present" are other containers with one mapping each.
"""
REFERENCE = "/usr/lib/cni"
RUNS = int(os.environ.get("CNIMETA_BENCH_RUNS", "31"))
SIZES = (0, 1000, 10_000, 60_000)
PORTS = (1, 32, 206)
PICTURES = Path(__file__).parents[1] / "docs" / "pictures"


class Case(NamedTuple):
    """One row: how it is called, its bars (alone, agent; 0 for none), and the times by who ran it."""

    what: str
    bars: tuple[float, float]
    times: dict[str, list[Spent]]


class Spent(NamedTuple):
    """One run: on the clock, and of the processors by the process and all it waited for."""

    wall_ms: float
    cpu_ms: float


class Where(NamedTuple):
    """Who runs: its folder of plugins, the namespace, and what its environment has besides."""

    folder: str
    node: Namespace
    environ: dict[str, str]


def once(where: Where, plugin: str, verb: str, netns: str, conf: bytes) -> Spent:
    """One run."""
    environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "measured", "CNI_NETNS": netns, "CNI_IFNAME": "eth0"}
    environ |= {"CNI_PATH": REFERENCE, "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **where.environ}
    with where.node.entered():
        before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
        done = subprocess.run([f"{where.folder}/{plugin}"], env=environ, input=conf, capture_output=True, check=False)
        wall_s, after = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        raise SystemExit(f"{where.folder}/{plugin} {verb}: {done.stdout.decode()}{done.stderr.decode()}")
    cpu_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Spent(wall_s * 1000, cpu_s * 1000)


def portmap_conf(folder: str, ports: int = 1, backend: str = "nftables") -> bytes:
    """The configuration of the measured container."""
    mappings = [{"hostPort": 4000 + n, "containerPort": 80 + n, "protocol": "tcp"} for n in range(ports)]
    addresses = [{"address": "10.64.255.2/10", "interface": 0}]
    interfaces = [{"name": "eth0", "sandbox": "/run/netns/x"}]
    result = {"cniVersion": "1.0.0", "interfaces": interfaces, "ips": addresses}
    keys = {"dataDir": folder, "backend": backend, "runtimeConfig": {"portMappings": mappings}}
    return dumps({"cniVersion": "1.0.0", "name": "bench", "type": "portmap", "prevResult": result, **keys}).encode()


def bandwidth_conf(device: str, netns: str) -> bytes:
    """10 Mbit/s both ways."""
    interfaces = [{"name": device}, {"name": "eth0", "sandbox": netns}]
    sizes = (("Rate", 10**7), ("Burst", 10**6))
    limits = {f"{way}{key}": value for way in ("ingress", "egress") for key, value in sizes}
    result = {"cniVersion": "1.0.0", "interfaces": interfaces}
    return dumps({"cniVersion": "1.0.0", "name": "bench", "type": "bandwidth", "prevResult": result, **limits}).encode()


# --- other containers ------------------------------------------------------------------------------------------


def plan_of(number: int) -> Plan:
    """One TCP mapping of another container."""
    address = f"10.{64 + number // 62500}.{number // 250 % 250}.{number % 250 + 1}/10"
    protocol, port = ("tcp", 5000 + number) if number < 60_000 else ("udp", number - 55_000)
    mappings = (PortMapping(port, port, 80, protocol),)
    return Plan(Owner("bench", f"c{number}", "eth0"), Settings(mappings), (FamilyPlan(parse_cidr(address), mappings),))


def fill_nftables(node: Namespace, count: int) -> None:
    """Map other containers as ADD would."""
    with node.entered():
        nft = KernelNft(TABLE)
        for start in range(0, count, 5000):
            plans = [plan_of(number) for number in range(start, min(start + 5000, count))]
            nft.apply([change for plan in plans for change in add_changes(plan, plan_elements(plan), ())])


def fill_iptables(node: Namespace, count: int) -> None:
    """The same in upstream's iptables rules."""
    heads, entries = ["*nat"], []
    for number in range(count):
        plan = plan_of(number)
        rules = container_rules(plan, plan.families[0], chain_name("bench", f"c{number}"))
        heads.append(f":{rules.chain} - [0:0]")
        entries += [f"-A CNI-HOSTPORT-DNAT {entry}" for entry in rules.entries]
        entries += [f"-A {rules.chain} {rule}" for rule in rules.rules]
    if count:
        node.run("iptables-nft-restore", "--noflush", stdin="\n".join([*heads, *entries, "COMMIT", ""]))


# --- rows --------------------------------------------------------------------------------------------------------


class Speed:
    """The launchers and the agent."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        for kind in ("alone", "agent"):
            install(str(folder / kind), ["portmap", "bandwidth"], native=kind == "agent")
        self.agent = RunningAgent(folder)

    def places(self, nodes: Sequence[Namespace]) -> dict[str, Where]:
        """Who runs where."""
        return {
            "alone": Where(str(self.folder / "alone"), nodes[0], {}),
            "agent": Where(str(self.folder / "agent"), nodes[1], self.agent.environ),
            "reference": Where(REFERENCE, nodes[2], {}),
        }

    def portmap(
        self, present: int = 0, ports: int = 1, backend: str = "nftables", runs: int = RUNS
    ) -> dict[str, dict[str, list[Spent]]]:
        """Times by verb and who."""
        times: dict[str, dict[str, list[Spent]]] = {"ADD": {}, "DEL": {}}
        with namespaces("alone", "agent", "ref", "ctr") as (*nodes, container):
            for who, where in self.places(nodes).items():
                where.node.run("ip", "route", "add", "blackhole", "10.64.0.0/10")
                conf = portmap_conf(f"{self.folder}/{who}-{present}-{ports}-{backend}", ports, backend)
                once(where, "portmap", "ADD", container.path, conf)
                iptables = who == "reference" or backend == "iptables"
                (fill_iptables if iptables else fill_nftables)(where.node, present)
                once(where, "portmap", "DEL", container.path, conf)
            for _ in range(runs):
                for verb, found in times.items():
                    for who, where in self.places(nodes).items():
                        conf = portmap_conf(f"{self.folder}/{who}-{present}-{ports}-{backend}", ports, backend)
                        found.setdefault(who, []).append(once(where, "portmap", verb, container.path, conf))
        return times

    def bandwidth(self) -> dict[str, dict[str, list[Spent]]]:
        """Times by verb and who."""
        times: dict[str, dict[str, list[Spent]]] = {"ADD": {}, "DEL": {}}
        with namespaces("alone", "agent", "ref", "c1", "c2", "c3") as made:
            nodes, containers = made[:3], made[3:]
            places = self.places(nodes)
            for where, container in zip(places.values(), containers, strict=True):
                where.node.veth("vhost", container, "eth0")
            for _ in range(RUNS):
                for verb, found in times.items():
                    for (who, where), container in zip(places.items(), containers, strict=True):
                        conf = bandwidth_conf("vhost", container.path)
                        found.setdefault(who, []).append(once(where, "bandwidth", verb, container.path, conf))
                        if verb == "DEL":
                            for place in ("root", "ingress"):
                                where.node.run("tc", "qdisc", "del", "dev", "vhost", place, check=False)
        return times

    def version(self) -> dict[str, list[Spent]]:
        """Times by who."""
        times: dict[str, list[Spent]] = {}
        with namespaces("alone", "agent", "ref") as nodes:
            for _ in range(RUNS):
                for who, where in self.places(nodes).items():
                    found = once(where, "portmap", "VERSION", "", b'{"cniVersion":"1.0.0"}')
                    times.setdefault(who, []).append(found)
        return times

    def cases(self) -> Iterator[Case]:
        """Every row of the table."""
        for present, bars in ((0, ((0.55, 0.1), (0.2, 0.04))), (2000, ((0.06, 0.01), (0.15, 0.03)))):
            for (verb, times), bar in zip(self.portmap(present).items(), bars, strict=True):
                yield Case(f"portmap {verb}, {present:,} present", bar, times)
        for verb, times in self.portmap(2000, backend="iptables").items():
            yield Case(f"portmap {verb}, iptables backend, 2,000 present", (0.6, 0.4), times)
        for (verb, times), bar in zip(self.bandwidth().items(), ((6, 0.8), (0.6, 0.15)), strict=True):
            yield Case(f"bandwidth {verb}", bar, times)
        yield Case("VERSION", (5, 0.5), self.version())
        for ports in PORTS[1:]:
            times = self.portmap(ports=ports, runs=max(3, RUNS // (1 if ports < 100 else 6)))["ADD"]
            yield Case(f"portmap ADD of {ports} ports", (0, 0.01 if ports > 100 else 0), times)

    def growth(self) -> dict[str, list[float]]:
        """The processor time of ours by verb, for each of SIZES: medians in milliseconds."""
        found: dict[str, list[float]] = {}
        for present in SIZES:
            times: dict[str, list[Spent]] = {}
            with namespaces("alone", "ctr") as (node, container):
                where = Where(str(self.folder / "alone"), node, {})
                node.run("ip", "route", "add", "blackhole", "10.64.0.0/10")
                conf = portmap_conf(f"{self.folder}/growth-{present}")
                once(where, "portmap", "ADD", container.path, conf)
                fill_nftables(node, present)
                for _ in range(max(3, RUNS // 3)):
                    for verb in ("CHECK", "DEL", "ADD"):
                        times.setdefault(verb, []).append(once(where, "portmap", verb, container.path, conf))
            for verb, values in times.items():
                found.setdefault(verb, []).append(statistics.median(one.cpu_ms for one in values))
        return found


def middle(times: Sequence[Spent]) -> float:
    """The median on the clock."""
    return statistics.median(one.wall_ms for one in times)


def figure(times: Sequence[Spent]) -> str:
    """`12.3 (11.9-13.0) ms`"""
    walls = sorted(one.wall_ms for one in times)
    tenth = len(walls) // 10
    return f"{middle(times):.1f} ({walls[tenth]:.1f}-{walls[-1 - tenth]:.1f}) ms"


def compared(case: Case, who: str, bar: float) -> str:
    """Our figure, its ratio, and the bar."""
    ratio = middle(case.times[who]) / middle(case.times["reference"])
    return f"{figure(case.times[who])}, {ratio:.2g} x" + (f" ({bar:g})" if bar else "")


def processors(case: Case) -> str:
    """The processor time, alone beside the reference."""
    ours, theirs = (statistics.median(one.cpu_ms for one in case.times[who]) for who in ("alone", "reference"))
    return f"{ours:.1f} / {theirs:.1f} ms, {ours / theirs:.2g} x"


def section() -> str:
    """The part of the document."""
    with tempfile.TemporaryDirectory() as folder:
        speed = Speed(Path(folder))
        try:
            cases = list(speed.cases())
            growth = speed.growth()
        finally:
            speed.agent.close()
    rows = [f"## {TITLE}", "", NOTE.format(runs=RUNS).strip(), ""]
    rows += ["| what | alone (bar) | agent (bar) | reference | CPU |", "|---|---|---|---|---|"]
    for case in cases:
        ours = " | ".join(compared(case, who, bar) for who, bar in zip(("alone", "agent"), case.bars, strict=True))
        rows.append(f"| {case.what} | {ours} | {figure(case.times['reference'])} | {processors(case)} |")
    one = middle(cases[0].times["alone"])
    rows += ["", f"Own growth of ADD from 1 port, alone: {growing(cases, one)}.", ""]
    rows += ["| own processor time, alone | " + " | ".join(f"{size:,} present" for size in SIZES) + " |"]
    rows += ["|---|" + "---|" * len(SIZES)]
    rows += [
        f"| {verb} | " + " | ".join(f"{value:.1f} ms" for value in values) + " |" for verb, values in growth.items()
    ]
    medians = {short(case.what): {who: middle(times) for who, times in case.times.items()} for case in cases}
    picture.bars(PICTURES / "speed.svg", "Whole process, median", medians, "ms")
    picture.lines(PICTURES / "growth.svg", "portmap alone, processor time by containers present", SIZES, growth, "ms")
    rows += ["", "![whole processes](pictures/speed.svg)", "", "![own cost by size](pictures/growth.svg)"]
    return "\n".join(rows) + "\n"


def short(what: str) -> str:
    """A row's name in a picture."""
    for words in ("portmap ", " present", " backend", " of"):
        what = what.replace(words, "")
    return what


def growing(cases: Sequence[Case], one: float) -> str:
    """How many times as long more ports take."""
    many = [case for case in cases if case.what.startswith("portmap ADD of")]
    found = {case.what.removeprefix("portmap ADD of "): middle(case.times["alone"]) / one for case in many}
    return ", ".join(f"{ports} {ratio:.2f} x" for ports, ratio in found.items())


if os.geteuid() != 0:
    raise SystemExit("this benchmark makes network namespaces and needs root")
if __name__ == "__main__":
    print(section())
