"""The laws that hold in every world, and the judge that takes a world's steps and looks after each of them.

| law | says |
|---|---|
| answer | every answer is nothing or one JSON document, with a code other than 999 |
| accepted | ADD answers what the settings and the other attachments say it must: 0, a conflict (100) or a wrong key (7) |
| passed on | ADD answers prevResult |
| checked | CHECK is 0 after ADD, and after others come and go, save and restore |
| repeated | the same ADD again answers the same and changes nothing |
| noticed | CHECK is not 0 when what a mapping needs is gone |
| deleted | DEL and GC are 0, whatever became of the container, however often |
| left | after DEL nothing of the container is left, in the kernel or in files |
| undone | after a failed ADD all is as before |
| others | what belongs to others is bit for bit as before |
| packets | packets arrive where the settings say, with the source that they say (see traffic.py) |
"""

from __future__ import annotations

import functools
import ipaddress
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from node import Answer, Node
from others import REFERENCE, flush_part, save_and_restore
from sandbox import inside
from traffic import TrafficNode
from worlds import Attachment, Mapping, World

if TYPE_CHECKING:
    from collections.abc import Iterable

    from look import Look

_PROBE = Attachment("probe-of-the-base", ips=("203.0.113.77/25", "2001:db8:77::77/65"), mappings=(Mapping(7, 7),))


_ELSEWHERE = Attachment("elsewhere", "refnet", ips=("10.77.0.2/24",))


@dataclass(frozen=True)
class Breach:
    """A law that did not hold: at which step, and what was seen."""

    law: str
    step: str
    says: str

    def __str__(self) -> str:
        return f"[{self.law}] at {self.step}: {self.says}"


@functools.cache
def base(backend: str, host: tuple[str, ...], snat: bool, masq_all: bool, sources: bool) -> Look:
    """What a node keeps when its last container with these settings is gone: the shared part."""
    probe = replace(_PROBE, snat=snat, masq_all=masq_all, sources=("192.0.2.9", "2001:db8:1::9") if sources else ())

    def work() -> Look:
        node = Node(World((probe,), (), backend, host))
        node.call("ADD", probe)
        node.call("DEL", probe)
        return node.look()

    return inside(work)


def bases(world: World) -> Look:
    """The shared part for all of a world's settings."""
    host = tuple(one for one in world.host if one == "nft-refuses")
    looks = [base(world.backend, host, *settings(attachment)) for attachment in world.attachments]
    empty: frozenset[str] = frozenset()
    return replace(
        looks[0],
        ours=empty.union(*(one.ours for one in looks)),
        files=empty.union(*(one.files for one in looks)),
    )


def settings(attachment: Attachment) -> tuple[bool, bool, bool]:
    """What of an attachment decides on the shared part."""
    return attachment.snat, attachment.masq_all, bool(attachment.sources)


def examine(world: World) -> list[Breach]:
    """Take the world's steps on a new node; every breach of a law, the first one first."""
    shared = bases(world)
    return inside(lambda: Judge(world, shared).run())


class Stop(Exception):
    """The node is no longer what the judge takes it for: later findings would be echoes."""


@dataclass
class Judge:
    """One run of one world."""

    world: World
    shared: Look
    node: Node = field(init=False)
    held: dict[tuple[str, str, str], Attachment] = field(default_factory=dict)
    """What is mapped, by key."""
    fate: dict[str, str] = field(default_factory=dict)
    """die, stale, reuse or hide, by container; live ones are not there."""
    lost: set[tuple[str, str, str]] = field(default_factory=set)
    """The keys whose rules others took away."""
    made: dict[tuple[str, str, str], frozenset[str]] = field(default_factory=dict)
    """The lines that came into the kernel with each key."""
    damaged: bool = False
    """Whether others have flushed anything."""
    breaches: list[Breach] = field(default_factory=list)
    step: str = ""

    def run(self) -> list[Breach]:
        """All steps, then DEL of everything, twice."""
        packets = any(step in ("SEND", "KNOCK") for step in self.world.steps)
        self.node = TrafficNode(self.world) if packets else Node(self.world)
        self.seen = self.node.look()
        self.first = self.seen
        every = range(len(self.world.attachments))
        closing = [f"DEL {n}{' nowhere' * (self.fate_of(n) != '')}" for n in every]
        try:
            for self.step in (*self.world.steps, *closing, *closing):
                self._take(*self.step.split())
            self._nothing_left()
        except Stop:
            pass
        return self.breaches

    def fate_of(self, number: int) -> str:
        """What became of an attachment's container; empty while it lives."""
        return self.fate.get(self.world.attachments[number].container, "")

    def breach(self, law: str, says: str) -> None:
        """Note that a law did not hold."""
        self.breaches.append(Breach(law, self.step, says))

    def _take(self, what: str, *words: str) -> None:
        if what == "GC":
            self._gc()
        elif what in ("SEND", "KNOCK"):
            assert isinstance(self.node, TrafficNode)
            working = [a for key, a in self.held.items() if key not in self.lost and not self.fate.get(a.container)]
            strict = "whole-marks" in self.node.others.there
            send = self.node.misled(working, strict=strict) if what == "SEND" else self.node.open_doors(working)
            for says in send:
                self.breach("packets", says)
        elif what in ("ADD", "CHECK", "DEL"):
            attachment = self.world.attachments[int(words[0])]
            if what == "ADD":
                self._add(attachment)
            elif what == "CHECK":
                self._check(attachment)
            else:
                self._delete(attachment, words[1] if len(words) > 1 else "")
        elif what in ("die", "stale", "reuse", "hide"):
            attachment = self.world.attachments[int(words[0])]
            if attachment.container in self.node.boxes and not self.fate.get(attachment.container):
                self.fate[attachment.container] = what
                getattr(self.node.boxes[attachment.container], what)()
        else:
            self._event(what, *words)

    # --- events ----------------------------------------------------------------------------------------------

    def _event(self, what: str, *words: str) -> None:
        if what in ("come", "go"):
            getattr(self.node.others, what)(*words)
        elif what == "restore":
            save_and_restore()
        elif what == "flush":
            flush_part(words[0]) if words else self.node.others.flush()
            self.damaged = True
            self._must_notice(self.seen.ours - self.node.look().ours)
            self.lost |= set(self.held)
        elif what == "forget" and "settings-sealed" not in self.world.host:
            self._forget_localnet()
        self.seen = self.node.look()
        self._check_all()

    def _must_notice(self, gone: frozenset[str]) -> None:
        for key, attachment in self.held.items():
            needs = self.made[key] | base(self.world.backend, (), *settings(attachment)).ours
            families = {family for family, _ in attachment.served()}
            missing = [line for line in gone & needs if 6 in families or not line.startswith(("nft6", "legacy6"))]
            missing = [line for line in missing if 4 in families or not line.startswith(("nft4", "legacy4"))]
            if missing and key not in self.lost and not self.fate.get(attachment.container):
                if self._ask("CHECK", attachment).status == 0:
                    self.breach("noticed", f"CHECK is content without {sorted(missing)[:4]}")

    def _forget_localnet(self) -> None:
        before = self.node.look().settings
        for line in before:
            name = line.partition(" = ")[0]
            with open(f"/proc/sys/{name}", "w", encoding="ascii") as file:
                file.write("0")
        if self.node.look().settings == before:
            return
        for key, attachment in self.held.items():
            needs = attachment.snat and any(family == 4 and not m.where(4) for family, m in attachment.served())
            if needs and key not in self.lost and not self.fate.get(attachment.container):
                if self._ask("CHECK", attachment).status == 0:
                    self.breach("noticed", "route_localnet is 0 again, and CHECK is content")
                self.lost.add(key)

    # --- calls -----------------------------------------------------------------------------------------------

    def _ask(self, verb: str, attachment: Attachment, how: str = "") -> Answer:
        """One call, judged for what holds for every call."""
        try:
            answer = self.node.call(verb, attachment, how)
        except ValueError as error:
            self.breach("answer", f"{verb}: stdout is not one JSON document: {error}")
            raise Stop from None
        if answer.code == 999 or (answer.status == 0) != (answer.code == 0):
            self.breach("answer", f"{verb} is {answer.status} with code {answer.code}: {answer.msg}")
        return answer

    def _look(self, verb: str) -> Look:
        """The node after a call; what was others' must be as before it."""
        before, self.seen = self.seen, self.node.look()
        if self.seen.others != before.others:
            gone = [line for line in before.others if line not in self.seen.others]
            more = [line for line in self.seen.others if line not in before.others]
            self.breach("others", f"{verb} took {gone} and brought {more}")
        return before

    def _add(self, attachment: Attachment) -> None:
        if self.fate.get(attachment.container):
            return
        wanted, rivals = self.wanted(attachment), self._rivals(attachment)
        answer = self._ask("ADD", attachment)
        before = self._look("ADD")
        if answer.code not in wanted:
            self.breach("accepted", f"ADD is {answer.code}, not {sorted(wanted)} ({rivals}): {answer.msg}")
        if answer.status:
            for name, now, then in self._changes(before):
                if now != then:
                    self.breach("undone", f"ADD was {answer.code} ({answer.msg}); {name}: new {sorted(now - then)}, gone {sorted(then - now)}")
            if answer.code not in wanted:
                raise Stop
            return
        self.made[attachment.key] = self.seen.ours - before.ours
        self._keep(attachment)
        if answer.code not in wanted:
            raise Stop
        self._check(attachment)
        self._again(attachment, answer)
        self._check_all(but=attachment)

    def _rivals(self, attachment: Attachment) -> str:
        """Who holds what the attachment asks for, in words: `alone`, `itself`, `a live one`, `stale`, …"""
        found = set()
        for other in self.held.values():
            if other.key != attachment.key and conflict(attachment, other):
                fate = self.fate.get(other.container, "a live one")
                found.add("itself" if other.container == attachment.container else fate)
        if REFERENCE in self.node.others.there and conflict(attachment, _ELSEWHERE):
            found.add("the reference")
        return ", ".join(sorted(found)) or "alone"

    def _changes(self, before: Look) -> list[tuple[str, frozenset[str], frozenset[str]]]:
        """(part, now, then) without what may stay of a first use: the shared part."""
        return [
            ("kernel", self.seen.ours - self.shared.ours, before.ours - self.shared.ours),
            ("files", self.seen.files - self.shared.files, before.files - self.shared.files),
            ("settings", self.seen.settings, before.settings),
        ]

    def _keep(self, attachment: Attachment) -> None:
        for key, other in list(self.held.items()):
            meets = other.container != attachment.container and conflict(attachment, other)
            if meets and (self.fate.get(other.container) or key in self.lost):
                del self.held[key]  # displaced: its container is dead, or its rules were lost
        self.held[attachment.key] = attachment
        if not attachment.mappings:
            del self.held[attachment.key]
        self.lost.discard(attachment.key)

    def _again(self, attachment: Attachment, first: Answer) -> None:
        answer = self._ask("ADD", attachment)
        before = self._look("ADD again")
        if (answer.status, answer.stdout) != (first.status, first.stdout):
            self.breach("repeated", f"ADD again answers {answer.code} {answer.msg or answer.stdout}")
        if (self.seen.ours, self.seen.files, self.seen.settings) != (before.ours, before.files, before.settings):
            more, gone = self.seen.ours - before.ours, before.ours - self.seen.ours
            files = sorted(self.seen.files ^ before.files)
            self.breach("repeated", f"ADD again brought {sorted(more)}, took {sorted(gone)}, files {files}")

    def _check(self, attachment: Attachment) -> None:
        if attachment.key in self.held and self.held[attachment.key] != attachment:
            return  # another configuration for the same attachment is in force
        answer = self._ask("CHECK", attachment)
        if answer.status and attachment.key in self.held and attachment.key not in self.lost:
            self.breach("checked", f"CHECK of {attachment.container}/{attachment.ifname}: {answer.code} {answer.msg}")

    def _check_all(self, but: Attachment | None = None) -> None:
        for attachment in self.held.values():
            if attachment is not but and not self.fate.get(attachment.container):
                self._check(attachment)

    def _delete(self, attachment: Attachment, how: str) -> None:
        own = self.held.get(attachment.key, attachment)
        answer = self._ask("DEL", own, how or self._way(own))
        self._look("DEL")
        if answer.status:
            self.breach("deleted", f"DEL is {answer.code}: {answer.msg}")
            raise Stop
        self.held.pop(attachment.key, None)
        self.lost.discard(attachment.key)
        self._gone([attachment])
        self._check_all()

    def _way(self, attachment: Attachment) -> str:
        return "nowhere" if self.fate.get(attachment.container) in ("die", "stale", "hide") else ""

    def _gc(self) -> None:
        live = [a for a in self.held.values() if self.fate.get(a.container, "hide") == "hide"]
        for network in sorted({a.network for a in self.world.attachments}):
            answer = self.node.gc(network, live)
            self._look("GC")
            if answer.status:
                self.breach("deleted", f"GC is {answer.code}: {answer.msg}")
        gone = [a for a in self.held.values() if a not in live]
        for attachment in gone:
            del self.held[attachment.key]
        self._gone(gone)
        self._check_all()

    # --- what is left ----------------------------------------------------------------------------------------

    def _gone(self, attachments: Iterable[Attachment]) -> None:
        """No line of the kernel's or of a file has the container's ID, unless it is still there otherwise."""
        for attachment in attachments:
            name = attachment.container
            if len(name) < 2 or name in ("net", "eth0") or any(a.container == name for a in self.held.values()):
                continue
            found = self.seen.mentions(name)
            if found:
                self.breach("left", f"{name} is gone, but there is: {found[:5]}")

    def _nothing_left(self) -> None:
        self.step = "the end"
        self.node.others.go(REFERENCE)
        self.seen = self.node.look()
        for name, now, then in self._changes(self.first):
            if name == "settings" and any("forget" in step for step in self.world.steps):
                continue
            more = [line for line in sorted(now - then) if "CNI-HOSTPORT" not in line or "CNI-DN" in line]
            if more:  # the reference's shared chains stay, too
                self.breach("left", f"{name}: {more[:6]}")

    # --- what ADD must answer --------------------------------------------------------------------------------

    def wanted(self, attachment: Attachment) -> set[int]:
        """The codes that ADD may answer, computed from the settings and from what is there."""
        if not attachment.mappings:
            return {0}
        if not attachment.served():
            return {7}
        if any(mapping.ip.lower().startswith("fe8") for _, mapping in attachment.served()):
            return {7}
        codes: set[int] = {0}
        if REFERENCE in self.node.others.there and conflict(attachment, _ELSEWHERE):
            codes = {100} if not self.damaged else {0, 100}
        for key, other in self.held.items():
            if other.container == attachment.container or self.fate.get(other.container, "hide") != "hide":
                continue
            if conflict(attachment, other):
                codes = codes | {100} if key in self.lost else codes - {0} | {100}
            elif attachment.addresses().items() & other.addresses().items() or _same_address(attachment, other):
                codes |= {100}
        hosts = {mapping.where(family) for family, mapping in attachment.served()} - {""}
        if any(odd(address) for address in hosts | {address for address, _ in attachment.addresses().values()}):
            codes |= {7}
        sealed = {"settings-sealed", "localnet-all"} & set(self.world.host) == {"settings-sealed"}
        if sealed and attachment.snat and any(family == 4 for family, _ in attachment.served()):
            codes |= {5}
        return codes


def conflict(one: Attachment, other: Attachment) -> bool:
    """Whether both ask for a port of the node, so that only one of them can have it."""
    return any(
        family == its and mapping.meets(held, family)
        for family, mapping in one.served()
        for its, held in other.served()
    )


def _same_address(one: Attachment, other: Attachment) -> bool:
    mine = {address for address, _ in one.addresses().values()}
    return bool(mine & {address for address, _ in other.addresses().values()})


def odd(text: str) -> bool:
    """An address that no container can be reached by: it may be refused."""
    address = ipaddress.ip_address(text)
    special = address.is_multicast or address.is_loopback or address.is_unspecified or address.is_link_local
    if isinstance(address, ipaddress.IPv6Address):
        return special and not text.startswith("169.254")
    return (special and not text.startswith("169.254.")) or address >= ipaddress.ip_address("240.0.0.0") or text.startswith("0.")
