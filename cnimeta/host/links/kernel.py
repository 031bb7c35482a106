"""Links and traffic control of the node: the Links adapter.

Looking up, listing and removing links, all that DEL and GC do, is done without pyroute2 and its import.
"""

from __future__ import annotations

import contextlib
import errno
import os
from _socket import if_nametoindex

from cnimeta.errors import IoFailure, shown
from cnimeta.host.links import tc
from cnimeta.host.links.htb import HANDLE, LEAF
from cnimeta.host.links.removal import remove_link
from cnimeta.host.links.rtnetlink import Link, link_named, link_of, links_of_kind, refused
from cnimeta.host.netlink import ACK, DUMP, ROUTE, ask, tell
from cnimeta.host.netns import entered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterator

    from cnimeta.host.links.htb import Classes
    from cnimeta.host.links.tc import Classifier, Queue
    from cnimeta.host.netlink import Message

_QUEUE_LENGTH = 1000
_MISSING = (errno.ENOENT, errno.EINVAL, errno.ENODEV)


class RouteLinks:
    """The Links adapter. Failures are IoFailure (code 5) naming what was asked."""

    def index_of(self, name: str) -> int:
        """The ifindex of `name` here, 0 when there is none."""
        try:
            return if_nametoindex(name)
        except OSError:
            return 0

    def in_container(self, netns: str, ifname: str) -> Link | None:
        """An interface inside the namespace at `netns`, None when there is none.

        IoFailure when the namespace cannot be entered.
        """
        try:
            with entered(netns):
                return link_named(ifname)
        except OSError as error:
            raise IoFailure(f"cannot enter CNI_NETNS {shown(netns)}: {error.strerror or error}") from None

    @contextlib.contextmanager
    def within(self, netns: str) -> Iterator[RouteLinks]:
        """The links of the namespace at `netns`, for a block that runs there."""
        try:
            with entered(netns):
                yield RouteLinks()
        except OSError as error:
            raise IoFailure(f"cannot work in CNI_NETNS {shown(netns)}: {error.strerror or error}") from None

    def get(self, *, index: int = 0, name: str = "") -> Link | None:
        """An interface here by index or name, None when there is none."""
        found = index or self.index_of(name)
        return link_of(found) if found else None

    def ifbs(self) -> list[Link]:
        """Every ifb here."""
        return links_of_kind("ifb")

    def add_ifb(self, name: str, mtu: int, alias: str) -> Link:
        """Make an ifb (or take the one of that name), up, with `mtu` and `alias`.

        A new one gets its address from here, so that it need not be asked for, and its alias in the same call, as the
        kernel does not take one when making a link.
        """
        index = self.index_of(name)
        if not index:
            mac = ":".join(f"{octet:02x}" for octet in (0x02, *os.urandom(5)))
            label = tc.set_link({"IFLA_IFNAME": name, "IFLA_IFALIAS": alias})
            _do("make", name, tc.make_ifb(name, mtu, mac), label)
            index = self.index_of(name)
            if index:
                return Link(index, name, "ifb", mac, mtu, 0, alias)
        _do("set up", name, tc.set_link({"IFLA_MTU": mtu, "IFLA_IFALIAS": alias}, index=index, up=True))
        link = self.get(index=index)
        if link is None:
            raise IoFailure(f"interface {shown(name)} vanished while it was set up")
        return link

    def remove(self, name: str) -> None:
        """Remove an interface; missing is fine."""
        index = self.index_of(name)
        if index:
            remove_link(index, name)

    def queues(self, index: int) -> list[Queue]:
        """The root and the ingress queueing discipline of an interface, without the kernel's own."""
        return [
            tc.queue_of(message) for parent in (tc.ROOT, tc.INGRESS_PARENT) for message in _queue(index, parent=parent)
        ]

    def set_bucket(self, index: int, rate: int, burst: int, limit: int) -> None:
        """A tbf as root of the interface, in place of any other; an existing tbf changes without losing packets."""
        _do("shape", str(index), tc.token_bucket(index, rate, burst, limit, ticks_per_us()))

    def classes(self, index: int) -> Classes | None:
        """What set_classes made, None when there is no such class or its queue is of another kind."""
        queues = [message for handle in (HANDLE, LEAF) for message in _queue(index, handle=handle)]
        return tc.classes_of(queues, _list(tc.GET_CLASS, index), _list(tc.GET_FILTER, index, HANDLE))

    def set_classes(self, index: int, wanted: Classes) -> None:
        """An htb as root, in place of any other: one class with the bucket, the rest unlimited."""
        self.clear(index)
        # htb's queue for unlimited traffic is as long as the interface's; 0 would drop it (plugins#1097).
        length = tc.set_link({"IFLA_TXQLEN": _QUEUE_LENGTH}, index=index)
        rules = [tc.by_subnet(index, rule) for rule in wanted.rules]
        _do("shape", str(index), length, tc.hierarchy(index, wanted.default), *tc.shaped_class(index, wanted), *rules)

    def change_classes(self, index: int, wanted: Classes) -> None:
        """Other numbers for the class that is there; packets that wait stay."""
        _do("shape", str(index), *tc.shaped_class(index, wanted))

    def clear(self, index: int) -> None:
        """Remove the root queueing discipline; the default one is fine."""
        _do("clear", str(index), tc.no_root(index), ignore=_MISSING)

    def add_ingress(self, index: int) -> None:
        """An ingress queueing discipline, where filters for arriving packets go."""
        _do("make ingress of", str(index), tc.ingress(index))

    def remove_ingress(self, index: int) -> None:
        """Remove the ingress queueing discipline and its filters; missing is fine."""
        _do("clear ingress of", str(index), tc.no_ingress(index), ignore=_MISSING)

    def ingress_filters(self, index: int) -> list[Classifier]:
        """The filters for arriving packets."""
        found = {}
        for classifier in map(tc.classifier_of, _list(tc.GET_FILTER, index, tc.ARRIVING)):
            if classifier is not None:
                found[classifier.priority, classifier.redirect] = classifier
        return list(found.values())

    def add_redirect(self, index: int, target: int, priority: int) -> None:
        """Send everything that arrives at `index` through `target`."""
        _do("redirect", str(index), tc.redirect(index, target, priority))

    def remove_filters(self, index: int, priority: int) -> None:
        """Remove the arriving packets' filters of one priority; missing is fine."""
        _do("clear ingress of", str(index), tc.no_filters(index, priority), ignore=_MISSING)


def ticks_per_us() -> float:
    """The kernel's clock for traffic control: ticks per microsecond, from /proc/net/psched; 15.625 where unreadable."""
    try:
        with open("/proc/net/psched", encoding="ascii") as file:
            to_us, to_ticks, resolution, _ = (int(word, 16) for word in file.read().split())
        return to_us / to_ticks * resolution / 1_000_000
    except (OSError, ValueError, ZeroDivisionError):
        return 15.625


def _do(verb: str, what: str, *orders: tc.Order, ignore: tuple[int, ...] = ()) -> None:
    """In one call, so that a kill comes before or after all of them."""
    try:
        tell(ROUTE, orders)
    except OSError as error:
        if error.errno not in ignore:
            raise refused(verb, what, error) from None


def _queue(index: int, *, parent: int = 0, handle: int = 0) -> list[Message]:
    """One queueing discipline, or none. A dump would list those of every interface of the node."""
    try:
        return ask(ROUTE, tc.GET_QUEUE, ACK | tc.ECHO, tc.place(index, parent, handle))
    except OSError as error:
        if error.errno in _MISSING:
            return []
        raise refused("read the queues of", str(index), error) from None


def _list(kind: int, index: int, parent: int = 0) -> list[Message]:
    """The classes or filters of one interface."""
    try:
        return ask(ROUTE, kind, DUMP, tc.place(index, parent))
    except OSError as error:
        if error.errno in _MISSING:
            return []
        raise refused("read the filters of", str(index), error) from None
