"""Damaged records that no DEL finds by their name: of a network that has another name by now, or that was flushed too.

It stands beside the way of a command, entered only where there is one.
"""

from __future__ import annotations

from cnimeta_plugins.portmap.names import digest, earlier_name, file_name
from cnimeta_plugins.portmap.plan import Owner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from cnimeta.plugin.request import Attachment
    from cnimeta_plugins.portmap.mapper import Mapper
    from cnimeta_plugins.portmap.records import Records


def drop(
    mapper: Mapper, records: Records, of: Attachment | None, files: Sequence[str], valid: Iterable[tuple[str, str]]
) -> None:
    """Remove those of a container, or those of containers that are not valid, when no rule tells of the container.

    Before that, unmap the same interface under an earlier name of the network, which the names on the rules tell.
    """
    if of is not None:
        for network in {one[0] for one in _mapped(mapper) if one[1] == of.container_id}:
            owner = Owner(network, of.container_id, of.ifname)
            if file_name(owner) in files or earlier_name(owner) in files:
                mapper.sweep(owner, None, records)
                records.forget(owner)
    _remove(records, files, {container_id for container_id, _ in valid} | {one[1] for one in _mapped(mapper)})


def _mapped(mapper: Mapper) -> set[tuple[str, str]]:
    """Network and container of every rule of every backend."""
    return {(one.network, one.container_id) for backend in mapper.backends.holding() for one in backend.listed()}


def _remove(records: Records, files: Sequence[str], but: Collection[str]) -> None:
    kept = {digest(container_id) for container_id in but}
    for name in files:
        if name.partition("-")[0] not in kept:
            records.drop_damaged(name)
