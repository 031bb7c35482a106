"""What the source of `cnimeta.host` promises as a whole: who imports whom."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

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
