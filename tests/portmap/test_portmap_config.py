"""portmap's keys: every wrong value is an error that names it, every spelling is understood."""

from __future__ import annotations

import time
from typing import Any

import pytest
from portmap_kit import Host, conf, tcp

from cnimeta.errors import CniError
from cnimeta.spec.netconf import NetConf
from cnimeta_plugins.portmap.config import NodeDefaults, read_mappings, read_settings
from cnimeta_plugins.portmap.operator import validate

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("mapping", "path"),
    [
        (tcp(0), "hostPort"),
        (tcp(-1), "hostPort"),
        (tcp(70000), "hostPort"),
        ({"hostPort": "80", "containerPort": 80}, "hostPort"),
        ({"hostPort": 80.0, "containerPort": 80}, "hostPort"),
        ({"hostPort": True, "containerPort": 80}, "hostPort"),
        ({"hostPort": None, "containerPort": 80}, "hostPort"),
        ({"containerPort": 80}, "hostPort"),
        (tcp(80, 0), "containerPort"),
        (tcp(80, 65536), "containerPort"),
        ({"hostPort": 80}, "containerPort"),
        (tcp(80, protocol="icmp"), "protocol"),
        (tcp(80, protocol=6), "protocol"),
        (tcp(80, hostIP="1.2.3"), "hostIP"),
        (tcp(80, hostIP="::1%lo"), "hostIP"),
        (tcp(80, endPort=79), "endPort"),
        (tcp(80, count=70000), "count"),
        (tcp(65535, 80, count=2), "count"),
        (tcp(80, 65535, count=2), "portMappings[0]"),
        (tcp(80, endPort=81, count=2), "portMappings[0]"),
        (5, "portMappings[0]"),
        ([], "portMappings[0]"),
    ],
)
def test_mapping_is_refused_naming_the_key_when_it_is_wrong(mapping: Any, path: str) -> None:
    host = Host()
    with pytest.raises(CniError) as caught:
        host.call("ADD", conf(mapping))
    assert caught.value.code == 7
    assert "$.runtimeConfig.portMappings[0]" in caught.value.msg
    assert path in caught.value.msg
    assert host.nft.dump() == ""
    assert host.files.content == {}


@pytest.mark.parametrize(
    ("keys", "named"),
    [
        ({"backend": "ipvs"}, "$.backend"),
        ({"snat": "yes"}, "$.snat"),
        ({"masqAll": 1}, "$.masqAll"),
        ({"markMasqBit": 32}, "$.markMasqBit"),
        ({"markMasqBit": 3, "externalSetMarkChain": "KUBE-MARK-MASQ"}, "$.markMasqBit"),
        ({"backend": "nftables", "markMasqBit": 3}, "$.markMasqBit"),
        ({"backend": "nftables", "conditionsV4": ["!", "-d", "192.0.2.0/24"]}, "$.conditionsV4"),
        ({"backend": "iptables", "conditionsV4": ["ip", "daddr", "192.0.2.1"]}, "$.conditionsV4"),
        ({"conditionsV6": ["ip6 saddr fd00::/8; flush ruleset"]}, "$.conditionsV6[0]"),
        ({"conditionsV4": ["a\nb"]}, "$.conditionsV4[0]"),
        ({"conditionsV4": "ip"}, "$.conditionsV4"),
        *(
            ({key: words, "backend": backend}, f"$.{key} has the verdict")
            for key, words in (
                *(
                    ("conditionsV4", [verdict])
                    for verdict in ("drop", "accept", "return", "continue", "goto x", "jump x")
                ),
                ("conditionsV4", ["ip saddr 203.0.113.2 drop"]),
                ("conditionsV4", ["ip saddr 203.0.113.2", "drop"]),
                ("conditionsV6", ["ip6 saddr fd00::2 accept"]),
                ("conditionsV6", ["tcp dport vmap {99:drop}"]),
                ("conditionsV4", ['iifname "eth0"drop']),
            )
            for backend in ("nftables", "auto")
        ),
        ({"dataDir": "relative"}, "$.dataDir"),
        ({"runtimeConfig": []}, "$.runtimeConfig"),
        ({"runtimeConfig": {"portMappings": {}}}, "$.runtimeConfig.portMappings"),
    ],
)
def test_key_is_refused_when_its_value_is_wrong(keys: dict[str, Any], named: str) -> None:
    with pytest.raises(CniError) as caught:
        read_settings(NetConf({**conf(tcp(80)), **keys}))
    assert caught.value.code == 7
    assert named in caught.value.msg


@pytest.mark.parametrize(
    "words",
    [["ip", "saddr", "192.0.2.0/24"], ['iifname "drop"'], ["ct status dnat"], ["ip saddr @dropped"], ["-j", "drop"]],
)
def test_conditions_are_taken_when_no_word_of_them_is_a_verdict(words: list[str]) -> None:
    assert read_settings(NetConf({**conf(tcp(80)), "conditionsV4": words})).conditions_v4 == tuple(words)


def test_two_targets_are_refused_when_the_host_port_is_the_same() -> None:
    with pytest.raises(CniError) as caught:
        read_settings(NetConf(conf(tcp(80, 80), tcp(80, 81))))
    assert "portMappings[1]" in caught.value.msg


def test_equal_mappings_count_once_when_repeated() -> None:
    assert len(read_settings(NetConf(conf(tcp(80), tcp(80)))).mappings) == 1


def test_every_spelling_reads_the_same_when_the_case_differs() -> None:
    lower = conf({"hostPort": 80, "containerPort": 81, "protocol": "udp", "hostIP": "192.0.2.1"})
    upper = conf({"HostPort": 80, "ContainerPort": 81, "Protocol": "UDP", "HostIP": "192.0.2.1"})
    assert read_settings(NetConf(lower)) == read_settings(NetConf(upper))


def test_node_wide_backend_counts_when_the_configuration_has_none() -> None:
    node = NodeDefaults("iptables")
    assert read_settings(NetConf(conf(tcp(80))), node).backends == ("iptables",)
    assert read_settings(NetConf(conf(tcp(80), backend="nftables")), node).backends == ("nftables",)
    assert read_settings(NetConf(conf(tcp(80)))).backends == ("nftables", "iptables")


def test_other_familys_mapping_is_left_out_when_it_has_an_address() -> None:
    host = Host()
    host.call("ADD", conf(tcp(80, hostIP="::"), tcp(81), ips=("10.88.0.2/16", "fd00::2/64")))
    dump = host.dump()
    assert "any6 { tcp . 80 : fd00::2 . 80 }" in dump
    assert not any(line.startswith("any4 { tcp . 80 ") for line in dump)


def test_mappings_are_told_apart_in_no_time_when_there_are_thousands() -> None:
    many = [{"hostPort": port, "containerPort": 80} for port in range(1, 60001)]
    started = time.process_time()
    body = {"cniVersion": "1.0.0", "name": "net", "type": "portmap", "runtimeConfig": {"portMappings": many}}
    assert len(read_mappings(NetConf(body))) == 60000
    assert time.process_time() - started < 10, "it grows with the square"


@pytest.mark.parametrize("address", ["fe80::1", "FEBF::", "fe80:0::2"])
def test_a_link_local_host_address_is_refused_with_the_reason(address: str) -> None:
    entry = {"hostPort": 80, "containerPort": 80, "hostIP": address}
    body = {"cniVersion": "1.0.0", "name": "net", "type": "portmap", "runtimeConfig": {"portMappings": [entry]}}
    with pytest.raises(CniError, match=r"hostIP must be no link-local address: fe80::/10 means nothing") as caught:
        read_mappings(NetConf(body))
    assert caught.value.code == 7


@pytest.mark.parametrize("keys", [{"masqAll": True}, {"markMasqBit": 5}], ids=str)
def test_key_that_decides_nothing_is_told_when_nothing_is_masqueraded(keys: dict[str, Any]) -> None:
    (name,) = keys
    for snat in (False, True):
        lines: list[str] = []
        Host().call("ADD", conf(tcp(80), snat=snat, **keys), log=lines)
        told = [f"portmap: $.{name} has no effect: $.snat is false"] * (not snat)
        assert lines == told
        assert list(validate(NetConf(conf(snat=snat, **keys)))) == [line.removeprefix("portmap: ") for line in told]
