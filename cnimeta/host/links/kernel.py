"""Links and traffic control of the node: the Links adapter, on single netlink requests."""

from __future__ import annotations

import errno
import os

from cnimeta.errors import CniError, IoFailure, shown
from cnimeta.host import netlink
from cnimeta.host.links import tc
from cnimeta.host.links.htb import LEAF
from cnimeta.host.links.removal import remove_link
from cnimeta.host.links.rtnetlink import link_named, link_of, link_seen_in, links_of_kind, refused
from cnimeta.host.links.values import HANDLE, INGRESS_PARENT, ROOT, Link
from cnimeta.host.netlink import ACK, DUMP, ROUTE
from cnimeta.host.netns import entered
from cnimeta.host.reading import read_file, told

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cnimeta.host.links.values import Classes, Classifier, Queue
    from cnimeta.host.netlink import Ask, Message, Order, Tell

_QUEUE_LENGTH = 1000
_MISSING = (errno.ENOENT, errno.EINVAL, errno.ENODEV)
_PSCHED = "/proc/net/psched"


class RouteLinks:
    """The Links adapter. Failures are IoFailure (code 5) naming what was asked.

    `ask`, `tell` and `remove_link` are how the kernel is reached; tests put failures there.
    """

    def __init__(
        self,
        ask: Ask = netlink.ask,
        tell: Tell = netlink.tell,
        remove_link: Callable[[int, str], None] = remove_link,
        psched: str = _PSCHED,
    ) -> None:
        self._ask = ask
        self._tell = tell
        self._remove_link = remove_link
        self._psched = psched
        self._ticks_per_us = 0.0

    def ticks_per_us(self) -> float:
        """The kernel's clock for traffic control: ticks per microsecond."""
        if not self._ticks_per_us:
            self._ticks_per_us = self._read_clock()
        return self._ticks_per_us

    def _read_clock(self) -> float:
        data = read_file(self._psched)
        try:
            to_us, to_ticks, resolution, _ = (int(word, 16) for word in (data or b"").split())
            return to_us / to_ticks * resolution / 1_000_000
        except (ValueError, ZeroDivisionError):
            raise IoFailure(f"{self._psched} does not tell the clock of traffic control: has the kernel any?") from None

    def in_container(self, netns: str, ifname: str) -> Link | None:
        """An interface inside the namespace at `netns`, None when there is none.

        NoNamespace when there is no such namespace, IoFailure when it cannot be entered.
        """
        seen = link_seen_in(netns, ifname, self._ask)
        if seen is not None:
            return seen
        with entered(netns):
            return link_named(ifname, self._ask)

    def within(self, netns: str) -> _Within:
        """The links of the namespace at `netns`, for a block that runs there. Raises as `in_container`."""
        return _Within(self, netns)

    def get(self, *, index: int = 0, name: str = "") -> Link | None:
        """An interface here by index or name, None when there is none."""
        return link_of(index, self._ask) if index else link_named(name, self._ask)

    def ifbs(self) -> list[Link]:
        """Every ifb here."""
        return links_of_kind("ifb", self._ask)

    def add_ifb(self, name: str, mtu: int, alias: str) -> Link:
        """Make an ifb (or take the one of that name), up, with `mtu` and `alias`.

        A new one gets its address from here, so that it need not be asked for, and its alias in the same call, as the
        kernel does not take one when making a link.
        """
        mac = b"\x02" + os.urandom(5)
        orders = tc.make_ifb(name, mtu, mac), tc.label(name, alias)
        if self._do("make", name, *orders, ignore=(errno.EEXIST,)) == errno.EEXIST:
            self._do("set up", name, tc.set_up(name, alias, mtu))
        link = self.get(name=name)
        if link is None:
            raise IoFailure(f"interface {shown(name)} vanished while it was set up")
        return link

    def remove(self, name: str) -> None:
        """Remove an interface; missing is fine."""
        link = self.get(name=name)
        if link is None:
            return
        try:
            self._remove_link(link.ifindex, name)
        except CniError:  # the kernel may have done it all the same, and only the answer is lost
            if self.get(index=link.ifindex) is not None:
                raise

    def queues(self, index: int) -> list[Queue]:
        """The root and the ingress queueing discipline of an interface, without the kernel's own."""
        return [
            tc.queue_of(message) for parent in (ROOT, INGRESS_PARENT) for message in self._queue(index, parent=parent)
        ]

    def set_bucket(self, index: int, rate: int, burst: int, limit: int) -> None:
        """A tbf as root of the interface, in place of any other; an existing tbf changes without losing packets."""
        self._do("shape", str(index), tc.token_bucket(index, rate, burst, limit, self.ticks_per_us()))

    def classes(self, index: int) -> Classes | None:
        """What set_classes made, None when there is no such class or its queue is of another kind."""
        queues = [message for handle in (HANDLE, LEAF) for message in self._queue(index, handle=handle)]
        return tc.classes_of(queues, self._list(tc.GET_CLASS, index), self._list(tc.GET_FILTER, index, HANDLE))

    def set_classes(self, index: int, wanted: Classes) -> None:
        """An htb as root, in place of any other: one class with the bucket, the rest unlimited."""
        self.clear(index)
        # htb's queue for unlimited traffic is as long as the interface's; 0 would drop it (plugins#1097).
        length = tc.queue_length(index, _QUEUE_LENGTH)
        rules = [tc.by_subnet(index, rule) for rule in wanted.rules]
        orders = (length, tc.hierarchy(index, wanted.default), *tc.shaped_class(index, wanted), *rules)
        self._do("shape", str(index), *orders)

    def change_classes(self, index: int, wanted: Classes) -> None:
        """Other numbers for the class that is there; packets that wait stay."""
        self._do("shape", str(index), *tc.shaped_class(index, wanted))

    def put_back(self, link: Link, root: Queue | None) -> None:
        """Give an interface the root queueing discipline and the queue length back that were read of it.

        What hung in a discipline with classes stays lost.
        """
        index = link.ifindex
        now = next((queue for queue in self.queues(index) if queue.parent == ROOT), None)
        same = root is not None and now is not None and (now.kind, now.handle) == (root.kind, root.handle)
        replaced = not same or (root is not None and root.handle == HANDLE)  # nothing here is made with other handles
        if replaced and not (same and root is not None and root.kind == "tbf"):
            self.clear(index)  # a tbf changes in place, and the packets that wait stay
        orders = [tc.queue_length(index, link.queue_length)]
        if replaced and root is not None:
            orders.append(tc.same_again(index, root))
        self._do("shape", link.name, *orders)

    def clear(self, index: int) -> None:
        """Remove the root queueing discipline; the default one is fine."""
        self._do("clear", str(index), tc.no_root(index), ignore=_MISSING)

    def add_ingress(self, index: int) -> None:
        """An ingress queueing discipline, where filters for arriving packets go."""
        self._do("make ingress of", str(index), tc.ingress(index))

    def remove_ingress(self, index: int) -> None:
        """Remove the ingress queueing discipline and its filters; missing is fine."""
        self._do("clear ingress of", str(index), tc.no_ingress(index), ignore=_MISSING)

    def ingress_filters(self, index: int) -> list[Classifier]:
        """The filters for arriving packets."""
        found = {}
        for classifier in map(tc.classifier_of, self._list(tc.GET_FILTER, index, tc.ARRIVING)):
            if classifier is not None:
                found[classifier.priority, classifier.redirect] = classifier
        return list(found.values())

    def add_redirect(self, index: int, target: int, priority: int) -> None:
        """Send everything that arrives at `index` through `target`."""
        self._do("redirect", str(index), tc.redirect(index, target, priority))

    def remove_filters(self, index: int, priority: int) -> None:
        """Remove the arriving packets' filters of one priority; missing is fine."""
        self._do("clear ingress of", str(index), tc.no_filters(index, priority), ignore=_MISSING)

    def _do(self, verb: str, what: str, *orders: Order, ignore: tuple[int, ...] = ()) -> int:
        """In one call, so that a kill comes before or after all of them. Returns an errno of `ignore`, or 0."""
        try:
            self._tell(ROUTE, orders)
        except OSError as error:
            if error.errno not in ignore:
                raise refused(verb, what, error) from None
            return error.errno or 0
        return 0

    def _queue(self, index: int, *, parent: int = 0, handle: int = 0) -> list[Message]:
        """One queueing discipline, or none. A dump would list those of every interface of the node."""
        where = tc.place(index, parent, handle)
        return self._read(f"the queues of interface {index}", tc.GET_QUEUE, ACK | tc.ECHO, where)

    def _list(self, kind: int, index: int, parent: int = 0) -> list[Message]:
        """The classes or filters of one interface."""
        return self._read(f"the filters of interface {index}", kind, DUMP, tc.place(index, parent))

    def _read(self, what: str, kind: int, flags: int, body: bytes) -> list[Message]:
        return told(what, lambda: self._ask(ROUTE, kind, flags, body), _MISSING) or []


class _Within:
    """The same links for a `with` block: they are those of the namespace that asks."""

    def __init__(self, links: RouteLinks, netns: str) -> None:
        self._links = links
        self._place = entered(netns)

    def __enter__(self) -> RouteLinks:
        self._place.__enter__()
        return self._links

    def __exit__(self, *error: object) -> None:
        self._place.__exit__(*error)
