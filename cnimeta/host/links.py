"""Links and traffic control through pyroute2, which is imported when the first of it is needed (145 ms).

Looking up and removing a link, all that DEL does, are single requests and do without it.
"""

from __future__ import annotations

import contextlib
import errno
import os
from _socket import if_nametoindex

from cnimeta._record import NamedTuple
from cnimeta.errors import IoFailure, shown
from cnimeta.host.htb import HANDLE, LEAF, SHAPED_CLASS, Classes, Rule, keys_of, protocol, texts
from cnimeta.host.netlink import Link as Link
from cnimeta.host.netlink import link_of, remove_link
from cnimeta.host.netns import entered

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from typing import Any, TypeVar

    T = TypeVar("T")

ROOT, INGRESS_PARENT = 0xFFFFFFFF, 0xFFFF0000
_QUEUE_LENGTH = 1000
_ETH_P_ALL = 0x0003


class Queue(NamedTuple):
    """A queueing discipline as the kernel has it. rate, limit and buffer are tbf's, else 0."""

    kind: str
    handle: int
    parent: int
    rate: int = 0
    limit: int = 0
    buffer: int = 0


GONE = -1
"""Where a filter redirects to whose interface was removed: the kernel drops every packet it matches."""


class Classifier(NamedTuple):
    """A filter: its kind, priority, and the ifindex it redirects to (0: it does not redirect; GONE)."""

    kind: str
    priority: int
    redirect: int = 0


class RouteLinks:
    """The Links adapter. Failures are IoFailure (code 5) naming what was asked."""

    def __init__(self) -> None:
        self._route: Any = None

    def index_of(self, name: str) -> int:
        """The ifindex of `name` here, 0 when there is none. No pyroute2."""
        try:
            return if_nametoindex(name)
        except OSError:
            return 0

    def in_container(self, netns: str, ifname: str) -> Link | None:
        """An interface inside the namespace at `netns`, None when there is none.

        IoFailure when the namespace cannot be entered.
        """
        from pyroute2 import IPRoute

        try:
            with entered(netns), IPRoute() as route:
                return _only(route.get_links(ifname=ifname))
        except _refusals() as error:
            if _errno(error) == errno.ENODEV:
                return None
            if isinstance(error, OSError) and error.filename:
                raise IoFailure(f"cannot enter CNI_NETNS {shown(netns)}: {error.strerror or error}") from None
            raise _failure("look up", ifname, error) from None

    @contextlib.contextmanager
    def within(self, netns: str) -> Iterator[RouteLinks]:
        """The links of the namespace at `netns`, for a block that runs there."""
        with entered(netns):
            yield RouteLinks()

    def get(self, *, index: int = 0, name: str = "") -> Link | None:
        """An interface here by index or name, None when there is none."""
        found = index or self.index_of(name)
        return link_of(found) if found else None

    def ifbs(self) -> list[Link]:
        """Every ifb here."""
        return [link for link in map(_link, self._open().get_links()) if link.kind == "ifb"]

    def add_ifb(self, name: str, mtu: int, alias: str) -> Link:
        """Make an ifb (or take the one of that name), up, with `mtu` and `alias`.

        A new one gets its address from here, so that it need not be asked for.
        """
        route, index = self._open(), self.index_of(name)
        mac = ""
        if not index:
            mac = ":".join(f"{octet:02x}" for octet in (0x02, *os.urandom(5)))
            keys = {"ifname": name, "kind": "ifb", "mtu": mtu, "txqlen": 0, "address": mac}
            self._do("make", name, lambda: route.link("add", **keys))
            index = self.index_of(name)
        self._do("set up", name, lambda: route.link("set", index=index, state="up", mtu=mtu, ifalias=alias))
        if mac and index:
            return Link(index, name, "ifb", mac, mtu, 0, alias)
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
        """The queueing disciplines of an interface."""
        return [_queue(item) for item in self._open().get_qdiscs(index=index)]

    def set_bucket(self, index: int, rate: int, burst: int, limit: int) -> None:
        """A tbf as root of the interface, in place of any other; an existing tbf changes without losing packets."""
        self._do(
            "shape",
            str(index),
            lambda: self._open().tc(
                "replace", "tbf", index=index, handle=HANDLE, parent=ROOT, rate=rate, burst=burst, limit=limit
            ),
        )

    def classes(self, index: int) -> Classes | None:
        """What set_classes made, None when there is no such class or its queue is of another kind."""
        route = self._open()
        roots = [item for item in route.get_qdiscs(index=index) if item["handle"] in (HANDLE, LEAF)]
        options = {item.get_attr("TCA_KIND"): item.get_attr("TCA_OPTIONS") for item in roots}
        shaped = next((item for item in route.get_classes(index) if item["handle"] == SHAPED_CLASS), None)
        if shaped is None or not options.get("htb") or not options.get("bfifo"):
            return None
        numbers = shaped.get_attr("TCA_OPTIONS").get_attr("TCA_HTB_PARMS")
        default = options["htb"].get_attr("TCA_HTB_INIT")["defcls"]
        rules = {rule for rule in map(_rule, route.get_filters(index=index, parent=HANDLE)) if rule is not None}
        rate, buffer, waiting = numbers["rate"], numbers["buffer"], options["bfifo"]["limit"]
        return Classes(rate, 0, buffer, waiting, default, tuple(sorted(rules)))

    def set_classes(self, index: int, wanted: Classes) -> None:
        """An htb as root, in place of any other: one class with the bucket, the rest unlimited."""
        route, what = self._open(), str(index)
        self.clear(index)
        # htb's queue for unlimited traffic is as long as the interface's; 0 would drop it (plugins#1097).
        self._do("shape", what, lambda: route.link("set", index=index, txqlen=_QUEUE_LENGTH))
        self._do("shape", what, lambda: route.tc("add", "htb", index=index, handle=HANDLE, default=wanted.default))
        self._put_class("add", index, wanted)
        for rule in wanted.rules:
            self._do("classify", what, lambda rule=rule: self._add_rule(index, rule))  # type: ignore[misc]

    def change_classes(self, index: int, wanted: Classes) -> None:
        """Other numbers for the class that is there; packets that wait stay."""
        self._put_class("change", index, wanted)

    def _put_class(self, verb: str, index: int, wanted: Classes) -> None:
        from pyroute2.netlink.rtnl.tcmsg import plugins

        plugins.setdefault("bfifo", plugins["pfifo"])  # the kernel has one layout of options for both
        route, rate, burst = self._open(), wanted.rate, wanted.burst
        keys = {"rate": rate, "ceil": rate, "burst": burst, "cburst": burst, "mtu": 1600, "quantum": 60000}
        place = {"index": index, "handle": SHAPED_CLASS, "parent": HANDLE}
        self._do("shape", str(index), lambda: route.tc(f"{verb}-class", "htb", **place, **keys))
        leaf = {"index": index, "handle": LEAF, "parent": SHAPED_CLASS, "limit": wanted.waiting}
        self._do("shape", str(index), lambda: route.tc(verb, "bfifo", **leaf))

    def _add_rule(self, index: int, rule: Rule) -> None:
        self._open().tc(
            "add-filter",
            "u32",
            index=index,
            parent=HANDLE,
            prio=rule.priority,
            protocol=protocol(rule),
            target=rule.target,
            keys=texts(rule),
        )

    def clear(self, index: int) -> None:
        """Remove the root queueing discipline; the default one is fine."""
        missing = (errno.ENOENT, errno.EINVAL, errno.ENODEV)
        self._do("clear", str(index), lambda: self._open().tc("del", index=index, parent=ROOT), ignore=missing)

    def add_ingress(self, index: int) -> None:
        """An ingress queueing discipline, where filters for arriving packets go."""
        self._do(
            "make ingress of", str(index), lambda: self._open().tc("add", "ingress", index=index, handle=INGRESS_PARENT)
        )

    def ingress_filters(self, index: int) -> list[Classifier]:
        """The filters for arriving packets."""
        found = {}
        for item in self._open().get_filters(index=index, parent=INGRESS_PARENT | 0xFFF2):
            classifier = _classifier(item)
            if classifier is None:
                continue
            found[classifier.priority, classifier.redirect] = classifier
        return list(found.values())

    def add_redirect(self, index: int, target: int, priority: int) -> None:
        """Send everything that arrives at `index` through `target`."""
        action = {"kind": "mirred", "direction": "egress", "action": "redirect", "ifindex": target}
        self._do(
            "redirect",
            str(index),
            lambda: self._open().tc(
                "add-filter",
                "u32",
                index=index,
                parent=INGRESS_PARENT | 0xFFF2,
                prio=priority,
                protocol=_ETH_P_ALL,
                target=0x10001,
                keys=["0x0/0x0+0"],
                action=action,
            ),
        )

    def remove_filters(self, index: int, priority: int) -> None:
        """Remove the arriving packets' filters of one priority; missing is fine."""
        self._do(
            "clear ingress of",
            str(index),
            lambda: self._open().tc(
                "del-filter", index=index, parent=INGRESS_PARENT | 0xFFF2, prio=priority, protocol=_ETH_P_ALL
            ),
            ignore=(errno.ENOENT, errno.EINVAL, errno.ENODEV),
        )

    def remove_ingress(self, index: int) -> None:
        """Remove the ingress queueing discipline and its filters; missing is fine."""
        missing = (errno.ENOENT, errno.EINVAL, errno.ENODEV)
        self._do(
            "clear ingress of",
            str(index),
            lambda: self._open().tc("del", "ingress", index=index, handle=INGRESS_PARENT),
            ignore=missing,
        )

    def _open(self) -> Any:
        if self._route is None:
            from pyroute2 import IPRoute

            self._route = IPRoute()
        return self._route

    @staticmethod
    def _do(verb: str, what: str, call: Callable[[], T], ignore: Sequence[int] = ()) -> T | None:
        try:
            return call()
        except _refusals() as error:
            if _errno(error) in ignore:
                return None
            raise _failure(verb, what, error) from None


def ticks_per_us() -> float:
    """The kernel's clock for traffic control: ticks per microsecond, from /proc/net/psched; 15.625 where unreadable."""
    try:
        with open("/proc/net/psched", encoding="ascii") as file:
            to_us, to_ticks, resolution, _ = (int(word, 16) for word in file.read().split())
        return to_us / to_ticks * resolution / 1_000_000
    except (OSError, ValueError, ZeroDivisionError):
        return 15.625


def _refusals() -> tuple[type[Exception], ...]:
    """What pyroute2 raises when the kernel refuses."""
    from pyroute2.netlink.exceptions import NetlinkError

    return NetlinkError, OSError


def _errno(error: Exception) -> int:
    """The kernel's errno of a pyroute2 NetlinkError or an OSError, else 0."""
    code = getattr(error, "code", None)
    return code if isinstance(code, int) else (getattr(error, "errno", None) or 0)


def _failure(verb: str, what: str, error: Exception) -> IoFailure:
    number = _errno(error)
    reason = os.strerror(number) if number else f"{type(error).__name__}: {error}"
    return IoFailure(f"cannot {verb} interface {shown(what)}: {reason}")


def _only(messages: Any) -> Link | None:
    return next((_link(message) for message in messages), None)


def _link(message: Any) -> Link:
    info = message.get_attr("IFLA_LINKINFO")
    kind = (info.get_attr("IFLA_INFO_KIND") if info else "") or ""
    return Link(
        message["index"],
        message.get_attr("IFLA_IFNAME") or "",
        kind,
        message.get_attr("IFLA_ADDRESS") or "",
        message.get_attr("IFLA_MTU") or 0,
        (message.get_attr("IFLA_LINK") or 0) if kind == "veth" else 0,
        message.get_attr("IFLA_IFALIAS") or "",
    )


def _queue(message: Any) -> Queue:
    kind = message.get_attr("TCA_KIND") or ""
    options = message.get_attr("TCA_OPTIONS") if kind == "tbf" else None
    numbers = options.get_attr("TCA_TBF_PARMS") if options else None
    if numbers is None:
        return Queue(kind, message["handle"], message["parent"])
    return Queue(kind, message["handle"], message["parent"], numbers["rate"], numbers["limit"], numbers["buffer"])


def _classifier(message: Any) -> Classifier | None:
    """None for what only holds filters: the entry of a priority, and u32's hash tables."""
    kind = message.get_attr("TCA_KIND") or ""
    target = 0
    options = message.get_attr("TCA_OPTIONS")
    if options is None or (kind == "u32" and options.get_attr("TCA_U32_SEL") is None):
        return None
    if kind != "u32":
        return Classifier(kind, message["info"] >> 16)
    actions = options.get_attr("TCA_U32_ACT")
    action = actions.get_attr("TCA_ACT_PRIO_1") if actions else None
    if action is not None and action.get_attr("TCA_ACT_KIND") == "mirred":
        numbers = action.get_attr("TCA_ACT_OPTIONS").get_attr("TCA_MIRRED_PARMS")
        target = numbers["ifindex"] or GONE
    return Classifier(kind, message["info"] >> 16, target)


def _rule(message: Any) -> Rule | None:
    """A u32 filter by subnet. The keys come from the bytes: pyroute2 0.9 reads them four bytes off their place."""
    options = message.get_attr("TCA_OPTIONS") if message.get_attr("TCA_KIND") == "u32" else None
    if not options:
        return None
    selector = options.get_attr("TCA_U32_SEL")
    if selector is None:
        return None
    raw = bytes(selector.data[selector.offset : selector.offset + selector.length])
    return Rule(message["info"] >> 16, options.get_attr("TCA_U32_CLASSID"), keys_of(raw))
