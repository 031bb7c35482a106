"""Numbers, names and keys: what the configuration comes to before the kernel is asked anything."""

from __future__ import annotations

import sys
from typing import Any

import pytest

from cnimeta.errors import CniError, InvalidNetworkConfig, UnsupportedField
from cnimeta.host.links.htb import classes
from cnimeta.spec.netconf import NetConf
from cnimeta_plugins.bandwidth.config import Limit, read_settings
from cnimeta_plugins.bandwidth.plan import Bucket, alias, bucket, ifb_name, is_orphan, plan_shaping

pytestmark = pytest.mark.unit

TICKS = 15.625
UNSPECIFIED = 2**32 - 1


def settings_of(**keys: Any) -> Any:
    return read_settings(NetConf({"cniVersion": "1.0.0", "name": "net", "type": "bandwidth", **keys}))


def runtime(**keys: Any) -> dict[str, Any]:
    return {"runtimeConfig": {"bandwidth": keys}}


def test_ifb_has_upstreams_name_when_it_is_the_containers_first() -> None:
    assert ifb_name("cni-plugin-bandwidth-test", "dummy") == "bwpa8eda89404b7"


def test_ifb_names_differ_when_the_interface_does() -> None:
    assert len({ifb_name("n", "c"), ifb_name("n", "c", "eth0"), ifb_name("n", "c", "eth1")}) == 3
    assert all(len(ifb_name("n", "c", one)) == 15 for one in ("", "eth0", "e" * 15))


@pytest.mark.parametrize(
    ("rate", "burst", "expected"),
    [
        (8_000, 8_000, Bucket(1_000, 1_000, 1_025)),
        (10_000_000, 1_000_000, Bucket(1_250_000, 125_000, 156_250)),
        (1_000_000_000, 80_000_000, Bucket(125_000_000, 10_000_000, 13_125_000)),
    ],
)
def test_bucket_has_upstreams_numbers_when_they_fit(rate: int, burst: int, expected: Bucket) -> None:
    assert bucket(Limit(rate, burst), 25, 1500, TICKS) == expected


@pytest.mark.parametrize("rate", [1_000, 64_000, 1_000_000, 10_000_000, 100_000_000, 10**9, 10**10])
@pytest.mark.parametrize("burst", [UNSPECIFIED, UNSPECIFIED - 8])
def test_bucket_fits_the_kernels_fields_and_holds_a_packet_when_burst_is_huge(rate: int, burst: int) -> None:
    made = bucket(Limit(rate, burst), 25, 1500, TICKS)
    assert made.rate == rate // 8
    assert int(1e6 * made.burst / made.rate) * TICKS < 2**32
    assert made.limit < 2**32
    assert made.burst >= 1514


@pytest.mark.parametrize("rate", [1_000_000, 10_000_000, 10**9, 10**10])
def test_burst_is_50_ms_of_the_rate_when_containerd_had_none_to_give(rate: int) -> None:
    made = bucket(Limit(rate, UNSPECIFIED), 25, 1500, TICKS)
    assert made.burst == max(int(rate / 8 * 0.05), 2 * 1514)


def test_limit_grows_with_the_latency_when_it_is_configured() -> None:
    assert bucket(Limit(8_000_000, 80_000), 100, 1500, TICKS).limit == 100_000 + 10_000


def test_runtime_rates_are_read_when_keys_are_capitalised_as_containerd_sends_them() -> None:
    found = settings_of(RuntimeConfig={"bandWidth": {"IngressRate": 8000, "INGRESSBURST": 9000, "EgressRate": 0}})
    assert (found.ingress, found.egress) == (Limit(8000, 9000), Limit())


def test_static_rates_win_when_both_are_given() -> None:
    found = settings_of(ingressRate=8, ingressBurst=8, **runtime(egressRate=9000, egressBurst=9000))
    assert (found.ingress, found.egress) == (Limit(8, 8), Limit())


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"ingressRate": -1, "ingressBurst": 1}, "-1"),
        ({"ingressRate": 1.5, "ingressBurst": 1}, "1.5"),
        ({"ingressRate": "10M", "ingressBurst": 1}, "10M"),
        ({"ingressRate": True, "ingressBurst": 1}, "$.ingressRate"),
        ({"ingressRate": 7, "ingressBurst": 8}, "at least 8"),
        ({"ingressRate": 8000, "ingressBurst": 8000, "latency": 0}, "$.latency"),
        ({"shapedSubnets": ["10.0.0.0/33"]}, "$.shapedSubnets[0]"),
        ({"unshapedSubnets": "10.0.0.0/8"}, "$.unshapedSubnets"),
        ({"runtimeConfig": {"bandwidth": 5}}, "$.runtimeConfig.bandwidth"),
    ],
)
def test_settings_are_refused_with_path_and_value_when_wrong(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidNetworkConfig) as caught:
        settings_of(**keys)
    assert words in caught.value.msg
    assert caught.value.code == 7


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"ingressRate": 8000}, "if rate is set, burst must also be set"),
        ({"egressBurst": 8000}, "if burst is set, rate must also be set"),
        (runtime(ingressBurst=8000), "if burst is set, rate must also be set"),
        ({"ingressRate": 8000, "ingressBurst": 8 * (2**32 - 1)}, "burst cannot be more than 4GB"),
    ],
)
def test_settings_are_refused_in_upstreams_words_when_upstream_refuses_them(keys: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidNetworkConfig) as caught:
        settings_of(**keys)
    assert (caught.value.code, caught.value.msg, caught.value.details) == (7, words, "")


def test_shaped_and_unshaped_are_refused_when_both_are_given() -> None:
    with pytest.raises(UnsupportedField):
        settings_of(shapedSubnets=["10.0.0.0/8"], unshapedSubnets=["fd00::/8"])


def test_largest_allowed_burst_is_taken_when_one_less_than_the_limit() -> None:
    assert settings_of(ingressRate=8000, ingressBurst=8 * (2**32 - 1) - 1).ingress.burst_bits == 8 * (2**32 - 1) - 1


def test_subnets_are_matched_on_the_peers_address_when_planned() -> None:
    plan = plan_shaping(
        settings_of(
            ingressRate=8000,
            ingressBurst=8000,
            egressRate=8000,
            egressBurst=8000,
            unshapedSubnets=["10.1.2.3/8", "fd00::1/64"],
        ),
        1500,
        TICKS,
    )
    assert plan.leaving is not None
    assert plan.arriving is not None
    assert (plan.leaving.side, plan.arriving.side) == ("src", "dst")
    assert [net.text for net in plan.arriving.subnets] == ["10.0.0.0/8", "fd00::/64"]
    assert not plan.arriving.only


NAMES = ["net", "n" * 166, "n" * 167, "n" * 300, "n" * 299 + "m"]
IDS = ["c1", "c" * 64, "c" * 250, "c" * 300]


@pytest.mark.parametrize("network", NAMES)
@pytest.mark.parametrize("container_id", IDS)
@pytest.mark.parametrize("ifname", ["e", "eth0", "e" * 15])
def test_alias_fits_and_tells_whose_it_is_when_names_are_long(network: str, container_id: str, ifname: str) -> None:
    text = alias(network, container_id, ifname)
    assert len(text.encode()) <= 254
    assert text.startswith(f"cnimeta:bandwidth:{ifname}/")
    assert is_orphan(text, network, [])
    assert is_orphan(text, network, [("other", ifname), (container_id, "other")])
    assert not is_orphan(text, network, [("other", "eth0"), (container_id, ifname)])
    for other in {*NAMES, f"={network}"} - {network}:
        assert not is_orphan(text, other, [])
    assert len({alias(one, two, ifname) for one in NAMES for two in IDS}) == len(NAMES) * len(IDS)


def test_alias_has_the_names_themselves_when_they_fit() -> None:
    assert alias("net", "c1", "eth0") == "cnimeta:bandwidth:eth0/c1/net"
    longest = "n" * (254 - len("cnimeta:bandwidth:eth0/c1/"))
    assert alias(longest, "c1", "eth0") == f"cnimeta:bandwidth:eth0/c1/{longest}"
    assert f"/{'c' * 64}/=" in alias("n" * 250, "c" * 64, "eth0")


@pytest.mark.parametrize("text", ["somebody's interface", "", "cnimeta:bandwidth:probe", "cnimeta:bandwidth:a/b/c/net"])
def test_no_attachment_is_read_from_an_alias_when_it_is_not_ours(text: str) -> None:
    assert not is_orphan(text, "net", [])


def test_error_is_a_cni_error_when_a_subnet_is_not_text() -> None:
    with pytest.raises(CniError):
        settings_of(shapedSubnets=[5])


def test_runtime_rates_are_limited_to_static_subnets_when_only_those_are_static() -> None:
    found = settings_of(shapedSubnets=["10.0.0.0/8"], **runtime(ingressRate=8, ingressBurst=8, shapedSubnets=["::/0"]))
    assert found.ingress == Limit(8, 8)
    assert [net.text for net in found.shaped] == ["10.0.0.0/8"]


def test_runtime_subnets_are_ignored_when_rates_are_static() -> None:
    assert settings_of(ingressRate=8, ingressBurst=8, **runtime(shapedSubnets=["::/0"])).shaped == ()


def test_rules_are_equal_when_subnets_come_twice_or_in_another_order() -> None:
    ten, lan = (4, bytes((10, 0, 0, 0)), 8), (4, bytes((192, 168, 0, 0)), 16)
    made = [classes(Bucket(1000, 100, 200), TICKS, "dst", nets, True) for nets in ([ten, lan], [lan, ten, lan])]
    assert made[0] == made[1]
    place = (16).to_bytes(4, sys.byteorder) + bytes(4)
    assert [rule.keys for rule in made[0].rules] == [
        bytes((255, 0, 0, 0, 10, 0, 0, 0)) + place,
        bytes((255, 255, 0, 0, 192, 168, 0, 0)) + place,
    ]


@pytest.mark.parametrize(("rate", "least"), [(1_000_000, 15_140), (10**9, 9_375_000)])
def test_ten_packets_may_wait_at_least_when_containerd_had_no_burst_to_give(rate: int, least: int) -> None:
    assert bucket(Limit(rate, UNSPECIFIED), 25, 1500, TICKS).limit == least
