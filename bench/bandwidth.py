"""How exactly bandwidth limits, whom it leaves alone, and how long it takes, beside the reference.

python bench/bandwidth.py      # as root; about three minutes

A host, a container and a further container are namespaces made for this. Nothing else of the machine is touched.
"""

from __future__ import annotations

import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from common import QUICK, REFERENCE, RUNS, Row

from cnimeta.cli.install import install
from cnimeta.host.links.kernel import RouteLinks
from cnimeta.testing import call
from cnimeta.testing.agent import RunningAgent
from cnimeta.testing.netns import Namespace, namespaces
from cnimeta_plugins.bandwidth.main import Bandwidth

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

TITLE = "bandwidth: how exact, how quick"
NOTE = """
Goodput of one iperf3 TCP connection of 3 s over a veth with MTU 1500, from its first byte, as per cent of the asked
rate. The rate is that of Ethernet frames, of which TCP's payload is 95.6 %; what comes above that is the burst, once
per transfer. "annotation" is the burst a Pod annotation gives (4294967295 bits), "0.1 s" is a tenth of the rate.
"Another container" is one without limits, its goodput while the limited one sends at 100 Mbit/s as per cent of the mean
of before and after (2 s each, median of three); unpaced it is bound by the processors, and the figure is noise of them.
Times are medians of 15, both directions limited: in process beside the reference's whole process, then whole processes
of both, started the same way.
"""
PROGRAM = f"{REFERENCE}/bandwidth"
RATES_MBIT = (10,) if QUICK else (1, 10, 100, 1000)
UNSPECIFIED = 2**32 - 1
SECONDS, ROUNDS = 1 if QUICK else 3, min(RUNS, 15)
_HOST, _CONTAINER, _HOST_2, _OTHER = "10.98.0.1", "10.98.0.2", "10.98.1.1", "10.98.1.2"


class Bench:
    """The three namespaces and the calls on them."""

    def __init__(self, host: Namespace, container: Namespace, other: Namespace) -> None:
        self.host, self.container, self.other = host, container, other
        for device, address, inside, peer_address in (
            ("vhost", _HOST, container, _CONTAINER),
            ("vother", _HOST_2, other, _OTHER),
        ):
            host.veth(device, inside, "eth0")
            host.run("ip", "addr", "add", f"{address}/24", "dev", device)
            inside.run("ip", "addr", "add", f"{peer_address}/24", "dev", "eth0")

    def conf(self, rate_bps: int, burst_bits: int) -> dict[str, Any]:
        """Both directions with one rate and burst."""
        interfaces = [{"name": "vhost"}, {"name": "eth0", "sandbox": self.container.path}]
        result = {"cniVersion": "1.0.0", "interfaces": interfaces, "dns": {}}
        limits = {
            f"{way}{key}": value
            for way in ("ingress", "egress")
            for key, value in (("Rate", rate_bps), ("Burst", burst_bits))
        }
        return {"cniVersion": "1.0.0", "name": "bench", "type": "bandwidth", "prevResult": result, **limits}

    def ours(self, verb: str, conf: dict[str, Any]) -> None:
        """In process."""
        self.loaded_ms(verb, conf)

    def loaded_ms(self, verb: str, conf: dict[str, Any]) -> float:
        """In process; milliseconds."""
        with self.host.entered():
            started = time.perf_counter()
            call(Bandwidth(RouteLinks()), verb, conf, container_id="c1", netns=self.container.path)
            return (time.perf_counter() - started) * 1000

    def program(self, path: str, verb: str, conf: dict[str, Any], more: dict[str, str] | None = None) -> float:
        """A whole process in the host's namespace, with `more` in its environment; its milliseconds."""
        environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_PATH": REFERENCE}
        environ |= {"CNI_NETNS": self.container.path, "PATH": os.environ["PATH"], **(more or {})}
        data = json.dumps(conf).encode()
        with self.host.entered():
            started = time.perf_counter()
            subprocess.run([path], input=data, env=environ, check=True, capture_output=True)
            return (time.perf_counter() - started) * 1000

    def reset(self) -> None:
        """Take away what stays on the veth until it goes."""
        for where in ("root", "ingress"):
            self.host.run("tc", "qdisc", "del", "dev", "vhost", where, check=False)

    @contextlib.contextmanager
    def shaped(self, verb: Callable[[str, dict[str, Any]], object], rate_bps: int, burst_bits: int) -> Iterator[None]:
        """Between ADD and DEL."""
        conf = self.conf(rate_bps, burst_bits)
        verb("ADD", conf)
        try:
            yield
        finally:
            verb("DEL", conf)
            self.reset()


def goodput_bps(
    host: Namespace, inside: Namespace, address: str, *, towards: bool, seconds: int, pace: str = "0"
) -> float:
    """What the receiver of one TCP connection got. `towards`: the host sends. `pace`: at most, 0 for no limit."""
    server = host.start("iperf3", "--server", "--one-off", "--bind", address)
    try:
        _wait_for_listener(host)
        way = ["--bitrate", pace, *(["--reverse"] if towards else [])]
        done = inside.run("iperf3", "--client", address, "--time", str(seconds), "--json", *way)
        server.communicate(timeout=10)
    finally:
        server.kill()
        server.wait()
    return float(json.loads(done.stdout)["end"]["sum_received"]["bits_per_second"])


def _wait_for_listener(host: Namespace) -> None:
    for _ in range(100):
        if host.run("ss", "-Htln", "sport", "=", ":5201").stdout:
            return
        time.sleep(0.02)
    raise RuntimeError("iperf3 does not listen on port 5201")


def accuracy(bench: Bench) -> list[Row]:
    """Every rate each way, both bursts, both programs."""
    rows = []
    for mbit in RATES_MBIT:
        rate = mbit * 1_000_000
        for label, burst in (("annotation", UNSPECIFIED), ("0.1 s", rate // 10)):
            found: list[list[float]] = []
            for verb in (bench.ours, lambda verb, conf: bench.program(PROGRAM, verb, conf)):
                with bench.shaped(verb, rate, burst):
                    found.append(
                        [
                            goodput_bps(bench.host, bench.container, _HOST, towards=towards, seconds=SECONDS)
                            / rate
                            * 100
                            for towards in (True, False)
                        ]
                    )
            for way, ours, theirs in zip(("to", "from"), *found, strict=True):
                rows.append(Row(f"{mbit} Mbit/s {way} the container, burst {label}", ours, theirs, "%"))
    return rows


def neighbour(bench: Bench, pace: str) -> float:
    """Another container's goodput while the limited one is busy, as per cent of that before and after."""

    def other() -> float:
        return goodput_bps(bench.host, bench.other, _HOST_2, towards=True, seconds=2, pace=pace)

    shares = []
    for _ in range(3):
        before = other()
        with bench.shaped(bench.ours, 100_000_000, UNSPECIFIED):
            server = bench.host.start("iperf3", "--server", "--one-off", "--bind", _HOST, "--port", "5202")
            client = bench.container.start("iperf3", "--client", _HOST, "--port", "5202", "--time", "4")
            try:
                during = other()
            finally:
                for process in (client, server):
                    process.kill()
                    process.wait()
        shares.append(during / ((before + other()) / 2) * 100)
    return statistics.median(shares)


def neighbours(bench: Bench) -> list[Row]:
    """Two rows: paced, and as fast as it can."""
    return [
        Row(f"another container meanwhile, {label}", neighbour(bench, pace), None, "%")
        for label, pace in (("sending 2 Gbit/s", "2G"), ("unpaced", "0"))
    ]


def times(bench: Bench) -> list[Row]:
    """ADD and DEL, milliseconds."""
    conf = bench.conf(10_000_000, 1_000_000)
    spent: dict[tuple[str, str], list[float]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for kind in ("ours", "agent", "native"):
            install(f"{folder}/{kind}", ["bandwidth"], agent=kind != "ours", native=kind == "native")
        programs = {kind: f"{folder}/{kind}/bandwidth" for kind in ("ours", "agent", "native")}
        programs["reference"] = PROGRAM
        agent = RunningAgent(Path(folder))
        for _ in range(ROUNDS):
            for who in ("loaded", *programs):
                for verb in ("ADD", "DEL"):
                    path = programs.get(who)
                    took = bench.program(path, verb, conf, agent.environ) if path else bench.loaded_ms(verb, conf)
                    spent.setdefault((who, verb), []).append(took)
                bench.reset()
        agent.close()
    middle = {key: statistics.median(values) for key, values in spent.items()}
    return [
        Row(f"{verb}, {label}", middle[who, verb], middle["reference", verb], "ms")
        for who, label in (
            ("loaded", "in process"),
            ("ours", "whole process"),
            ("agent", "whole process, served by the agent"),
            ("native", "whole process, native launcher and agent"),
        )
        for verb in ("ADD", "DEL")
    ]


def measure() -> list[Row]:
    """All of it."""
    with namespaces("bwhost", "bwcont", "bwother") as (host, container, other):
        bench = Bench(host, container, other)
        return [*accuracy(bench), *neighbours(bench), *times(bench)]


def main() -> int:
    """Print the rows."""
    for row in measure():
        reference = "" if row.reference is None else f"{row.reference:12,.1f}"
        print(f"{row.what:48} {row.ours:10,.1f} {reference} {row.unit}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
