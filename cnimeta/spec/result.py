"""The result of ADD as data: the 1.1.0 shape, which holds everything older versions can say.

`cnimeta.spec.convert` reads and writes it in the shape of every spec version.
Spec: https://www.cni.dev/docs/spec/#add-success
"""

from __future__ import annotations

from cnimeta.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from cnimeta.spec.jsonio import JSON


class Interface(NamedTuple):
    """A link made or used by the attachment; `sandbox` is the netns path, empty for one on the host."""

    name: str
    mac: str = ""
    mtu: int = 0
    sandbox: str = ""
    socket_path: str = ""
    pci_id: str = ""


class IPConfig(NamedTuple):
    """An address with prefix length ("10.0.0.2/24", host bits kept) and the index of its interface."""

    address: str
    gateway: str = ""
    interface: int | None = None


class Route(NamedTuple):
    """A route; mtu, advmss and priority 0 mean unset."""

    dst: str
    gw: str = ""
    mtu: int = 0
    advmss: int = 0
    priority: int = 0
    table: int | None = None
    scope: int | None = None


class DNS(NamedTuple):
    """Resolver settings."""

    nameservers: tuple[str, ...] = ()
    domain: str = ""
    search: tuple[str, ...] = ()
    options: tuple[str, ...] = ()


class Result(NamedTuple):
    """What ADD answers, and what the next plugin sees as prevResult."""

    interfaces: tuple[Interface, ...] = ()
    ips: tuple[IPConfig, ...] = ()
    routes: tuple[Route, ...] = ()
    dns: DNS = DNS()

    @classmethod
    def from_json(cls, raw: Mapping[str, JSON], version: str) -> Result:
        """Read a result in the shape of a spec version. Raises DecodingFailure (code 6), naming the JSON path."""
        from cnimeta.spec.convert import parse_result

        return parse_result(raw, version)

    def as_json(self, version: str) -> dict[str, JSON]:
        """The result in the shape of a spec version; what an older shape cannot say is left out."""
        from cnimeta.spec.convert import render_result

        return render_result(self, version)

    def index_of(self, name: str, sandbox: str = "") -> int | None:
        """Where an interface stands, which is what `IPConfig.interface` says; None when it is not there."""
        for index, interface in enumerate(self.interfaces):
            if (interface.name, interface.sandbox) == (name, sandbox):
                return index
        return None

    def ips_of(self, name: str, sandbox: str = "") -> tuple[IPConfig, ...]:
        """The addresses of one interface; those that say no interface belong to every one."""
        return tuple(ip for ip in self.ips if ip.interface is None or ip.interface == self.index_of(name, sandbox))

    def with_interface(self, interface: Interface) -> Result:
        """The same result with `interface` at the end, unless one of that name and sandbox is there."""
        if self.index_of(interface.name, interface.sandbox) is not None:
            return self
        return self._replace(interfaces=(*self.interfaces, interface))

    def with_changed(self, name: str, sandbox: str = "", *, mac: str = "", mtu: int = 0) -> Result:
        """The same result with another hardware address or MTU (bytes) of an interface, where that is in it."""
        changes: dict[str, Any] = {key: value for key, value in (("mac", mac), ("mtu", mtu)) if value}
        interfaces = tuple(
            old._replace(**changes) if (old.name, old.sandbox) == (name, sandbox) else old for old in self.interfaces
        )
        return self._replace(interfaces=interfaces)

    def with_ip(self, address: str, *, gateway: str = "", interface: Interface | None = None) -> Result:
        """The same result with an address (`10.0.0.2/24`), in place of an equal one; `interface` is added with it.

        Raises ValueError for what is no address with a prefix length, or no gateway.
        """
        from cnimeta.spec.ip import parse_cidr, parse_ip

        text, via = parse_cidr(address).text, parse_ip(gateway).text if gateway else ""
        whole = self if interface is None else self.with_interface(interface)
        index = None if interface is None else whole.index_of(interface.name, interface.sandbox)
        rest = tuple(ip for ip in whole.ips if ip.address != text)
        return whole._replace(ips=(*rest, IPConfig(text, via, index)))

    def with_route(self, route: Route) -> Result:
        """The same result with a route at the end, unless it is there. Raises ValueError for what is none."""
        from cnimeta.spec.ip import parse_cidr, parse_ip

        if route.gw:
            parse_ip(route.gw)
        parse_cidr(route.dst)
        return self if route in self.routes else self._replace(routes=(*self.routes, route))

    def with_dns(self, dns: DNS) -> Result:
        """The same result with other resolver settings."""
        return self._replace(dns=dns)
