"""One contract for every Lock: in memory, and on a file."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, NamedTuple

import pytest

from cnimeta.errors import TryAgainLater
from cnimeta.host.lock import NodeLock
from cnimeta.testing.lock import FakeLock

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager
    from pathlib import Path

    from cnimeta.host.protocols import Lock

pytestmark = pytest.mark.unit


class Case(NamedTuple):
    """A lock, and how somebody else holds it."""

    lock: Lock
    taken: Callable[[], AbstractContextManager[None]]


@pytest.fixture(params=["memory", "file"])
def case(request: pytest.FixtureRequest, tmp_path: Path) -> Case:
    if request.param == "file":
        path = str(tmp_path / "state" / "lock")
        return Case(NodeLock(path, 0), NodeLock(path, 0).held)
    lock = FakeLock()

    @contextlib.contextmanager
    def taken() -> Iterator[None]:
        lock.busy = True
        yield
        lock.busy = False

    return Case(lock, taken)


def test_lock_is_had_again_after_each_block(case: Case) -> None:
    for _ in range(3):
        with case.lock.held():
            pass
    with case.taken():
        pass


def test_lock_is_refused_while_somebody_else_holds_it(case: Case) -> None:
    with case.taken():
        for _ in range(2):
            with pytest.raises(TryAgainLater, match="could not be acquired within 0 s") as caught, case.lock.held():
                pytest.fail("held twice")
            assert caught.value.code == 11
    with case.lock.held():
        pass


def test_lock_is_let_go_when_the_block_fails(case: Case) -> None:
    with pytest.raises(ValueError, match="words"), case.lock.held():
        raise ValueError("words")
    with case.lock.held():
        pass
