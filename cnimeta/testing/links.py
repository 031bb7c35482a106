"""Network interfaces in memory, with the kernel's rules that shaping depends on. Ships for tests of plugins."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from cnimeta.errors import IoFailure
from cnimeta.host.links.htb import HANDLE
from cnimeta.host.links.rtnetlink import Link
from cnimeta.host.links.tc import GONE, INGRESS, ROOT, Classifier, Queue

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cnimeta.host.links.htb import Classes

_TICKS_PER_US = 15.625


class FakeLinks:
    """Links for tests. `fail_at` makes the n-th change (from 1) an IoFailure; `calls` names every change made."""

    def __init__(self) -> None:
        self.links: dict[int, Link] = {}
        self.inside: dict[tuple[str, str], Link] = {}
        self.waiting: dict[int, list[Queue]] = {}
        self.filters: dict[int, list[Classifier]] = {}
        self.classed: dict[int, Classes] = {}
        self.calls: list[str] = []
        self.there: dict[str, FakeLinks] = {}
        self.fail_at = 0
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

    def link(self, name: str, kind: str, mtu: int = 1500, alias: str = "") -> Link:
        """An interface here."""
        made = Link(self._next, name, kind, f"02:00:00:00:01:{self._next:02x}", mtu, 0, alias)
        self.links[made.ifindex] = made
        self._next += 1
        return made

    def dump(self) -> dict[str, tuple[str, ...]]:
        """Per interface, in words: its queues and filters. Equal dumps mean equal state."""
        names = {index: link.name for index, link in self.links.items()}
        return {
            link.name: (
                *(f"{q.kind} rate {q.rate} limit {q.limit} buffer {q.buffer}" for q in self.waiting.get(index, [])),
                *(
                    f"prio {c.priority} redirect {names.get(c.redirect, 'gone')}"
                    if c.redirect
                    else f"prio {c.priority} {c.kind}"
                    for c in self.filters.get(index, [])
                ),
            )
            for index, link in sorted(self.links.items())
        }

    def index_of(self, name: str) -> int:
        """The ifindex, 0 when there is none."""
        return next((index for index, link in self.links.items() if link.name == name), 0)

    def in_container(self, netns: str, ifname: str) -> Link | None:
        """What `veth` put there. IoFailure for a namespace in which nothing is."""
        if netns not in {there for there, _ in self.inside}:
            raise IoFailure(f"cannot enter CNI_NETNS {netns}: No such file or directory")
        return self.inside.get((netns, ifname))

    @contextlib.contextmanager
    def within(self, netns: str) -> Iterator[FakeLinks]:
        """Links of their own for each namespace."""
        yield self.there.setdefault(netns, FakeLinks())

    def get(self, *, index: int = 0, name: str = "") -> Link | None:
        """An interface here."""
        return self.links.get(index or self.index_of(name))

    def ifbs(self) -> list[Link]:
        """Every ifb here."""
        return [link for link in self.links.values() if link.kind == "ifb"]

    def add_ifb(self, name: str, mtu: int, alias: str) -> Link:
        """Make it, or take the one of that name."""
        self._change(f"add_ifb {name}")
        index = self.index_of(name) or self.link(name, "ifb").ifindex
        self.links[index] = self.links[index]._replace(mtu=mtu, alias=alias)
        return self.links[index]

    def remove(self, name: str) -> None:
        """Remove it with its queues. As in the kernel, filters that redirect to it stay and redirect to GONE."""
        index = self.index_of(name)
        if index:
            self._change(f"remove {name}")
            for table in (self.links, self.waiting, self.filters, self.classed):
                table.pop(index, None)
            for other, filters in self.filters.items():
                self.filters[other] = [c._replace(redirect=GONE) if c.redirect == index else c for c in filters]

    def queues(self, index: int) -> list[Queue]:
        """The queueing disciplines."""
        return list(self.waiting.get(index, []))

    def set_bucket(self, index: int, rate: int, burst: int, limit: int) -> None:
        """A tbf as root."""
        self._change(f"set_bucket {index}")
        buffer = int(int(1e6 * burst / rate) * _TICKS_PER_US)
        self._set_root(index, Queue("tbf", HANDLE, ROOT, rate, limit, buffer))

    def classes(self, index: int) -> Classes | None:
        """What set_classes made, as the kernel tells it."""
        found = self.classed.get(index)
        return None if found is None else found._replace(burst=0)

    def set_classes(self, index: int, wanted: Classes) -> None:
        """An htb as root."""
        self._change(f"set_classes {index}")
        self.classed[index] = wanted
        self._set_root(index, Queue("htb", HANDLE, ROOT))

    def change_classes(self, index: int, wanted: Classes) -> None:
        """As the kernel: not without a class."""
        self._change(f"change_classes {index}")
        if index not in self.classed:
            raise IoFailure(f"cannot shape interface {index}: No such file or directory")
        self.classed[index] = wanted._replace(default=self.classed[index].default, rules=self.classed[index].rules)

    def clear(self, index: int) -> None:
        """Remove the root queueing discipline."""
        self._change(f"clear {index}")
        self.waiting[index] = [queue for queue in self.queues(index) if queue.parent != ROOT]
        self.classed.pop(index, None)

    def add_ingress(self, index: int) -> None:
        """As the kernel: File exists when there is an ingress or clsact."""
        self._change(f"add_ingress {index}")
        if any(queue.kind in ("ingress", "clsact") for queue in self.queues(index)):
            raise IoFailure(f"cannot make ingress of interface {index}: File exists")
        self.waiting.setdefault(index, []).append(Queue("ingress", INGRESS, 0xFFFFFFF1))

    def remove_ingress(self, index: int) -> None:
        """Remove it and its filters."""
        self._change(f"remove_ingress {index}")
        self.waiting[index] = [queue for queue in self.queues(index) if queue.kind != "ingress"]
        self.filters.pop(index, None)

    def ingress_filters(self, index: int) -> list[Classifier]:
        """The filters for arriving packets."""
        return list(self.filters.get(index, []))

    def add_redirect(self, index: int, target: int, priority: int) -> None:
        """As the kernel: needs an ingress or clsact."""
        self._change(f"add_redirect {index}")
        if not any(queue.kind in ("ingress", "clsact") for queue in self.queues(index)):
            raise IoFailure(f"cannot redirect interface {index}: Invalid argument")
        self.filters.setdefault(index, []).append(Classifier("u32", priority, target))

    def remove_filters(self, index: int, priority: int) -> None:
        """Remove the filters of one priority."""
        self._change(f"remove_filters {index}")
        self.filters[index] = [c for c in self.ingress_filters(index) if c.priority != priority]

    def _set_root(self, index: int, queue: Queue) -> None:
        self.waiting[index] = [queue, *(old for old in self.queues(index) if old.parent != ROOT)]

    def _change(self, what: str) -> None:
        self.calls.append(what)
        if len(self.calls) == self.fail_at:
            raise IoFailure(f"{what}: Operation not permitted")
