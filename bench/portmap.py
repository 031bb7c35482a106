"""portmap beside the reference's: ADD and DEL as whole processes, and new connections through a mapped port."""

from __future__ import annotations

import os
import socket
import statistics
import subprocess
import tempfile
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

from run import Row

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
    from collections.abc import Iterator, Mapping

    from cnimeta.testing.netns import Namespace

TITLE = "portmap"
NOTE = """
ADD and DEL of one TCP mapping: the whole process, in a network namespace of its own, median of 15 runs, ours,
the native launcher with the agent, and Debian's Go plugin (iptables-nft) in turn, each with that many other containers
mapped its own way. Rows that name "its own cost" have our figure on an empty host as the reference. Connections: one
TCP connection after the other from another namespace through the last port mapped, median time of each; the reference
is upstream's shape of rules.
"""
REFERENCE = "/usr/lib/cni/portmap"
RUNS = 15
CONNECTIONS = 1500
NODE, CLIENT = "192.0.2.1", "192.0.2.9"


def conf(folder: str) -> bytes:
    """The configuration of the measured container."""
    return dumps(
        {
            "cniVersion": "1.0.0",
            "name": "bench",
            "type": "portmap",
            "dataDir": folder,
            "runtimeConfig": {"portMappings": [{"hostPort": 9999, "containerPort": 80, "protocol": "tcp"}]},
            "prevResult": {
                "cniVersion": "1.0.0",
                "interfaces": [{"name": "eth0", "sandbox": "/run/netns/x"}],
                "ips": [{"address": "10.64.255.2/10", "interface": 0}],
            },
        }
    ).encode()


def once_ms(program: str, verb: str, netns: str, stdin: bytes, agent: Mapping[str, str]) -> float:
    """One run; the caller's thread is in the node's namespace."""
    environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "measured", "CNI_NETNS": netns, "CNI_IFNAME": "eth0"}
    environ |= {"CNI_PATH": "/usr/lib/cni", "PATH": "/usr/sbin:/usr/bin:/sbin:/bin", **agent}
    started = time.perf_counter()
    subprocess.run([program], env=environ, input=stdin, capture_output=True, check=True)
    return (time.perf_counter() - started) * 1000


def address(number: int) -> str:
    """The address of another container."""
    return f"10.{64 + number // 62500}.{number // 250 % 250}.{number % 250 + 1}/10"


def plan_of(number: int) -> Plan:
    """One TCP mapping of another container."""
    mappings = (PortMapping(10_000 + number, 10_000 + number, 80, "tcp"),)
    family = FamilyPlan(parse_cidr(address(number)), mappings)
    return Plan(Owner("bench", f"c{number}", "eth0"), Settings(mappings), (family,))


def fill_ours(node: Namespace, count: int) -> None:
    """Map `count` other containers as ADD would."""
    with node.entered():
        nft = KernelNft(TABLE)
        changes = []
        for number in range(count):
            plan = plan_of(number)
            changes += add_changes(plan, plan_elements(plan), ())
        nft.apply(changes)


def fill_reference(node: Namespace, count: int) -> None:
    """The same in upstream's iptables rules."""
    lines = ["*nat"]
    entries = []
    for number in range(count):
        plan = plan_of(number)
        rules = container_rules(plan, plan.families[0], chain_name("bench", f"c{number}"))
        lines.append(f":{rules.chain} - [0:0]")
        entries += [f"-A CNI-HOSTPORT-DNAT {entry}" for entry in rules.entries]
        entries += [f"-A {rules.chain} {rule}" for rule in rules.rules]
    node.run("iptables-nft-restore", "--noflush", stdin="\n".join([*lines, *entries, "COMMIT", ""]))


def verbs(
    ours: str, native: str, agent: Mapping[str, str], folder: str, count: int
) -> Iterator[tuple[str, list[float], list[float], list[float]]]:
    """(verb, our times, the native launcher's, the reference's) with `count` other containers on each node."""
    with namespaces("ours", "served", "ref", "ctr") as (node, served, reference, container):
        pairs = ((node, ours), (served, native), (reference, REFERENCE))
        confs = {program: conf(f"{folder}/state-{number}-{count}") for number, (_, program) in enumerate(pairs)}
        for there, program in pairs:
            there.run("ip", "route", "add", "blackhole", "10.64.0.0/10")
            with there.entered():
                once_ms(program, "ADD", container.path, confs[program], agent)
        if count:
            fill_ours(node, count)
            fill_ours(served, count)
            fill_reference(reference, count)
        times: dict[tuple[str, str], list[float]] = {}
        for _ in range(RUNS):
            for verb in ("DEL", "ADD"):
                for there, program in pairs:
                    with there.entered():
                        taken = once_ms(program, verb, container.path, confs[program], agent)
                    times.setdefault((verb, program), []).append(taken)
        for verb in ("ADD", "DEL"):
            yield verb, times[verb, ours], times[verb, native], times[verb, REFERENCE]


def own(ours: str, folder: str, count: int) -> dict[str, float]:
    """Our medians with `count` other containers."""
    with namespaces("ours", "ctr") as (node, container):
        stdin = conf(f"{folder}/own-{count}")
        with node.entered():
            once_ms(ours, "ADD", container.path, stdin, {})
        if count:
            fill_ours(node, count)
        times: dict[str, list[float]] = {"DEL": [], "ADD": []}
        with node.entered():
            for _ in range(RUNS):
                for verb, found in times.items():
                    found.append(once_ms(ours, verb, container.path, stdin, {}))
        return {verb: statistics.median(found) for verb, found in times.items()}


def connect_us(count: int, *, reference: bool, folder: str, ours: str) -> float:
    """The median time of a new connection with `count` other containers mapped, in microseconds."""
    with namespaces("node", "client", "ctr") as (node, client, container):
        node.veth("up0", client, "eth0")
        node.veth("down0", container, "eth0")
        node.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        node.run("ip", "addr", "add", f"{NODE}/24", "dev", "up0")
        client.run("ip", "addr", "add", f"{CLIENT}/24", "dev", "eth0")
        node.run("ip", "addr", "add", "10.64.255.1/10", "dev", "down0")
        container.run("ip", "addr", "add", "10.64.255.2/10", "dev", "eth0")
        container.run("ip", "route", "add", "default", "via", "10.64.255.1")
        program = REFERENCE if reference else ours
        stdin = conf(f"{folder}/path-{count}-{reference}")
        # The measured container comes last: with a list of rules it is at the end of the list.
        with node.entered():
            once_ms(program, "ADD", container.path, stdin, {})
            if count and reference:
                once_ms(program, "DEL", container.path, stdin, {})
        if count:
            (fill_reference if reference else fill_ours)(node, count)
        with node.entered():
            once_ms(program, "ADD", container.path, stdin, {})
        with container.entered():
            listener = socket.create_server(("10.64.255.2", 80), backlog=512)
        threading.Thread(target=_accept, args=(listener,), daemon=True).start()
        times = []
        with client.entered():
            for _ in range(CONNECTIONS):
                started = time.perf_counter()
                socket.create_connection((NODE, 9999), timeout=5).close()
                times.append((time.perf_counter() - started) * 1e6)
        listener.close()
        return statistics.median(times)


def _accept(listener: socket.socket) -> None:
    try:
        while True:
            listener.accept()[0].close()
    except OSError:
        return


def measure() -> list[Row]:
    """Every row of the document."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        install(folder, ["portmap"])
        ours = str(Path(folder) / "portmap")
        install(f"{folder}/native", ["portmap"], native=True)
        agent = RunningAgent(Path(folder) / "agent")
        for count in (0, 2000):
            for verb, mine, served, theirs in verbs(ours, f"{folder}/native/portmap", agent.environ, folder, count):
                what, reference = f"{verb}, {count:,} other containers", statistics.median(theirs)
                rows.append(Row(what, statistics.median(mine), reference, "ms"))
                rows.append(Row(f"{what}, native launcher and agent", statistics.median(served), reference, "ms"))
        agent.close()
        empty, full = own(ours, folder, 0), own(ours, folder, 10_000)
        rows += [
            Row(f"{verb}, 10,000 other containers, beside its own cost", full[verb], empty[verb], "ms") for verb in full
        ]
        for count in (0, 2000):
            mine = connect_us(count, reference=False, folder=folder, ours=ours)
            theirs = connect_us(count, reference=True, folder=folder, ours=ours)
            rows.append(Row(f"new connection, {count:,} other containers", mine, theirs, "µs"))
        one = connect_us(0, reference=False, folder=folder, ours=ours)
        many = connect_us(20_000, reference=False, folder=folder, ours=ours)
        rows.append(Row("new connection, 20,000 other containers, beside its own cost", many, one, "µs"))
    return rows


if os.geteuid() != 0:
    raise SystemExit("this benchmark makes network namespaces and needs root")
