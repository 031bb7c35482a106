"""Interfaces, queueing disciplines and filters as the kernel has them. Pure."""

from __future__ import annotations

from cnimeta.namedtuple import NamedTuple

HANDLE = 0x10000
"""The root queueing discipline that shaping makes, `1:` to tc. Never change: DEL tells ours by it."""
ROOT, INGRESS, INGRESS_PARENT = 0xFFFFFFFF, 0xFFFF0000, 0xFFFFFFF1
"""Where a queueing discipline hangs: at the interface's exit, and at its entrance (its handle, its parent)."""

GONE = -1
"""Where a filter redirects to whose interface was removed: the kernel drops every packet it matches."""


_TICK_NS = 64
_TICKS_PER_US = 1000 / _TICK_NS
"""PSCHED_SHIFT of the kernel's net/pkt_sched.h; /proc/net/psched tells what it is in truth."""


class Link(NamedTuple):
    """A network interface. `peer` is the ifindex of the other end of a veth, 0 for other kinds."""

    ifindex: int
    name: str
    kind: str
    mac: str
    mtu: int
    peer: int = 0
    alias: str = ""
    queue_length: int = 0
    """Packets; what `ip` calls txqueuelen."""
    up: bool = False
    promiscuous: bool = False
    all_multicast: bool = False
    controller: int = 0
    """The ifindex of the bridge or the like that it is a port of."""


class Queue(NamedTuple):
    """A queueing discipline. rate (bytes per second), limit (bytes) and buffer (ticks) are tbf's, else 0."""

    kind: str
    handle: int
    parent: int
    rate: int = 0
    limit: int = 0
    buffer: int = 0
    options: bytes = b""
    """What the kernel says of it, as it says it."""


class Bucket(NamedTuple):
    """A token bucket: rate in bytes per second, burst in bytes, and how many bytes may wait."""

    rate: int
    burst: int
    limit: int


class Classifier(NamedTuple):
    """A filter: its kind, priority, and the ifindex it redirects to (0: it does not redirect; GONE)."""

    kind: str
    priority: int
    redirect: int = 0


class Rule(NamedTuple):
    """A u32 filter by subnet: `keys` are the kernel's struct tc_u32_key, one after the other."""

    priority: int
    target: int
    keys: bytes


class Classes(NamedTuple):
    """Shaping some of the traffic: rate in bytes per second, buffer in ticks, waiting in bytes.

    `default` is the class of what no rule matches, 0 for none.
    """

    rate: int
    buffer: int
    waiting: int
    default: int
    rules: tuple[Rule, ...]


def ticks(rate: int, amount: int, ticks_per_us: float) -> int:
    """How long `amount` bytes take at `rate` bytes per second, in the unit of the kernel's traffic control."""
    return int(int(1e6 * amount / rate) * ticks_per_us)


def largest_packet(rate: int, burst: int) -> int:
    """The largest packet, in bytes, that a bucket of `burst` bytes lets through at `rate` bytes per second.

    The kernel keeps the burst as a time of whole ticks of 64 ns, made of whole microseconds; it refuses a bucket that
    comes to 0 (net/sched/sch_tbf.c, tbf_change).
    """
    return ticks(rate, burst, _TICKS_PER_US) * _TICK_NS * rate // 10**9
