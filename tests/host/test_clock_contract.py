"""One contract for every Clock: the one that is told, and the system's."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from cnimeta.errors import IoFailure
from cnimeta.host.clock import SystemClock, boot_id
from cnimeta.testing.clock import FakeClock

if TYPE_CHECKING:
    from pathlib import Path

    from cnimeta.host.protocols import Clock

pytestmark = pytest.mark.unit


@pytest.fixture(params=[FakeClock, SystemClock])
def clock(request: pytest.FixtureRequest) -> Clock:
    found: Clock = request.param()
    return found


def test_both_times_pass_while_it_sleeps(clock: Clock) -> None:
    now, boottime = clock.now(), clock.boottime()
    clock.sleep(0.02)
    assert 0.0199 <= clock.boottime() - boottime < 5
    assert 0.015 <= clock.now() - now < 5


def test_time_does_not_go_back(clock: Clock) -> None:
    seen = [clock.boottime() for _ in range(100)]
    assert seen == sorted(seen)
    assert clock.now() > 1_600_000_000
    assert 0 < seen[0] < clock.now()


def test_no_time_passes_when_it_sleeps_for_none(clock: Clock) -> None:
    before = clock.boottime()
    clock.sleep(0)
    assert clock.boottime() - before < 1


def test_boot_is_the_same_until_the_next_and_never_unknown(tmp_path: Path) -> None:
    assert boot_id() == boot_id()
    assert len(boot_id()) == 36
    (tmp_path / "empty").write_text("")
    for path in (tmp_path / "missing", tmp_path, tmp_path / "empty"):
        with pytest.raises(IoFailure, match=str(path)):
            boot_id(str(path))
