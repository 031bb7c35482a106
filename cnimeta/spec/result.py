"""The result of ADD as data: the 1.1.0 shape, which holds everything older versions can say.

`cnimeta.spec.convert` reads and writes it in the shape of every spec version.
Spec: https://www.cni.dev/docs/spec/#add-success
"""

from __future__ import annotations

from cnimeta.namedtuple import NamedTuple


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

    def with_interface(self, interface: Interface) -> Result:
        """The same result with `interface` appended, unless one of that name and sandbox is there."""
        if any((old.name, old.sandbox) == (interface.name, interface.sandbox) for old in self.interfaces):
            return self
        return self._replace(interfaces=(*self.interfaces, interface))
