"""The Networks adapter: over rtnetlink and /proc/sys, in this process, without a third-party package."""

from __future__ import annotations

import errno
import os

from cnimeta.errors import InvalidNetworkConfig, IoFailure, shown
from cnimeta.host import netlink
from cnimeta.host.links.rtnetlink import every_link, link_named, link_of
from cnimeta.host.netlink import DUMP, ROUTE
from cnimeta.host.netns import entered, opened
from cnimeta.host.network import messages, values
from cnimeta.host.reading import told
from cnimeta.host.sysctl import ProcSysctl

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cnimeta.host.links.values import Link
    from cnimeta.host.netlink import Ask, Order, Tell
    from cnimeta.host.network.values import Change
    from cnimeta.host.protocols import Sysctl
    from cnimeta.spec.result import Route

_THERE = (errno.EEXIST,)
_GONE = (errno.ENOENT, errno.ENODEV, errno.ESRCH, errno.EADDRNOTAVAIL)
_ANY_FAMILY = b"\0"


class KernelNetworks:
    """The Networks adapter. `ask`, `tell` and `sysctl` are how the kernel is reached; tests put failures there."""

    def __init__(self, ask: Ask = netlink.ask, tell: Tell = netlink.tell, sysctl: Sysctl | None = None) -> None:
        self._network = KernelNetwork(ask, tell, sysctl or ProcSysctl())

    def here(self) -> KernelNetwork:
        """That of the namespace this process runs in."""
        return self._network

    def within(self, netns: str) -> _Within:
        """That of the namespace at `netns`, for a block that runs there.

        NoNamespace when there is none, IoFailure (code 5) when it cannot be entered.
        """
        return _Within(self._network, netns)


class KernelNetwork:
    """The Network of whichever namespace this thread is in."""

    def __init__(self, ask: Ask, tell: Tell, sysctl: Sysctl) -> None:
        self._ask = ask
        self._tell = tell
        self._sysctl = sysctl

    def link(self, name: str = "", *, index: int = 0) -> Link | None:
        """An interface, None when there is none."""
        return link_of(index, self._ask) if index else link_named(name, self._ask)

    def links(self) -> list[Link]:
        """Every interface."""
        return every_link(self._ask)

    def addresses(self, link: str) -> list[str]:
        """The addresses of an interface with their prefix lengths, the kernel's own fe80:: among them."""
        index = self._index(link)
        body = _ANY_FAMILY + b"\0" * 7
        found = told(f"the addresses of {shown(link)}", lambda: self._ask(ROUTE, messages.GET_ADDRESS, DUMP, body), ())
        return [text for one in found or () if (text := messages.address_of(one, index)) is not None]

    def routes(self, link: str) -> list[Route]:
        """The routes through an interface that somebody set, of every table; not those that its addresses bring."""
        index = self._index(link)
        body = _ANY_FAMILY + b"\0" * 11
        found = told(f"the routes through {shown(link)}", lambda: self._ask(ROUTE, messages.GET_ROUTE, DUMP, body), ())
        return [route for one in found or () if (route := messages.route_of(one, index)) is not None]

    def sysctl(self, name: str) -> str:
        """A setting under /proc/sys, its name with slashes; empty when there is no such setting."""
        return self._sysctl.read(name)

    def apply(self, *changes: Change) -> None:
        """Carry out the changes in order, up to the first that fails."""
        for change in changes:
            _DOING[type(change)](self, change)

    # --- one change each ---

    def _add_veth(self, change: values.AddVeth) -> None:
        there = opened(change.peer_netns) if change.peer_netns else None
        try:
            self._do(f"make the veth pair {shown(change.name)}, {shown(change.peer)}", messages.new_veth(change, there))
        finally:
            if there is not None:
                os.close(there)

    def _set_link(self, change: values.SetLink) -> None:
        controller = None if change.controller is None else self._index(change.controller) if change.controller else 0
        order = messages.set_link(self._index(change.name), change, controller)
        self._do(f"set up interface {shown(change.name)}", order)

    def _move_link(self, change: values.MoveLink) -> None:
        if change.new_name:
            self._want_free(change)
        there = opened(change.netns)
        try:
            order = messages.move_link(self._index(change.name), there, change.new_name)
            self._do(f"move interface {shown(change.name)} to {shown(change.netns)}", order)
        finally:
            os.close(there)

    def _want_free(self, change: values.MoveLink) -> None:
        """The kernel moves first and finds out then that it cannot rename."""
        with entered(change.netns):
            if self.link(change.new_name) is not None:
                raise IoFailure(f"cannot move interface {shown(change.name)} to {shown(change.netns)}: File exists")

    def _remove_link(self, change: values.RemoveLink) -> None:
        link = self.link(change.name)
        if link is not None:
            self._do(f"remove interface {shown(change.name)}", messages.remove_link(link.ifindex), _GONE)

    def _add_address(self, change: values.AddAddress) -> None:
        order = _read(change.address, lambda: messages.address(self._index(change.link), change.address, add=True))
        self._do(f"give {shown(change.link)} the address {change.address}", order, _THERE)

    def _remove_address(self, change: values.RemoveAddress) -> None:
        link = self.link(change.link)
        if link is not None:
            order = _read(change.address, lambda: messages.address(link.ifindex, change.address, add=False))
            self._do(f"take the address {change.address} from {shown(change.link)}", order, _GONE)

    def _add_route(self, change: values.AddRoute) -> None:
        order = _read(change.route.dst, lambda: messages.route(self._index(change.link), change.route, add=True))
        self._do(f"route {change.route.dst} through {shown(change.link)}", order)

    def _remove_route(self, change: values.RemoveRoute) -> None:
        link = self.link(change.link)
        if link is not None:
            order = _read(change.route.dst, lambda: messages.route(link.ifindex, change.route, add=False))
            self._do(f"remove the route to {change.route.dst} through {shown(change.link)}", order, _GONE)

    def _set_sysctl(self, change: values.SetSysctl) -> None:
        self._sysctl.ensure(change.name, change.value)

    def _index(self, name: str) -> int:
        link = self.link(name)
        if link is None:
            raise IoFailure(f"there is no interface {shown(name)}")
        return link.ifindex

    def _do(self, what: str, order: Order, fine: tuple[int, ...] = ()) -> None:
        try:
            self._tell(ROUTE, (order,))
        except OSError as error:
            if error.errno not in fine:
                raise IoFailure(f"cannot {what}: {os.strerror(error.errno or 0)}") from None


_DOING: dict[type, Callable[..., None]] = {
    values.AddVeth: KernelNetwork._add_veth,  # noqa: SLF001 - its own table
    values.SetLink: KernelNetwork._set_link,  # noqa: SLF001
    values.MoveLink: KernelNetwork._move_link,  # noqa: SLF001
    values.RemoveLink: KernelNetwork._remove_link,  # noqa: SLF001
    values.AddAddress: KernelNetwork._add_address,  # noqa: SLF001
    values.RemoveAddress: KernelNetwork._remove_address,  # noqa: SLF001
    values.AddRoute: KernelNetwork._add_route,  # noqa: SLF001
    values.RemoveRoute: KernelNetwork._remove_route,  # noqa: SLF001
    values.SetSysctl: KernelNetwork._set_sysctl,  # noqa: SLF001
}


def _read(text: str, make: Callable[[], Order]) -> Order:
    try:
        return make()
    except ValueError as error:
        raise InvalidNetworkConfig(f"{shown(text)} cannot be set: {error}") from None


class _Within:
    """The network of a namespace for a `with` block: that of whoever asks."""

    def __init__(self, network: KernelNetwork, netns: str) -> None:
        self._network = network
        self._place = entered(netns)

    def __enter__(self) -> KernelNetwork:
        self._place.__enter__()
        return self._network

    def __exit__(self, *error: object) -> None:
        self._place.__exit__(*error)
