"""Worlds that were found, and must hold.

`open` marks a fault that is not fixed yet: a pattern of what its breaches say. Its world is a strict xfail, and
generated worlds may break a law in just this way. Whoever fixes the fault removes `open`; from then on the world must
hold, and generated ones too. `fault` is the number in the issue "On other people's nodes", or `new-…`.
"""

from __future__ import annotations

from dataclasses import dataclass

from worlds import BACKENDS, Attachment, Mapping, World

NFT, IPTABLES = ("nftables",), ("iptables-nft", "iptables-legacy")


@dataclass(frozen=True)
class Found:
    """One finding."""

    fault: str
    about: str
    world: World
    open: str = ""
    backends: tuple[str, ...] = BACKENDS
    against_reference: bool = False


C = Attachment
FOUND: tuple[Found, ...] = (
    Found(
        "1", "CHECK compares text: the order of a set, a merged or dropped prefix",
        World((C(ips=("192.168.5.2/24",)),), ("ADD 0",)),
        r"\[checked\].*chain masq-\S+ has no rule: ", NFT,
    ),
    Found(
        "1-compat", "CHECK compares text: iptables spells ::a.b.c.d otherwise",
        World((C(ips=("fd00::2/64",), mappings=(Mapping(ip="::192.0.2.1"),)),), ("ADD 0",), "iptables-nft"),
        r"\[(checked|repeated)\].*IPv6 iptables chain \S+ has no rule .*::[0-9a-f:]+", IPTABLES,
    ),
    Found(
        "3", "an ADD that failed at route_localnet is not undone",
        World((C(),), ("ADD 0",), host=("settings-sealed",)),
        r"\[undone\]",
    ),
    Found(
        "3-all", "route_localnet of all interfaces is enough",
        World((C(),), ("ADD 0",), host=("settings-sealed", "localnet-all")),
        r"\[accepted\].*route_localnet.*Read-only",
    ),
    Found(
        "4", "route_localnet stays when the last mapping goes",
        World((C(ips=("10.88.0.2/8",)),), ("ADD 0", "DEL 0")),
        r"\[left\] at the end: settings: ",
    ),
    Found(
        "6", "DEL with the node's own namespace",
        World((C(),), ("ADD 0", "DEL 0 own")),
        r"\[deleted\].*plugin's own network namespace",
    ),
    Found(
        "25", "CHECK does not look at route_localnet",
        World((C(),), ("ADD 0", "forget localnet")),
        r"\[noticed\].*route_localnet",
    ),
    Found(
        "27", "the chain of a subnet stays",
        World((C(snat=True),), ("ADD 0",)),
        r"\[(left|undone)\].*chain masq-", NFT,
    ),
    Found(
        "4-guard", "127.0.0.1 of the node is open to a container with NET_ADMIN",
        World((C(),), ("ADD 0", "KNOCK")),
        r"\[packets\].*NET_ADMIN reaches",
    ),
    Found(
        "10", "the second container with an address takes the first one's mapping away",
        World((C(), C("c2", mappings=(Mapping(8081),))), ("ADD 0", "ADD 1"),),
        r"\[checked\] at (ADD|GC|come|go|restore|DEL)[^:]*: CHECK of .* element \S+ \{.*missing", NFT,
    ),
    Found(
        "new-ifname", "a quote in CNI_IFNAME ends the comment in nft's language",
        World((C(ifname='"'),), ("ADD 0",)),
        r"\[accepted\].*nft refused the rules: syntax error", NFT,
    ),
)
