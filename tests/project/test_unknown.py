"""Unknown is not absent: no code on the way of a command drops a failure without saying what that is taken for."""

from __future__ import annotations

import ast
import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.project

ROOT = Path(__file__).parents[2]
ROOMS = ("host", "store", "delegate", "plugin", "spec", "ports")
FAILURES = {"OSError", "CniError", "Exception", "BaseException", "IoFailure", "StateUnusable", "Refused", "Refusal"}
SAID = re.compile(r"#( noqa: \S+ -)? (unknown|refused|then): \S")
"""How a line says it: `unknown:` and what an answer that nobody knows is taken for; `refused:` and what follows where a
change was not made; `then:` and what happens instead where nothing was asked.
"""
BOOLEANS = {"os.access", *(f"os.path.{name}" for name in ("exists", "lexists", "isfile", "isdir", "islink", "ismount"))}
"""Functions of `os` and `os.path` that turn every failure into "no"."""


def sources() -> Iterator[Path]:
    for folder in (*(ROOT / "cnimeta" / room for room in ROOMS), ROOT / "plugins"):
        yield from (path for path in sorted(folder.rglob("*.py")) if "operator" not in (*path.parts, path.stem))


def caught(kind: ast.expr | None) -> set[str]:
    if kind is None:
        return {"BaseException"}
    if isinstance(kind, ast.Tuple):
        return set().union(*map(caught, kind.elts))
    return {ast.unparse(kind).rpartition(".")[2]}


def is_dropped(handler: ast.ExceptHandler) -> bool:
    """Neither raised again nor looked at."""
    inside = [node for statement in handler.body for node in ast.walk(statement)]
    used = any(isinstance(node, ast.Name) and node.id == handler.name for node in inside)
    return not used and not any(isinstance(node, ast.Raise) for node in inside)


def is_said(lines: list[str], number: int) -> bool:
    """On the line itself or the one above."""
    return any(SAID.search(line) for line in lines[max(0, number - 2) : number])


def dropped(text: str) -> list[int]:
    """The lines that drop a failure and do not say what for."""
    lines, found = text.splitlines(), []
    for node in ast.walk(ast.parse(text)):
        if (isinstance(node, ast.ExceptHandler) and caught(node.type) & FAILURES and is_dropped(node)) or (
            isinstance(node, ast.Call) and ast.unparse(node.func) in BOOLEANS
        ):
            found += [node.lineno] * (not is_said(lines, node.lineno))
    return sorted(found)


def test_no_failure_is_dropped_without_a_word() -> None:
    wrong = [f"{path.relative_to(ROOT)}:{line}" for path in sources() for line in dropped(path.read_text("utf-8"))]
    assert not wrong, "a failure is dropped: raise it, or say on its line `# unknown: …`:\n" + "\n".join(wrong)


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("try:\n    f()\nexcept OSError:\n    return_ = None", [3]),
        ("try:\n    f()\nexcept (KeyError, CniError) as error:\n    pass", [3]),
        ("try:\n    f()\nexcept:\n    pass", [3]),
        ("try:\n    f()\nexcept OSError:  # unknown: as if it was there\n    pass", []),
        ("try:\n    f()\nexcept OSError:  # passes\n    pass", [3]),
        ("try:\n    f()\nexcept OSError as error:\n    log(error)", []),
        ("try:\n    f()\nexcept OSError:\n    raise Other from None", []),
        ("try:\n    f()\nexcept FileNotFoundError:\n    pass", []),
        ("os.path.exists(path)", [1]),
        ("store.exists()", []),
    ],
)
def test_a_dropped_failure_is_seen(text: str, lines: list[int]) -> None:
    assert dropped(text) == lines
