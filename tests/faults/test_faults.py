"""Fault injection at every call, reads included: a sample of what `make faults` makes whole (every_strike.py).

Struck is every system call that a command makes, with each plausible error, a kill, a part of it done, or while another
command runs; every program that it starts; every request to the API server. The law: one JSON document with a code that
fits; after one plain DEL nothing is left; nothing of others is touched.
"""

from __future__ import annotations

import functools
import os

import pytest
from fault_settings import SETTINGS
from sandbox import inside
from strikes import Attack, Report

from cnimeta.plugin.registry import installed

SAMPLE = int(os.environ.get("CNIMETA_STRIKES", "1"))
"""So many strikes on each of some verbs of each setting."""
LIMIT_S = 100 + 100 * SAMPLE
pytestmark = [pytest.mark.crash, pytest.mark.timeout(LIMIT_S + 60)]


def attack(name: str, sample: int) -> Report:
    return Attack(SETTINGS[name], installed(), sample, os.environ.get("CNIMETA_SEED", name)).report()


@pytest.mark.parametrize("name", SETTINGS)
def test_nothing_is_left_and_one_document_is_answered_when_any_call_fails(name: str) -> None:
    report = inside(functools.partial(attack, name, SAMPLE), LIMIT_S)
    print(f"{name}: {report.cases} strikes, answers {report.answers}")
    assert not report.findings, f"{len(report.findings)} findings:\n" + "\n".join(report.findings)
