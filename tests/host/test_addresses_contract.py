"""One contract for every NodeAddresses: those it is told, and those of a namespace."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cnimeta.host.addresses import RouteAddresses
from cnimeta.testing.addresses import FakeAddresses

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cnimeta.host.protocols import NodeAddresses
    from cnimeta.testing.netns import Namespace

    NodeWith = Callable[..., NodeAddresses]


@pytest.fixture(params=[pytest.param("fake", marks=pytest.mark.unit), pytest.param("kernel", marks=pytest.mark.kernel)])
def node_with(request: pytest.FixtureRequest) -> Iterator[NodeWith]:
    if request.param == "fake":
        yield FakeAddresses
        return
    make: Callable[[str], Namespace] = request.getfixturevalue("make_netns")
    node = make("node")
    node.veth("up0", make("far"), "up0")

    def give(*addresses: str) -> NodeAddresses:
        for address in addresses:
            prefix, words = ("64", ("nodad",)) if ":" in address else ("24", ())
            node.run("ip", "addr", "add", f"{address}/{prefix}", "dev", "up0", *words)
        return RouteAddresses()

    with node.entered():
        yield give


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ((), ()),
        (("192.0.2.1",), ("192.0.2.1",)),
        (("2001:db8::1",), ("2001:db8::1",)),
        (("2001:db8::1", "192.0.2.1"), ("192.0.2.1", "2001:db8::1")),
        (("192.0.2.1", "198.51.100.1"), ("192.0.2.1",)),
        (("169.254.7.7", "192.0.2.1"), ("192.0.2.1",)),
        (("fe80::7",), ()),
    ],
)
def test_primary_is_at_most_one_address_per_family_ipv4_first(
    node_with: NodeWith, given: tuple[str, ...], expected: tuple[str, ...]
) -> None:
    assert node_with(*given).primary() == expected


@pytest.mark.kernel
def test_primary_is_the_source_of_the_default_route_when_there_is_one(make_netns: Callable[[str], Namespace]) -> None:
    node = make_netns("node")
    for name, address in (("a0", "192.0.2.1"), ("b0", "198.51.100.1")):
        node.veth(name, make_netns("far"), name)
        node.run("ip", "addr", "add", f"{address}/24", "dev", name)
    with node.entered():
        assert RouteAddresses().primary() == ("192.0.2.1",)
        node.run("ip", "route", "add", "default", "via", "198.51.100.9")
        assert RouteAddresses().primary() == ("198.51.100.1",)
        for kind in ("unreachable", "prohibit", "blackhole"):
            node.run("ip", "route", "replace", kind, "default")
            assert RouteAddresses().primary() == ("192.0.2.1",)
            node.run("ip", "route", "del", kind, "default")
