"""What is mapped on a node, as a world's steps make it, and what an ADD there must answer. Nothing is looked at here."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass, field

from worlds import Attachment, World

Key = tuple[str, str, str]

ELSEWHERE = Attachment("elsewhere", "refnet", ips=("10.77.0.2/24",))
"""The container of others.REFERENCE."""


@dataclass
class Model:
    """The attachments that are mapped, and what became of them."""

    world: World
    held: dict[Key, Attachment] = field(default_factory=dict)
    """What is mapped, by key."""
    fate: dict[str, str] = field(default_factory=dict)
    """die, stale, reuse or hide, by container; those that live and show are not there."""
    lost: set[Key] = field(default_factory=set)
    """The keys whose rules others took away."""
    flushed: bool = False
    """Whether others have flushed anything, ever."""
    reference: bool = False
    """Whether the reference's container is there."""

    def working(self) -> list[Attachment]:
        """What is mapped, with nothing lost, for containers that live and show."""
        return [a for key, a in self.held.items() if key not in self.lost and not self.fate.get(a.container)]

    def living(self, attachment: Attachment) -> bool:
        """Whether its container lives, shown or not."""
        return self.fate.get(attachment.container, "hide") == "hide"

    def keep(self, attachment: Attachment) -> None:
        """Its ADD was 0: what gave way is gone."""
        for key, other in list(self.held.items()):
            shares = conflict(attachment, other) or _served_addresses(attachment) & _served_addresses(other)
            meets = other.container != attachment.container and shares
            if meets and (self.fate.get(other.container) or key in self.lost):
                del self.held[key]
        self.held[attachment.key] = attachment
        if not attachment.mappings:
            del self.held[attachment.key]
        self.lost.discard(attachment.key)

    def drop(self, key: Key) -> None:
        """Its DEL was 0."""
        self.held.pop(key, None)
        self.lost.discard(key)

    def wanted(self, attachment: Attachment) -> set[int]:
        """The codes that ADD may answer, from the settings and from what is mapped."""
        if not attachment.mappings:
            return {0}
        served = attachment.served()
        if not served or any(is_link_local(mapping.ip) for mapping in attachment.mappings):
            return {7}
        codes = self._against_others(attachment)
        hosts = {mapping.where(family) for family, mapping in served} - {""}
        if any(odd(address) for address in hosts | _addresses(attachment)):
            codes |= {7}
        sealed = "settings-sealed" in self.world.host and "localnet-all" not in self.world.host
        if sealed and attachment.snat and any(family == 4 for family, _ in served):
            codes |= {5}
        return codes

    def _against_others(self, attachment: Attachment) -> set[int]:
        codes = {0}
        if self.reference and conflict(attachment, ELSEWHERE):
            codes = {0, 100} if self.flushed or attachment.key in self.held else {100}
        for key, other in self.held.items():
            if other.container == attachment.container:  # one address on two of its interfaces is refused
                same = other.key != attachment.key and _served_addresses(attachment) & _served_addresses(other)
                codes = codes | {100} if same else codes
                continue
            if conflict(attachment, other) or _served_addresses(attachment) & _served_addresses(other):
                known = key not in self.lost and self.fate.get(other.container) in (None, "hide")
                codes = {100} if known else codes | {100} if self._may_live(other) else codes
        return codes

    def _may_live(self, attachment: Attachment) -> bool:
        """Whether the plugin may take its container for alive: not every process is seen in a namespace of them."""
        return self.living(attachment) or "all-processes" not in self.world.host

    def rivals(self, attachment: Attachment) -> str:
        """Who holds what it asks for, in words: `alone`, `itself`, `a live one`, `stale`, …"""
        found = set()
        for other in self.held.values():
            if other.key != attachment.key and conflict(attachment, other):
                fate = self.fate.get(other.container, "a live one")
                found.add("itself" if other.container == attachment.container else fate)
        if self.reference and conflict(attachment, ELSEWHERE):
            found.add("the reference")
        return ", ".join(sorted(found)) or "alone"


def conflict(one: Attachment, other: Attachment) -> bool:
    """Whether both ask for a port of the node, so that only one of them can have it."""
    return any(
        family == its and mapping.meets(held, family)
        for family, mapping in one.served()
        for its, held in other.served()
    )


def _addresses(attachment: Attachment) -> set[str]:
    return {address for address, _ in attachment.addresses().values()}


def _served_addresses(attachment: Attachment) -> set[str]:
    addresses = attachment.addresses()
    return {addresses[family][0] for family, _ in attachment.served()}


def is_link_local(text: str) -> bool:
    """Whether a hostIP is of one link only: no other host could tell which."""
    return ":" in text and ipaddress.ip_address(text).is_link_local


def odd(text: str) -> bool:
    """An address that no container can be reached by: it may be refused."""
    address = ipaddress.ip_address(text)
    if address.is_multicast or address.is_loopback or address.is_unspecified:
        return True
    if isinstance(address, ipaddress.IPv6Address):
        return address.is_link_local
    return text.startswith("0.") or address >= ipaddress.ip_address("240.0.0.0")
