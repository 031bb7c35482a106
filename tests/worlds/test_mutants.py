"""Each fix that can be taken out: the world that was found then breaks its law again."""

from __future__ import annotations

import pytest
from found import FOUND
from kinds import KINDS
from mutants import MUTANTS, without

pytestmark = pytest.mark.kernel


@pytest.mark.parametrize("fault", MUTANTS)
def test_world_breaks_its_law_when_the_fix_is_taken_out(fault: str) -> None:
    found = next(one for one in FOUND if one.fault == fault)
    with without(fault):
        breaches = KINDS[found.kind].examine(found.world)
    assert any(found.explains(found.world, breach) for breach in breaches), [str(breach) for breach in breaches]
