"""Interfaces, addresses, routes and settings of namespaces in memory, with the kernel's refusals that plugins meet.

networks = FakeNetworks()
networks.veth("/run/netns/c1", "eth0", "veth0")
with networks.within("/run/netns/c1") as network:
network.apply(AddAddress("eth0", "10.0.0.2/24"))
assert networks.dump() == {...}
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any, cast

from cnimeta.errors import InvalidNetworkConfig, IoFailure, shown
from cnimeta.host.links.values import Link
from cnimeta.host.network import values
from cnimeta.host.network.values import mac_of
from cnimeta.host.values import NoNamespace
from cnimeta.namedtuple import NamedTuple
from cnimeta.spec.ip import parse_cidr, parse_ip
from cnimeta.testing.faults import Steps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from cnimeta.host.network.values import Change
    from cnimeta.spec.result import Route

HOST = ""
"""The namespace in which the plugin runs, among the paths of a FakeNetworks."""
_QUEUE_LENGTH = 1000
_SMALLEST_MTU, _LARGEST_MTU = 68, 65535
_LONGEST_NAME = 15
_MULTICAST = 1


class FakeNetworks(Steps):
    """Networks for tests. A step is a change, so `fail_at(2)` refuses the second one from now; `kill_at` likewise."""

    def __init__(self) -> None:
        super().__init__()
        self.namespaces: dict[str, FakeNetwork] = {}
        """By path; HOST is the plugin's own."""
        self.missing: set[str] = set()
        """Settings that this kernel does not have."""
        self.locked: set[str] = set()
        """Namespaces that cannot be entered, though they are there."""
        self._last_index = 1
        self.namespace(HOST)

    def namespace(self, path: str) -> FakeNetwork:
        """The network of the namespace at `path`, made with its `lo` unless it is there."""
        if path not in self.namespaces:
            made = self.namespaces[path] = FakeNetwork(self, path)
            made.state["lo"] = LOOPBACK
        return self.namespaces[path]

    def veth(self, netns: str, ifname: str, host_name: str) -> None:
        """A container's interface as the plugin before would have left it: a pair, both ends up."""
        self.namespace(netns)
        self.here().make(values.AddVeth(host_name, ifname, netns))
        for network, name in ((self.here(), host_name), (self.namespaces[netns], ifname)):
            network.change(name, up=True)

    def fail_at(self, step: int, error: str = "Operation not permitted", *, lasting: bool = False) -> None:
        """Refuse the step-th change from now on (1: the next), with `lasting` all after it too."""
        self._arm(step, lambda: IoFailure(f"cannot change the network: {error}"), lasting=lasting)

    def dump(self) -> dict[str, dict[str, LinkState]]:
        """All there is, by namespace and interface. Equal dumps mean equal state."""
        return {path: dict(network.state) for path, network in self.namespaces.items()}

    def restore(self, links: Mapping[str, Mapping[str, LinkState]], settings: Mapping[str, Mapping[str, str]]) -> None:
        """Be what `dump` gave, in the place of all there is."""
        self.namespaces = {}
        for path in {HOST, *links}:
            self.namespace(path).state = dict(links.get(path, {"lo": LOOPBACK}))
            self.namespaces[path].settings = dict(settings.get(path, {}))
        self._last_index = max(one.ifindex for network in self.namespaces.values() for one in network.links())

    def new_index(self) -> int:
        """An ifindex that nothing has had."""
        self._last_index += 1
        return self._last_index

    def step(self, change: Change) -> None:
        """Count a change, or meet the fault that was set for it."""
        self._step(repr(change))

    # --- the Networks protocol ---

    def here(self) -> FakeNetwork:
        """The plugin's own."""
        return self.namespaces[HOST]

    @contextlib.contextmanager
    def within(self, netns: str) -> Iterator[FakeNetwork]:
        """That of a path. NoNamespace for one that nobody made."""
        if not netns or netns not in self.namespaces:
            raise NoNamespace(f"there is no network namespace {shown(netns)}")
        if netns in self.locked:
            raise IoFailure(f"cannot enter the network namespace {shown(netns)}: Operation not permitted")
        yield self.namespaces[netns]


class LinkState(NamedTuple):
    """One interface with what hangs on it: addresses in the order they came, settings that were changed."""

    link: Link
    addresses: tuple[str, ...] = ()
    routes: tuple[Route, ...] = ()
    sysctls: Mapping[str, str] = {}


LOOPBACK = LinkState(Link(1, "lo", "", "00:00:00:00:00:00", 65536, queue_length=_QUEUE_LENGTH, up=True))
"""What every namespace has."""


class FakeNetwork:
    """The Network of one namespace. `settings` are those that belong to no interface."""

    def __init__(self, owner: FakeNetworks, path: str) -> None:
        self.owner = owner
        self.path = path
        self.state: dict[str, LinkState] = {}
        self.settings: dict[str, str] = {}

    # --- the Network protocol ---

    def link(self, name: str = "", *, index: int = 0) -> Link | None:
        """An interface."""
        if index:
            return next((one.link for one in self.state.values() if one.link.ifindex == index), None)
        return self.state[name].link if name in self.state else None

    def links(self) -> list[Link]:
        """Every interface."""
        return sorted((one.link for one in self.state.values()), key=lambda link: link.ifindex)

    def addresses(self, link: str) -> list[str]:
        """The addresses of an interface."""
        return list(self._of(link).addresses)

    def routes(self, link: str) -> list[Route]:
        """The routes through it."""
        return list(self._of(link).routes)

    def sysctl(self, name: str) -> str:
        """A setting: 0 unless it was set, empty for one of an interface that is not there."""
        link = self._owner_of(name)
        if name in self.owner.missing or (link and link not in self.state):
            return ""
        return (self.state[link].sysctls if link else self.settings).get(name, "0")

    def apply(self, *changes: Change) -> None:
        """Carry them out."""
        for change in changes:
            self.owner.step(change)
            self.make(change)

    # --- the changes ---

    def make(self, change: Change) -> None:
        """One change, without a fault."""
        doing = {
            values.AddVeth: self._add_veth,
            values.SetLink: self._set_link,
            values.MoveLink: self._move_link,
            values.RemoveLink: self._remove_link,
            values.AddAddress: self._add_address,
            values.RemoveAddress: self._remove_address,
            values.AddRoute: self._add_route,
            values.RemoveRoute: self._remove_route,
            values.SetSysctl: self._set_sysctl,
        }
        cast("Callable[[Change], None]", doing[type(change)])(change)

    def change(self, name: str, **fields: object) -> None:
        """Fields of a Link, as they become."""
        self._set(name, link=self._of(name).link._replace(**fields))  # type: ignore[arg-type]

    def _set(self, name: str, **fields: Any) -> None:
        self.state[name] = self._of(name)._replace(**fields)

    def _of(self, name: str) -> LinkState:
        if name not in self.state:
            raise IoFailure(f"there is no interface {shown(name)}")
        return self.state[name]

    def _add_veth(self, change: values.AddVeth) -> None:
        what = f"make the veth pair {shown(change.name)}, {shown(change.peer)}"
        there = self if not change.peer_netns else self.owner.namespaces.get(change.peer_netns)
        if there is None:
            raise NoNamespace(f"there is no network namespace {shown(change.peer_netns)}")
        ends = ((self, change.name), (there, change.peer))
        for network, name in ends:
            if name in network.state or len(set(ends)) < len(ends):
                raise IoFailure(f"cannot {what}: File exists")
            if not 0 < len(name.encode()) <= _LONGEST_NAME:
                raise IoFailure(f"cannot {what}: Numerical result out of range")
        first, second = self.owner.new_index(), self.owner.new_index()
        for network, name, index, peer in ((self, change.name, first, second), (there, change.peer, second, first)):
            mac = f"02:00:00:00:{index >> 8 & 255:02x}:{index & 255:02x}"
            made = Link(index, name, "veth", mac, change.mtu or 1500, peer, queue_length=_QUEUE_LENGTH)
            network.state[name] = LinkState(made)

    def _set_link(self, change: values.SetLink) -> None:
        what = f"cannot set up interface {shown(change.name)}"
        state = self._of(change.name)
        mac = state.link.mac if change.mac is None else mac_of(change.mac).hex(":")
        if change.mac is not None and mac_of(change.mac)[0] & _MULTICAST:
            raise IoFailure(f"{what}: Cannot assign requested address")
        if change.mtu is not None and not _SMALLEST_MTU <= change.mtu <= _LARGEST_MTU:
            raise IoFailure(f"{what}: Invalid argument")
        wanted = {
            "up": change.up,
            "mtu": change.mtu,
            "queue_length": change.queue_length,
            "promiscuous": change.promiscuous,
            "all_multicast": change.all_multicast,
            "alias": change.alias,
            "controller": None if change.controller is None else self._index(change.controller),
        }
        self.change(change.name, mac=mac, **{name: value for name, value in wanted.items() if value is not None})
        if change.up is False:
            self._set(change.name, routes=())

    def _index(self, controller: str) -> int:
        return self._of(controller).link.ifindex if controller else 0

    def _move_link(self, change: values.MoveLink) -> None:
        there = self.owner.namespaces.get(change.netns)
        if there is None:
            raise NoNamespace(f"there is no network namespace {shown(change.netns)}")
        state, name = self._of(change.name), change.new_name or change.name
        if name in there.state:
            raise IoFailure(f"cannot move interface {shown(change.name)} to {shown(change.netns)}: File exists")
        del self.state[change.name]
        there.state[name] = LinkState(state.link._replace(name=name, up=False, controller=0))

    def _remove_link(self, change: values.RemoveLink) -> None:
        state = self.state.pop(change.name, None)
        if state is not None and state.link.peer:
            for network in self.owner.namespaces.values():
                for name, other in list(network.state.items()):
                    if other.link.ifindex == state.link.peer and other.link.peer == state.link.ifindex:
                        del network.state[name]

    def _add_address(self, change: values.AddAddress) -> None:
        state, text = self._of(change.link), _cidr(change.address)
        if text not in state.addresses:
            self._set(change.link, addresses=(*state.addresses, text))

    def _remove_address(self, change: values.RemoveAddress) -> None:
        if change.link in self.state:
            text = _cidr(change.address)
            self._set(change.link, addresses=tuple(one for one in self.addresses(change.link) if one != text))

    def _add_route(self, change: values.AddRoute) -> None:
        state, route = self._of(change.link), change.route
        what = f"cannot route {route.dst} through {shown(change.link)}"
        target = parse_cidr(_cidr(route.dst)).network
        if not state.link.up:
            raise IoFailure(f"{what}: Network is down")
        if route.gw and not self._reaches(state, route.gw):
            four = target.address.family == 4
            raise IoFailure(f"{what}: {'Network is unreachable' if four else 'No route to host'}")
        others = [one for one in state.routes if _place(one) != _place(route)]
        self._set(change.link, routes=(*others, route._replace(dst=target.text)))

    @staticmethod
    def _reaches(state: LinkState, gateway: str) -> bool:
        connected = [parse_cidr(text).network for text in state.addresses]
        connected += [parse_cidr(route.dst) for route in state.routes if not route.gw]
        return any(parse_ip(gateway) in one for one in connected)

    def _remove_route(self, change: values.RemoveRoute) -> None:
        if change.link in self.state:
            left = (one for one in self.routes(change.link) if _place(one) != _place(change.route))
            self._set(change.link, routes=tuple(left))

    def _set_sysctl(self, change: values.SetSysctl) -> None:
        if not self.sysctl(change.name):
            raise IoFailure(f"cannot set /proc/sys/{change.name} to {change.value}: No such file or directory")
        link = self._owner_of(change.name)
        if link:
            self._set(link, sysctls={**self.state[link].sysctls, change.name: change.value})
        else:
            self.settings[change.name] = change.value

    @staticmethod
    def _owner_of(name: str) -> str:
        """The interface that a setting belongs to; empty for none."""
        parts = name.split("/")
        of_link = len(parts) == 5 and parts[2] in ("conf", "neigh") and parts[3] not in ("all", "default")
        return parts[3] if of_link else ""


def _cidr(text: str) -> str:
    try:
        return parse_cidr(text).text
    except ValueError as error:
        raise InvalidNetworkConfig(f"{shown(text)} cannot be set: {error}") from None


def _place(route: Route) -> tuple[str, int | None, int]:
    """What the kernel tells routes apart by."""
    return parse_cidr(_cidr(route.dst)).network.text, route.table, route.priority
