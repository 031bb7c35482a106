"""A short soak, always of the same seed; `make soak MINUTES=60` is the long one."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parents[1] / "faults"))

import soak_hunt
from stage import preload

pytestmark = [pytest.mark.crash, pytest.mark.timeout(300)]


def test_node_is_as_the_model_has_it_after_anything_in_any_order() -> None:
    preload()
    report = soak_hunt.run(soak_hunt.seeded("short", 100), 60)
    print(f"{report.served} steps, {report.codes}")
    assert not report.finding, soak_hunt.told("short", report, 0)
