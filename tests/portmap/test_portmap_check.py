"""ADD, then CHECK, in worlds other than 10.0.0.0/8: what is compared is what rules mean, not how they are printed."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from portmap_kit import conf, tcp

from cnimeta.testing import call
from cnimeta_plugins.portmap.main import Portmap
from cnimeta_plugins.portmap.nftables.meaning import meaning

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cnimeta.testing.netns import Namespace

WORLDS = [
    ("192.168.5.2/24", "fd00::2/64"),
    ("172.16.3.4/16", "::102:304/128"),
    ("127.8.0.2/8", "::1.2.0.9/112"),
    ("126.255.255.254/8", "2001:0:0:1::5/64"),
    ("10.1.2.3/32", "2001:db8:0:0:1::5/127"),
    ("10.1.2.5/31", "fe00::5/7"),
    ("203.0.113.9/0", "2001:db8:7::1/0"),
    ("128.0.0.9/1", "8000::9/1"),
    ("255.255.255.254/30", "64:ff9b::c000:209/96"),
    ("0.0.0.9/8", "::7/96"),
]
NAMES = ["n", "net", "n" * 180, "n" * 187, "n" * 188, "n" * 189, "n" * 190, "n" * 200, "A.b_c-1"]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ip saddr { 192.168.5.0/24, 127.0.0.0/8 } return", "ip saddr { 127.0.0.0/8, 192.168.5.0/24 } return"),
        ("ip saddr { 10.0.0.0/9, 10.128.0.0/9 } return", "ip saddr 10.0.0.0/8 return"),
        ("ip saddr 10.1.2.3/32 masquerade", "ip saddr 10.1.2.3 masquerade"),
        ("ip6 saddr ::102:304 masquerade", "ip6 saddr ::1.2.3.4/128 masquerade"),
        ("ip6 saddr 2001:DB8:0:0::/64 masquerade", "ip6 saddr 2001:db8::/64 masquerade"),
        ("meta mark & 0x1000 == 0x1000 return", "meta mark & 0x00001000 == 0x00001000 return"),
        ('iifname "lo" return', "iifname lo return"),
    ],
)
def test_rules_mean_the_same_when_only_their_spelling_differs(one: str, other: str) -> None:
    assert meaning(one) == meaning(other)


@pytest.mark.unit
@pytest.mark.parametrize(
    "other",
    [
        "ip saddr 10.0.0.0/9 masquerade",
        "ip daddr 10.0.0.0/8 masquerade",
        "ip saddr != 10.0.0.0/8 masquerade",
        "ip saddr { 10.0.0.0/8, 12.0.0.0/8 } masquerade",
        "ip saddr 10.0.0.0/8 return",
        "masquerade",
    ],
)
def test_rules_differ_when_they_match_other_packets(other: str) -> None:
    assert meaning("ip saddr 10.0.0.0/8 masquerade") != meaning(other)


@pytest.mark.kernel
@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_check_passes_after_add_when_addresses_and_names_are_of_any_kind(
    make_netns: Callable[[str], Namespace], tmp_path: Path, backend: str
) -> None:
    def ask(verb: str, body: dict[str, Any], container_id: str) -> None:
        call(Portmap(), verb, body, container_id=container_id, ifname="eth0", netns="/run/netns/none")

    def body(at: int, ips: tuple[str, ...]) -> dict[str, Any]:
        mappings = (tcp(8000 + at), tcp(7000 + at, hostIP="::102:304"), tcp(7000 + at, hostIP="192.168.5.1"))
        found = conf(*mappings, ips=ips, backend=backend, dataDir=str(tmp_path))
        return {**found, "name": NAMES[at % len(NAMES)]}

    with make_netns("check").entered():
        for at, ips in enumerate(WORLDS):
            ask("ADD", body(at, ips), f"c{at}" + "0" * 62)
        for at, ips in enumerate(WORLDS):
            ask("CHECK", body(at, ips), f"c{at}" + "0" * 62)
            ask("ADD", body(at, ips), f"c{at}" + "0" * 62)
        for at, ips in enumerate(WORLDS):
            ask("CHECK", body(at, ips), f"c{at}" + "0" * 62)
            ask("DEL", body(at, ips), f"c{at}" + "0" * 62)
