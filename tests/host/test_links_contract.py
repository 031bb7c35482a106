"""One contract for every Links: the fake, and the kernel's over rtnetlink."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from cnimeta.errors import IoFailure
from cnimeta.host.links.htb import classes
from cnimeta.host.links.kernel import RouteLinks
from cnimeta.host.links.values import GONE, HANDLE, INGRESS, INGRESS_PARENT, ROOT, Bucket
from cnimeta.host.values import NoNamespace
from cnimeta.testing.links import FakeLinks

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cnimeta.host.links.values import Link, Queue
    from cnimeta.host.protocols import Links
    from cnimeta.testing.netns import Namespace

TBF = (125_000, 12_500, 25_000)
SUBNETS = [(4, bytes((10, 0, 0, 0)), 8), (6, bytes((0xFD, *[0] * 15)), 8)]


class World:
    """A host with a container: `vhost` here is the other end of the container's `eth0`."""

    def __init__(self, links: Links, netns: str) -> None:
        self.links = links
        self.netns = netns

    @property
    def host(self) -> Link:
        found = self.links.get(name="vhost")
        assert found is not None
        return found

    def root(self, index: int) -> Queue | None:
        return next((one for one in self.links.queues(index) if one.parent == ROOT and one.handle), None)

    def state(self, index: int) -> Any:
        links, found = self.links, self.links.get(index=index)
        queues = [one._replace(options=b"") for one in links.queues(index) if one.handle]
        return found, queues, links.classes(index), links.ingress_filters(index)


@pytest.fixture(params=[pytest.param("fake", marks=pytest.mark.unit), pytest.param("kernel", marks=pytest.mark.kernel)])
def world(request: pytest.FixtureRequest) -> Iterator[World]:
    if request.param == "fake":
        links = FakeLinks()
        links.veth("/run/netns/c1", "eth0", "vhost")
        yield World(links, "/run/netns/c1")
        return
    make: Callable[[str], Namespace] = request.getfixturevalue("make_netns")
    host, container = make("lkhost"), make("lkcont")
    host.veth("vhost", container, "eth0")
    with host.entered():
        yield World(RouteLinks(), container.path)


def some_classes(world: World, rate: int = 125_000, *, only: bool = True) -> Any:
    return classes(Bucket(rate, 12_500, 25_000), world.links.ticks_per_us(), "dst", SUBNETS, only)


def test_interface_is_the_same_by_name_and_by_index(world: World) -> None:
    assert world.host == world.links.get(index=world.host.ifindex)
    assert (world.host.kind, world.host.mtu, world.host.queue_length) == ("veth", 1500, 1000)
    assert len(world.host.mac.split(":")) == 6


def test_nothing_is_found_when_there_is_no_such_interface(world: World) -> None:
    assert world.links.get(name="none") is None
    assert world.links.get(index=4711) is None
    assert world.links.in_container(world.netns, "none") is None


def test_both_ends_name_each_other_when_a_veth_is_looked_at(world: World) -> None:
    inside = world.links.in_container(world.netns, "eth0")
    assert inside is not None
    assert (inside.peer, world.host.peer) == (world.host.ifindex, inside.ifindex)


def test_no_namespace_is_an_error_of_its_own(world: World) -> None:
    with pytest.raises(NoNamespace) as caught:
        world.links.in_container("/run/netns/no-such", "eth0")
    assert caught.value.code == 5
    with pytest.raises(NoNamespace), world.links.within("/run/netns/no-such"):
        pytest.fail("entered")


def test_block_has_the_containers_links_when_it_runs_within(world: World) -> None:
    with world.links.within(world.netns) as links:
        assert links.get(name="vhost") is None
        made = links.add_ifb("bwpinner", 1500, "words")
        assert links.get(name="bwpinner") == made
    assert world.links.get(name="bwpinner") is None
    with world.links.within(world.netns) as links:
        assert links.get(name="bwpinner") == made


def test_ifb_is_listed_until_it_is_removed(world: World) -> None:
    made = world.links.add_ifb("bwpone", 1400, "whose")
    assert (made.name, made.kind, made.mtu, made.alias, made.queue_length) == ("bwpone", "ifb", 1400, "whose", 0)
    assert world.links.ifbs() == [made]
    again = world.links.add_ifb("bwpone", 1500, "another's")
    assert again == made._replace(mtu=1500, alias="another's")
    assert world.links.ifbs() == [again]
    for _ in range(2):
        world.links.remove("bwpone")
        assert world.links.ifbs() == []


@pytest.mark.parametrize("length", [254, 255])
def test_alias_has_254_bytes_at_most(world: World, length: int) -> None:
    if length == 254:
        assert world.links.add_ifb("bwpone", 1500, "x" * length).alias == "x" * length
        return
    with pytest.raises(IoFailure, match="bwpone"):
        world.links.add_ifb("bwpone", 1500, "x" * length)


def test_bucket_is_what_was_set_and_changes_when_set_again(world: World) -> None:
    assert world.root(world.host.ifindex) is None
    for rate, burst, limit in (TBF, (250_000, 10_000, 2**32 - 1), (2**34, 2**31, 2**31)):
        world.links.set_bucket(world.host.ifindex, rate, burst, limit)
        root = world.root(world.host.ifindex)
        assert root is not None
        assert (root.kind, root.handle, root.rate, root.limit) == ("tbf", HANDLE, rate, limit)
        assert abs(root.buffer - int(int(1e6 * burst / rate) * world.links.ticks_per_us())) <= 1
    for _ in range(2):
        world.links.clear(world.host.ifindex)
        assert world.root(world.host.ifindex) is None


@pytest.mark.parametrize("only", [True, False])
def test_classes_are_what_was_set_and_change_in_place(world: World, only: bool) -> None:
    index = world.host.ifindex
    assert world.links.classes(index) is None
    first, second = some_classes(world, only=only), some_classes(world, 250_000, only=only)
    world.links.set_classes(index, first)
    assert world.links.classes(index) == first
    world.links.change_classes(index, second)
    assert world.links.classes(index) == second
    root = world.root(index)
    assert root is not None
    assert (root.kind, root.handle) == ("htb", HANDLE)
    world.links.clear(index)
    assert world.links.classes(index) is None
    with pytest.raises(IoFailure):
        world.links.change_classes(index, second)


def test_each_takes_the_others_place_when_bucket_and_classes_alternate(world: World) -> None:
    index = world.host.ifindex
    world.links.set_bucket(index, *TBF)
    world.links.set_classes(index, some_classes(world))
    with pytest.raises(IoFailure):  # the same handle, another kind
        world.links.set_bucket(index, *TBF)
    assert world.links.classes(index) == some_classes(world)
    world.links.clear(index)
    world.links.set_bucket(index, *TBF)
    assert world.links.classes(index) is None


@pytest.mark.parametrize("after", ["nothing", "bucket", "other bucket", "classes"])
@pytest.mark.parametrize("before", ["nothing", "bucket"])
def test_root_and_queue_length_are_as_before_when_put_back(world: World, before: str, after: str) -> None:
    links, device = world.links, world.host
    if before == "bucket":
        links.set_bucket(device.ifindex, *TBF)
    state, root = world.state(device.ifindex), world.root(device.ifindex)
    if after == "nothing":
        links.clear(device.ifindex)
    elif after == "classes":
        links.set_classes(device.ifindex, some_classes(world))
        assert world.host.queue_length == 1000
    else:
        if before == "nothing" or after == "other bucket":
            links.set_bucket(device.ifindex, 250_000, 10_000, 20_000)
    for _ in range(2):
        links.put_back(device._replace(queue_length=500), root)
        assert world.state(device.ifindex) == (state[0]._replace(queue_length=500), *state[1:])
    links.put_back(device, root)
    assert world.state(device.ifindex) == state


def test_ingress_takes_filters_and_loses_them_with_itself(world: World) -> None:
    links, index = world.links, world.host.ifindex
    ifb = links.add_ifb("bwpone", 1500, "")
    with pytest.raises(IoFailure):
        links.add_redirect(index, ifb.ifindex, 1)
    links.add_ingress(index)
    with pytest.raises(IoFailure, match="exists"):
        links.add_ingress(index)
    assert [(one.kind, one.handle, one.parent) for one in links.queues(index) if one.parent == INGRESS_PARENT] == [
        ("ingress", INGRESS, INGRESS_PARENT)
    ]
    links.add_redirect(index, ifb.ifindex, 7)
    links.add_redirect(index, ifb.ifindex, 3)
    assert [(one.kind, one.priority, one.redirect) for one in links.ingress_filters(index)] == [
        ("u32", 3, ifb.ifindex),
        ("u32", 7, ifb.ifindex),
    ]
    for _ in range(2):
        links.remove_filters(index, 3)
        assert [one.priority for one in links.ingress_filters(index)] == [7]
    for _ in range(2):
        links.remove_ingress(index)
        assert links.ingress_filters(index) == []
        assert links.queues(index) == [one for one in links.queues(index) if one.parent == ROOT]


def test_filter_leads_nowhere_when_its_target_is_removed(world: World) -> None:
    links, index = world.links, world.host.ifindex
    ifb = links.add_ifb("bwpone", 1500, "")
    links.add_ingress(index)
    links.add_redirect(index, ifb.ifindex, 1)
    links.remove("bwpone")
    assert [(one.priority, one.redirect) for one in links.ingress_filters(index)] == [(1, GONE)]
    with pytest.raises(IoFailure):
        links.add_redirect(index, ifb.ifindex, 2)


def test_removing_from_an_interface_that_is_gone_is_fine(world: World) -> None:
    links = world.links
    links.clear(4711)
    links.remove_ingress(4711)
    links.remove_filters(4711, 1)
    links.remove("none")
    assert (links.queues(4711), links.ingress_filters(4711), links.classes(4711)) == ([], [], None)


def test_nothing_can_be_made_on_an_interface_that_is_gone(world: World) -> None:
    for attempt in (
        lambda: world.links.set_bucket(4711, *TBF),
        lambda: world.links.set_classes(4711, some_classes(world)),
        lambda: world.links.add_ingress(4711),
        lambda: world.links.put_back(world.host._replace(ifindex=4711), None),
    ):
        with pytest.raises(IoFailure):
            attempt()
