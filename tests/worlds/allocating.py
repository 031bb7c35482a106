"""Worlds of hostport_alloc in a chain, with portmap behind it: names, ranges at the ends, exposures, shapes of prevResult."""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st
from laws import Breach
from look import SYSTEM, Look, look
from node import BIN, DATA, Answer, Node, read_answer
from sandbox import inside
from strategies import IFNAMES, ips, names
from worlds import Attachment, Value, World

from cnimeta.cli.install import install
from cnimeta.plugin.dispatch import run as dispatch
from cnimeta_plugins.hostport_alloc.main import HostportAlloc

_SEQUENCE = ("ADD", "CHECK", "ADD", "CHECK", "DEL", "DEL")


_PLAIN = Attachment(mappings=())


@dataclass(frozen=True, repr=False)
class Allocation(Value):
    """An attachment with ports of its choice: `expose` are container ports, `first` and `last` the range."""

    attachment: Attachment = _PLAIN
    expose: tuple[str, ...] = ("80/tcp",)
    first: int = 20000
    last: int = 20099
    backend: str = "nftables"

    def conf(self, path: str) -> dict[str, Any]:
        """The network configuration."""
        found = self.attachment.conf(self.backend, path, DATA)
        found |= {"type": "hostport_alloc", "ranges": {"default": f"{self.first}-{self.last}"}}
        found |= {
            "expose": list(self.expose),
            "portmap": {"type": "portmap", "backend": self.backend.partition("-")[0]},
        }
        del found["runtimeConfig"], found["backend"]
        return found

    def wanted(self) -> set[int]:
        """The codes that ADD may answer; 11 where the range has no room left."""
        if not self.attachment.addresses():
            return {7}
        odd = any(text.startswith(("0.", "fe80", "::", "ff")) for text in self.attachment.ips)
        if odd or self.last - self.first + 1 < len(self.expose) or self.last > 29999 > self.first - 3000:
            return {0, 7, 11, *range(100, 200)}
        return {0}


@st.composite
def allocations(draw: st.DrawFn) -> Allocation:
    """Any configuration."""
    attachment = Attachment(
        draw(names(64)),
        draw(names(170)),
        draw(IFNAMES),
        draw(ips()),
        (),
        prev=draw(st.sampled_from(("usual",) * 6 + ("bare", "unnumbered", "beyond"))),
        netns=draw(st.sampled_from(("bind", "proc"))),
        version=draw(st.sampled_from(("1.1.0", "1.0.0", "0.4.0"))),
    )
    ports = draw(st.lists(st.sampled_from((80, 1, 65535)) | st.integers(1, 65535), min_size=1, max_size=4, unique=True))
    protocols = draw(st.lists(st.sampled_from(("tcp", "udp", "sctp")), min_size=len(ports), max_size=len(ports)))
    first = draw(st.sampled_from((20000, 1, 65535, 29990)) | st.integers(1, 65535))
    last = min(65535, first + draw(st.sampled_from((99, 0, 3, 5000))))
    expose = tuple(f"{port}/{protocol}" for port, protocol in zip(ports, protocols, strict=True))
    return Allocation(attachment, expose, first, last, draw(st.sampled_from(("nftables", "iptables-nft"))))


class _Node(Node):
    """A node with our portmap's launcher, and hostport_alloc in this process."""

    def __init__(self, world: World) -> None:
        super().__init__(world)
        install(BIN, ["portmap"])

    def ask(self, environ: dict[str, str], conf: dict[str, Any]) -> Answer:
        environ = environ | {"CNI_PATH": BIN, "PATH": f"{BIN}:{SYSTEM}"}
        outcome = dispatch(HostportAlloc(), environ, json.dumps(conf).encode(), self.log.append)
        return read_answer(outcome.status, outcome.stdout)


def examine_allocation(world: Allocation) -> list[Breach]:
    """ADD, CHECK, ADD, CHECK, DEL, DEL on a new node; every breach of a law."""
    return inside(functools.partial(_take, world))


def _take(world: Allocation) -> list[Breach]:
    node = _Node(World((world.attachment,), (), world.backend))
    path = node.box(world.attachment).path
    found: list[Breach] = []
    first: Answer | None = None
    before = look(DATA)
    for number, verb in enumerate(_SEQUENCE):
        answer = node.ask(node.environ(verb, world.attachment, path), world.conf(path))
        now = look(DATA)
        if answer.code == 999:
            found.append(Breach("answer", verb, answer.msg))
        if verb == "ADD" and first is None:
            first = answer
            if answer.code not in world.wanted():
                found.append(
                    Breach("accepted", "ADD", f"ADD is {answer.code}, not {sorted(world.wanted())}: {answer.msg}")
                )
            if answer.status:
                return found + _left(world, before, now, "undone")
        elif verb == "ADD":
            if answer != first or now.ours != before.ours:
                found.append(
                    Breach("repeated", "ADD again", f"{answer} after {first}: {sorted(now.ours ^ before.ours)}")
                )
        elif answer.status:
            found.append(
                Breach("checked" if verb == "CHECK" else "deleted", f"{verb} {number}", f"{answer.code} {answer.msg}")
            )
        before = now
    return found + _left(world, before, before, "left")


def _left(world: Allocation, before: Look, now: Look, law: str) -> list[Breach]:
    name = world.attachment.container
    found = now.mentions(name) if len(name) > 2 and name != "net" else []
    if law == "undone":
        found += [line for line in sorted(now.ours - before.ours) if "comment" in line]
    return [Breach(law, "the end", f"{name} is not there, but there is: {found[:4]}")] if found else []
