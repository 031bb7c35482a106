"""What a verb costs as a whole process, beside the reference: alone and through the agent.

CNIMETA_BENCH_RUNS=31 runs of each, ours and the reference's in turn.
"""

from __future__ import annotations

import os
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import picture
from common import PATH, PICTURES, REFERENCE, RUNS, Spent, middle, spent

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

TITLE = "Speed"
NOTE = """
Whole processes, each in a network namespace of its own, ours and the reference's in turn: median of {runs} runs, in
brackets from the 10th to the 90th percentile. *Alone* is the Python launcher, *agent* the native launcher with `cnimeta
agent`. Under each time its ratio to the reference in the same row, and the bar that the project sets itself for that
ratio. *CPU* is the processor time of the launcher alone beside the reference's: on a node with other work, that tells
more than the clock. "2,000 present" are other containers with one mapping each; without a backend's name ours is
nftables, the reference is iptables (nf_tables variant).
"""
PORTS = (1, 32, 206)

WARM_S = 3
"""What an agent takes to rehearse."""


class Case(NamedTuple):
    """One row: how it is called, its bars (alone, agent; 0 for none), and the times by who ran it."""

    what: str
    bars: tuple[float, float]
    times: dict[str, list[Spent]]


class Where(NamedTuple):
    """Who runs: its folder of plugins, the namespace, and what its environment has besides."""

    folder: str
    node: Namespace
    environ: dict[str, str]


def once(where: Where, plugin: str, verb: str, netns: str, conf: bytes) -> Spent:
    """One run."""
    environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "measured", "CNI_NETNS": netns, "CNI_IFNAME": "eth0"}
    environ |= {"CNI_PATH": REFERENCE, "PATH": PATH, **where.environ}
    return spent([f"{where.folder}/{plugin}"], environ, conf, where.node)


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
        self._agents: dict[str, RunningAgent] = {}

    def places(self, nodes: Sequence[Namespace]) -> dict[str, Where]:
        """Who runs where."""
        return {
            "alone": Where(str(self.folder / "alone"), nodes[0], {}),
            "agent": Where(str(self.folder / "agent"), nodes[1], self._agent(nodes[1]).environ),
            "reference": Where(REFERENCE, nodes[2], {}),
        }

    def conf(self, who: str, present: int, ports: int, backend: str) -> bytes:
        """The measured container's. Releases of the reference that have nftables too are asked for iptables."""
        folder = f"{self.folder}/{who}-{present}-{ports}-{backend}"
        return portmap_conf(folder, ports, "iptables" if who == "reference" else backend)

    def _agent(self, node: Namespace) -> RunningAgent:
        """The node's agent; it stands where its launchers stand, as on any node."""
        if node.path not in self._agents:
            self.close()
            agent = RunningAgent(self.folder / node.name, under=["nsenter", f"--net={node.path}"])
            self._agents[node.path] = agent
            time.sleep(WARM_S)
        return self._agents[node.path]

    def close(self) -> None:
        """End it."""
        for agent in self._agents.values():
            agent.close()
        self._agents.clear()

    def portmap(
        self, present: int = 0, ports: int = 1, backend: str = "nftables", runs: int = RUNS
    ) -> dict[str, dict[str, list[Spent]]]:
        """Times by verb and who."""
        times: dict[str, dict[str, list[Spent]]] = {"ADD": {}, "DEL": {}}
        with namespaces("alone", "agent", "ref", "ctr") as (*nodes, container):
            for who, where in self.places(nodes).items():
                where.node.run("ip", "route", "add", "blackhole", "10.64.0.0/10")
                conf = self.conf(who, present, ports, backend)
                once(where, "portmap", "ADD", container.path, conf)
                iptables = who == "reference" or backend == "iptables"
                (fill_iptables if iptables else fill_nftables)(where.node, present)
                once(where, "portmap", "DEL", container.path, conf)
            for _ in range(runs):
                for verb, found in times.items():
                    for who, where in self.places(nodes).items():
                        conf = self.conf(who, present, ports, backend)
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


def clock(times: Sequence[Spent]) -> float:
    """The median on the clock, in milliseconds."""
    return middle(times).wall_ms


def figure(times: Sequence[Spent]) -> str:
    """`12.3 ms (11.9-13.0)`"""
    walls = sorted(one.wall_ms for one in times)
    tenth = len(walls) // 10
    return f"{clock(times):,.1f} ms ({walls[tenth]:,.1f}-{walls[-1 - tenth]:,.1f})"


def compared(case: Case, who: str, bar: float) -> str:
    """Our figure, and under it its ratio and the bar."""
    ratio = clock(case.times[who]) / clock(case.times["reference"])
    return f"{figure(case.times[who])}<br>{times_as(ratio)}" + (f", bar {times_as(bar)}" if bar else "")


def times_as(ratio: float) -> str:
    """`0.044 x`"""
    return f"{ratio:.2g} x"


def processors(case: Case) -> str:
    """The processor time, alone beside the reference."""
    ours, theirs = (middle(case.times[who]).cpu_ms for who in ("alone", "reference"))
    return f"{ours:.1f} / {theirs:.1f} ms<br>{times_as(ours / theirs)}"


def section() -> str:
    """The part of the document."""
    with tempfile.TemporaryDirectory() as folder:
        speed = Speed(Path(folder))
        try:
            cases = list(speed.cases())
        finally:
            speed.close()
    rows = [f"## {TITLE}", "", NOTE.format(runs=RUNS).strip(), ""]
    rows += ["| what | alone (bar) | agent (bar) | reference | CPU |", "|---|---|---|---|---|"]
    for case in cases:
        ours = " | ".join(compared(case, who, bar) for who, bar in zip(("alone", "agent"), case.bars, strict=True))
        rows.append(f"| {case.what} | {ours} | {figure(case.times['reference'])} | {processors(case)} |")
    one = clock(cases[0].times["alone"])
    rows += ["", f"ADD of more ports beside ADD of one, alone: {growing(cases, one)}; the bar for 32 is 1.3 x."]
    medians = {short(case.what): {who: clock(times) for who, times in case.times.items()} for case in cases}
    picture.bars(PICTURES / "speed.svg", "Whole process, median", medians, "ms")
    rows += ["", "![whole processes beside the reference](pictures/speed.svg)"]
    return "\n".join(rows) + "\n"


def short(what: str) -> str:
    """A row's name in a picture."""
    for words in ("portmap ", " present", " backend", " of"):
        what = what.replace(words, "")
    return what


def growing(cases: Sequence[Case], one: float) -> str:
    """How many times as long more ports take."""
    many = [case for case in cases if case.what.startswith("portmap ADD of")]
    found = {case.what.removeprefix("portmap ADD of "): clock(case.times["alone"]) / one for case in many}
    return ", ".join(f"{ports} {ratio:.2f} x" for ports, ratio in found.items())


if os.geteuid() != 0:
    raise SystemExit("this benchmark makes network namespaces and needs root")
if __name__ == "__main__":
    print(section())
