"""Worlds of the bandwidth plugin: names, numbers, subnets and shapes of prevResult; the laws are those of laws.py."""

from __future__ import annotations

import functools
import importlib
import json
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from laws import Breach
from look import SYSTEM, run
from node import Answer, Box, read_answer
from sandbox import entered, inside
from strategies import ADDRESSES4, ADDRESSES6, IFNAMES, names
from worlds import Value

from cnimeta.plugin.dispatch import run as dispatch
from cnimeta_plugins.bandwidth.main import Bandwidth

importlib.import_module("pyroute2")

_UINT64 = 2**64 - 1


@dataclass(frozen=True, repr=False)
class Shaping(Value):
    """One call's configuration. prev: `usual`, `none` (no interfaces), `other` (another host interface only)."""

    container: str = "c1"
    network: str = "net"
    ifname: str = "eth0"
    ingress: tuple[int, int] = (0, 0)
    egress: tuple[int, int] = (0, 0)
    latency: int = 0
    shaped: tuple[str, ...] = ()
    unshaped: tuple[str, ...] = ()
    prev: str = "usual"
    dynamic: bool = False
    backend: str = "bandwidth"

    def conf(self, path: str) -> dict[str, Any]:
        """The network configuration."""
        pairs = (("ingressRate", self.ingress[0]), ("ingressBurst", self.ingress[1]))
        pairs += (("egressRate", self.egress[0]), ("egressBurst", self.egress[1]))
        limits = {key: value for key, value in pairs if value}
        subnets = {"shapedSubnets": list(self.shaped), "unshapedSubnets": list(self.unshaped)}
        keys: dict[str, Any] = {key: value for key, value in subnets.items() if value}
        keys |= {"latency": self.latency} if self.latency else {}
        keys |= {"runtimeConfig": {"bandwidth": limits}} if self.dynamic else limits
        host = {"name": "elsewhere" if self.prev == "other" else "vhost"}
        interfaces = [] if self.prev == "none" else [host, {"name": self.ifname, "sandbox": path}]
        result = {"cniVersion": "1.0.0", "interfaces": interfaces, "ips": [{"address": "10.9.0.2/24"}], "dns": {}}
        return {"cniVersion": "1.0.0", "name": self.network, "type": "bandwidth", "prevResult": result, **keys}

    def wanted(self) -> set[int]:
        """The codes that ADD may answer: 0 for what is ordinary; beyond that 7, 2 for both lists of subnets."""
        if self.shaped and self.unshaped:
            return {2}
        pairs = [pair for pair in (self.ingress, self.egress) if pair != (0, 0)]
        if any(0 in pair for pair in pairs) or (pairs and self.prev != "usual"):
            return {7}
        ordinary = all(8000 <= rate <= 2**33 and 8 * 1600 <= burst <= 2**34 for rate, burst in pairs)
        return {0} if ordinary else {0, 7}


_NUMBERS = st.sampled_from(
    (1_000_000, 0, 8, 7, 1, 2**32, 2**33, 2**34, 2**35 - 9, 2**35, 2**63, _UINT64)
) | st.integers(0, _UINT64)
_PAIRS = st.tuples(_NUMBERS, _NUMBERS) | st.just((0, 0)) | st.just((8_000_000, 800_000))
_SUBNETS = st.lists(ADDRESSES4 | ADDRESSES6, max_size=3).map(tuple)


@st.composite
def shapings(draw: st.DrawFn) -> Shaping:
    """Any configuration."""
    plain = st.just(())
    return Shaping(
        draw(names(64)),
        draw(names(255)),
        draw(IFNAMES).replace("%", "-"),  # the kernel takes no new name with a %
        draw(_PAIRS),
        draw(_PAIRS),
        draw(st.sampled_from((0, 0, 0, 1, 10_000)) | st.integers(1, 10_000)),
        draw(_SUBNETS if draw(st.sampled_from((False, False, True))) else plain),
        draw(_SUBNETS if draw(st.sampled_from((False, False, True))) else plain),
        draw(st.sampled_from(("usual",) * 8 + ("none", "other"))),
        draw(st.booleans()),
    )


def examine_shaping(world: Shaping) -> list[Breach]:
    """ADD, CHECK, ADD, CHECK, DEL, DEL on a new veth; every breach of a law."""
    return inside(functools.partial(_take, world))


def _look() -> frozenset[str]:
    lines = []
    for queue in json.loads(run("tc", "-j", "qdisc", "show") or "[]"):
        queue.get("options", {}).pop("direct_packets_stat", None)  # a counter
        lines.append(f"queue {json.dumps(queue, sort_keys=True)}")
    for link in json.loads(run("ip", "-j", "-d", "link", "show")):
        name = link["ifname"]
        lines.append(f"link {name} {link.get('ifalias', '')}")
        for where in ((), ("ingress",)):
            text = run("tc", "filter", "show", "dev", name, *where)
            lines += [f"filter {name} {line}" for line in text.splitlines()]
    return frozenset(lines)


def _take(world: Shaping) -> list[Breach]:
    box = Box("0", "bind")
    run("ip", "link", "add", "vhost", "up", "type", "veth", "peer", "name", "inner", "netns", "0")
    with entered(box.fd):
        run("ip", "link", "set", "inner", "name", world.ifname)
        run("ip", "link", "set", world.ifname, "up")
    found: list[Breach] = []
    first = _look()
    answer = _ask(world, box, "ADD", found)
    if answer.code not in world.wanted():
        found.append(Breach("accepted", "ADD", f"ADD is {answer.code}, not {sorted(world.wanted())}: {answer.msg}"))
    if answer.status:
        if _look() != first:
            found.append(Breach("undone", "ADD", f"new: {sorted(_look() - first)}"))
        return found
    _served(world, box, answer, found)
    for step in ("DEL", "DEL again"):
        if _ask(world, box, "DEL", found).status:
            found.append(Breach("deleted", step, "DEL is not 0"))
    if _look() != first:
        found.append(Breach("left", "DEL", f"new: {sorted(_look() - first)}, gone: {sorted(first - _look())}"))
    return found


def _served(world: Shaping, box: Box, first: Answer, found: list[Breach]) -> None:
    for step in ("after ADD", "after ADD again"):
        check = _ask(world, box, "CHECK", found)
        if check.status:
            found.append(Breach("checked", step, f"CHECK is {check.code}: {check.msg}"))
        if step == "after ADD":
            before = _look()
            again = _ask(world, box, "ADD", found)
            if (again.status, again.stdout) != (first.status, first.stdout):
                found.append(Breach("repeated", step, f"ADD again is {again.code}: {again.msg or again.stdout}"))
            if _look() != before:
                found.append(
                    Breach("repeated", step, f"new: {sorted(_look() - before)}, gone: {sorted(before - _look())}")
                )


def _ask(world: Shaping, box: Box, verb: str, found: list[Breach]) -> Answer:
    environ = {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": world.container,
        "CNI_IFNAME": world.ifname,
        "CNI_NETNS": box.path,
    }
    environ |= {"CNI_PATH": "/usr/lib/cni", "PATH": SYSTEM, "CNIMETA_CONFIG": "/run/no-such-file"}
    outcome = dispatch(Bandwidth(), environ, json.dumps(world.conf(box.path)).encode(), lambda _: None)
    answer = read_answer(outcome.status, outcome.stdout)
    if answer.code == 999:
        found.append(Breach("answer", verb, answer.msg))
    return answer
