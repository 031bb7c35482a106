"""Packets in every cell of the traffic matrix: two combinations of settings, or CNIMETA_MATRIX of them (0 for all)."""

from __future__ import annotations

import os

import pytest
from matrix import cells_of, combinations, examine_matrix, share, world_of
from traffic import expected
from worlds import BACKENDS

SAMPLE = int(os.environ.get("CNIMETA_MATRIX", "2"))


def name_of(value: object) -> str:
    if not isinstance(value, tuple):
        return str(value)
    snat, masq_all, conditions, families = value
    words = ("snat" * snat, "masqAll" * masq_all, "conditions" * conditions, f"IPv{'+'.join(families)}")
    return "-".join(word for word in words if word)


@pytest.mark.kernel
@pytest.mark.parametrize(("backend", "combination"), share(SAMPLE), ids=name_of)
def test_packets_end_where_the_settings_say_when_sent_in_every_cell(
    backend: str, combination: tuple[bool, bool, bool, str]
) -> None:
    number, breaches = examine_matrix(world_of(backend, combination))
    assert [str(breach) for breach in breaches] == []
    assert number > 500


@pytest.mark.unit
def test_the_matrix_is_the_same_on_every_backend_and_some_cells_are_served_in_each_combination() -> None:
    for combination in combinations():
        worlds = [world_of(backend, combination) for backend in BACKENDS]
        assert len({tuple(cells_of(world)) for world in worlds}) == 1
        there = list(worlds[0].attachments)
        served = {outcome.who for cell in cells_of(worlds[0]) if (outcome := expected(there, cell)) is not None}
        assert len(served) > 8
        open_ended = [cell for cell in cells_of(worlds[0]) if expected(there, cell) is None]
        assert all(cell.protocol == "sctp" and cell.caller.startswith("c") for cell in open_ended), "a promise for each"
