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
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from model import Key, Model
from node import Answer, Node
from others import REFERENCE, flush_part, save_and_restore
from sandbox import inside
from traffic import TrafficNode
from worlds import Attachment, Mapping, World

from cnimeta_plugins.portmap.iptables.names import GUARD_CHAIN

if TYPE_CHECKING:
    from collections.abc import Iterable

    from look import Look

_PROBE = Attachment("probe-of-the-base", ips=("203.0.113.77/25", "2001:db8:77::77/65"), mappings=(Mapping(7, 7),))


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
    return inside(lambda: Judge(world, shared).run(), all_processes="all-processes" in world.host)


class Stop(Exception):
    """The node is no longer what the judge takes it for: later findings would be echoes."""


@dataclass
class Judge:
    """One run of one world."""

    world: World
    shared: Look
    node: Node = field(init=False)
    model: Model = field(init=False)
    made: dict[Key, frozenset[str]] = field(default_factory=dict)
    """The lines that came into the kernel with each key."""
    breaches: list[Breach] = field(default_factory=list)
    step: str = ""

    def run(self) -> list[Breach]:
        """All steps, then DEL of everything, twice."""
        packets = any(step in ("SEND", "KNOCK") for step in self.world.steps)
        self.node = TrafficNode(self.world) if packets else Node(self.world)
        self.seen = self.node.look()
        self.first = self.seen
        self.model = Model(self.world)
        closing = [f"DEL {number}" for number in range(len(self.world.attachments))]
        try:
            for step in (*self.world.steps, *closing, *closing):
                self.step = step
                self._take(*step.split())
            self._nothing_left()
        except Stop:
            pass
        return self.breaches

    def breach(self, law: str, says: str) -> None:
        """Note that a law did not hold."""
        self.breaches.append(Breach(law, self.step, says))

    def _take(self, what: str, *words: str) -> None:
        if what == "GC":
            self._gc()
        elif what in ("SEND", "KNOCK"):
            assert isinstance(self.node, TrafficNode)
            working = self.model.working()
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
            if attachment.container in self.node.boxes and not self.model.fate.get(attachment.container):
                self.model.fate[attachment.container] = what
                getattr(self.node.boxes[attachment.container], what)()
        else:
            self._event(what, *words)

    # --- events ----------------------------------------------------------------------------------------------

    def _event(self, what: str, *words: str) -> None:
        if what in ("come", "go"):
            getattr(self.node.others, what)(*words)
            self.model.reference = REFERENCE in self.node.others.there
        elif what == "restore":
            save_and_restore()
        elif what == "flush":
            flush_part(words[0]) if words else self.node.others.flush()
            self.model.reference = REFERENCE in self.node.others.there
            self.model.flushed = True
            self._must_notice(self.seen.ours - self.node.look().ours)
            self.model.lost |= set(self.model.held)
        elif what == "forget" and "settings-sealed" not in self.world.host:
            self._forget_localnet()
        self.seen = self.node.look()
        self._check_all()

    def _must_notice(self, gone: frozenset[str]) -> None:
        for attachment in self.model.working():
            needs = self.made[attachment.key] | base(self.world.backend, (), *settings(attachment)).ours
            families = {family for family, _ in attachment.served()}
            missing = [line for line in gone & needs if 6 in families or not line.startswith(("nft6", "legacy6"))]
            missing = [line for line in missing if 4 in families or not line.startswith(("nft4", "legacy4"))]
            if missing and self._ask("CHECK", attachment).status == 0:
                self.breach("noticed", f"CHECK is content without {sorted(missing)[:4]}")

    def _forget_localnet(self) -> None:
        before = self.node.look().settings
        for line in before:
            name = line.partition(" = ")[0]
            with open(f"/proc/sys/{name}", "w", encoding="ascii") as file:
                file.write("0")
        if self.node.look().settings == before:
            return
        for attachment in self.model.working():
            if attachment.snat and any(family == 4 and not m.where(4) for family, m in attachment.served()):
                if self._ask("CHECK", attachment).status == 0:
                    self.breach("noticed", "route_localnet is 0 again, and CHECK is content")
                self.model.lost.add(attachment.key)

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
        if self.model.fate.get(attachment.container):
            return
        wanted, rivals = self.model.wanted(attachment), self.model.rivals(attachment)
        answer = self._ask("ADD", attachment)
        before = self._look("ADD")
        if answer.code not in wanted:
            self.breach("accepted", f"ADD is {answer.code}, not {sorted(wanted)} ({rivals}): {answer.msg}")
        if answer.status:
            if not self._undone(before, answer) or answer.code not in wanted:
                raise Stop
            return
        self.made[attachment.key] = self.seen.ours - before.ours
        self.model.keep(attachment)
        if answer.code not in wanted:
            raise Stop
        self._check(attachment)
        self._again(attachment, answer)
        self._check_all(but=attachment)

    def _undone(self, before: Look, answer: Answer) -> bool:
        changes = [(name, now - then, then - now) for name, now, then in self._changes(before) if now != then]
        for name, new, gone in changes:
            why = f"ADD was {answer.code} ({answer.msg})"
            self.breach("undone", f"{why}; {name}: new {sorted(new)}, gone {sorted(gone)}")
        return not changes

    def _changes(self, before: Look) -> list[tuple[str, frozenset[str], frozenset[str]]]:
        """(part, now, then) without what may stay of a first use: the shared part."""
        return [
            ("kernel", self.seen.ours - self.shared.ours, before.ours - self.shared.ours),
            ("files", self.seen.files - self.shared.files, before.files - self.shared.files),
            ("settings", self.seen.settings, before.settings),
        ]

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
        if attachment.key in self.model.held and self.model.held[attachment.key] != attachment:
            return  # another configuration for the same attachment is in force
        answer = self._ask("CHECK", attachment)
        if answer.status and attachment.key in self.model.held and attachment.key not in self.model.lost:
            self.breach("checked", f"CHECK of {attachment.container}/{attachment.ifname}: {answer.code} {answer.msg}")

    def _check_all(self, but: Attachment | None = None) -> None:
        for attachment in self.model.working():
            if attachment is not but:
                self._check(attachment)

    def _delete(self, attachment: Attachment, how: str) -> None:
        own = self.model.held.get(attachment.key, attachment)
        answer = self._ask("DEL", own, how or self._way(own))
        self._look("DEL")
        if answer.status:
            self.breach("deleted", f"DEL is {answer.code}: {answer.msg}")
            raise Stop
        self.model.drop(attachment.key)
        self._gone([attachment])
        self._check_all()

    def _way(self, attachment: Attachment) -> str:
        return "nowhere" if self.model.fate.get(attachment.container) in ("die", "stale", "hide") else ""

    def _gc(self) -> None:
        live = [a for a in self.model.held.values() if self.model.living(a)]
        for network in sorted({a.network for a in self.world.attachments}):
            answer = self.node.gc(network, live)
            self._look("GC")
            if answer.status:
                self.breach("deleted", f"GC is {answer.code}: {answer.msg}")
        gone = [a for a in self.model.held.values() if a not in live]
        for attachment in gone:
            self.model.drop(attachment.key)
        self._gone(gone)
        self._check_all()

    # --- what is left ----------------------------------------------------------------------------------------

    def _gone(self, attachments: Iterable[Attachment]) -> None:
        """No line of the kernel's or of a file has the container's ID, unless it is still there otherwise."""
        for attachment in attachments:
            name = attachment.container
            others = {"net", "eth0", *(word for a in self.world.attachments for word in (a.network, a.ifname))}
            if len(name) < 2 or name in others or any(a.container == name for a in self.model.held.values()):
                continue
            found = self.seen.mentions(name)
            if found:
                self.breach("left", f"{name} is gone, but there is: {found[:5]}")

    def _nothing_left(self) -> None:
        self.step = "the end"
        self.node.others.go(REFERENCE)
        self.seen = self.node.look()
        for name, now, then in self._changes(self.first):
            if name == "settings" and any("forget" in step or "reference" in step for step in self.world.steps):
                continue
            more = [line for line in sorted(now - then) if "CNI-HOSTPORT" not in line or "CNI-DN" in line]
            if any("reference" in step for step in self.world.steps):  # its shared chains stay, and our guard of them
                more = [line for line in more if GUARD_CHAIN not in line]
            if more:
                self.breach("left", f"{name}: {more[:6]}")
