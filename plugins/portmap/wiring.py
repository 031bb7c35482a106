"""The mapper on this host: the real adapters, imported when portmap runs."""

from __future__ import annotations

from cnimeta.host.clock import boot_id
from cnimeta.host.conntrack import KernelConntrack
from cnimeta.host.files import PosixFiles
from cnimeta.host.links.rtnetlink import route_interface
from cnimeta.host.netlink import nft_chain_exists
from cnimeta.host.nftables.program import NftProgram
from cnimeta.host.nodeconfig import read_section
from cnimeta.host.sysctl import ProcSysctl
from cnimeta_plugins.portmap.config import BACKENDS
from cnimeta_plugins.portmap.mapper import Mapper
from cnimeta_plugins.portmap.nft_rules import TABLE
from cnimeta_plugins.portmap.upstream_nft import remove_container

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection

    from cnimeta.plugin.request import Request
    from cnimeta_plugins.portmap.iptables_backend import IptablesBackend

_ENTRY_CHAIN = "CNI-HOSTPORT-DNAT"
_LEGACY_TABLES = ("/proc/net/ip_tables_names", "/proc/net/ip6_tables_names")


def host_mapper(request: Request) -> Mapper:
    """The mapper for one invocation."""
    path = request.environ.get("PATH", "")
    return Mapper(
        NftProgram(TABLE, path),
        KernelConntrack(),
        ProcSysctl(),
        # A runtime works on one container at a time, and each has files of its own; rules do not outlive the boot.
        PosixFiles(exclusive=True, durable=False),
        request.log,
        boot_id=boot_id(),
        route=route_interface,
        node=lambda: _node_defaults(request),
        iptables=lambda: _iptables(path),
        remove_foreign=lambda network, container_id, others: _remove_foreign(network, container_id, others, path),
    )


def _node_defaults(request: Request) -> tuple[str, str]:
    section = read_section("portmap", request.environ)
    return section.choice("backend", ("", *BACKENDS), ""), section.text("dataDir")


def _iptables(path: str) -> IptablesBackend:
    from cnimeta_plugins.portmap.iptables_backend import IptablesBackend

    return IptablesBackend(path=path)


def _remove_foreign(network: str, container_id: str, others: Callable[[], Collection[str]], path: str) -> None:
    """Both kinds are looked for first; nothing is imported or started unless there may be something to remove."""
    remove_container(container_id, path)
    if _iptables_has_mappings():
        from cnimeta_plugins.portmap.iptables_backend import remove_foreign

        remove_foreign(network, container_id, path, others())


def _iptables_has_mappings() -> bool:
    """Whether either variant may hold mappings: nft's by its entry chain, legacy's by a loaded nat table."""
    if any(nft_chain_exists(family, "nat", _ENTRY_CHAIN) for family in ("ip", "ip6")):
        return True
    for names in _LEGACY_TABLES:
        try:
            with open(names, encoding="ascii") as file:
                if "nat" in file.read().split():
                    return True
        except OSError:
            continue
    return False
