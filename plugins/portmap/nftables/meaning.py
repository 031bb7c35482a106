"""What a rule says, apart from how it is written: nft prints sets sorted and merged, addresses and numbers its own way.

Rules are compared by this, never by their text. Pure.
"""

from __future__ import annotations

from cnimeta.spec.ip import Cidr, parse_cidr, parse_ip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable
    from typing import TypeAlias

    Span: TypeAlias = tuple[int, int, int]
    """Addresses: the family, the first and the last as numbers."""
    Word: TypeAlias = "str | int | Span | frozenset[str | int | Span]"

_IMPLIED = ("meta nfproto ipv4 ", "meta nfproto ipv6 ")
"""What nft leaves out when the rest of the rule says it too."""


def meaning(rule: str) -> tuple[Word, ...]:
    """The words of a rule in one spelling. Equal for two texts that nft takes for the same rule."""
    for implied in _IMPLIED:
        rule = rule.removeprefix(implied)
    found: list[Word] = []
    members: list[str | int | Span] | None = None
    for text in rule.replace(",", " ").replace("{", " { ").replace("}", " } ").split():
        if text == "{":
            members = []
        elif text == "}":
            found.append(_set(members or []))
            members = None
        elif members is not None:
            members.append(_word(text))
        else:
            found.append(_word(text))
    return tuple(found)


def _word(text: str) -> str | int | Span:
    text = text.strip('"')
    if text.startswith("0x"):
        try:
            return int(text, 16)
        except ValueError:
            return text
    if "." not in text and ":" not in text:
        return text
    try:
        cidr = parse_cidr(text) if "/" in text else _single(text)
    except ValueError:
        return text
    network, bits = cidr.network, len(cidr.address.packed) * 8
    first = int.from_bytes(network.address.packed, "big")
    return (network.address.family, first, first + (1 << bits - cidr.prefix) - 1)


def _single(text: str) -> Cidr:
    address = parse_ip(text)
    return Cidr(address, len(address.packed) * 8)


def _set(members: Iterable[str | int | Span]) -> Word:
    """A set without order, touching addresses as one; a set of one is its member."""
    spans = sorted(one for one in members if isinstance(one, tuple))
    merged: list[Span] = []
    for family, first, last in spans:
        if merged and merged[-1][0] == family and first <= merged[-1][2] + 1:
            merged[-1] = (family, merged[-1][1], max(last, merged[-1][2]))
        else:
            merged.append((family, first, last))
    whole = frozenset([*merged, *(one for one in members if not isinstance(one, tuple))])
    return next(iter(whole)) if len(whole) == 1 else whole
