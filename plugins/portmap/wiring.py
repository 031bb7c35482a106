"""The mapper on this host: the real adapters, each imported when it is needed."""

from __future__ import annotations

from cnimeta.host.files import PosixFiles
from cnimeta.host.namespaces import HostNamespaces
from cnimeta.host.nodeconfig import read_section
from cnimeta_plugins.portmap.backends import Backends
from cnimeta_plugins.portmap.config import AUTO, NodeDefaults
from cnimeta_plugins.portmap.locking import locks_under
from cnimeta_plugins.portmap.mapper import Mapper

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping

    from cnimeta.host.protocols import Conntrack, Sysctl
    from cnimeta.spec.fields import Fields
    from cnimeta.spec.ip import Address


def host_mapper(environ: Mapping[str, str], log: Callable[[str], None]) -> Mapper:
    """The mapper for one command."""
    backends = Backends(environ.get("PATH", ""))
    return Mapper(
        backends,
        _conntrack,
        _sysctl,
        # A runtime works on one container at a time, and each has files of its own; rules do not outlive the boot.
        PosixFiles(exclusive=True, durable=False),
        log,
        boot_id=_boot_id,
        route=_route,
        namespaces=HostNamespaces(),
        locks=locks_under,
        node=lambda: node_defaults(environ, backends.names),
    )


def node_defaults(environ: Mapping[str, str], backends: Collection[str]) -> NodeDefaults:
    """The section `portmap` of the node-wide configuration."""
    return read_node_defaults(read_section("portmap", environ), backends)


def read_node_defaults(section: Fields, backends: Collection[str]) -> NodeDefaults:
    """The same from the section. InvalidNetworkConfig (code 7) for a wrong value."""
    return NodeDefaults(section.choice("backend", (AUTO, *backends), AUTO), section.text("dataDir"))


def _conntrack() -> Conntrack:
    from cnimeta.host.conntrack import KernelConntrack

    return KernelConntrack()


def _boot_id() -> str:
    from cnimeta.host.clock import boot_id

    return boot_id()


def _sysctl() -> Sysctl:
    from cnimeta.host.sysctl import ProcSysctl

    return ProcSysctl()


def _route(address: Address) -> str:
    from cnimeta.host.links.rtnetlink import route_interface

    return route_interface(address)
