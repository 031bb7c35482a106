"""portmap: the verbs. Behaviour and keys: docs/portmap.md."""

from __future__ import annotations

from cnimeta.errors import CniError, PluginNotAvailable
from cnimeta.plugin.base import Plugin

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from cnimeta.plugin.described import Key
    from cnimeta.plugin.request import Request
    from cnimeta.ports.mapper import PortMapper
    from cnimeta.spec.fields import Fields
    from cnimeta.spec.jsonio import JSON
    from cnimeta.spec.netconf import NetConf
    from cnimeta.spec.result import Result
    from cnimeta_plugins.portmap.mapper import Mapper


class Portmap(Plugin):
    """Maps host ports to container ports. Tests give a `make_mapper` of their own."""

    name = "portmap"
    about = "maps host ports to container ports, with nftables or iptables"
    reusable = True
    node_keys = ("backend", "dataDir")
    usual = (
        "cnimeta.host.clock",
        "cnimeta.host.nftables.kernel",
        "cnimeta.spec.convert",
        "cnimeta.store.locks",
        "cnimeta_plugins.portmap.iptables.names",
        "cnimeta_plugins.portmap.nftables.backend",
        "cnimeta_plugins.portmap.nftables.upstream",
        "cnimeta_plugins.portmap.wiring",
    )

    def __init__(self, make_mapper: Callable[[Request], Mapper] | None = None) -> None:
        self._make_mapper = make_mapper

    def add(self, request: Request) -> Result:
        """Map; prevResult passes through unchanged."""
        result = request.conf.require_prev_result()
        mapper = self._mapper(request)
        settings = mapper.settings(request.conf)
        if not settings.snat:
            from cnimeta_plugins.portmap.keys import idle_keys

            for text in idle_keys(request.conf):
                request.log(f"portmap: {text}")
        if settings.mappings:
            mapper.add(request.attachment, request.conf, settings, result)
        return result

    def delete(self, request: Request) -> None:
        """Unmap everything of the attachment, whatever configuration it now has."""
        self._mapper(request).delete(request.attachment, request.conf)

    def check(self, request: Request) -> None:
        """Compare the kernel with what ADD would make."""
        result = request.conf.require_prev_result()
        mapper = self._mapper(request)
        settings = mapper.settings(request.conf)
        if settings.mappings:
            mapper.check(request.attachment, settings, result)

    def gc(self, request: Request) -> None:
        """Unmap every attachment of this network that is not listed; without a list, none."""
        valid = request.conf.valid_attachments()
        if valid is not None:
            self._mapper(request).collect(request.conf, valid)

    def status(self, request: Request) -> None:
        """Not ready (50) when no backend can be used or records cannot be written."""
        try:
            self._mapper(request).ready(request.conf)
        except CniError as error:
            raise PluginNotAvailable(f"portmap cannot map ports: {error.msg}", error.details) from None

    def preload(self) -> Iterable[str]:
        """What its verbs import on their way."""
        return (
            *("cnimeta.host.nftables.kernel", "cnimeta.host.nftables.listing", "cnimeta.host.conntrack"),
            *("cnimeta_plugins.portmap.wiring", "cnimeta_plugins.portmap.port_mapper"),
            *(f"cnimeta_plugins.portmap.nftables.{name}" for name in ("backend", "checking", "listed", "meaning")),
            *(f"cnimeta_plugins.portmap.nftables.{name}" for name in ("names", "upstream")),
            "cnimeta_plugins.portmap.iptables.names",
        )

    def rehearsal(self) -> Iterable[dict[str, JSON]]:
        """A port on each protocol, with nftables."""
        mappings: list[JSON] = [
            {"hostPort": 80 + n, "containerPort": 80, "protocol": protocol} for n, protocol in enumerate(("tcp", "udp"))
        ]
        return ({"backend": "nftables", "runtimeConfig": {"portMappings": mappings}},)

    def port_mapper(self) -> PortMapper:
        """What other plugins need of portmap beside the verbs."""
        from cnimeta_plugins.portmap.port_mapper import PortmapPorts

        return PortmapPorts()

    def describe(self) -> Iterable[Key]:
        """Its keys."""
        from cnimeta_plugins.portmap.described import KEYS

        return KEYS

    def validate(self, conf: NetConf) -> Iterable[str]:
        """Keys and values."""
        from cnimeta_plugins.portmap.operator import validate

        return validate(conf)

    def examine(self, conf: NetConf) -> Iterable[str]:
        """Keys, values, and the backend where only one may serve."""
        from cnimeta_plugins.portmap.operator import examine

        return examine(conf)

    def examine_node(self, section: Fields) -> str:
        """The backend that serves where a configuration names none."""
        from cnimeta_plugins.portmap.operator import examine_node

        return examine_node(section)

    def in_use(self, confs: Sequence[NetConf]) -> Iterable[str]:
        """Containers on record."""
        from cnimeta_plugins.portmap.operator import in_use

        return in_use(confs)

    def dump(self, confs: Sequence[NetConf]) -> Iterable[tuple[str, Callable[[], JSON]]]:
        """Records."""
        from cnimeta_plugins.portmap.operator import dump

        return dump(confs)

    def _mapper(self, request: Request) -> Mapper:
        if self._make_mapper is not None:
            return self._make_mapper(request)
        from cnimeta_plugins.portmap.wiring import host_mapper

        return host_mapper(request.environ, request.log)
