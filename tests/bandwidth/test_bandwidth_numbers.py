"""Every number and name that the configuration may hold: taken, or refused with code 7 and its key."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_bandwidth_kernel import Pair
from test_bandwidth_plan import settings_of

from cnimeta.errors import CniError
from cnimeta.host.links import tc
from cnimeta.host.links.values import largest_packet, ticks
from cnimeta.testing import call
from cnimeta_plugins.bandwidth.main import Bandwidth
from cnimeta_plugins.bandwidth.plan import classes, plan_shaping

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cnimeta.testing.netns import Namespace

TICKS = 15.625
EDGES = [
    power + step for power in (0, 8, 2**31, 2**32, 2**33, 2**35, 2**38, 10**16, 2**64) for step in (-8, -1, 0, 1, 8)
]
NUMBERS = st.one_of(
    st.integers(0, 64),
    st.sampled_from(EDGES),
    st.integers(0, 2**64),
    st.integers(3, 64).flatmap(lambda bits: st.integers(2 ** (bits - 1), 2**bits)),
)
CIDRS = st.one_of(
    st.tuples(st.ip_addresses(v=4), st.integers(0, 32)), st.tuples(st.ip_addresses(v=6), st.integers(0, 128))
).map(lambda pair: f"{pair[0]}/{pair[1]}")


@st.composite
def limits(draw: st.DrawFn) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for direction in ("ingress", "egress"):
        if draw(st.booleans()):
            keys |= {f"{direction}Rate": draw(NUMBERS), f"{direction}Burst": draw(NUMBERS)}
    if draw(st.booleans()):
        keys["latency"] = draw(st.one_of(st.integers(1, 10_000), NUMBERS))
    if draw(st.booleans()):
        keys[draw(st.sampled_from(["shapedSubnets", "unshapedSubnets"]))] = draw(st.lists(CIDRS, max_size=5))
    return keys


def refusal(keys: dict[str, Any]) -> CniError | None:
    try:
        settings_of(**keys)
    except CniError as error:
        return error
    return None


@pytest.mark.unit
@settings(max_examples=1500, deadline=None)
@given(limits(), st.integers(68, 65535))
def test_every_number_fits_the_kernels_field_or_is_refused_by_name(keys: dict[str, Any], mtu: int) -> None:
    error = refusal(keys)
    if error is not None:
        assert error.code == 7
        upstreams = ("if rate is set", "if burst is set", "burst cannot be more than 4GB")
        assert error.msg.startswith(upstreams) or any(
            (f"$.{key} must" in error.msg and str(value)[:100] in error.msg) or f"$.{key}[" in error.msg
            for key, value in keys.items()
        ), error.msg
        return
    plan = plan_shaping(settings_of(**keys), mtu, TICKS)
    for shape in filter(None, plan):
        rate, burst, limit = shape.bucket
        assert largest_packet(rate, burst) > 0
        assert 0 < ticks(rate, burst, TICKS) < 2**32
        assert 0 < limit < 2**32
        wanted = classes(shape, TICKS)
        for order in (
            tc.token_bucket(1, rate, burst, limit, TICKS),
            tc.hierarchy(1, wanted.default),
            *tc.shaped_class(1, wanted),
            *(tc.by_subnet(1, rule) for rule in wanted.rules),
        ):
            assert order[2]


@pytest.mark.unit
@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({"ingressRate": 64_000, "ingressBurst": 8}, "$.ingressBurst must be at least 16 bits"),
        ({"egressRate": 10**12, "egressBurst": 900_000}, "$.egressBurst must be at least 1000016 bits"),
    ],
)
def test_burst_that_the_kernel_would_not_take_is_refused_with_the_least_it_takes(
    keys: dict[str, Any], words: str
) -> None:
    error = refusal(keys)
    assert error is not None
    assert (error.code, words in error.msg) == (7, True), error.msg
    least = {key: value if key.endswith("Rate") else int(words.split()[-2]) for key, value in keys.items()}
    assert refusal(least) is None


@pytest.mark.unit
def test_rate_is_refused_by_name_when_no_burst_would_do_for_it() -> None:
    error = refusal({"egressRate": 10**16 + 1, "egressBurst": 10**10})
    assert error is not None
    assert (error.code, "$.egressRate must be a whole number from 0 to 1" in error.msg) == (7, True), error.msg


# --- on the kernel ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def pair(request: pytest.FixtureRequest) -> Iterator[Pair]:
    from cnimeta.testing.netns import namespaces

    with namespaces("bwhost", "bwcont") as (host, container):
        yield Pair(host, container)


@pytest.mark.kernel
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    limits(),
    st.sampled_from(["net", "n" * 166, "n" * 167, "n" * 240]),
    st.sampled_from(["c1", "c" * 64, "c" * 200]),
    st.integers(68, 65535),
)
def test_kernel_takes_all_that_is_not_refused(
    pair: Pair, keys: dict[str, Any], network: str, container: str, mtu: int
) -> None:
    pair.host.run("ip", "link", "set", "vhost", "mtu", str(mtu))
    before = pair.tc("qdisc", "show")
    conf = {**pair.conf(**keys), "name": network}
    error = refusal(keys)
    for verb in ("ADD", "CHECK", "ADD", "DEL"):
        if error is None or verb == "DEL":
            pair.call(verb, conf, container_id=container)
        else:
            with pytest.raises(CniError) as caught:
                pair.call(verb, conf, container_id=container)
            assert (caught.value.code, caught.value.msg) == (7, error.msg)
    assert pair.tc("qdisc", "show") == before
    assert not [name for name in pair.names() if name.startswith("bwp")]


@pytest.mark.kernel
@pytest.mark.parametrize(
    "keys",
    [
        {"ingressRate": 1_000_000_000, "ingressBurst": 34_359_738_359, "unshapedSubnets": ["10.0.0.0/8"]},
        {"egressRate": 10**16, "egressBurst": 2**32 - 1, "shapedSubnets": ["0.0.0.0/0"]},
        {"egressRate": 10**16, "egressBurst": 2**32 - 1},
    ],
    ids=["longest queue", "fastest class", "fastest"],
)
def test_add_and_check_succeed_when_numbers_are_the_largest(pair: Pair, keys: dict[str, Any]) -> None:
    for verb in ("ADD", "CHECK", "DEL"):
        pair.call(verb, pair.conf(**keys))


@pytest.mark.kernel
def test_gc_knows_its_own_when_names_are_long(make_netns: Callable[[str], Namespace]) -> None:
    pair = Pair(make_netns("bwhost"), make_netns("bwcont"))
    network, rates = "n" * 200, {"egressRate": 8_000_000, "egressBurst": 800_000}
    conf = {**pair.conf(**rates), "name": network}
    pair.call("ADD", conf, container_id="c" * 64)
    collect = {"cniVersion": "1.1.0", "type": "bandwidth"}
    valid = [{"containerID": "c" * 64, "ifname": "eth0"}]

    def left() -> int:
        return len([name for name in pair.names() if name.startswith("bwp")])

    with pair.host.entered():
        call(Bandwidth(), "GC", {**collect, "name": network, "cni.dev/valid-attachments": valid})
        assert left() == 1
        call(Bandwidth(), "GC", {**collect, "name": "n" * 201, "cni.dev/valid-attachments": []})
        assert left() == 1
        call(Bandwidth(), "GC", {**collect, "name": network, "cni.dev/valid-attachments": []})
        assert left() == 0
