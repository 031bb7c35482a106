"""Bringing the kernel's queues in line with a plan, comparing them with it, and taking them away."""

from __future__ import annotations

from cnimeta.errors import CheckFailed, CniError
from cnimeta.host.links.htb import HANDLE, classes
from cnimeta.host.links.tc import GONE, ROOT
from cnimeta.spec.result import Interface
from cnimeta_plugins.bandwidth.plan import ALIAS_PREFIX, IFB_PREFIX, alias, ifb_name, owner_of, plan_shaping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection

    from cnimeta.host.links.htb import Classes
    from cnimeta.host.links.rtnetlink import Link
    from cnimeta.host.links.tc import Queue
    from cnimeta.host.protocols import Links
    from cnimeta_plugins.bandwidth.config import Settings
    from cnimeta_plugins.bandwidth.plan import Shape

    Key = tuple[str, str, str]
    """(network, container ID, ifname)"""

_PRIORITY = 1
_LATE_PRIORITY = 49152  # after the filters of others, which keep theirs
_TOLERANCE_TICKS = 1
_PROBE = "bwpprobe"


class Shaper:
    """The work of every verb on the given links: the host's, or those of the container's namespace at `netns`."""

    def __init__(self, links: Links, ticks_per_us: float, netns: str = "") -> None:
        self.links = links
        self.ticks_per_us = ticks_per_us
        self.netns = netns

    def moved(self, links: Links, netns: str) -> Shaper:
        """The same for the links of a container."""
        return Shaper(links, self.ticks_per_us, netns)

    def shape(self, key: Key, host: Link, settings: Settings) -> Interface | None:
        """Make it so, in place of what is there. Returns the ifb for the result, if the plan has one.

        A failure leaves no ifb behind.
        """
        plan = plan_shaping(settings, host.mtu, self.ticks_per_us, inside=bool(self.netns))
        queues = self.links.queues(host.ifindex)
        root = _root(queues)
        if plan.leaving is not None:
            self._set(host.ifindex, plan.leaving, root)
        elif _is_ours(root):
            self.links.clear(host.ifindex)
        name = self._name_for(key)
        if plan.arriving is None:
            self._release(host.ifindex, self.links.index_of(name))
            self.unshape(key)
            return None
        fresh = not self.links.index_of(name)
        try:
            ifb = self.links.add_ifb(name, host.mtu, alias(*key))
            self._set(ifb.ifindex, plan.arriving, None if fresh else _root(self.links.queues(ifb.ifindex)))
            self._redirect(host.ifindex, ifb.ifindex, queues)
        except CniError:
            if fresh:
                self.links.remove(name)
            raise
        return Interface(ifb.name, ifb.mac, sandbox=self.netns)

    def check(self, key: Key, host: Link, settings: Settings) -> None:
        """Raise CheckFailed (code 101) for the first difference."""
        plan = plan_shaping(settings, host.mtu, self.ticks_per_us, inside=bool(self.netns))
        name = self._name_for(key)
        index = self.links.index_of(name)
        if plan.leaving is not None:
            self._compare(host.name, host.ifindex, plan.leaving)
        elif _is_ours(_root(self.links.queues(host.ifindex))):
            raise CheckFailed(f"interface {host.name} is limited, and the configuration has no limit for it")
        if plan.arriving is None:
            if index:
                raise CheckFailed(f"the interface {name} is there, and the configuration has no limit for it")
            return
        if not index:
            raise CheckFailed(f"the interface {name} that limits what arrives at {host.name} is missing")
        self._compare(name, index, plan.arriving)
        if not any(queue.kind in ("ingress", "clsact") for queue in self.links.queues(host.ifindex)):
            raise CheckFailed(f"interface {host.name} has no ingress queueing discipline")
        if not any(classifier.redirect == index for classifier in self.links.ingress_filters(host.ifindex)):
            raise CheckFailed(f"interface {host.name} has no filter that redirects to {name}")

    def unshape(self, key: Key) -> None:
        """Remove the attachment's ifb; missing is fine."""
        for name in (ifb_name(key[0], key[1], key[2]), ifb_name(key[0], key[1])):
            index = self.links.index_of(name)
            if not index:
                continue
            link = self.links.get(index=index)
            if link is not None and _is_for(link, key):
                self.links.remove(name)

    def restore(self, key: Key, host: Link) -> None:
        """Take the attachment's queues and filters off an interface, which may outlive the attachment."""
        queues = self.links.queues(host.ifindex)
        if _is_ours(_root(queues)):
            self.links.clear(host.ifindex)
        kinds = [queue.kind for queue in queues]
        if "ingress" in kinds or "clsact" in kinds:
            self._release(host.ifindex, self.links.index_of(self._name_for(key)))
            if "ingress" in kinds and not self.links.ingress_filters(host.ifindex):
                self.links.remove_ingress(host.ifindex)

    def collect(self, network: str, valid: Collection[tuple[str, str]]) -> list[CniError]:
        """Remove the network's ifbs that are not in `valid`; returns what failed."""
        errors = []
        for link in self.links.ifbs():
            owner = owner_of(link.alias)
            if owner is None or owner[0] != network or (owner[1], owner[2]) in valid:
                continue
            try:
                self.links.remove(link.name)
            except CniError as error:
                errors.append(error)
        return errors

    def probe(self) -> None:
        """Make and remove an ifb with a bucket. Raises IoFailure (code 5)."""
        from os import getpid

        name = f"{_PROBE}{getpid()}"[:15]
        try:
            link = self.links.add_ifb(name, 1500, f"{ALIAS_PREFIX}probe")
            self.links.set_bucket(link.ifindex, 125_000, 3000, 6125)
        finally:
            self.links.remove(name)

    def _name_for(self, key: Key) -> str:
        """Upstream's name, unless another interface of the container has it."""
        network, container_id, ifname = key
        own = ifb_name(network, container_id, ifname)
        if self.links.index_of(own):
            return own
        name = ifb_name(network, container_id)
        index = self.links.index_of(name)
        link = self.links.get(index=index) if index else None
        return name if link is None or _is_for(link, key) else own

    def _set(self, index: int, shape: Shape, root: Queue | None) -> None:
        """Put the shape in place of `root`, the interface's root queue as far as it is not the kernel's own."""
        bucket = shape.bucket
        if shape.subnets:
            wanted = self._classes(shape)
            found = self.links.classes(index) if root is not None and root.kind == "htb" else None
            if found is not None and (found.default, found.rules) == (wanted.default, wanted.rules):
                self.links.change_classes(index, wanted)
            else:
                self.links.set_classes(index, wanted)
            return
        if root is not None and root.kind != "tbf" and root.handle:
            self.links.clear(index)
        self.links.set_bucket(index, bucket.rate, bucket.burst, bucket.limit)

    def _classes(self, shape: Shape) -> Classes:
        subnets = [(net.address.family, net.address.packed, net.prefix) for net in shape.subnets]
        rate, burst, limit = shape.bucket
        return classes(rate, burst, limit, self.ticks_per_us, shape.side, subnets, shape.only)

    def _redirect(self, index: int, target: int, queues: list[Queue]) -> None:
        """An ingress or clsact that is there stays, and so do its filters: eBPF network plugins have theirs there."""
        if not any(queue.kind in ("ingress", "clsact") for queue in queues):
            self.links.add_ingress(index)
            self.links.add_redirect(index, target, _PRIORITY)
            return
        classifiers = self.links.ingress_filters(index)
        if any(classifier.redirect == target for classifier in classifiers):
            return
        self._release(index, 0)
        others = [classifier for classifier in classifiers if classifier.redirect != GONE]
        priority = _LATE_PRIORITY if any(c.priority <= _PRIORITY for c in others) else _PRIORITY
        self.links.add_redirect(index, target, priority)

    def _release(self, index: int, ifb: int) -> None:
        """Remove the filters that redirect to `ifb` (0: to none) or to an ifb that is gone.

        The latter drop whatever arrives, so what a DEL left must go before the next ADD. A priority that somebody else
        uses too stays.
        """
        classifiers = self.links.ingress_filters(index)
        for priority in {classifier.priority for classifier in classifiers}:
            targets = [classifier.redirect for classifier in classifiers if classifier.priority == priority]
            if all(target == GONE or (ifb and target == ifb) for target in targets):
                self.links.remove_filters(index, priority)

    def _compare(self, name: str, index: int, shape: Shape) -> None:
        wanted = "htb" if shape.subnets else "tbf"
        root = _root(self.links.queues(index))
        if root is None or root.kind != wanted:
            raise CheckFailed(f"interface {name} has no {wanted} queueing discipline as its root")
        if wanted == "htb":
            _compare_classes(name, self.links.classes(index), self._classes(shape))
            return
        bucket = shape.bucket
        buffer = int(int(1e6 * bucket.burst / bucket.rate) * self.ticks_per_us)
        same = (root.rate, root.limit) == (bucket.rate, bucket.limit)
        if not same or abs(root.buffer - buffer) > _TOLERANCE_TICKS:
            raise CheckFailed(
                f"interface {name} is shaped to rate {root.rate}, limit {root.limit}, buffer {root.buffer};"
                f" expected {bucket.rate}, {bucket.limit}, {buffer} (bytes per second, bytes, ticks)"
            )


def _root(queues: list[Queue]) -> Queue | None:
    return next((queue for queue in queues if queue.parent == ROOT), None)


def _is_ours(root: Queue | None) -> bool:
    return root is not None and root.handle == HANDLE and root.kind in ("tbf", "htb")


def _compare_classes(name: str, found: Classes | None, wanted: Classes) -> None:
    if found is None:
        raise CheckFailed(f"interface {name} has no class for the traffic to limit, or its queue is not a bfifo")
    if (found.default, found.rules) != (wanted.default, wanted.rules):
        raise CheckFailed(f"interface {name} has other filters by subnet than the configuration's subnets give")
    same = (found.rate, found.waiting) == (wanted.rate, wanted.waiting)
    if not same or abs(found.buffer - wanted.buffer) > _TOLERANCE_TICKS:
        raise CheckFailed(
            f"interface {name} limits its class to rate {found.rate}, limit {found.waiting}, buffer {found.buffer};"
            f" expected {wanted.rate}, {wanted.waiting}, {wanted.buffer} (bytes per second, bytes, ticks)"
        )


def _is_for(link: Link, key: Key) -> bool:
    """Whether an ifb is this attachment's. One without our alias is upstream's, which knows no interfaces."""
    if link.kind != "ifb" or not link.name.startswith(IFB_PREFIX):
        return False
    return not link.alias.startswith(ALIAS_PREFIX) or link.alias == alias(*key)
