"""Generated worlds on the real kernel: a short run; `make worlds MINUTES=60` is the long one. The worlds found so far."""

from __future__ import annotations

import functools
import os
import time

import pytest
from found import FOUND
from hunt import Hunt, fault_of
from kinds import KINDS
from laws import Breach
from sandbox import Failed, inside
from worlds import BACKENDS, Attachment, Mapping, World, read

pytestmark = pytest.mark.kernel

_SEED = 20240917


each_found = pytest.mark.parametrize("number", range(len(FOUND)), ids=[found.fault for found in FOUND])


@functools.cache
def breaches_of(number: int) -> list[Breach]:
    found = FOUND[number]
    return KINDS[found.kind].examine(found.world)


@each_found
def test_world_holds_when_it_was_found_before(number: int, request: pytest.FixtureRequest) -> None:
    found = FOUND[number]
    if found.open:
        request.applymarker(pytest.mark.xfail(reason=f"{found.fault}: {found.about}", strict=True))
    assert [str(breach) for breach in breaches_of(number) if found.explains(found.world, breach)] == []


@each_found
def test_world_breaks_no_other_law_when_its_fault_is_open(number: int) -> None:
    found = FOUND[number]
    others = [b for b in breaches_of(number) if not found.explains(found.world, b)]
    assert [str(breach) for breach in others if not fault_of(found.world, breach)] == []


@pytest.mark.parametrize(
    ("kind", "examples"), [("rules", 20), ("traffic", 4), ("reference", 3), ("shaping", 5), ("allocating", 2)]
)
def test_laws_hold_when_a_world_is_drawn(kind: str, examples: int) -> None:
    hunt = Hunt()
    one = KINDS[kind]
    hunt.search(kind, one.worlds(""), one.examine, examples, _SEED, time.monotonic() + 90)
    assert [str(surprise) for surprise in hunt.surprises.values()] == []
    assert hunt.examples[kind] > 0


def test_world_is_the_same_when_read_from_its_text() -> None:
    attachment = Attachment("c2", ips=("::ffff:10.0.0.2/120",), mappings=(Mapping(1, 65535, "udp", "::1"),), snat=False)
    world = World((Attachment(), attachment), ("ADD 0", "flush 3", "DEL 1 nowhere"), BACKENDS[2], ("localnet-all",))
    assert read(repr(world)) == world
    assert repr(World()) == "World()"


def test_nothing_remains_when_a_sandbox_ends() -> None:
    def work() -> str:
        with open("/run/here", "w", encoding="ascii") as file:
            file.write("x")
        return "done"

    assert inside(work) == "done"
    with pytest.raises(Failed, match="ZeroDivisionError"):
        inside(lambda: 1 // 0)
    with pytest.raises(Failed, match="not done within"):
        inside(lambda: time.sleep(30), timeout_s=0.2)
    assert not os.path.exists("/run/here")
