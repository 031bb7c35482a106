"""Who may import whom, and what may be loaded when a plugin starts (docs/architecture.md)."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from cnimeta.launcher import PLUGINS, render

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.project

ROOT = Path(__file__).parents[2]

BELOW = {
    "namedtuple": set(),
    "errors": set(),
    "spec": {"namedtuple", "errors"},
    "host": {"namedtuple", "errors", "spec"},
    "plugin": {"namedtuple", "errors", "spec"},
    "launcher": {"namedtuple"},
    "delegate": {"namedtuple", "errors", "spec", "host", "plugin", "launcher"},
    "agent": {"namedtuple", "errors", "spec", "host", "plugin", "launcher"},
    "runtime": {"namedtuple", "errors", "spec", "host", "delegate", "plugin"},
}
"""For each part of the SDK, the parts it may import. `cli` and `testing` stand above all of them."""

SLOW = {
    *("argparse", "collections", "dataclasses", "enum", "hashlib", "ipaddress", "json", "logging", "pathlib", "re"),
    *("subprocess", "tempfile", "typing", "asyncio", "http", "inspect", "socket", "ssl", "urllib"),
    *("filelock", "iptc", "kubernetes", "pyroute2"),
}
"""What costs too much to load each time a plugin starts."""


class Import(NamedTuple):
    """One import of a module; `deferred` when it stands inside a function."""

    module: str
    line: int
    deferred: bool


def imports(path: Path) -> Iterator[Import]:
    """What a file imports at run time: imports for type checkers left out."""

    def walk(node: ast.AST, deferred: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                for other in child.orelse:
                    yield from walk(other, deferred)
            elif isinstance(child, ast.Import):
                yield from (Import(alias.name, child.lineno, deferred) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno}: imports are absolute"
                yield Import(child.module or "", child.lineno, deferred)
                yield from (Import(f"{child.module}.{alias.name}", child.lineno, deferred) for alias in child.names)
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, deferred or inside)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), deferred=False)


def sources(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found
    return found


def test_no_part_of_the_sdk_imports_what_stands_above_it_when_all_imports_are_read() -> None:
    wrong = []
    for path in sources("cnimeta"):
        part = path.relative_to(ROOT / "cnimeta").parts[0].removesuffix(".py")
        if part not in BELOW:
            continue
        for found in imports(path):
            name, _, rest = found.module.partition(".")
            above = name == "cnimeta" and rest and rest.split(".")[0] not in BELOW[part] | {part, "__version__"}
            if above:
                wrong.append(f"{path.relative_to(ROOT)}:{found.line} imports {found.module}")
    assert not wrong, "\n".join(wrong)


def test_the_sdk_never_imports_a_plugin_when_all_imports_are_read() -> None:
    wrong = [
        f"{path.relative_to(ROOT)}:{found.line}"
        for path in sources("cnimeta")
        for found in imports(path)
        if found.module.partition(".")[0] in ("cnimeta_plugins", "plugins")
    ]
    assert not wrong


def test_no_plugin_imports_another_when_all_imports_are_read() -> None:
    wrong = []
    for path in sources("plugins"):
        own = path.relative_to(ROOT / "plugins").parts[0]
        for found in imports(path):
            parts = found.module.split(".")
            if parts[0] == "cnimeta_plugins" and parts[1:2] != [own]:
                wrong.append(f"{path.relative_to(ROOT)}:{found.line} imports {found.module}")
    assert not wrong, "\n".join(wrong)


def test_production_code_never_imports_the_testing_kit_when_all_imports_are_read() -> None:
    """But `cnimeta conformance`, which is the kit's own command."""
    wrong = [
        f"{path.relative_to(ROOT)}:{found.line}"
        for path in (*sources("cnimeta"), *sources("plugins"))
        for found in imports(path)
        if found.module.startswith("cnimeta.testing")
        and "testing" not in path.parts
        and path != ROOT / "cnimeta" / "cli" / "conformance.py"
    ]
    assert not wrong


def source_of(module: str) -> Path | None:
    """The file of one of this project's modules; None for a name inside a module, or a foreign one."""
    parts = module.split(".")
    folder = {"cnimeta": "cnimeta", "cnimeta_plugins": "plugins"}.get(parts[0])
    if folder is None:
        return None
    path = ROOT.joinpath(folder, *parts[1:])
    return next((found for found in (path.with_suffix(".py"), path / "__init__.py") if found.is_file()), None)


def reachable(start: list[Path]) -> set[Path]:
    """The files that running `start` may load, those imported inside functions included."""
    seen, waiting = set(start), list(start)
    while waiting:
        for found in imports(waiting.pop()):
            path = source_of(found.module)
            if path is not None and path not in seen:
                seen.add(path)
                waiting.append(path)
    return seen


def test_no_slow_module_is_imported_at_the_top_when_a_plugin_may_load_the_file() -> None:
    files = reachable([ROOT / "plugins" / name / "main.py" for name in PLUGINS])
    assert ROOT / "cnimeta" / "plugin" / "dispatch.py" in files
    wrong = [
        f"{path.relative_to(ROOT)}:{found.line} imports {found.module}"
        for path in sorted(files)
        for found in imports(path)
        if not found.deferred and found.module.partition(".")[0] in SLOW
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", sorted(PLUGINS))
def test_nothing_slow_is_loaded_when_a_launcher_has_started(name: str) -> None:
    launcher = render(PLUGINS[name], sys.executable, str(ROOT / "plugins"), []).splitlines()
    assert launcher[-1].startswith("main(")
    started = "\n".join([*launcher[1:-1], "print(*sys.modules)"])
    loaded = subprocess.run(
        [sys.executable, "-IS", "-c", started], check=True, capture_output=True, text=True, env={}
    ).stdout.split()
    assert "cnimeta.plugin.dispatch" in loaded
    assert not SLOW & set(loaded)
