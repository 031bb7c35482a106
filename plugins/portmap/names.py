"""The names of records' files: digests, since container, network and interface may be called anything. Pure.

A name of three digests tells container, network and interface apart. The earlier form, of two, tells the container
only: such a file is read as any other, and has the present name once it is written again.
"""

from __future__ import annotations

from cnimeta.host.digest import sha512_hex

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable

    from cnimeta_plugins.portmap.plan import Owner

SUFFIX = ".json"
_PARTS = 3


def digest(text: str) -> str:
    """The part of a file's name that stands for a name of any length."""
    return sha512_hex(text)[:24]


def file_name(owner: Owner) -> str:
    """The name of an attachment's file."""
    return digest(owner.container_id) + _end(owner.network, owner.ifname)


def earlier_name(owner: Owner) -> str:
    """The name that it had before networks had a digest of their own."""
    return digest(owner.container_id) + _earlier_end(owner.network, owner.ifname)


def unkept(names: Iterable[str], network: str, but: Collection[tuple[str, str]]) -> list[str]:
    """Those that may be of a network's attachments and are of no (container ID, ifname) in `but`."""
    of_it = f"-{digest(network)}-"
    ends = {ifname: (_end(network, ifname), _earlier_end(network, ifname)) for ifname in {one for _, one in but}}
    kept = {digest(container_id) + end for container_id, ifname in but for end in ends[ifname]}
    return [name for name in names if name not in kept and (of_it in name or name.count("-") + 1 < _PARTS)]


def _end(network: str, ifname: str) -> str:
    return f"-{digest(network)}-{digest(ifname)}{SUFFIX}"


def _earlier_end(network: str, ifname: str) -> str:
    return f"-{digest(f'{network}/{ifname}')}{SUFFIX}"
