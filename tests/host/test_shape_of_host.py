"""What the source of `cnimeta.host` promises as a whole: who imports whom, and that no failed read is swallowed."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.project

ROOT = Path(__file__).parents[2]
HOST = ROOT / "cnimeta" / "host"
VALUES = {
    "cnimeta.host.values",
    "cnimeta.host.links.values",
    "cnimeta.host.network.values",
    "cnimeta.host.iptables.values",
    "cnimeta.host.nftables.values",
}
PURE = VALUES | {"cnimeta.host.digest", "cnimeta.host.links.htb"}
"""Modules of cnimeta.host that reach nothing: no kernel, no file, no process."""

REVIEWED = {
    ("namespaces.py", "HostNamespaces.is_gone"): "what cannot be told is not gone",
    ("namespaces.py", "namespace_id"): "empty: it cannot be told, which callers tell from another namespace",
    ("netlink.py", "tell"): "kept, and raised when every answer is there",
    ("process.py", "_ends_by"): "pidfd_open: without it the process is polled",
    ("files.py", "replace_file"): "unlink of what is unfinished, on the way of another error",
    ("links/removal.py", "send_from_orphan"): "fork: without a process, the caller sends the request",
    ("links/removal.py", "_announced"): "an announcement that is not had is asked for by the caller",
    ("links/kernel.py", "RouteLinks.remove"): "raised, unless the interface is gone",
    ("netns.py", "Entered.__exit__"): "ends the process",
    ("iptables/legacy.py", "LegacyIptables._commit"): "the program does what python-iptables could not",
    ("iptables/legacy.py", "_be_child"): "its exit status tells",
    ("iptables/legacy.py", "import_iptc.find_library"): "a library that is not where it mostly is gets looked for",
    ("kube.py", "_Client.request"): "an answer without a document",
    ("portscan.py", "RulesetScan.redirected"): "the last attempt is outside",
}
"""The handlers of a broad error that do not end by raising one, and why that takes nothing unknown for absent."""

BROAD = {"OSError", "CniError", "IoFailure", "Exception", "BaseException"}


def imported(module: str) -> set[str]:
    """The modules of cnimeta that a module imports, those for type checking alone included."""
    path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
    return {
        node.module
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("cnimeta")
    }


def test_protocols_speak_in_values_only_when_their_types_are_read() -> None:
    assert {name for name in imported("cnimeta.host.protocols") if name.startswith("cnimeta.host")} <= VALUES


@pytest.mark.parametrize("name", sorted(PURE))
def test_pure_module_imports_nothing_that_touches_the_host(name: str) -> None:
    assert {one for one in imported(name) if one.startswith("cnimeta.host")} <= PURE


@pytest.mark.parametrize("part", ["config", "plan"])
def test_planning_of_bandwidth_imports_nothing_that_touches_the_host(part: str) -> None:
    tree = ast.parse((ROOT / "plugins" / "bandwidth" / f"{part}.py").read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if not isinstance(node, ast.ImportFrom) or node.module is None:
            continue
        for name in (f"{node.module}.{alias.name}" for alias in node.names):
            if name.startswith("cnimeta.host."):
                assert PURE & {node.module, name}, name
            if name.startswith("cnimeta_plugins."):
                assert node.module in {f"cnimeta_plugins.bandwidth.{one}" for one in ("config", "plan")}, name


def swallowing(path: Path) -> Iterator[str]:
    """The functions in a file with a handler of a broad error that does not end by raising."""

    def walk(node: ast.AST, where: tuple[str, ...]) -> Iterator[str]:
        for child in ast.iter_child_nodes(node):
            inside = where
            if isinstance(child, ast.FunctionDef | ast.ClassDef):
                inside = (*where, child.name)
            if isinstance(child, ast.ExceptHandler):
                names = {one.id for one in ast.walk(child.type) if isinstance(one, ast.Name)} if child.type else BROAD
                if names & BROAD and not isinstance(child.body[-1], ast.Raise):
                    yield ".".join(inside)
            yield from walk(child, inside)

    yield from walk(ast.parse(path.read_text(encoding="utf-8")), ())


def test_every_handler_that_does_not_raise_was_reviewed() -> None:
    found = {
        (str(path.relative_to(HOST)), where)
        for path in sorted(HOST.rglob("*.py"))
        if "nftables" not in path.parts
        for where in swallowing(path)
    }
    # What branches on the errno and raises for the rest ends in a `raise` one level deeper.
    branching = {where for where in found if where not in REVIEWED}
    assert not {where for where in branching if not raises_inside(*where)}
    assert not set(REVIEWED) - found


def raises_inside(name: str, where: str) -> bool:
    """Whether the broad handlers of a function raise under a condition that the errno decides."""
    tree = ast.parse((HOST / name).read_text(encoding="utf-8"))
    wanted = where.rpartition(".")[2]
    functions = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef) and node.name == wanted]
    handlers = [one for function in functions for one in ast.walk(function) if isinstance(one, ast.ExceptHandler)]
    return any(
        isinstance(test, ast.If) and "errno" in ast.dump(test.test) and isinstance(test.body[-1], ast.Raise)
        for handler in handlers
        for test in ast.walk(handler)
    )
