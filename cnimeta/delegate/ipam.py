"""Address management by another plugin: what the key `ipam` of a configuration asks for (spec section 4).

An IPAM plugin is found by `ipam.type`, and is given the whole configuration of the plugin that calls it. Its answer is
a Result with addresses and routes, which belong to no interface yet: the caller says which.
"""

from __future__ import annotations

from cnimeta.delegate.call import Delegates
from cnimeta.errors import CniError, DelegateFailed, shown
from cnimeta.spec.validate import plugin_type

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.host.protocols import PluginExec
    from cnimeta.plugin.request import Request
    from cnimeta.spec.jsonio import JSON
    from cnimeta.spec.result import Interface, Result


class Ipam:
    """The IPAM plugin of one invocation, called for its attachment."""

    def __init__(self, delegates: Delegates, conf: dict[str, JSON], plugin: str) -> None:
        self.delegates = delegates
        self.plugin = plugin
        self._conf = conf

    @classmethod
    def of(cls, request: Request, executor: PluginExec | None = None) -> Ipam | None:
        """None when the configuration has no `ipam.type`: the attachment gets no address of its own.

        Raises InvalidNetworkConfig (code 7) for a type that is no file name.
        """
        name = request.conf.fields.object("ipam").text("type")
        if not name:
            return None
        plugin_type(name, "$.ipam.type")
        return cls(Delegates.of(request, executor), request.conf.raw, name)

    def add(self, interface: Interface | None = None) -> Result:
        """Addresses, routes and DNS for the attachment; the addresses are `interface`'s, which is in the result then.

        Raises what the plugin reported, or DelegateFailed (code 105) for an answer without addresses; it is undone.
        """
        found = self.delegates.add(self._conf, plugin=self.plugin)
        if not found.ips:
            failure = DelegateFailed(f"IPAM plugin {shown(self.plugin)} gave no address")
            try:
                self.delete()
            except CniError as error:
                failure.details = f"and DEL after it: {error}"
            raise failure
        if interface is None:
            return found
        ips = tuple(ip._replace(interface=0) for ip in found.ips)
        return found._replace(interfaces=(interface,), ips=ips)

    def delete(self) -> None:
        """Give the addresses back; may be repeated."""
        self.delegates.delete(self._conf, plugin=self.plugin)

    def check(self) -> None:
        """Raise when the addresses are not the attachment's."""
        self.delegates.check(self._conf, plugin=self.plugin)

    def gc(self) -> None:
        """Give back the addresses of all that the configuration does not list as valid."""
        self.delegates.gc(self._conf, plugin=self.plugin)

    def status(self) -> None:
        """Raise when no address can be had."""
        self.delegates.status(self._conf, plugin=self.plugin)
