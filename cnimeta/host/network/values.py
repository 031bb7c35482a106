"""Changes to the network of one namespace, as data. Pure: a plan is a tuple of these; `Network.apply` carries it out.

Interfaces go by name, routes are `cnimeta.spec.result.Route`, addresses are text with a prefix length. Each change can
be repeated: what is there already is fine, and so is removing what is gone.
"""

from __future__ import annotations

from cnimeta.errors import InvalidNetworkConfig, shown
from cnimeta.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import TypeAlias

    from cnimeta.spec.result import Route

    Change: TypeAlias = (
        "AddVeth | SetLink | MoveLink | RemoveLink | AddAddress | RemoveAddress | AddRoute | RemoveRoute | SetSysctl"
    )
else:
    Change = tuple


class AddVeth(NamedTuple):
    """A veth pair: `name` here, `peer` in the namespace at `peer_netns` (empty: here too); both stay down.

    One whose name is there already is refused: it may be another container's.
    """

    name: str
    peer: str
    peer_netns: str = ""
    mtu: int = 0
    """Of both ends, in bytes; 0: the kernel's choice."""


class SetLink(NamedTuple):
    """What to change of an interface; None leaves it as it is."""

    name: str
    up: bool | None = None
    mac: str | None = None
    mtu: int | None = None
    """Bytes."""
    queue_length: int | None = None
    """Packets; what `ip` calls txqueuelen."""
    promiscuous: bool | None = None
    all_multicast: bool | None = None
    alias: str | None = None
    controller: str | None = None
    """The bridge or the like that it becomes a port of; empty: of none."""


class MoveLink(NamedTuple):
    """Send an interface to the namespace at `netns`, named `new_name` there (empty: as before)."""

    name: str
    netns: str
    new_name: str = ""


class RemoveLink(NamedTuple):
    """Remove an interface; the other end of a veth goes with it."""

    name: str


class AddAddress(NamedTuple):
    """Give an interface an address: `10.0.0.2/24`."""

    link: str
    address: str


class RemoveAddress(NamedTuple):
    """Take it away."""

    link: str
    address: str


class AddRoute(NamedTuple):
    """A route through an interface, in place of one to the same destination with the same priority and table."""

    link: str
    route: Route


class RemoveRoute(NamedTuple):
    """Take it away."""

    link: str
    route: Route


class SetSysctl(NamedTuple):
    """A setting under /proc/sys, its name with slashes: `net/ipv4/conf/eth0/rp_filter` (dots are for interfaces)."""

    name: str
    value: str


def mac_of(text: str) -> bytes:
    """The six bytes of a hardware address. Raises InvalidNetworkConfig (code 7)."""
    parts = text.split(":")
    if len(parts) == 6 and all(len(part) == 2 and part.isalnum() for part in parts):
        try:
            return bytes(int(part, 16) for part in parts)
        except ValueError:
            pass
    raise InvalidNetworkConfig(f"{shown(text)} is no hardware address such as 02:00:00:00:00:01")


def sysctl_name(text: str, *, ifname: str = "") -> str:
    """The path below /proc/sys of a setting of the network as people write it, IFNAME standing for the interface.

    `net.ipv4.conf.IFNAME.rp_filter` and `net/ipv4/conf/eth0.5/rp_filter` are both read: where a slash comes before any
    dot, slashes divide and dots are part of names, as in sysctl(8). Raises InvalidNetworkConfig (code 7) for anything
    outside of `net/`, which is not the namespace's own, and for a path that leads out of there.
    """
    dot, slash = text.find("."), text.find("/")
    path = text if slash >= 0 and (dot < 0 or slash < dot) else text.translate({ord("."): "/", ord("/"): "."})
    parts = path.split("/")
    if parts[0] != "net" or len(parts) < 2 or any(part in ("", ".", "..") or "\0" in part for part in parts):
        raise InvalidNetworkConfig(f"{shown(text)} is no setting of the network: write net.ipv4.conf.IFNAME.rp_filter")
    return "/".join(ifname if ifname and part == "IFNAME" else part for part in parts)
