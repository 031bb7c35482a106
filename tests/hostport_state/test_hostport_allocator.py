"""The allocator: uniform, exact, all or nothing."""

from __future__ import annotations

import random

import pytest
from hostport_state_kit import exposure
from hypothesis import given, settings
from hypothesis import strategies as st

from cnimeta.errors import InvalidNetworkConfig
from cnimeta_plugins.hostport_alloc.allocate.picks import (
    Exhausted,
    QuarantinedPort,
    Situation,
    choose,
    member,
    os_random,
    runs,
)
from cnimeta_plugins.hostport_alloc.allocate.ranges import parse_range, ports_of, refuse_reserved

pytestmark = pytest.mark.unit

FIRST, SIZE = 20000, 200


def chi_square_critical(freedom: int) -> float:
    """The 99th percentile of chi-square, by Wilson and Hilferty's approximation (better than 0.1 % above 5 degrees)."""
    z = 2.3263478740408408
    return freedom * (1 - 2 / (9 * freedom) + z * (2 / (9 * freedom)) ** 0.5) ** 3


def occupied(share: float, scattered: bool) -> int:
    count = round(SIZE * share)
    numbers = range(FIRST, FIRST + SIZE)
    chosen = random.Random(7).sample(numbers, count) if scattered else numbers[:count]
    return sum(1 << port for port in chosen)


@pytest.mark.parametrize("scattered", [False, True])
@pytest.mark.parametrize("share", [0.0, 0.5, 0.95])
def test_picks_are_uniform_when_part_of_the_range_is_occupied(share, scattered):
    found = {"default": parse_range("default", f"{FIRST}-{FIRST + SIZE - 1}", "$")}
    used = occupied(share, scattered)
    free = [port for port in range(FIRST, FIRST + SIZE) if not used >> port & 1]
    generator = random.Random(20260101)
    counts = dict.fromkeys(free, 0)
    expected = 100
    for _ in range(expected * len(free)):
        (port,) = choose([exposure()], found, Situation({"tcp": used}, {}), {}, generator.randrange)
        counts[port.host_port] += 1
    statistic = sum((count - expected) ** 2 / expected for count in counts.values())
    assert statistic < chi_square_critical(len(free) - 1)


def test_uniformity_test_fails_when_picks_are_biased():
    """The check above can tell: a scan from a random start, the usual shortcut, is far outside."""
    free = [*range(10), 199]
    counts = dict.fromkeys(free, 0)
    generator = random.Random(1)
    for _ in range(100 * len(free)):
        start = generator.randrange(200)
        counts[next(port for port in [*range(start, 200), *range(start)] if port in counts)] += 1
    assert sum((count - 100) ** 2 / 100 for count in counts.values()) > 10 * chi_square_critical(len(free) - 1)


def test_os_random_covers_every_number_when_the_bound_is_no_power_of_two():
    assert {os_random(5) for _ in range(400)} == set(range(5))
    assert os_random(1) == 0


def test_both_ends_are_reachable_when_the_range_is_the_whole_port_space():
    found = {"default": parse_range("default", "1-65535", "$")}
    low = choose([exposure()], found, Situation({}, {}), {}, lambda _: 0)
    high = choose([exposure()], found, Situation({}, {}), {}, lambda count: count - 1)
    assert (low[0].host_port, high[0].host_port) == (1, 65535)


@given(st.sets(st.integers(1, 65535), min_size=1, max_size=50), st.data())
def test_member_is_the_nth_smallest_when_sets_are_arbitrary(ports, data):
    number = data.draw(st.integers(0, len(ports) - 1))
    assert member(sum(1 << port for port in ports), number) == sorted(ports)[number]


@given(st.sets(st.integers(1, 300), max_size=120), st.integers(1, 9))
def test_runs_are_exactly_the_starts_of_long_enough_runs(ports, length):
    starts = {port for port in ports if all(port + offset in ports for offset in range(length))}
    assert runs(sum(1 << port for port in ports), length) == sum(1 << start for start in starts)


shapes = st.sampled_from(["80/tcp", "81/udp", "82/tcp+udp", "90+2/tcp", "100+3/tcp+udp", "110/sctp"])


@settings(max_examples=300, deadline=None)
@given(
    st.lists(shapes, min_size=1, max_size=5, unique=True),
    st.sets(st.integers(20000, 20011)),
    st.sets(st.integers(20000, 20011)),
    st.sets(st.integers(20000, 20011)),
    st.randoms(use_true_random=False),
)
def test_picks_are_free_and_in_range_and_complete_or_nothing_is_picked(wanted, used, blocked, waiting, generator):
    found = {"default": parse_range("default", "20000-20011", "$")}
    situation = Situation(
        {"tcp": sum(1 << port for port in used)},
        {"udp": sum(1 << port for port in blocked)},
        tuple(QuarantinedPort("tcp", port, float(index), 100.0) for index, port in enumerate(sorted(waiting - used))),
    )
    exposures = [exposure(text) for text in wanted]
    try:
        ports = choose(exposures, found, situation, {}, generator.randrange)
    except Exhausted:
        return
    pairs = [(port.protocol, port.host_port) for port in ports]
    assert len(set(pairs)) == len(pairs)
    assert len(pairs) == sum(one.length * len(one.protocols) for one in exposures)
    assert all(20000 <= port <= 20011 for _, port in pairs)
    assert not {("tcp", port) for port in used} & set(pairs)
    assert not {("udp", port) for port in blocked} & set(pairs)
    for one in exposures:
        own = {(port.protocol, port.container_port): port.host_port for port in ports}
        start = own[one.protocols[0], one.port]
        for offset in range(one.length):
            assert {own[protocol, one.port + offset] for protocol in one.protocols} == {start + offset}


@given(st.sets(st.integers(20000, 20029), min_size=1), st.integers(1, 4))
def test_singles_are_found_exactly_as_long_as_enough_are_free(free, count):
    used = ports_of([(20000, 20029)]) & ~sum(1 << port for port in free)
    found = {"default": parse_range("default", "20000-20029", "$")}
    exposures = [exposure(f"{80 + index}/tcp") for index in range(count)]
    if count <= len(free):
        ports = choose(exposures, found, Situation({"tcp": used}, {}), {})
        assert {port.host_port for port in ports} <= free
    else:
        with pytest.raises(Exhausted):
            choose(exposures, found, Situation({"tcp": used}, {}), {})


def test_block_and_single_fit_when_random_placing_would_split_the_only_run():
    found = {"default": parse_range("default", "20000-20002,20010", "$")}
    for _ in range(50):
        ports = choose([exposure("80/tcp"), exposure("90+3/tcp")], found, Situation({}, {}), {})
        assert {port.host_port for port in ports if port.container_port == 80} == {20010}


def test_exhaustion_names_range_and_counts_when_nothing_is_free():
    found = {"games": parse_range("games", "7000-7003", "$")}
    situation = Situation({"tcp": 0b11 << 7000}, {"tcp": 0b111 << 7001})
    with pytest.raises(Exhausted) as raised:
        choose([exposure("80/tcp", "games")], found, situation, {})
    error = raised.value
    assert (error.code, error.range, error.size, error.used, error.quarantined, error.blocked) == (
        11,
        "games",
        4,
        2,
        0,
        2,
    )
    assert '"games" (7000-7003, 4 ports)' in error.msg
    assert "2 used, 0 quarantined, 2 blocked" in error.msg


def test_quarantined_ports_are_avoided_until_nothing_else_is_left_then_oldest_first():
    found = {"default": parse_range("default", "20000-20004", "$")}
    waiting = tuple(
        QuarantinedPort("tcp", port, float(at), 99.0) for at, port in enumerate([20003, 20001, 20000, 20004])
    )
    first = choose([exposure()], found, Situation({}, {}, waiting), {})
    assert first[0].host_port == 20002
    order, used = [], 1 << 20002
    for _ in waiting:
        (port,) = choose([exposure()], found, Situation({"tcp": used}, {}, waiting), {})
        order.append(port.host_port)
        used |= 1 << port.host_port
    assert order == [20003, 20001, 20000, 20004]


def test_udp_quarantine_does_not_matter_when_tcp_is_asked_for():
    found = {"default": parse_range("default", "20000", "$")}
    waiting = (QuarantinedPort("udp", 20000, 0.0, 99.0),)
    assert choose([exposure("80/tcp")], found, Situation({}, {}, waiting), {})[0].host_port == 20000


def test_preferred_port_is_taken_when_free_and_quarantined_but_not_when_held_or_outside():
    found = {"default": parse_range("default", "20000-20999", "$")}
    wish = {(80, "tcp", "default"): 20500}
    waiting = (QuarantinedPort("tcp", 20500, 0.0, 99.0),)
    assert choose([exposure()], found, Situation({}, {}, waiting), wish)[0].host_port == 20500
    for situation in (Situation({"tcp": 1 << 20500}, {}), Situation({}, {"tcp": 1 << 20500})):
        assert choose([exposure()], found, situation, wish)[0].host_port != 20500
    for outside in (19999, 21000, 0, 65536, 10**6):
        (port,) = choose([exposure()], found, Situation({}, {}), {(80, "tcp", "default"): outside})
        assert 20000 <= port.host_port <= 20999


def test_same_number_is_never_split_when_one_protocol_is_busy():
    found = {"default": parse_range("default", "20000-20001", "$")}
    ports = choose([exposure("80/tcp+udp")], found, Situation({"tcp": 1 << 20000}, {}), {})
    assert {port.host_port for port in ports} == {20001}
    with pytest.raises(Exhausted):
        choose([exposure("80/tcp+udp")], found, Situation({"tcp": 1 << 20000, "udp": 1 << 20001}, {}), {})


def test_range_text_is_read_when_it_has_several_spans():
    found = parse_range("default", " 25010, 20000-20002 ", "$.ranges.default")
    assert found.spans == ((20000, 20002), (25010, 25010))
    assert (found.size, found.text) == (4, "20000-20002,25010")


@pytest.mark.parametrize(
    "text",
    ["", "0", "65536", "5-4", "a-b", "1-", "-1", "1--2", "1,,2", "1-5,5", "1-5,3-9", "+1", "\uff11", "1.5", "99999"],
)
def test_range_text_is_refused_when_it_is_wrong(text):
    with pytest.raises(InvalidNetworkConfig) as raised:
        parse_range("default", text, "$.ranges.default")
    assert raised.value.msg.startswith("$.ranges.default ")


def test_overlap_is_refused_when_a_span_touches_reserved_ports():
    found = parse_range("default", "20000-20010,30000", "$")
    with pytest.raises(InvalidNetworkConfig, match="the NodePort range"):
        refuse_reserved([found], [("the NodePort range", 30000, 32767)])
    refuse_reserved([found], [("the NodePort range", 30001, 32767)])
