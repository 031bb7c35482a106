"""The mappings in the kernel by the names they carry: what there is when its record is lost.

Listing costs in proportion to everything that is mapped, so no command comes here as long as the records are there.
"""

from __future__ import annotations

from cnimeta.host.nftables.values import Element
from cnimeta.ports.mapper import MappedPort
from cnimeta_plugins.portmap.nftables.reading import Reading
from cnimeta_plugins.portmap.nftables.rules import (
    BASE_CHAIN,
    SHARED,
    Elements,
    Group,
    conditional_chain_names,
    owner_comment,
    owner_id,
)
from cnimeta_plugins.portmap.plan import Owner

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Iterator

    from cnimeta.host.protocols import Nft
    from cnimeta_plugins.portmap.config import PortMapping
    from cnimeta_plugins.portmap.others import Others

_CLAIMS = ("claims4", "claims6", "hostclaims4", "hostclaims6", "addresses4", "addresses6")
_TARGETS = {"claims": ("any", "range"), "hostclaims": ("host", "hostrange"), "addresses": ("snat",)}


def holders(nft: Nft, owner: Owner, mappings: Iterable[PortMapping]) -> list[str]:
    """Who has these mappings and is this interface of this container, whatever the network was called."""
    found: dict[str, None] = {}
    own = owner_id(*owner)
    for mapping in mappings if nft.has_chain(BASE_CHAIN) else ():
        for family in (4, 6):
            if not mapping.serves(family):
                continue
            name = f"hostclaims{family}" if mapping.where else f"claims{family}"
            key = f"{mapping.where} . " * bool(mapping.where) + f"{mapping.protocol} . {mapping.first}"
            for claim, comment in nft.lookup(name, [key]).items():
                *interface, network = (*comment.split("/"), "", "", "")[:3]
                renamed = interface == [*owner[1:]] and claim.value == owner_id(network, *owner[1:])
                if claim.value == own or renamed:
                    found[claim.value] = None
    return list(found)


def held_by(nft: Nft, owner: str) -> Elements:
    """What the kernel holds for an owner, found by its claims."""
    if not nft.has_chain(BASE_CHAIN):
        return Elements()
    groups = [
        _group_of(nft, claim, comment)
        for name in _CLAIMS
        for claim, comment in nft.elements(name).items()
        if claim.value == owner
    ]
    return Elements(tuple(groups), conditional_chain_names(owner))


class _Names(frozenset[str]):
    """Comments of attachments, which are found whoever's behalf they are mapped on."""

    def __contains__(self, comment: object) -> bool:
        return super().__contains__(comment) or super().__contains__("/".join(str(comment).split("/", 3)[:3]))


def strays(nft: Nft, network: str, valid: Collection[tuple[str, str]], others: Others) -> Iterator[Elements]:
    """What the kernel holds for attachments of a network that are neither valid nor on record, one after the other.

    Elements whose comment names a valid one are not looked at. A comment that was cut tells nobody's name.
    """
    kept = _Names(owner_comment(network, *names) for names in valid)
    found: dict[str, Owner] = {}
    for name in _CLAIMS if nft.has_chain(BASE_CHAIN) else ():
        for claim, comment in nft.elements(name, kept).items():
            parts = comment.split("/")
            if claim.value != SHARED and len(parts) in (3, 4) and parts[2] == network and not comment.endswith("..."):
                found.setdefault(claim.value, Owner(network, parts[0], parts[1]))
    gone = [
        number
        for number, owner in found.items()
        if (owner.container_id, owner.ifname) not in valid and not _is_recorded(number, owner, others)
    ]
    reading = Reading(nft)
    yield from (held_by(reading, number) for number in sorted(gone))


def _is_recorded(number: str, owner: Owner, others: Others) -> bool:
    """Whether an owner is on record, under the name that its comment tells or, where that is not quite it, another."""
    if owner_id(*owner) == number:
        return others.has(owner)
    return any(owner_id(*record.owner) == number for record in others.every())


def mapped_ports(nft: Nft) -> Iterator[MappedPort]:
    """Every mapped port whose comment tells its whole owner; one that was cut to fit tells nobody's."""
    if not nft.has_chain(BASE_CHAIN):
        return
    for family in (4, 6):
        for claims, targets in (("claims", "any"), ("hostclaims", "host")):
            ports = {one.key: one.value.rpartition(" . ")[2] for one in nft.elements(f"{targets}{family}")}
            for claim, comment in nft.elements(f"{claims}{family}").items():
                container_id, _, rest = comment.partition("/")
                ifname, _, rest = rest.partition("/")
                network, marked, managed_by = rest.partition("/")
                if owner_id(network, container_id, ifname) != claim.value:
                    continue
                *where, protocol, port = claim.key.split(" . ")
                target = ports.get(claim.key, port)  # one of an interval keeps its port
                yield MappedPort(
                    *(network, container_id, ifname, protocol, int(port), int(target), "".join(where)),
                    recorded=False,
                    managed_by=None if marked and not managed_by else managed_by,
                )


def _group_of(nft: Nft, claim: Element, comment: str) -> Group:
    kind, family = claim.map[:-1], claim.map[-1]
    elements = [
        one
        for target in _TARGETS[kind]
        for one, said in nft.elements(f"{target}{family}").items()
        if one.key == claim.key or (said == comment and _covers(one.key, claim.key))
    ]
    if kind == "hostclaims":
        elements.append(Element(f"claims{family}", claim.key.partition(" . ")[2], SHARED))
    return Group(claim, tuple(elements))


def _covers(interval: str, key: str) -> bool:
    head, _, ports = interval.rpartition(" . ")
    place, _, port = key.rpartition(" . ")
    first, dash, last = ports.partition("-")
    return bool(dash) and head == place and port.isdigit() and int(first) <= int(port) <= int(last)
