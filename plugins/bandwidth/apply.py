"""Bringing the kernel's queues in line with a plan, and taking them away."""

from __future__ import annotations

from cnimeta.errors import CniError, Failures
from cnimeta.host.links.values import GONE, HANDLE, ROOT
from cnimeta.spec.result import Interface
from cnimeta_plugins.bandwidth.plan import ALIAS_PREFIX, IFB_PREFIX, alias, classes, ifb_name, is_orphan, plan_shaping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from cnimeta.host.links.values import Classes, Classifier, Link, Queue
    from cnimeta.host.protocols import Links
    from cnimeta_plugins.bandwidth.config import Settings
    from cnimeta_plugins.bandwidth.plan import Key, Plan, Shape

ENTRANCES = ("ingress", "clsact")
"""The queueing disciplines where filters for arriving packets hang. An interface has one of them at most."""
_PRIORITY = 1
_LATE_PRIORITY = 49152  # after the filters of others, which keep theirs
_PROBE, _PROBE_ALIAS = "bwpprobe", f"{ALIAS_PREFIX}probe"


class Shaper:
    """What is made and taken away on the given links: the host's, or those of the container's namespace at `netns`."""

    def __init__(self, links: Links, netns: str = "") -> None:
        self.links = links
        self.netns = netns

    def shape(self, key: Key, device: Link, settings: Settings) -> Interface | None:
        """Make it so, in place of what is there. Returns the ifb for the result, if the plan has one.

        After a failure all is as before, or the error's details say what is not.
        """
        plan = plan_shaping(settings, device.mtu, self.links.ticks_per_us(), inside=bool(self.netns))
        undo = _Undo()
        try:
            ifb = self._arrange(key, device, plan, undo)
        except BaseException as error:
            left = undo.carry_out()
            if left and isinstance(error, CniError):
                error.details = "; ".join(filter(None, [error.details, f"and undoing it: {left}"]))
            raise
        return None if ifb is None else Interface(ifb.name, ifb.mac, sandbox=self.netns)

    def restore(self, key: Key, device: Link) -> None:
        """Take the attachment's queues and filters off an interface, which may outlive the attachment."""
        queues, failures = self.links.queues(device.ifindex), Failures()
        with failures:
            if is_ours(root_of(queues)):
                self.links.clear(device.ifindex)
        with failures:
            _, ifb = find_ifb(self.links, key)
            self._close_entrance(device.ifindex, ifb.ifindex if ifb is not None else GONE, queues)
        failures.raise_any()

    def unshape(self, key: Key) -> None:
        """Remove the attachment's ifb; missing is fine."""
        for name in (ifb_name(*key), ifb_name(*key[:2])):
            link = self.links.get(name=name)
            if link is not None and is_for(link, key):
                self.links.remove(name)

    def collect(self, network: str, valid: Collection[tuple[str, str]]) -> None:
        """Remove the network's ifbs that are not in `valid`, all of them that can be."""
        failures = Failures()
        for link in self.links.ifbs():
            if is_orphan(link.alias, network, valid):
                with failures:
                    self.links.remove(link.name)
        failures.raise_any()

    def probe(self) -> None:
        """Make and remove an ifb with a bucket, and the ifbs of probes that were killed. Raises IoFailure (code 5)."""
        from os import getpid

        for link in self.links.ifbs():
            if link.alias == _PROBE_ALIAS and not _is_running(link.name[len(_PROBE) :]):
                self.links.remove(link.name)
        name = f"{_PROBE}{getpid()}"[:15]
        try:
            link = self.links.add_ifb(name, 1500, _PROBE_ALIAS)
            self.links.set_bucket(link.ifindex, 125_000, 3000, 6125)
        finally:
            self.links.remove(name)

    def _arrange(self, key: Key, device: Link, plan: Plan, undo: _Undo) -> Link | None:
        """What is new comes first, the interface's own queue then, and what cannot be made again goes last."""
        index = device.ifindex
        queues = self.links.queues(index)
        name, found = find_ifb(self.links, key)
        ifb = None
        if plan.arriving is not None:
            ifb = self._make_ifb(name, found, device.mtu, alias(*key), undo)
            if found is None:
                self._set(ifb, plan.arriving, _Undo(), [])  # it is new, and goes as a whole
            else:
                self._set(found, plan.arriving, undo, self.links.queues(found.ifindex))
            self._redirect(index, ifb.ifindex, queues, undo)
        elif any(queue.kind in ENTRANCES for queue in queues):
            for priority in _priorities(self.links.ingress_filters(index), found.ifindex if found else GONE):
                self._remove_redirect(index, found, priority, undo)
        self._set(device, plan.leaving, undo, queues)
        if ifb is None:
            self.unshape(key)
        return ifb

    def _make_ifb(self, name: str, found: Link | None, mtu: int, text: str, undo: _Undo) -> Link:
        if found is None:
            undo.begin(lambda: self.links.remove(name))
        elif (found.mtu, found.alias) != (mtu, text):
            undo.begin(lambda: self.links.add_ifb(name, found.mtu, found.alias))
        return self.links.add_ifb(name, mtu, text)

    def _set(self, link: Link, shape: Shape | None, undo: _Undo, queues: list[Queue]) -> None:
        """Put the shape in place of the interface's root queue; for no shape, take ours away."""
        index, root = link.ifindex, root_of(queues)
        if shape is None and not is_ours(root):
            return
        found = self.links.classes(index) if root is not None and root.kind == "htb" else None
        undo.begin(lambda: self._put_back(link, root, found))
        if shape is None:
            self.links.clear(index)
        elif shape.subnets:
            self._set_classes(index, classes(shape, self.links.ticks_per_us()), found)
        else:
            if root is not None and root.kind != "tbf":
                self.links.clear(index)
            self.links.set_bucket(index, *shape.bucket)

    def _set_classes(self, index: int, wanted: Classes, found: Classes | None) -> None:
        if found is not None and (found.default, found.rules) == (wanted.default, wanted.rules):
            self.links.change_classes(index, wanted)
        else:
            self.links.set_classes(index, wanted)

    def _put_back(self, link: Link, root: Queue | None, found: Classes | None) -> None:
        if found is None:
            self.links.put_back(link, root)
        else:
            self._set_classes(link.ifindex, found, self.links.classes(link.ifindex))

    def _redirect(self, index: int, target: int, queues: list[Queue], undo: _Undo) -> None:
        """An ingress or clsact that is there stays, and so do its filters: eBPF network plugins have theirs there."""
        if not any(queue.kind in ENTRANCES for queue in queues):
            undo.begin(lambda: self._close_entrance(index, target, self.links.queues(index)))
            self.links.add_ingress(index)
            self.links.add_redirect(index, target, _PRIORITY)
            return
        filters = self.links.ingress_filters(index)
        if any(one.redirect == target for one in filters):
            return
        for priority in _priorities(filters, GONE):
            self.links.remove_filters(index, priority)
        priority = _free_priority(one.priority for one in filters if one.redirect != GONE)
        undo.begin(lambda: self.links.remove_filters(index, priority))
        self.links.add_redirect(index, target, priority)

    def _remove_redirect(self, index: int, ifb: Link | None, priority: int, undo: _Undo) -> None:
        def put_back() -> None:
            if ifb is None or self.links.get(index=ifb.ifindex) is None:
                return
            if not any(one.redirect == ifb.ifindex for one in self.links.ingress_filters(index)):
                self.links.add_redirect(index, ifb.ifindex, priority)

        undo.begin(put_back)
        self.links.remove_filters(index, priority)

    def _close_entrance(self, index: int, ifb: int, queues: list[Queue]) -> None:
        """Remove what redirects to the ifb, and an ingress in which nothing is left."""
        kinds = {queue.kind for queue in queues}
        if kinds.isdisjoint(ENTRANCES):
            return
        filters = self.links.ingress_filters(index)
        ours = _priorities(filters, ifb)
        for priority in ours:
            self.links.remove_filters(index, priority)
        if "ingress" in kinds and all(one.priority in ours for one in filters):
            self.links.remove_ingress(index)


def _is_running(pid: str) -> bool:
    from os import kill

    try:
        kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True


class _Undo:
    """How to take back what was begun. A step is told before it is made, since the kernel's answer can get lost."""

    def __init__(self) -> None:
        self._steps: list[Callable[[], object]] = []

    def begin(self, reverse: Callable[[], object]) -> None:
        self._steps.append(reverse)

    def carry_out(self) -> str:
        """Take all of it back; what could not be, in words."""
        failures = Failures()
        for step in reversed(self._steps):
            with failures:
                step()
        return "; ".join(map(str, failures.found))


def root_of(queues: Iterable[Queue]) -> Queue | None:
    """The root among an interface's queues, unless it is the kernel's default."""
    return next((queue for queue in queues if queue.parent == ROOT and queue.handle), None)


def is_ours(root: Queue | None) -> bool:
    """Whether a root queue is one that this plugin, or the reference, makes."""
    return root is not None and root.handle == HANDLE and root.kind in ("tbf", "htb")


def find_ifb(links: Links, key: Key) -> tuple[str, Link | None]:
    """The name of the attachment's ifb, and the ifb if it is there.

    Upstream's name, unless another interface of the container has it.
    """
    name, own = ifb_name(*key[:2]), ifb_name(*key)
    first = links.get(name=name)
    if first is not None and first.alias == alias(*key):
        return name, first
    further = links.get(name=own)
    if further is not None:
        return own, further
    return (name, first) if first is None or is_for(first, key) else (own, None)


def is_for(link: Link, key: Key) -> bool:
    """Whether an ifb is this attachment's. One without our alias is upstream's, which knows no interfaces."""
    if link.kind != "ifb" or not link.name.startswith(IFB_PREFIX):
        return False
    return not link.alias.startswith(ALIAS_PREFIX) or link.alias == alias(*key)


def _priorities(filters: Iterable[Classifier], ifb: int) -> list[int]:
    """The priorities at which every filter redirects to `ifb`, or to an ifb that is gone.

    The latter drop whatever arrives, so what a DEL left must go before the next ADD. A priority that somebody else uses
    too stays.
    """
    targets: dict[int, set[int]] = {}
    for one in filters:
        targets.setdefault(one.priority, set()).add(one.redirect)
    return sorted(priority for priority, found in targets.items() if found <= {GONE, ifb})


def _free_priority(used: Iterable[int]) -> int:
    """The first one, or one behind the filters of others when they have that."""
    taken = set(used)
    if not any(priority <= _PRIORITY for priority in taken):
        return _PRIORITY
    return next(priority for priority in range(_LATE_PRIORITY, 1 << 16) if priority not in taken)
