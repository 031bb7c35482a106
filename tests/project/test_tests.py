"""The tests themselves: what they may not do."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

pytestmark = pytest.mark.project

ROOT = Path(__file__).parents[2]

TO_BE_CHANGED = {"tests/bandwidth/test_bandwidth_kernel.py replaces removal._in_child"}
"""What breaks the rule still. Nothing is added here."""


def replaced(path: Path) -> list[str]:
    """What of our own code a test replaces: by `monkeypatch.setattr`, or with `unittest.mock`."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    ours, found = set(), []
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom | ast.Import):
            module = getattr(node, "module", None) or ""
            for alias in node.names:
                if f"{module}.{alias.name}".startswith("unittest.mock"):
                    found.append("what it mocks")
                if f"{module or alias.name}".split(".")[0] in ("cnimeta", "cnimeta_plugins"):
                    ours.add((alias.asname or alias.name).split(".")[0])
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "setattr":
            target = ast.unparse(node.args[0]).strip("'\"")
            if target.split(".")[0] in {*ours, "cnimeta", "cnimeta_plugins"}:
                names = [arg.value for arg in node.args[1:2] if isinstance(arg, ast.Constant)]
                found.append(".".join([target, *names]))
    return found


def test_our_own_code_is_never_patched_when_the_tests_are_read() -> None:
    wrong = {
        f"{path.relative_to(ROOT)} replaces {what}"
        for path in sorted((ROOT / "tests").rglob("*.py"))
        for what in replaced(path)
    }
    assert not wrong - TO_BE_CHANGED, "\n".join(sorted(wrong))


def test_no_module_has_a_namesake_when_the_tests_import_it() -> None:
    """Folders of tests are no packages: of two modules of one name, all but the first would never be imported."""
    files = [path for path in sorted((ROOT / "tests").rglob("*.py")) if path.name != "conftest.py"]
    imported = {
        name
        for path in files
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    places = {name: [str(path.relative_to(ROOT)) for path in files if path.stem == name] for name in imported}
    assert {name: found for name, found in places.items() if len(found) > 1} == {}
