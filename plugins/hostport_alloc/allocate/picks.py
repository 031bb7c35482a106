"""Which host ports an attachment gets: uniform among the free ones, all or nothing. Pure; randomness is an argument.

A set of ports is one whole number: bit p stands for port p. Counting, intersecting and picking the n-th member are a
few machine-level operations on 8 KiB, so a pick costs the same at any occupancy, and it is exactly uniform: a random
index among the eligible, never a random start with a scan, which favours the port after an occupied run.
"""

from __future__ import annotations

import os

from cnimeta.errors import TryAgainLater, counted, shown
from cnimeta.namedtuple import NamedTuple
from cnimeta_plugins.hostport_alloc.allocate.ranges import PORT_MAX, ports_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from typing import TypeAlias

    from cnimeta_plugins.hostport_alloc.allocate.expose import Exposure
    from cnimeta_plugins.hostport_alloc.allocate.ranges import PortRange, Ports, PortSet

    RandBelow: TypeAlias = Callable[[int], int]
    """A uniform whole number from 0 to n-1."""
    Preferred: TypeAlias = Mapping[tuple[int, str, str], int]
    """(container port, protocol, range name): the host port it had."""


class Port(NamedTuple):
    """One container port and the host port chosen for it. `protocol` is one of expose.PROTOCOLS."""

    container_port: int
    protocol: str
    host_port: int
    range: str
    host_ip: str = ""
    """Where the mapping listens; empty for every address of the node."""
    same: bool = False
    """The container port was not asked for by number: it is the host port."""

    @property
    def asked(self) -> int:
        """The container port as the exposure has it: expose.SAME where it was to be the host port."""
        return 0 if self.same else self.container_port


class Exhausted(TryAgainLater):
    """No free port left in a range (code 11). Counts are of ports of the range, for the protocols asked for."""

    def __init__(self, wanted: Exposure, found: PortRange, used: int, quarantined: int, blocked: int) -> None:
        what = f"{wanted.length} consecutive host ports are" if wanted.length > 1 else "host port is"
        super().__init__(
            f"range {shown(found.name)} ({found.text}, {counted(found.size, 'port')}) is exhausted: no {what} free for"
            f" {wanted.text}: {used} used, {quarantined} quarantined, {blocked} blocked by sockets, rules or"
            " reservations of the node; remove Pods or enlarge the range"
        )
        self.range = found.name
        self.size = found.size
        self.used = used
        self.quarantined = quarantined
        self.blocked = blocked


class QuarantinedPort(NamedTuple):
    """A released port in quarantine; times are seconds since boot."""

    protocol: str
    port: int
    released: float
    until: float


class Situation(NamedTuple):
    """What is known of the node when ports are chosen."""

    used: Ports
    """Held by records, chosen or explicit."""
    blocked: Ports
    """Not held by records but not to be had: sockets, reserved ports, others' DNAT rules."""
    quarantined: tuple[QuarantinedPort, ...] = ()
    """Released lately, in the order of their release; given out again only when nothing else is left."""


def os_random(below: int) -> int:
    """A uniform whole number from 0 to `below` - 1, from the operating system's generator."""
    bits = (below - 1).bit_length()
    size, mask = (bits + 7) // 8, (1 << bits) - 1
    while True:
        number = int.from_bytes(os.urandom(size), "big") & mask
        if number < below:  # rejection, not a remainder: every number is equally likely
            return number


def choose(
    exposures: Sequence[Exposure],
    ranges: Mapping[str, PortRange],
    situation: Situation,
    preferred: Preferred,
    randbelow: RandBelow = os_random,
) -> tuple[Port, ...]:
    """Host ports for every exposure, or Exhausted. Preferred ones are taken where they are free, quarantined or not.

    When placing one exposure at a time at random runs into a dead end (a single port taken in the only run that is
    long enough for a block), they are packed instead: longest first, each into the smallest run that holds it.
    """
    order = sorted(range(len(exposures)), key=lambda i: (-exposures[i].length, -len(exposures[i].protocols)))
    try:
        starts = _place(exposures, order, ranges, _Room(situation), preferred, randbelow)
    except Exhausted:
        if len(exposures) < 2:
            raise
        starts = _place(exposures, order, ranges, _Room(situation), {}, None)
    return tuple(
        Port(
            exposure.port + offset if exposure.port else start,
            protocol,
            start + offset,
            exposure.range,
            exposure.host_ip,
            not exposure.port,
        )
        for exposure, start in zip(exposures, starts, strict=True)
        for offset in range(exposure.length)
        for protocol in exposure.protocols
    )


def _place(
    exposures: Sequence[Exposure],
    order: Sequence[int],
    ranges: Mapping[str, PortRange],
    room: _Room,
    preferred: Preferred,
    randbelow: RandBelow | None,
) -> list[int]:
    """The first host port of every exposure; packed tightly when there is no `randbelow`."""
    starts = [0] * len(exposures)
    for index in order:
        exposure = exposures[index]
        start = _preferred_start(exposure, preferred)
        free = room.free(exposure, ranges[exposure.range])
        if start and runs(free, exposure.length) >> start & 1:
            room.take(exposure, start)
            starts[index] = start
    for index in order:
        if starts[index]:
            continue
        exposure = exposures[index]
        eligible = room.eligible(exposure, ranges[exposure.range])
        if randbelow is not None:
            first = runs(eligible, exposure.length)
            start = member(first, randbelow(first.bit_count()))
        else:
            start = _tightest(eligible, exposure.length)
        room.take(exposure, start)
        starts[index] = start
    return starts


def _preferred_start(exposure: Exposure, preferred: Preferred) -> int:
    """The first port of the block the exposure had, 0 when it had none of this shape."""
    start = preferred.get((exposure.port, exposure.protocols[0], exposure.range), 0)
    for offset in range(exposure.length):
        for protocol in exposure.protocols:
            if preferred.get((exposure.port + offset, protocol, exposure.range)) != start + offset:
                return 0
    return start


class _Room:
    """The free ports while exposures are being placed."""

    def __init__(self, situation: Situation) -> None:
        self._situation = situation
        self._taken: dict[str, PortSet] = {}

    def _union(self, sets: Ports, exposure: Exposure) -> PortSet:
        found = 0
        for protocol in exposure.protocols:
            found |= sets.get(protocol, 0)
        return found

    def take(self, exposure: Exposure, start: int) -> None:
        block = ports_of([(start, start + exposure.length - 1)])
        for protocol in exposure.protocols:
            self._taken[protocol] = self._taken.get(protocol, 0) | block

    def free(self, exposure: Exposure, found: PortRange) -> PortSet:
        """Ports of the range that nothing holds, for all protocols of the exposure; quarantined ones included."""
        busy = self._union(self._situation.used, exposure) | self._union(self._situation.blocked, exposure)
        return found.ports & ~(busy | self._union(self._taken, exposure))

    def eligible(self, exposure: Exposure, found: PortRange) -> PortSet:
        """The free ports to pick from: without the quarantined, or with as few of the oldest of them as needed."""
        free = self.free(exposure, found)
        waiting = [held.port for held in self._situation.quarantined if held.protocol in exposure.protocols]
        candidates = free & ~_set_of(waiting)
        if runs(candidates, exposure.length):
            return candidates
        if not runs(free, exposure.length):
            raise self._exhausted(exposure, found)
        low, high = 1, len(waiting)
        while low < high:  # the fewest of the oldest that make room
            middle = (low + high) // 2
            if runs(free & ~_set_of(waiting[middle:]), exposure.length):
                high = middle
            else:
                low = middle + 1
        return free & ~_set_of(waiting[low:])

    def _exhausted(self, exposure: Exposure, found: PortRange) -> Exhausted:
        used = found.ports & self._union(self._situation.used, exposure)
        blocked = found.ports & self._union(self._situation.blocked, exposure) & ~used
        waiting = [held.port for held in self._situation.quarantined if held.protocol in exposure.protocols]
        quarantined = found.ports & _set_of(waiting) & ~used & ~blocked
        return Exhausted(exposure, found, used.bit_count(), quarantined.bit_count(), blocked.bit_count())


def _set_of(ports: Iterable[int]) -> PortSet:
    found = bytearray((PORT_MAX + 1) // 8)
    for port in ports:
        found[port >> 3] |= 1 << (port & 7)
    return int.from_bytes(found, "little")


def runs(ports: PortSet, length: int) -> PortSet:
    """The members that begin a run of at least `length` members."""
    have = 1
    while have < length:
        step = min(have, length - have)
        ports &= ports >> step
        have += step
    return ports


def member(ports: PortSet, number: int) -> int:
    """The member with `number` smaller ones (0 for the smallest), by halving."""
    low, width = 0, PORT_MAX + 1
    while width > 1:
        width //= 2
        half = ports & ((1 << width) - 1)
        count = half.bit_count()
        if number < count:
            ports = half
        else:
            number -= count
            ports >>= width
            low += width
    return low


def _tightest(ports: PortSet, length: int) -> int:
    """The start of the shortest run that holds `length`."""
    text = bin(ports)[:1:-1]  # the lowest port first
    best, best_size, end = 0, PORT_MAX + 2, 0
    while (start := text.find("1", end)) >= 0:
        end = text.find("0", start)
        if end < 0:
            end = len(text)
        if length <= end - start < best_size:
            best, best_size = start, end - start
    return best
