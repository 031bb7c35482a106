"""Worlds that were found, and must hold.

`open` marks a fault that is not fixed yet: its world is a strict xfail, and generated worlds may break a law in just
this way (`says`, on these `backends`). Whoever fixes the fault removes `open`; from then on the world must
hold, and generated ones too. `fault` is the number in the issue "On other people's nodes", or `new-…`.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from shaping import Shaping
from worlds import BACKENDS, Attachment, Mapping, World

if TYPE_CHECKING:
    from laws import Breach

NFT, IPTABLES = ("nftables",), ("iptables-nft", "iptables-legacy")


@dataclass(frozen=True)
class Found:
    """One finding: the world, made small, and on which backends it is open."""

    fault: str
    about: str
    world: World | Shaping
    says: str
    """A pattern that its breaches match, as text."""
    open: bool = False
    backends: tuple[str, ...] = (*BACKENDS, "auto")
    kind: str = "rules"

    def explains(self, world: World | Shaping, breach: Breach) -> bool:
        """Whether a breach is this fault's."""
        return world.backend in self.backends and re.search(self.says, str(breach), re.DOTALL) is not None


ONE = Attachment(ips=("10.88.0.2/8",))
TWO = Attachment("c2", ips=("10.88.0.3/8",))
ROUTED = Attachment(ips=("10.99.0.2/8",))


FOUND: tuple[Found, ...] = (
    Found(
        "1",
        "CHECK compares text: the order of a set, a merged or dropped prefix",
        World((Attachment(ips=("192.168.5.2/24",)),), ("ADD 0",)),
        r"\[checked\].*chain masq-\S+ has no rule: ",
        backends=NFT,
    ),
    Found(
        "1-single",
        "CHECK compares text: a subnet of one address, and its spelling",
        World((Attachment(ips=("10.1.2.3/32", "::102:304/128")),), ("ADD 0",)),
        r"\[checked\].*chain masq-\S+ has no rule: ",
        backends=NFT,
    ),
    Found(
        "1-compatible",
        "CHECK compares text: iptables spells ::a.b.c.d otherwise",
        World((Attachment(ips=("fd00::2/64",), mappings=(Mapping(ip="::192.0.2.1"),)),), ("ADD 0",), "iptables-nft"),
        r"\[(checked|repeated)\].*IPv6 iptables chain \S+ has no rule .*::[0-9a-f:]+",
        backends=IPTABLES,
    ),
    Found(
        "2",
        "a container on two networks with the same mappings",
        World((ONE, Attachment(network="netb", ifname="eth1", ips=("10.89.0.2/8",))), ("ADD 0", "ADD 1", "DEL 0")),
        r"\[accepted\].*ADD is 100, not \[0[^]]*\] \([^)]*itself[^)]*\)",
    ),
    Found(
        "3",
        "an ADD that failed at route_localnet is not undone",
        World((ONE,), ("ADD 0",), host=("settings-sealed",)),
        r"\[undone\].*Read-only file system",
    ),
    Found(
        "3-all",
        "route_localnet of all interfaces is enough",
        World((ONE,), ("ADD 0",), host=("settings-sealed", "localnet-all")),
        r"\[accepted\].*route_localnet.*Read-only",
    ),
    Found(
        "4",
        "route_localnet stays when the last mapping goes",
        World((ONE,), ("ADD 0", "DEL 0")),
        r"\[left\] at the end: settings: ",
    ),
    Found(
        "4-guard",
        "127.0.0.1 of the node is open to a container with NET_ADMIN",
        World((ROUTED,), ("ADD 0", "KNOCK")),
        r"\[packets\].*NET_ADMIN reaches",
        backends=NFT,
    ),
    Found(
        "4-guard-iptables",
        "the same on iptables",
        World((ROUTED,), ("ADD 0", "KNOCK"), "iptables-nft"),
        r"\[packets\].*NET_ADMIN reaches",
        backends=IPTABLES,
    ),
    Found(
        "5",
        "backend auto takes an nft that the kernel refuses",
        World((ONE,), ("ADD 0",), "auto", ("nft-refuses",)),
        r"\[accepted\].*Operation not supported",
    ),
    Found(
        "6",
        "DEL with the node's own namespace",
        World((ONE,), ("ADD 0", "DEL 0 own")),
        r"\[deleted\].*plugin's own network namespace",
    ),
    Found(
        "7-stale",
        "a path that is no namespace any more holds the port",
        World((ONE, TWO), ("ADD 0", "stale 0", "ADD 1"), host=("all-processes",)),
        r"\[accepted\].*ADD is 100, not \[0[^]]*\] \([^)]*(stale|die)[^)]*\)",
    ),
    Found(
        "7-reused",
        "a path that leads to another namespace by now holds the port",
        World((ONE, TWO), ("ADD 0", "reuse 0", "ADD 1"), host=("all-processes",)),
        r"\[accepted\].*ADD is 100, not \[0[^]]*\] \([^)]*reuse[^)]*\)",
    ),
    Found(
        "7-hidden",
        "a path that is not shown here makes the port free",
        World((ONE, TWO), ("ADD 0", "hide 0", "ADD 1")),
        r"\[accepted\].*ADD is 0, not \[[^]]*100\] \([^)]*hide",
    ),
    Found(
        "8",
        "ADD does not heal a damaged base",
        World(
            (ONE, Attachment("c2", ips=("10.88.0.3/8",), mappings=(Mapping(8081),))),
            ("ADD 0", "flush prerouting", "ADD 1"),
        ),
        r"\[checked\].*chain (hostports|prerouting|output|postrouting|translate|masquerading) has no rule",
        backends=NFT,
    ),
    Found(
        "9",
        "marks stay on packets: somebody who compares whole marks drops them",
        World((ROUTED,), ("ADD 0", "come whole-marks", "SEND")),
        r"\[packets\] at SEND: client -> .*source='caller'\), seen Outcome\(who='', source=''\)",
        backends=NFT,
    ),
    Found(
        "10",
        "the second container with an address takes the first one's mapping away",
        World((ONE, Attachment("c2", ips=("10.88.0.2/8",), mappings=(Mapping(8081),))), ("ADD 0", "ADD 1")),
        r"\[checked\] at (ADD|GC|come|go|restore|DEL)[^:]*: CHECK of .* element \S+ \{.*(missing|not this)"
        r"|\[accepted\].*ADD is 0, not \[100\]",
        backends=NFT,
    ),
    Found(
        "10-iptables",
        "two live containers share an address, silently",
        World(
            (ONE, Attachment("c2", ips=("10.88.0.2/8",), mappings=(Mapping(8081),))), ("ADD 0", "ADD 1"), "iptables-nft"
        ),
        r"\[accepted\].*ADD is 0, not \[100\]",
        backends=IPTABLES,
    ),
    Found(
        "11",
        "a hostIP of fe80::/10 is taken",
        World((Attachment(ips=("fd00::2/64",), mappings=(Mapping(ip="fe80::1"),)),), ("ADD 0",)),
        r"\[accepted\].*ADD is (0|100), not \[7\]",
    ),
    Found(
        "20",
        "hostIP 0.0.0.0 is mapped for IPv6 too",
        World(
            (Attachment(ips=("10.99.0.2/8", "fd00:1::2/64"), mappings=(Mapping(ip="0.0.0.0"), Mapping(9000, 90))),),
            ("ADD 0", "SEND"),
            "iptables-nft",
        ),
        r"\[packets\] at SEND: \S+ -> \S+ port \S+: expected Outcome\(who='', source=''\), seen Outcome\(who='c",
        backends=IPTABLES,
    ),
    Found(
        "21",
        "masqAll: localhost is dead",
        World((Attachment(ips=("10.99.0.2/8",), masq_all=True),), ("ADD 0", "SEND")),
        r"\[(packets|reference)\] .*node -> 127.0.0.1",
    ),
    Found(
        "22",
        "others' UDP flows to another host are forgotten",
        World((Attachment(ips=("10.88.0.2/8",), mappings=(Mapping(protocol="udp"),)),), ("come flow", "ADD 0")),
        r"\[others\].* took \[('198.51.100.53 [^]]*\])+.* and brought \[\]",
    ),
    Found(
        "24",
        "any address and one address of a port: iptables takes the first",
        World(
            (Attachment(ips=("10.99.0.2/8",), mappings=(Mapping(), Mapping(8080, 90, ip="192.0.2.1"))),),
            ("ADD 0", "SEND"),
            "iptables-nft",
        ),
        r"\[packets\] .*expected Outcome\(who='(\w+):\d+'.*seen Outcome\(who='\1:\d+'",
        backends=IPTABLES,
    ),
    Found(
        "25",
        "CHECK does not look at route_localnet",
        World((ONE,), ("ADD 0", "forget localnet")),
        r"\[noticed\].*route_localnet",
    ),
    Found(
        "27",
        "the chain of a subnet stays",
        World((ONE,), ("ADD 0",)),
        r"\[left\] at the end: kernel: \['inet cnimeta_hostports chain masq-",
        backends=NFT,
    ),
    Found(
        "29",
        "the reference's mapping of another container is not seen",
        World((ONE,), ("come reference", "ADD 0")),
        r"\[accepted\].*ADD is 0, not \[[^]]*100\] \([^)]*reference",
        backends=NFT,
    ),
    Found(
        "new-ifname",
        "a quote in CNI_IFNAME ends the comment in nft's language",
        World((Attachment(ifname='"', ips=("10.88.0.2/8",)),), ("ADD 0",)),
        r"\[accepted\].*nft refused the rules: syntax error",
        backends=NFT,
    ),
    Found(
        "new-dead-one",
        "a dead container's mapping for one host address keeps a mapping for all addresses out, with a host failure",
        World(
            (Attachment(ips=("10.88.0.2/8",), mappings=(Mapping(ip="192.0.2.1"),)), TWO), ("ADD 0", "die 0", "ADD 1")
        ),
        r"\[accepted\].*ADD is 5, .*File exists at: add element inet TABLE claims",
        backends=NFT,
    ),
    Found(
        "new-claims",
        "claims flushed by somebody and taken by another container: DEL leaves the first one's elements for ever",
        World(
            (ONE, Attachment("c2", ips=("10.88.0.3/8",), sources=("192.0.2.9",))), ("ADD 0", "flush claims4", "ADD 1")
        ),
        r"\[left\] at DEL \d: .*map (any|host|range|hostrange)[46]: |\[left\] at the end: kernel: \['inet \w+ map ",
        backends=NFT,
    ),
    Found(
        "new-shared",
        "the same attachment with other mappings: the shared claim of one for one host address stays for ever",
        World(
            (
                Attachment(ips=("10.88.0.2/8",), mappings=(Mapping(ip="192.0.2.1"),)),
                Attachment(ips=("10.88.0.2/8",), mappings=(Mapping(8081),)),
            ),
            ("ADD 0", "ADD 1"),
        ),
        r"\[left\] .*map claims[46]: \w+ \. \d+ comment \S+ : ::'",
        backends=NFT,
    ),
    Found(
        "12-names",
        "bandwidth: a long network name does not fit the ifb's alias",
        Shaping("a" * 64, "b" * 167, egress=(1_000_000, 100_000)),
        r"\[accepted\].*Numerical result out of range",
        backends=("bandwidth",),
        kind="shaping",
    ),
    Found(
        "3-bandwidth",
        "bandwidth: an ADD that failed at the ifb leaves its tbf on the veth",
        Shaping("a" * 64, "b" * 167, ingress=(1_000_000, 100_000), egress=(1_000_000, 100_000)),
        r"\[undone\] at ADD: .*(tbf|htb|bwp)",
        backends=("bandwidth",),
        kind="shaping",
    ),
    Found(
        "12-rates",
        "bandwidth: a rate beyond what the kernel takes is a host failure that names the interface by number",
        Shaping(ingress=(2**63, 1_000_000)),
        r"\[accepted\].*cannot shape interface .*Invalid argument",
        backends=("bandwidth",),
        kind="shaping",
    ),
    Found(
        "12-numbers",
        "bandwidth: a burst that the kernel's structure does not hold is an internal error",
        Shaping(ingress=(1_000_000_000, 34_359_738_359), unshaped=("10.0.0.0/8",)),
        r"internal error in bandwidth ADD: error: 'i' format requires",
        backends=("bandwidth",),
        kind="shaping",
    ),
)
