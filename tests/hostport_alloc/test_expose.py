"""Exposures: how they are written, and how the three sources are merged."""

from __future__ import annotations

import pytest

from cnimeta.errors import CniError
from cnimeta.spec.fields import Fields
from cnimeta_plugins.hostport_alloc.allocate.expose import (
    SAME,
    Explicit,
    Exposure,
    parse_annotation,
    parse_exposure,
    read_mappings,
    union,
)

pytestmark = pytest.mark.unit

RANGES = ("default", "games")


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("80/tcp", Exposure("default", 80, ("tcp",))),
        ("80", Exposure("default", 80, ("tcp",))),
        ("games:9000/udp", Exposure("games", 9000, ("udp",))),
        ("53/udp+tcp", Exposure("default", 53, ("tcp", "udp"))),
        ("games:9000-9003/udp", Exposure("games", 9000, ("udp",), 4)),
        (" 5060 / SCTP ", Exposure("default", 5060, ("sctp",))),
        ("65535/tcp", Exposure("default", 65535, ("tcp",))),
        ("same", Exposure("default", SAME, ("tcp",))),
        ("games: Same /udp+tcp", Exposure("games", SAME, ("tcp", "udp"))),
    ],
)
def test_exposure_is_read(text: str, wanted: Exposure) -> None:
    assert parse_exposure(text, "$.expose[0]", RANGES) == wanted
    assert parse_exposure(wanted.text, "$.expose[0]", RANGES) == wanted


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/tcp",
        "tcp",
        "0/tcp",
        "65536/tcp",
        "-1/tcp",
        "80/http",
        "80/",
        "80/tcp+tcp",
        "90-80/tcp",
        "80-/tcp",
        ":80/tcp",
        "80/tcp/udp",
        "\uff180/tcp",
        "1e3/tcp",
        "80,81/tcp",
        "same-9/tcp",
        "80-same/tcp",
        "samey/tcp",
    ],
)
def test_exposure_is_refused_with_path_and_text_when_malformed(text: str) -> None:
    with pytest.raises(CniError) as caught:
        parse_exposure(text, "$.expose[0]", RANGES)
    assert caught.value.code == 7
    assert caught.value.msg.startswith("$.expose[0] ")


def test_exposure_is_refused_when_its_range_is_unknown() -> None:
    with pytest.raises(CniError, match=r'names the range "web", \$\.ranges has default, games'):
        parse_exposure("web:80/tcp", "$.expose[0]", RANGES)


def test_annotation_is_a_list_when_it_has_commas_and_blanks() -> None:
    found = parse_annotation(" 80/tcp, games:9000/udp ,", "annotation", RANGES)
    assert found == (Exposure("default", 80, ("tcp",)), Exposure("games", 9000, ("udp",)))
    assert parse_annotation("", "annotation", RANGES) == ()


def mappings(*entries: object) -> Fields:
    return Fields({"portMappings": list(entries)}, "$.runtimeConfig")


def test_mappings_are_read_alike_when_keys_are_capitalised() -> None:
    lower = mappings({"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}, {"hostPort": 0, "containerPort": 81})
    upper = mappings(
        {"HostPort": 8080, "ContainerPort": 80, "Protocol": "TCP", "HostIP": ""}, {"HostPort": 0, "ContainerPort": 81}
    )
    wanted = read_mappings(lower, RANGES)
    assert wanted == read_mappings(upper, RANGES)
    assert wanted.explicit == (Explicit(8080, 80, "tcp"),)
    assert wanted.exposures == (Exposure("default", 81, ("tcp",)),)


def test_mapping_keeps_its_host_address_when_the_port_is_random() -> None:
    wanted = read_mappings(mappings({"hostPort": 0, "containerPort": 80, "hostIP": "192.0.2.1"}), RANGES)
    assert wanted.exposures == (Exposure("default", 80, ("tcp",), 1, "192.0.2.1"),)


@pytest.mark.parametrize(
    ("entry", "key"),
    [
        ({"hostPort": 70000, "containerPort": 80}, "hostPort"),
        ({"hostPort": -1, "containerPort": 80}, "hostPort"),
        ({"hostPort": "80", "containerPort": 80}, "hostPort"),
        ({"hostPort": 80.0, "containerPort": 80}, "hostPort"),
        ({"hostPort": 80, "containerPort": 0}, "containerPort"),
        ({"hostPort": 80}, "containerPort"),
        ({"hostPort": 80, "containerPort": 80, "protocol": "http"}, "protocol"),
        ({"hostPort": 80, "containerPort": 80, "hostIP": "node1"}, "hostIP"),
    ],
)
def test_mapping_is_refused_with_its_path_when_a_value_is_wrong(entry: dict[str, object], key: str) -> None:
    with pytest.raises(CniError) as caught:
        read_mappings(mappings({"hostPort": 1, "containerPort": 1}, entry), RANGES)
    assert caught.value.code == 7
    assert caught.value.msg.startswith(f"$.runtimeConfig.portMappings[1].{key} ")


def test_random_mapping_is_refused_when_there_is_no_default_range() -> None:
    with pytest.raises(CniError, match=r"portMappings\[0\]\.hostPort is 0.*\$\.ranges has none"):
        read_mappings(mappings({"hostPort": 0, "containerPort": 80}), ("games",))


def test_earlier_source_wins_when_two_name_the_same_port() -> None:
    pod, conf = Exposure("games", 80, ("tcp",)), Exposure("default", 80, ("tcp",))
    assert union([pod], [conf]) == (pod,)


def test_same_is_had_once_per_range_and_protocol() -> None:
    pod = Exposure("games", SAME, ("udp",)), Exposure("default", SAME, ("tcp",))
    assert union(pod, [Exposure("games", SAME, ("tcp", "udp"))]) == (*pod, Exposure("games", SAME, ("tcp",)))


def test_later_source_keeps_what_is_left_when_it_overlaps() -> None:
    pod = Exposure("games", 81, ("tcp",))
    conf = Exposure("default", 80, ("tcp", "udp"), 4)
    assert union([pod], [conf]) == (
        pod,
        Exposure("default", 80, ("tcp", "udp"), 1),
        Exposure("default", 81, ("udp",), 1),
        Exposure("default", 82, ("tcp", "udp"), 2),
    )
