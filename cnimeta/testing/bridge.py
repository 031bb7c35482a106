"""The usual node of a kernel test: a bridge with a container on it, and a client outside. All in namespaces."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

from cnimeta.namedtuple import NamedTuple
from cnimeta.spec.result import Interface, Result, Route
from cnimeta.testing.netns import namespaces

if TYPE_CHECKING:
    from collections.abc import Iterator

    from cnimeta.testing.netns import Namespace

_BRIDGE, _IFNAME, _HOST_IFNAME = "cni0", "eth0", "veth0"


class Bridge(NamedTuple):
    """`client` (192.0.2.2) - `host` (192.0.2.1; cni0 with 10.88.0.1, fd88::1) - `container` (eth0: 10.88.0.2, fd88::2).

    The host forwards, and the client has routes to the container.
    """

    host: Namespace
    client: Namespace
    container: Namespace

    @property
    def result(self) -> Result:
        """What the plugin that made it would have answered: the prevResult of a chained one."""
        eth0 = Interface(_IFNAME, sandbox=self.container.path)
        made = Result((Interface(_BRIDGE), Interface(_HOST_IFNAME)))
        made = made.with_ip("10.88.0.2/24", gateway="10.88.0.1", interface=eth0)
        made = made.with_ip("fd88::2/64", gateway="fd88::1", interface=eth0)
        return made.with_route(Route("0.0.0.0/0", "10.88.0.1")).with_route(Route("::/0", "fd88::1"))


@contextlib.contextmanager
def bridge() -> Iterator[Bridge]:
    """Make it, and remove it at the end."""
    with namespaces("host", "client", "pod") as (host, client, container):
        host.run("ip", "link", "add", _BRIDGE, "type", "bridge")
        host.run("ip", "link", "set", _BRIDGE, "up")
        host.veth(_HOST_IFNAME, container, _IFNAME)
        host.run("ip", "link", "set", _HOST_IFNAME, "master", _BRIDGE)
        host.veth("uplink", client, "uplink")
        _address(host, _BRIDGE, "10.88.0.1/24", "fd88::1/64")
        _address(host, "uplink", "192.0.2.1/24", "2001:db8::1/64")
        _address(client, "uplink", "192.0.2.2/24", "2001:db8::2/64")
        _address(container, _IFNAME, "10.88.0.2/24", "fd88::2/64")
        for place, four, six in ((client, "192.0.2.1", "2001:db8::1"), (container, "10.88.0.1", "fd88::1")):
            place.run("ip", "route", "add", "default", "via", four)
            place.run("ip", "-6", "route", "add", "default", "via", six)
        host.run("sysctl", "-q", "-w", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        yield Bridge(host, client, container)


def _address(place: Namespace, link: str, four: str, six: str) -> None:
    place.run("ip", "addr", "add", four, "dev", link)
    place.run("ip", "addr", "add", six, "dev", link, "nodad")
