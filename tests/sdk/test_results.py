"""Results of every spec version, up and down; addresses, versions, fields, names."""

from __future__ import annotations

import ipaddress
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnimeta.errors import CniError, DecodingFailure, IncompatibleVersion, InvalidNetworkConfig
from cnimeta.spec import cniargs, version
from cnimeta.spec.convert import parse_prev_result, parse_result, render_result
from cnimeta.spec.fields import Fields
from cnimeta.spec.ip import parse_cidr, parse_ip
from cnimeta.spec.jsonio import dumps, loads_object
from cnimeta.spec.result import DNS, Interface, IPConfig, Result, Route
from cnimeta.spec.version import ALL

pytestmark = pytest.mark.unit

V4 = st.ip_addresses(v=4).map(str)
V6 = st.ip_addresses(v=6).filter(lambda ip: ip.ipv4_mapped is None).map(lambda ip: parse_ip(str(ip)).text)
IPS = st.one_of(V4, V6)
CIDRS = st.one_of(
    st.tuples(V4, st.integers(0, 32)).map(lambda pair: f"{pair[0]}/{pair[1]}"),
    st.tuples(V6, st.integers(0, 128)).map(lambda pair: f"{pair[0]}/{pair[1]}"),
)
WORDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
NAMES = st.lists(WORDS, max_size=2).map(tuple)
INTERFACES = st.builds(
    Interface, WORDS, mac=WORDS, mtu=st.integers(0, 65535), sandbox=WORDS, socket_path=WORDS, pci_id=WORDS
)
ROUTES = st.builds(
    Route,
    CIDRS,
    gw=st.one_of(st.just(""), IPS),
    mtu=st.integers(0, 65535),
    advmss=st.integers(0, 65535),
    priority=st.integers(0, 2**32 - 1),
    table=st.one_of(st.none(), st.integers(0, 2**32 - 1)),
    scope=st.one_of(st.none(), st.integers(0, 255)),
)
RESULTS = st.builds(
    Result,
    st.lists(INTERFACES, max_size=3).map(tuple),
    st.lists(
        st.builds(IPConfig, CIDRS, st.one_of(st.just(""), IPS), st.one_of(st.none(), st.integers(0, 3))), max_size=3
    ).map(tuple),
    st.lists(ROUTES, max_size=3).map(tuple),
    st.builds(DNS, NAMES, WORDS, NAMES, NAMES),
)


def through(result, spoken):
    return parse_result(loads_object(dumps(render_result(result, spoken))), spoken)


@given(RESULTS, st.sampled_from(["1.0.0", "1.1.0"]))
def test_nothing_is_lost_when_a_result_goes_through_the_1_x_shape(result, spoken):
    """Plugins "may output a modified prevResult": what a plugin before said must survive."""
    assert through(result, spoken) == result


@given(RESULTS, st.sampled_from(["0.3.0", "0.3.1", "0.4.0"]))
def test_only_what_came_later_is_lost_when_a_result_goes_through_the_0_3_shape(result, spoken):
    """ "The version of the result must be the cniVersion of the configuration"."""
    plain = result._replace(
        interfaces=tuple(Interface(i.name, i.mac, sandbox=i.sandbox) for i in result.interfaces),
        routes=tuple(Route(route.dst, route.gw) for route in result.routes),
    )
    body = render_result(result, spoken)
    assert through(result, spoken) == plain
    assert "dns" in body
    assert [entry["version"] for entry in body.get("ips", ())] == [
        str(ipaddress.ip_interface(config.address).version) for config in result.ips
    ]
    assert through(plain, spoken) == plain


@given(RESULTS, st.sampled_from(["0.1.0", "0.2.0"]))
def test_the_first_address_of_each_family_is_kept_when_a_result_goes_through_the_0_1_shape(result, spoken):
    if not result.ips:
        with pytest.raises(IncompatibleVersion, match="no valid IP addresses"):
            render_result(result, spoken)
        return
    body = render_result(result, spoken)
    assert "interfaces" not in body
    for family in (4, 6):
        mine = [c for c in result.ips if ipaddress.ip_interface(c.address).version == family]
        assert (f"ip{family}" in body) == bool(mine)
        if mine:
            assert body[f"ip{family}"]["ip"] == mine[0].address
    once = through(result, spoken)
    assert through(once, spoken) == once
    assert once.dns == result.dns


@given(RESULTS, st.sampled_from(ALL))
def test_every_rendering_names_its_version_and_is_json(result, spoken):
    if result.ips:
        assert json.loads(dumps(render_result(result, spoken)))["cniVersion"] == spoken


@pytest.mark.parametrize("config", ALL)
@pytest.mark.parametrize("given_version", [*ALL, "", None, "9.9.9"])
def test_prev_result_is_refused_when_its_version_is_of_another_family(config, given_version):
    families = [{"0.1.0", "0.2.0"}, {"0.3.0", "0.3.1", "0.4.0"}, {"1.0.0", "1.1.0"}]
    raw = {"cniVersion": given_version}
    if not given_version or any({config, given_version} <= family for family in families):
        assert parse_prev_result(raw, config) == Result()
    else:
        with pytest.raises(DecodingFailure, match=r"\$\.prevResult\.cniVersion"):
            parse_prev_result(raw, config)


@pytest.mark.parametrize(
    ("raw", "path"),
    [
        ({"ips": {}}, "$.ips must be an array, got an object"),
        ({"ips": [1]}, "$.ips[0] must be an object"),
        (
            {"ips": [{"address": "10.0.0.2"}]},
            '$.ips[0].address must be an IP address with prefix length, got a string: "10',
        ),
        ({"ips": [{"address": "10.0.0.2/24", "gateway": "x"}]}, "$.ips[0].gateway"),
        ({"interfaces": [{"name": 1}]}, "$.interfaces[0].name must be a string"),
        ({"interfaces": [{"mtu": 1.0}]}, "$.interfaces[0].mtu must be a whole number"),
        ({"interfaces": [{"mtu": True}]}, "$.interfaces[0].mtu"),
        ({"routes": [{"dst": "::/129"}]}, "$.routes[0].dst"),
        ({"dns": {"nameservers": "1.1.1.1"}}, "$.dns.nameservers must be an array"),
        ({"dns": {"search": [None]}}, "$.dns.search[0] must be a string, got null"),
    ],
)
def test_a_result_is_code_6_and_names_the_path_when_it_is_malformed(raw, path):
    with pytest.raises(DecodingFailure) as caught:
        parse_result(raw, "1.1.0")
    assert path in caught.value.msg


@given(RESULTS)
def test_capitalised_keys_read_the_same(result):
    def capital(value):
        if isinstance(value, dict):
            return {key[:1].upper() + key[1:]: capital(item) for key, item in value.items()}
        return [capital(item) for item in value] if isinstance(value, list) else value

    assert parse_result(capital(render_result(result, "1.1.0")), "1.1.0") == result


def test_an_interface_is_appended_once():
    one = Result().with_interface(Interface("a", sandbox="x"))
    assert one.with_interface(Interface("a", sandbox="x")) is one
    assert len(one.with_interface(Interface("a")).interfaces) == 2


# --- addresses ---


@given(st.ip_addresses())
def test_addresses_agree_with_the_standard_library(ip):
    ours = parse_ip(str(ip))
    mapped = getattr(ip, "ipv4_mapped", None)
    theirs = mapped or ip
    assert (ours.family, ours.packed) == (theirs.version, theirs.packed)
    assert ipaddress.ip_address(ours.text) == theirs
    assert ours.is_loopback == theirs.is_loopback
    assert ours.is_unspecified == theirs.is_unspecified
    assert parse_ip(ours.text) == ours


@given(st.one_of(st.text(max_size=20), st.text("0123456789abcdef:./%", max_size=24)))
def test_text_is_an_address_when_the_standard_library_says_so(text):
    try:
        theirs = None if "%" in text else ipaddress.ip_address(text)
    except ValueError:
        theirs = None
    try:
        ours = parse_ip(text)
    except ValueError:
        ours = None
    assert (ours is None) == (theirs is None)


@given(st.one_of(st.tuples(V4, st.integers(0, 32)), st.tuples(V6, st.integers(0, 128))), IPS)
def test_networks_agree_with_the_standard_library(pair, other):
    text = f"{pair[0]}/{pair[1]}"
    ours, theirs = parse_cidr(text), ipaddress.ip_interface(text)
    assert ours.text == text
    assert ipaddress.ip_network(ours.network.text) == theirs.network
    assert (parse_ip(other) in ours) == (ipaddress.ip_address(other) in theirs.network)


@pytest.mark.parametrize(
    ("text", "canonical"),
    [
        ("::102:304", "::102:304"),
        ("::1.2.3.4", "::102:304"),
        ("::1:0", "::1:0"),
        ("::ffff:1.2.3.4", "1.2.3.4"),
        ("2001:DB8:0:0:1::", "2001:db8:0:0:1::"),
        ("::", "::"),
        ("::1", "::1"),
    ],
)
def test_an_address_is_spelt_as_go_spells_it(text, canonical):
    assert parse_ip(text).text == canonical


def test_a_mapped_network_is_an_ipv4_network():
    assert parse_cidr("::ffff:10.0.0.2/120").text == "10.0.0.2/24"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "/",
        "10.0.0.1",
        "10.0.0.1/",
        "10.0.0.1/33",
        "::/129",
        "10.0.0.1/-1",
        "10.0.0.1/2x",
        "1/1",
        "::ffff:1.2.3.4/95",
    ],
)
def test_text_is_refused_when_it_is_no_network(text):
    with pytest.raises(ValueError):
        parse_cidr(text)


# --- fields, arguments, versions ---


@given(st.dictionaries(st.text(max_size=5), st.integers()), st.text(max_size=5))
def test_a_key_is_found_in_any_case(raw, key):
    fields = Fields(raw)
    found = [value for name, value in raw.items() if name.lower() == key.lower()]
    assert fields.get(key) == (found[-1] if found else None)


def test_null_is_unset_and_does_not_hide_another_spelling():
    fields = Fields({"hostPort": 1, "HostPort": None, "x": None})
    assert fields.integer("hostport", 0, 9) == 1
    assert not fields.has("x")
    assert (fields.text("x"), fields.boolean("x"), fields.items("x"), fields.texts("x")) == ("", False, [], [])
    assert fields.object("x").path == "$.x"
    assert list(fields.objects("x")) == []


@pytest.mark.parametrize("value", [1.0, "1", True, [], {}, 10, -1])
def test_an_integer_is_refused_when_it_is_not_a_whole_number_in_range(value):
    with pytest.raises(
        InvalidNetworkConfig, match=r"\$\.runtimeConfig\.p must be a whole number from 0 to 9, got"
    ) as caught:
        Fields({"P": value}, "$.runtimeConfig").integer("p", 0, 9)
    assert caught.value.code == 7


def test_a_huge_value_is_cut_in_the_message():
    with pytest.raises(InvalidNetworkConfig) as caught:
        Fields({"a": "x\n" * 10**6}).integer("a", 0, 1)
    assert len(caught.value.msg) < 250
    assert "\n" not in caught.value.msg


@given(st.dictionaries(st.text("AB_", min_size=1), st.text("ab=/ ", max_size=5), max_size=4))
def test_arguments_are_read_as_they_were_joined(pairs):
    assert cniargs.parse(";".join(f"{key}={value}" for key, value in pairs.items())) == pairs


@pytest.mark.parametrize("flag", ["1", "true", "True", "TRUE"])
def test_unknown_arguments_pass_only_when_they_may_be_ignored(flag):
    cniargs.require_known({"X": "1", "IgnoreUnknown": flag}, ())
    cniargs.require_known({"K": "1"}, ("K",))
    for args in ({"X": "1"}, {"X": "1", "IgnoreUnknown": "0"}, {"IgnoreUnknown": "maybe"}):
        with pytest.raises(CniError) as caught:
            cniargs.require_known(args, ())
        assert caught.value.code == 4


@pytest.mark.parametrize("text", ["", "1.1.1.1", "a", "1.", "-1.0.0", "1.0.0\n", "\u0661.0.0", "1.0.123456"])
def test_a_version_is_refused_when_it_is_not_numbers(text):
    with pytest.raises(ValueError):
        version.parse(text)
