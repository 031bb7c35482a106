"""The kinds of examples: how worlds of a kind are drawn, and by whom they are judged."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from laws import Breach, examine
from reference import examine_reference
from strategies import reference_worlds, rule_worlds, traffic_worlds

if TYPE_CHECKING:
    from collections.abc import Callable

    from hypothesis import strategies as st


@dataclass(frozen=True)
class Kind:
    """`worlds(backend)` draws, an empty backend for any; `examine` gives the breaches of one."""

    name: str
    worlds: Callable[[str], st.SearchStrategy[Any]]
    examine: Callable[[Any], list[Breach]]


KINDS = {
    kind.name: kind
    for kind in (
        Kind("rules", rule_worlds, examine),
        Kind("traffic", traffic_worlds, examine),
        Kind("reference", lambda backend: reference_worlds(), examine_reference),
    )
}
