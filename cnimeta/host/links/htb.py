"""Shaping some of an interface's traffic, as data: an htb with one class, and u32 filters by subnet. Pure."""

from __future__ import annotations

import sys

from cnimeta.host.links.values import HANDLE, Bucket, Classes, Rule, ticks

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence

DEFAULT_CLASS = 0x10
SHAPED_CLASS = HANDLE | DEFAULT_CLASS
LEAF = 0x100000
FEWEST_WAITING = 2 * 65536
"""Bytes. htb does not cut packets to size as tbf does, and one of the sender's can have 64 KiB."""
_ETH_P_IP, _ETH_P_IPV6 = 0x0800, 0x86DD
_OFFSETS = {(4, "src"): 12, (4, "dst"): 16, (6, "src"): 8, (6, "dst"): 24}
KEY_BYTES, _SELECTOR_BYTES = 16, 16


def classes(
    bucket: Bucket, ticks_per_us: float, side: str, subnets: Sequence[tuple[int, bytes, int]], only: bool
) -> Classes:
    """The class has the bucket; what is in no class is unlimited. Subnets are (family, packed address, prefix length).

    side: src or dst, which address is the subnet's. only: the subnets get the bucket; else the rest does.
    """
    target = SHAPED_CLASS if only else HANDLE
    rules = {
        Rule(1 if family == 4 else 2, target, _keys(_OFFSETS[family, side], network, prefix))
        for family, network, prefix in subnets
    }
    buffer = ticks(bucket.rate, bucket.burst, ticks_per_us)
    waiting = max(bucket.limit, FEWEST_WAITING)
    return Classes(bucket.rate, buffer, waiting, 0 if only else DEFAULT_CLASS, tuple(sorted(rules)))


def protocol(rule: Rule) -> int:
    """The rule's Ethernet protocol."""
    return _ETH_P_IP if rule.priority == 1 else _ETH_P_IPV6


def keys_of(selector: bytes) -> bytes:
    """The keys in a struct tc_u32_sel."""
    return selector[_SELECTOR_BYTES:]


def _keys(offset: int, network: bytes, prefix: int) -> bytes:
    """32 bits each, for an address at its place in the IP header."""
    mask = ((1 << prefix) - 1 << (len(network) * 8 - prefix)).to_bytes(len(network), "big")
    keys = b"".join(
        mask[at : at + 4] + network[at : at + 4] + (offset + at).to_bytes(4, sys.byteorder) + bytes(4)
        for at in range(0, len(network), 4)
        if any(mask[at : at + 4])
    )
    return keys or bytes(KEY_BYTES)
