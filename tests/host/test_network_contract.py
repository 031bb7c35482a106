"""One contract for every Networks: the fake, and the kernel's over rtnetlink and /proc/sys."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cnimeta.errors import InvalidNetworkConfig, IoFailure
from cnimeta.host.network.kernel import KernelNetworks
from cnimeta.host.network.values import (
    AddAddress,
    AddRoute,
    AddVeth,
    MoveLink,
    RemoveAddress,
    RemoveLink,
    RemoveRoute,
    SetLink,
    SetSysctl,
    sysctl_name,
)
from cnimeta.host.values import NoNamespace
from cnimeta.spec.result import Route
from cnimeta.testing.network import FakeNetworks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cnimeta.host.protocols import Network, Networks
    from cnimeta.testing.netns import Namespace

FORWARD = "net/ipv4/conf/eth0/forwarding"


class World:
    """A host with a container: `vhost` here is the other end of the container's `eth0`; `empty` is one more."""

    def __init__(self, networks: Networks, netns: str, empty: str) -> None:
        self.networks = networks
        self.netns = netns
        self.empty = empty

    @property
    def here(self) -> Network:
        return self.networks.here()


@pytest.fixture(params=[pytest.param("fake", marks=pytest.mark.unit), pytest.param("kernel", marks=pytest.mark.kernel)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "fake":
        networks = FakeNetworks()
        networks.veth("/run/netns/c1", "eth0", "vhost")
        networks.namespace("/run/netns/c2")
        yield World(networks, "/run/netns/c1", "/run/netns/c2")
        return
    make: Callable[[str], Namespace] = request.getfixturevalue("make_netns")
    host, container, empty = make("nwhost"), make("nwcont"), make("nwempty")
    host.veth("vhost", container, "eth0")
    with host.entered():
        yield World(KernelNetworks(), container.path, empty.path)


def test_both_ends_are_found_when_one_knows_the_other(world: World) -> None:
    with world.networks.within(world.netns) as inside:
        end = inside.link("eth0")
    assert end is not None
    host = world.here.link(index=end.peer)
    assert host is not None
    assert (host.name, host.peer, host.kind, host.up) == ("vhost", end.ifindex, "veth", True)
    assert world.here.link("eth0") is None
    assert world.here.link(index=4711) is None
    assert [link.name for link in world.here.links()] == ["lo", "vhost"]


def test_everything_of_a_link_is_as_set_when_it_is_read_again(world: World) -> None:
    with world.networks.within(world.netns) as inside:
        before = inside.link("eth0")
        assert before is not None
        wanted = SetLink("eth0", True, "02:00:00:00:00:99", 1400, 77, True, True, "of c1")
        for _ in range(2):
            inside.apply(wanted)
        after = inside.link("eth0")
        assert after == before._replace(
            mac="02:00:00:00:00:99", mtu=1400, queue_length=77, promiscuous=True, all_multicast=True, alias="of c1"
        )
        inside.apply(SetLink("eth0", promiscuous=False, all_multicast=False))
        assert inside.link("eth0") == after._replace(promiscuous=False, all_multicast=False)


@pytest.mark.parametrize(
    ("change", "error"),
    [
        (SetLink("eth0", mtu=12), "Invalid argument"),
        (SetLink("eth0", mac="03:00:00:00:00:01"), "Cannot assign requested address"),
        (SetLink("eth9", mtu=1400), 'there is no interface "eth9"'),
        (AddVeth("eth0", "other"), "File exists"),
        (AddVeth("sixteen-bytes-01", "other"), "Numerical result out of range"),
        (AddAddress("eth9", "10.0.0.2/24"), 'there is no interface "eth9"'),
        (AddRoute("eth0", Route("10.9.0.0/16", "192.0.2.7")), "Network is unreachable"),
        (AddRoute("eth0", Route("2001:db8:9::/48", "2001:db8::7")), "No route to host"),
        (SetSysctl("net/ipv4/conf/eth9/forwarding", "1"), "No such file or directory"),
        (MoveLink("eth9", "/proc/self/ns/net"), "no "),
    ],
)
def test_a_change_is_refused_when_the_kernel_cannot_make_it(world: World, change: object, error: str) -> None:
    with world.networks.within(world.netns) as inside:
        before = inside.link("eth0"), inside.addresses("eth0")
        with pytest.raises(IoFailure, match=error):
            inside.apply(change)  # type: ignore[arg-type]
        assert (inside.link("eth0"), inside.addresses("eth0")) == before


@pytest.mark.parametrize(
    "change",
    [
        SetLink("eth0", mac="02:00:00:00:00"), SetLink("eth0", mac="02:00:00:00:00:zz"), SetLink("eth0", mac=""),
        AddAddress("eth0", "10.0.0.2"), AddRoute("eth0", Route("10.0.0.0")), AddAddress("eth0", "x/24"),
    ],
)  # fmt: skip
def test_an_error_of_the_configuration_is_named_when_a_value_has_no_meaning(world: World, change: object) -> None:
    with world.networks.within(world.netns) as inside, pytest.raises(InvalidNetworkConfig):
        inside.apply(change)  # type: ignore[arg-type]


@pytest.mark.parametrize("address", ["10.1.0.2/24", "2001:db8:1::2/64"])
def test_an_address_comes_and_goes_when_it_is_changed_twice(world: World, address: str) -> None:
    with world.networks.within(world.netns) as inside:
        for _ in range(2):
            inside.apply(AddAddress("eth0", address))
        assert [one for one in inside.addresses("eth0") if not one.startswith("fe80")] == [address]
        for _ in range(2):
            inside.apply(RemoveAddress("eth0", address))
        assert [one for one in inside.addresses("eth0") if not one.startswith("fe80")] == []
        inside.apply(RemoveAddress("eth9", address))


@pytest.mark.parametrize(
    ("address", "first", "second"),
    [
        ("10.1.0.2/24", Route("0.0.0.0/0", "10.1.0.1"), Route("0.0.0.0/0", "10.1.0.9")),
        ("10.1.0.2/24", Route("10.7.0.0/16", "10.1.0.1", 1400, 1300, 7), Route("10.7.0.0/16", "10.1.0.9", priority=7)),
        ("10.1.0.2/24", Route("10.7.0.0/16", table=4711), Route("10.7.0.0/16", "10.1.0.1", table=4711)),
        ("10.1.0.2/24", Route("10.7.0.0/16", table=77), Route("10.7.0.0/16", mtu=1400, table=77)),
        ("2001:db8:1::2/64", Route("::/0", "2001:db8:1::1", priority=9), Route("::/0", "2001:db8:1::9", priority=9)),
    ],
)
def test_a_route_is_replaced_and_removed_when_it_is_changed_twice(
    world: World, address: str, first: Route, second: Route
) -> None:
    with world.networks.within(world.netns) as inside:
        inside.apply(AddAddress("eth0", address))
        before = inside.routes("eth0")
        for _ in range(2):
            inside.apply(AddRoute("eth0", first))
        assert [one for one in inside.routes("eth0") if one not in before] == [first]
        inside.apply(AddRoute("eth0", second))
        assert [one for one in inside.routes("eth0") if one not in before] == [second]
        for _ in range(2):
            inside.apply(RemoveRoute("eth0", second))
        assert inside.routes("eth0") == before
        inside.apply(RemoveRoute("eth9", second))


def test_no_route_is_taken_when_the_link_is_down(world: World) -> None:
    with world.networks.within(world.netns) as inside:
        inside.apply(SetLink("eth0", up=False))
        with pytest.raises(IoFailure, match="Network is down"):
            inside.apply(AddRoute("eth0", Route("10.7.0.0/16")))


def test_a_pair_is_made_moved_and_removed_when_asked(world: World) -> None:
    here = world.here
    here.apply(AddVeth("v0", "e0", world.empty, 1400), SetLink("v0", up=True))
    with world.networks.within(world.empty) as there:
        end = there.link("e0")
        assert end is not None
        assert (end.mtu, end.up) == (1400, False)
    host = here.link(index=end.peer)
    assert host is not None
    assert (host.name, host.mtu) == ("v0", 1400)
    here.apply(AddVeth("v1", "v2"), MoveLink("v2", world.empty, "e1"))
    with world.networks.within(world.empty) as there:
        assert there.link("e1") is not None
    with pytest.raises(IoFailure, match="File exists"):
        here.apply(AddVeth("v3", "v4"), MoveLink("v4", world.empty, "e1"))
    for _ in range(2):
        here.apply(RemoveLink("v0"), RemoveLink("v1"))
    with world.networks.within(world.empty) as there:
        assert [link.name for link in there.links()] == ["lo"]


def test_a_setting_is_the_namespaces_own_when_it_is_changed(world: World) -> None:
    with world.networks.within(world.netns) as inside:
        inside.apply(SetSysctl(FORWARD, "1"), SetSysctl("net/ipv4/ip_default_ttl", "77"))
        assert (inside.sysctl(FORWARD), inside.sysctl("net/ipv4/ip_default_ttl")) == ("1", "77")
        inside.apply(SetSysctl(FORWARD, "0"))
        assert inside.sysctl(FORWARD) == "0"
    assert world.here.sysctl("net/ipv4/ip_default_ttl") != "77"
    assert world.here.sysctl(FORWARD) == ""


def test_it_is_told_when_there_is_no_such_namespace(world: World) -> None:
    with pytest.raises(NoNamespace), world.networks.within("/run/netns/none"):
        pass
    with pytest.raises(NoNamespace):
        world.here.apply(AddVeth("v0", "e0", "/run/netns/none"))
    assert world.here.link("v0") is None


@pytest.mark.unit
@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("net.ipv4.conf.all.log_martians", "net/ipv4/conf/all/log_martians"),
        ("net.ipv4.conf.IFNAME.rp_filter", "net/ipv4/conf/eth0/rp_filter"),
        ("net/ipv4/conf/eth0.5/rp_filter", "net/ipv4/conf/eth0.5/rp_filter"),
        ("net.ipv4.conf.eth0/5.rp_filter", "net/ipv4/conf/eth0.5/rp_filter"),
    ],
)
def test_a_name_of_a_setting_becomes_a_path_when_it_is_of_the_network(text: str, path: str) -> None:
    assert sysctl_name(text, ifname="eth0") == path


@pytest.mark.unit
@pytest.mark.parametrize(
    "text",
    ["kernel.shmmax", "net", "net/../kernel/shmmax", "net..x", "/net/ipv4", "", "net/ipv4/\0", "net./././kernel"],
)
def test_a_name_of_a_setting_is_refused_when_it_leads_elsewhere(text: str) -> None:
    with pytest.raises(InvalidNetworkConfig, match="is no setting of the network"):
        sysctl_name(text)
