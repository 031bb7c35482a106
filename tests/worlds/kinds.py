"""The kinds of examples: how worlds of a kind are drawn, and by whom they are judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from allocating import allocations, examine_allocation
from laws import Breach, examine
from reference import examine_reference
from shaping import examine_shaping, shapings
from strategies import reference_worlds, rule_worlds, traffic_worlds

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypothesis import strategies as st


@dataclass(frozen=True)
class Kind:
    """`worlds(backend)` draws, an empty backend for any; `examine` gives the breaches of one; `weight` is its share."""

    name: str
    weight: int
    worlds: Callable[[str], st.SearchStrategy[Any]]
    examine: Callable[[Any], list[Breach]]


KINDS = {
    kind.name: kind
    for kind in (
        Kind("rules", 5, rule_worlds, examine),
        Kind("traffic", 2, traffic_worlds, examine),
        Kind("reference", 1, lambda backend: reference_worlds(), examine_reference),
        Kind("allocating", 1, lambda backend: allocations(), examine_allocation),
        Kind("shaping", 1, lambda backend: shapings(), examine_shaping),
    )
}
