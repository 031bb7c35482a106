"""Network interfaces in memory, with the kernel's rules that shaping depends on. Ships for tests of plugins."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from cnimeta.errors import IoFailure
from cnimeta.host.links.values import GONE, HANDLE, INGRESS, INGRESS_PARENT, ROOT, Classifier, Link, Queue, ticks
from cnimeta.host.values import NoNamespace

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cnimeta.host.links.values import Classes

_TICKS_PER_US = 15.625
_QUEUE_LENGTH = 1000
_MISSING = "No such file or directory"


class FakeLinks:
    """Links for tests. `calls` names every change made, and `reads` every question asked.

    `fail_at` makes the n-th change (from 1) an IoFailure, `fail_read_at` the n-th question. With `late`, the change is
    made all the same: the answer is what gets lost. (A removal is looked after then, and succeeds.)
    """

    def __init__(self) -> None:
        self.links: dict[int, Link] = {}
        self.inside: dict[tuple[str, str], Link] = {}
        self.waiting: dict[int, list[Queue]] = {}
        self.filters: dict[int, list[Classifier]] = {}
        self.classed: dict[int, Classes] = {}
        self.calls: list[str] = []
        self.reads: list[str] = []
        self.there: dict[str, FakeLinks] = {}
        self.locked: set[str] = set()
        """Namespaces that cannot be entered, though they are there."""
        self.fail_at = 0
        self.fail_read_at = 0
        self.late = False
        self._next = 1

    def veth(self, netns: str, ifname: str, host_name: str, mtu: int = 1500) -> Link:
        """A pair: one end in the container, one here. Returns the end here."""
        host = self.link(host_name, "veth", mtu)
        self.inside[netns, ifname] = Link(2, ifname, "veth", "02:00:00:00:00:02", mtu, host.ifindex)
        self.links[host.ifindex] = host._replace(peer=2)
        return self.links[host.ifindex]

    def lent(self, netns: str, ifname: str, kind: str = "macvlan") -> Link:
        """An interface of the container without an end here."""
        made = self.there.setdefault(netns, FakeLinks()).link(ifname, kind)
        self.inside[netns, ifname] = made
        return made

    def link(self, name: str, kind: str, mtu: int = 1500, alias: str = "", queue_length: int = _QUEUE_LENGTH) -> Link:
        """An interface here."""
        made = Link(self._next, name, kind, f"02:00:00:00:01:{self._next:02x}", mtu, 0, alias, queue_length)
        self.links[made.ifindex] = made
        self._next += 1
        return made

    def dump(self) -> dict[str, tuple[str, ...]]:
        """Per interface, in words: its queues and filters. Equal dumps mean equal state."""
        names = {index: link.name for index, link in self.links.items()}
        return {
            link.name: (
                *(f"{q.kind} rate {q.rate} limit {q.limit} buffer {q.buffer}" for q in self.waiting.get(index, [])),
                *(f"class {self.classed[one]}" for one in (index,) if one in self.classed),
                *(
                    f"prio {c.priority} redirect {names.get(c.redirect, 'gone')}"
                    if c.redirect
                    else f"prio {c.priority} {c.kind}"
                    for c in self.filters.get(index, [])
                ),
            )
            for index, link in sorted(self.links.items())
        }

    # --- the Links protocol ----------------------------------------------------------------------------

    def ticks_per_us(self) -> float:
        """As the kernel's."""
        self._ask("ticks_per_us")
        return _TICKS_PER_US

    def in_container(self, netns: str, ifname: str) -> Link | None:
        """What `veth` put there. NoNamespace for a namespace in which nothing is."""
        self._enter(netns)
        self._ask(f"in_container {ifname}")
        return self.inside.get((netns, ifname))

    @contextlib.contextmanager
    def within(self, netns: str) -> Iterator[FakeLinks]:
        """Links of their own for each namespace."""
        self._enter(netns)
        yield self.there.setdefault(netns, FakeLinks())

    def get(self, *, index: int = 0, name: str = "") -> Link | None:
        """An interface here."""
        self._ask(f"get {index or name}")
        return self.links.get(index or self._index_of(name))

    def ifbs(self) -> list[Link]:
        """Every ifb here."""
        self._ask("ifbs")
        return [link for link in self.links.values() if link.kind == "ifb"]

    def add_ifb(self, name: str, mtu: int, alias: str) -> Link:
        """Make it, or take the one of that name. As the kernel: an alias has 254 bytes at most."""
        with self._change(f"add_ifb {name}"):
            if len(alias.encode()) > 254:
                raise IoFailure(f"cannot make interface {name}: Numerical result out of range")
            index = self._index_of(name) or self.link(name, "ifb", queue_length=0).ifindex
            self.links[index] = self.links[index]._replace(mtu=mtu, alias=alias)
        return self.links[index]

    def remove(self, name: str) -> None:
        """Remove it with its queues. As in the kernel, filters that redirect to it stay and redirect to GONE."""
        index = self._index_of(name)
        if not index:
            return
        with self._change(f"remove {name}", looked_after=True):
            for table in (self.links, self.waiting, self.filters, self.classed):
                table.pop(index, None)
            for other, filters in self.filters.items():
                self.filters[other] = [c._replace(redirect=GONE) if c.redirect == index else c for c in filters]

    def queues(self, index: int) -> list[Queue]:
        """The queueing disciplines."""
        self._ask(f"queues {index}")
        return list(self.waiting.get(index, []))

    def set_bucket(self, index: int, rate: int, burst: int, limit: int) -> None:
        """A tbf as root. As the kernel: not in place of another one's kind with the same handle."""
        with self._change(f"set_bucket {index}"):
            self._need(index, "shape")
            root = self._root(index)
            if root is not None and root.handle == HANDLE and root.kind != "tbf":
                raise IoFailure(f"cannot shape interface {index}: Invalid argument")
            self._set_root(index, Queue("tbf", HANDLE, ROOT, rate, limit, ticks(rate, burst, _TICKS_PER_US)))

    def classes(self, index: int) -> Classes | None:
        """What set_classes made."""
        self._ask(f"classes {index}")
        return self.classed.get(index)

    def set_classes(self, index: int, wanted: Classes) -> None:
        """An htb as root."""
        with self._change(f"set_classes {index}"):
            self._need(index, "shape")
            self._set_root(index, Queue("htb", HANDLE, ROOT))
            self.classed[index] = wanted
            self.links[index] = self.links[index]._replace(queue_length=_QUEUE_LENGTH)

    def change_classes(self, index: int, wanted: Classes) -> None:
        """As the kernel: not without a class."""
        with self._change(f"change_classes {index}"):
            if index not in self.classed:
                raise IoFailure(f"cannot shape interface {index}: {_MISSING}")
            self.classed[index] = wanted._replace(default=self.classed[index].default, rules=self.classed[index].rules)

    def put_back(self, link: Link, root: Queue | None) -> None:
        """The root as it was."""
        with self._change(f"put_back {link.ifindex}"):
            self._need(link.ifindex, "shape")
            if root != self._root(link.ifindex):
                self._set_root(link.ifindex, root)
            self.links[link.ifindex] = self.links[link.ifindex]._replace(queue_length=link.queue_length)

    def clear(self, index: int) -> None:
        """Remove the root queueing discipline."""
        with self._change(f"clear {index}"):
            self._set_root(index, None)

    def add_ingress(self, index: int) -> None:
        """As the kernel: File exists when there is an ingress or clsact."""
        with self._change(f"add_ingress {index}"):
            self._need(index, "make ingress of")
            if self._entrance(index):
                raise IoFailure(f"cannot make ingress of interface {index}: File exists")
            self.waiting.setdefault(index, []).append(Queue("ingress", INGRESS, INGRESS_PARENT))

    def remove_ingress(self, index: int) -> None:
        """Remove it and its filters."""
        with self._change(f"remove_ingress {index}"):
            if index in self.waiting:
                self.waiting[index] = [queue for queue in self.waiting[index] if queue.parent == ROOT]
            self.filters.pop(index, None)

    def ingress_filters(self, index: int) -> list[Classifier]:
        """The filters for arriving packets."""
        self._ask(f"ingress_filters {index}")
        return list(self.filters.get(index, []))

    def add_redirect(self, index: int, target: int, priority: int) -> None:
        """As the kernel: needs an ingress or clsact, and the target."""
        with self._change(f"add_redirect {index}"):
            if not self._entrance(index):
                raise IoFailure(f"cannot redirect interface {index}: Invalid argument")
            self._need(target, "redirect")
            found = [*self.filters.get(index, []), Classifier("u32", priority, target)]
            self.filters[index] = sorted(found, key=lambda one: one.priority)

    def remove_filters(self, index: int, priority: int) -> None:
        """Remove the filters of one priority."""
        with self._change(f"remove_filters {index}"):
            self.filters[index] = [one for one in self.filters.get(index, []) if one.priority != priority]

    # --- inside ----------------------------------------------------------------------------------------

    def _index_of(self, name: str) -> int:
        return next((index for index, link in self.links.items() if link.name == name), 0)

    def _root(self, index: int) -> Queue | None:
        return next((queue for queue in self.waiting.get(index, []) if queue.parent == ROOT), None)

    def _set_root(self, index: int, queue: Queue | None) -> None:
        rest = [old for old in self.waiting.get(index, []) if old.parent != ROOT]
        self.waiting[index] = rest if queue is None else [queue, *rest]
        self.classed.pop(index, None)

    def _entrance(self, index: int) -> bool:
        return any(queue.kind in ("ingress", "clsact") for queue in self.waiting.get(index, []))

    def _need(self, index: int, verb: str) -> None:
        if index not in self.links:
            raise IoFailure(f"cannot {verb} interface {index}: No such device")

    def _enter(self, netns: str) -> None:
        if netns in self.locked:
            raise IoFailure(f"cannot enter the network namespace {netns}: Operation not permitted")
        if netns not in {there for there, _ in self.inside} | set(self.there):
            raise NoNamespace(f"there is no network namespace {netns}")

    def _ask(self, what: str) -> None:
        self.reads.append(what)
        if len(self.reads) == self.fail_read_at:
            raise IoFailure(f"cannot read {what}: Input/output error")

    @contextlib.contextmanager
    def _change(self, what: str, *, looked_after: bool = False) -> Iterator[None]:
        self.calls.append(what)
        failing = len(self.calls) == self.fail_at
        if not failing or self.late:
            yield
        if failing and not (self.late and looked_after):
            raise IoFailure(f"{what}: Operation not permitted")
