"""Comparing the kernel's queues with a plan."""

from __future__ import annotations

from cnimeta.errors import CheckFailed
from cnimeta.host.links.values import ticks
from cnimeta_plugins.bandwidth.apply import ENTRANCES, find_ifb, is_ours, root_of
from cnimeta_plugins.bandwidth.plan import classes, plan_shaping

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.host.links.values import Classes, Link, Queue
    from cnimeta.host.protocols import Links
    from cnimeta_plugins.bandwidth.config import Settings
    from cnimeta_plugins.bandwidth.plan import Key, Shape

_TOLERANCE_TICKS = 1


def check(links: Links, key: Key, device: Link, settings: Settings, *, inside: bool) -> None:
    """Raise CheckFailed (code 101) for the first difference. inside: the links are the container's."""
    ticks_per_us = links.ticks_per_us()
    plan = plan_shaping(settings, device.mtu, ticks_per_us, inside=inside)
    queues = links.queues(device.ifindex)
    if plan.leaving is not None:
        _compare(links, device, queues, plan.leaving, ticks_per_us)
    elif is_ours(root_of(queues)):
        raise CheckFailed(f"interface {device.name} is limited, and the configuration has no limit for it")
    name, ifb = find_ifb(links, key)
    if plan.arriving is None:
        if ifb is not None:
            raise CheckFailed(f"the interface {name} is there, and the configuration has no limit for it")
        return
    if ifb is None:
        raise CheckFailed(f"the interface {name} that limits what arrives at {device.name} is missing")
    _compare(links, ifb, links.queues(ifb.ifindex), plan.arriving, ticks_per_us)
    if not any(queue.kind in ENTRANCES for queue in queues):
        raise CheckFailed(f"interface {device.name} has no ingress queueing discipline")
    if not any(one.redirect == ifb.ifindex for one in links.ingress_filters(device.ifindex)):
        raise CheckFailed(f"interface {device.name} has no filter that redirects to {name}")


def _compare(links: Links, link: Link, queues: list[Queue], shape: Shape, ticks_per_us: float) -> None:
    wanted = "htb" if shape.subnets else "tbf"
    root = root_of(queues)
    if root is None or root.kind != wanted:
        raise CheckFailed(f"interface {link.name} has no {wanted} queueing discipline as its root")
    if shape.subnets:
        _compare_classes(link.name, links.classes(link.ifindex), classes(shape, ticks_per_us))
        return
    bucket = shape.bucket
    buffer = ticks(bucket.rate, bucket.burst, ticks_per_us)
    same = (root.rate, root.limit) == (bucket.rate, bucket.limit)
    if not same or abs(root.buffer - buffer) > _TOLERANCE_TICKS:
        raise CheckFailed(
            f"interface {link.name} is shaped to rate {root.rate}, limit {root.limit}, buffer {root.buffer};"
            f" expected {bucket.rate}, {bucket.limit}, {buffer} (bytes per second, bytes, ticks)"
        )


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
