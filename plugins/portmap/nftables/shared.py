"""Who holds a key that an ADD is refused, and the claims that owners with one host address each share."""

from __future__ import annotations

from cnimeta.errors import HostPortConflict
from cnimeta.host.nftables.values import Change, Refusal
from cnimeta_plugins.portmap.nftables.rules import SHARED, Elements, shared_keys
from cnimeta_plugins.portmap.plan import address_conflict

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from cnimeta.host.nftables.values import Element
    from cnimeta.host.protocols import Nft
    from cnimeta_plugins.portmap.others import Others
    from cnimeta_plugins.portmap.plan import Owner
    from cnimeta_plugins.portmap.records import Record

_ADDRESSES = ("addresses", "snat")
_LOOKS = 100  # other commands may change something between a look and the transaction


def drop_unshared(nft: Nft, claims: Iterable[Element]) -> None:
    """Remove those of the shared claims that nobody shares: an ADD may share one while this looks.

    What is still not removed in the end is in nobody's way: an ADD that wants it finds it deserted.
    """
    wanted = dict.fromkeys(claims)
    for name in dict.fromkeys(one.map for one in wanted):
        _drop_of(nft, name, [one for one in wanted if one.map == name])


def _drop_of(nft: Nft, name: str, claims: list[Element]) -> None:
    looks = _LOOKS
    while looks:
        since = nft.generation()
        held = {element.key.partition(" . ")[2] for element in nft.elements(f"host{name}")}
        claims = [element for element in claims if element.key not in held]
        try:
            if claims:
                nft.apply([Change(verb, one) for one in claims for verb in ("add", "delete")], since)
            return
        except Refusal as refusal:
            if refusal.kind == "changed":
                looks -= 1
            elif refusal.kind == "exists" and 0 <= refusal.index // 2 < len(claims):
                del claims[refusal.index // 2]  # somebody has the port on every address by now
            elif refusal.kind == "other":
                raise
            else:
                return  # flushed


def holders(others: Others, wanted: Element) -> Iterator[tuple[Record, Elements]]:
    """Every record that has an element of the key that is wanted, and all its elements: owners may share a claim."""
    for record in others.every():
        held = record.payload
        if isinstance(held, Elements) and any(
            (element.map, element.key) == (wanted.map, wanted.key) for group in held.groups for element in group.all
        ):
            yield record, held


def is_shared(held: Elements, wanted: Element) -> bool:
    """Whether what is held has a share in the key, which is wanted as a whole."""
    return wanted.value != SHARED and wanted._replace(value=SHARED) in shared_keys(held.groups)


def is_renamed(holder: Owner, owner: Owner, wanted: Element) -> bool:
    """Whether the holder of an address is the same interface under an earlier name of the network."""
    return wanted.map.startswith(_ADDRESSES) and holder[1:] == owner[1:]


def conflict(wanted: Element, holder: Record | None, comment: str) -> HostPortConflict:
    """The error of an ADD that wants what the holder has; `comment` is its claim's."""
    whose = holder.owner.text if holder is not None else ("/".join(comment.split("/")[:3]) or "another container")
    if wanted.map.startswith(_ADDRESSES):
        return address_conflict(wanted.key, whose)
    protocol, _, port = wanted.key.rpartition(" . ")
    where, _, protocol = protocol.rpartition(" . ")
    place = f"{port}/{protocol}" + (f" on {where}" if where else "")
    if wanted.value == SHARED:
        place += " (every address)"
    return HostPortConflict(f"host port {place} is already mapped for {whose}: choose another hostPort")
