"""Who may import whom, and what may be loaded when a plugin starts (docs/architecture.md)."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import pytest

from cnimeta.cli.install import launcher_text
from cnimeta.plugin.registry import installed

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.project

ROOT = Path(__file__).parents[2]
PLUGINS = ("bandwidth", "hostport_alloc", "portmap")
REGISTRY = ROOT / "cnimeta" / "plugin" / "registry.py"
BUNDLE = tuple(REGISTRY.with_name(name) for name in ("boot.py", "bundle.py"))
"""What runs the code of modules that a launcher has at hand, in place of an import that names them."""

LAYERS = (
    {"errors", "namedtuple"},
    {"spec", "terminal", "scaffold", "observe"},
    {"ports"},
    {"host"},
    {"store"},
    {"plugin"},
    {"delegate"},
    {"agent", "runtime"},
    {"testing", "node"},
    {"cli"},
    {"plugins"},
)
"""The parts, from the ground up. A part imports itself and what lies below it, for type checkers too."""

LOADERS = {
    *("__import__", "import_module", "exec_module", "spec_from_file_location", "spec_from_loader"),
    *("exec", "eval", "run_module", "run_path"),
}
"""What turns a name or a file into code."""

SLOW = {
    *("argparse", "collections", "dataclasses", "enum", "hashlib", "ipaddress", "json", "logging", "pathlib", "re"),
    *("subprocess", "tempfile", "typing", "asyncio", "http", "inspect", "socket", "ssl", "urllib"),
    *("filelock", "iptc", "kubernetes", "pyroute2"),
}
"""What costs too much to load each time a plugin starts."""


class Import(NamedTuple):
    """One import of a module; `deferred` when it stands inside a function, `typing` when only type checkers see it."""

    module: str
    line: int
    deferred: bool
    typing: bool


def imports(path: Path) -> Iterator[Import]:
    """What a file imports."""

    def walk(node: ast.AST, deferred: bool, typing: bool) -> Iterator[Import]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.If) and "TYPE_CHECKING" in ast.dump(child.test):
                for seen in child.body:
                    yield from walk(ast.Module([seen], []), deferred, True)
                for other in child.orelse:
                    yield from walk(ast.Module([other], []), deferred, typing)
            elif isinstance(child, ast.Import):
                yield from (Import(alias.name, child.lineno, deferred, typing) for alias in child.names)
            elif isinstance(child, ast.ImportFrom):
                assert child.level == 0, f"{path}:{child.lineno}: imports are absolute"
                names = ("", *(f".{alias.name}" for alias in child.names))
                yield from (Import(f"{child.module}{name}", child.lineno, deferred, typing) for name in names)
            else:
                inside = isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
                yield from walk(child, deferred or inside, typing)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), deferred=False, typing=False)


def sources(folder: str) -> list[Path]:
    found = sorted((ROOT / folder).rglob("*.py"))
    assert found
    return found


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def part_of(path: Path) -> str:
    """The part a file belongs to; empty for `cnimeta/__init__.py`."""
    folder, *rest = path.relative_to(ROOT).parts
    return "plugins" if folder == "plugins" else rest[0].removesuffix(".py").removeprefix("__init__")


def part_named(module: str) -> str:
    """The part a module belongs to; empty for what is not this project's, and for `cnimeta.__version__`."""
    top, *rest = module.split(".")
    if top == "cnimeta_plugins":
        return "plugins"
    return rest[0] if top == "cnimeta" and rest and not rest[0].startswith("__") else ""


def edges() -> Iterator[tuple[str, str, str]]:
    """Every import of one part by another: (part, imported part, where)."""
    for path in (*sources("cnimeta"), *sources("plugins")):
        for found in imports(path):
            part, other = part_of(path), part_named(found.module)
            if part and other and part != other:
                yield part, other, f"{name_of(path)} imports {found.module}"


def level(part: str) -> int:
    return next(number for number, parts in enumerate(LAYERS) if part in parts)


def test_every_part_has_its_layer_when_the_tree_is_read() -> None:
    parts = {part_of(path) for path in sources("cnimeta")} - {""}
    assert parts | {"plugins"} == set().union(*LAYERS)


def test_no_part_imports_what_does_not_lie_below_it_when_all_imports_are_read() -> None:
    wrong = {where for part, other, where in edges() if level(other) >= level(part)}
    assert not wrong, "\n".join(sorted(wrong))


def arrows() -> set[tuple[str, str]]:
    """The diagram of docs/architecture.md: (part, imported part)."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    diagram = re.search(r"^```mermaid\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    assert diagram is not None
    found = set()
    for line in diagram.group(1).splitlines()[1:]:
        left, arrow, right = re.sub(r"\[.*?\]", "", line).partition("-->")
        assert arrow, line
        found |= {(one.strip(), other.strip()) for one in left.split("&") for other in right.split("&")}
    return found


def below(part: str, drawn: set[tuple[str, str]]) -> set[str]:
    """What can be reached along the arrows."""
    found: set[str] = set()
    waiting = {part}
    while waiting:
        waiting = {other for one, other in drawn if one in waiting} - found
        found |= waiting
    return found


def test_the_diagram_says_who_imports_whom_when_it_is_compared_with_the_imports() -> None:
    drawn = arrows()
    real = {(part, other) for part, other, _ in edges()}
    assert {part for arrow in drawn for part in arrow} == set().union(*LAYERS)
    assert drawn - real == set(), "arrows that no import bears out"
    assert {arrow for arrow in real if arrow[1] not in below(arrow[0], drawn)} == set(), "imports along no arrows"


def test_the_diagram_says_nothing_twice_when_an_arrow_is_taken_out() -> None:
    drawn = arrows()
    assert {arrow for arrow in drawn if arrow[1] in below(arrow[0], drawn - {arrow})} == set()


def test_the_sdk_never_imports_a_plugin_when_all_imports_are_read() -> None:
    assert {where for part, other, where in edges() if other == "plugins"} == set()
    assert not [path for path in sources("cnimeta") if "cnimeta_plugins" in path.read_text(encoding="utf-8")]


def test_no_plugin_imports_another_when_all_imports_are_read() -> None:
    wrong = []
    for path in sources("plugins"):
        own = path.relative_to(ROOT / "plugins").parts[0]
        for found in imports(path):
            parts = found.module.split(".")
            if parts[0] == "cnimeta_plugins" and parts[1:2] != [own]:
                wrong.append(f"{name_of(path)}:{found.line} imports {found.module}")
    assert not wrong, "\n".join(wrong)


def test_code_is_loaded_by_name_in_the_registry_alone_when_all_calls_are_read() -> None:
    wrong = set()
    for path in {*sources("cnimeta"), *sources("plugins")} - {REGISTRY, *BUNDLE}:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = {"Name": "id", "Attribute": "attr", "alias": "name"}
            name = getattr(node, names.get(type(node).__name__, ""), "")
            if name.rpartition(".")[2] in LOADERS and not (
                name in ("exec", "eval") and isinstance(node, ast.Attribute)
            ):
                wrong.add(f"{name_of(path)} loads by {name.rpartition('.')[2]}")
    assert not wrong, "\n".join(sorted(wrong))


def test_production_code_never_imports_the_testing_kit_when_all_imports_are_read() -> None:
    """But `cnimeta conformance`, which is the kit's own command."""
    wrong = {where for part, other, where in edges() if other == "testing"}
    assert {where for where in wrong if not where.startswith("cnimeta/cli/conformance.py ")} == set()


def source_of(module: str) -> Path | None:
    """The file of one of this project's modules; None for a name inside a module, or a foreign one."""
    parts = module.split(".")
    folder = {"cnimeta": "cnimeta", "cnimeta_plugins": "plugins"}.get(parts[0])
    if folder is None:
        return None
    path = ROOT.joinpath(folder, *parts[1:])
    return next((found for found in (path.with_suffix(".py"), path / "__init__.py") if found.is_file()), None)


def reachable(start: list[Path]) -> set[Path]:
    """The files that running `start` may load, those imported inside functions included.

    Not what is for operators: `Plugin.add_commands` leads there, and is called by the command line alone.
    """
    seen, waiting = set(start), list(start)
    while waiting:
        for found in imports(waiting.pop()):
            path = None if found.typing else source_of(found.module)
            if path is not None and path not in seen and "operator" not in path.relative_to(ROOT).parts:
                seen.add(path)
                waiting.append(path)
    return seen


def test_no_slow_module_is_imported_at_the_top_when_a_plugin_may_load_the_file() -> None:
    files = reachable([*(ROOT / "plugins" / name / "main.py" for name in PLUGINS), REGISTRY])
    assert ROOT / "cnimeta" / "plugin" / "dispatch.py" in files
    wrong = [
        f"{name_of(path)}:{found.line} imports {found.module}"
        for path in sorted(files)
        for found in imports(path)
        if not found.typing and not found.deferred and found.module.partition(".")[0] in SLOW
    ]
    assert not wrong, "\n".join(wrong)


@pytest.mark.parametrize("name", PLUGINS)
def test_nothing_slow_is_loaded_when_a_launcher_has_started(name: str) -> None:
    launcher = launcher_text(installed()[name]).splitlines()
    assert launcher[-1].startswith("start(lambda: load(")
    started = "\n".join([*launcher[1:-1], launcher[-1].removeprefix("start(lambda: ")[:-1], "print(*sys.modules)"])
    loaded = subprocess.run(
        [sys.executable, "-IS", "-c", started], check=True, capture_output=True, text=True, env={}
    ).stdout.split()
    assert "cnimeta.plugin.dispatch" in loaded
    assert f"cnimeta_plugins.{name}.main" in loaded
    assert not SLOW & set(loaded)
