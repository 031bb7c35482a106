"""The documents say what is true: links lead somewhere, examples parse, keys and commands exist."""

from __future__ import annotations

import ast
import json
import pkgutil
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cnimeta.plugin.registry import GROUP

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.project

ROOT = Path(__file__).parents[2]
PLUGINS = ("portmap", "bandwidth", "hostport_alloc")
DOCUMENTS = sorted(
    path
    for path in ROOT.rglob("*.md")
    if not any(part.startswith(".") or part in ("build", "dist") for part in path.relative_to(ROOT).parts)
)
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
SPEC_KEYS = {
    *("cniVersion", "cniVersions", "name", "type", "plugins", "capabilities", "ipam", "dns", "args", "prevResult"),
    *("runtimeConfig", "disableCheck", "disableGC", "loadOnlyInlinedPlugins", "portMappings", "bandwidth"),
    "io.kubernetes.cri.pod-annotations",
}


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


SDK = (ROOT / "docs" / "sdk.md").read_text(encoding="utf-8")


def anchor(heading: str) -> str:
    plain = re.sub(r"[^\w\- ]", "", heading.strip().lower())
    return plain.replace(" ", "-")


def objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
        value = list(value.values())
    if isinstance(value, list):
        for inner in value:
            yield from objects(inner)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_every_link_leads_somewhere_when_it_is_relative(document: Path) -> None:
    text = re.sub(r"^```.*?^```", "", document.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    broken = []
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if "://" in link or link.startswith("mailto:"):
            continue
        path, _, fragment = link.partition("#")
        target = (document.parent / path).resolve() if path else document
        if not target.exists():
            broken.append(link)
        elif fragment and target.suffix == ".md":
            headings = re.findall(r"^#+ (.*)$", target.read_text(encoding="utf-8"), re.MULTILINE)
            if fragment not in {anchor(heading) for heading in headings}:
                broken.append(link)
    assert not broken


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_examples_parse_when_they_are_json_python_or_toml(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    for block in blocks(text, "json"):
        json.loads(block)
    for block in blocks(text, "python"):
        ast.parse(block)
    for block in blocks(text, "toml"):
        tomllib.loads(block)


def answer_to_version(program: str) -> str:
    """What a program prints when it is run as a plugin and asked for its versions."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env={"CNI_COMMAND": "VERSION"},
        input="",
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


def test_the_plugin_of_the_readme_answers_when_it_is_run() -> None:
    program = blocks((ROOT / "README.md").read_text(encoding="utf-8"), "python")[0]
    assert "1.1.0" in json.loads(answer_to_version(program))["supportedVersions"]


@pytest.mark.parametrize("program", [block for block in blocks(SDK, "python") if "class " in block])
def test_the_classes_of_the_sdk_guide_work_when_they_are_run(program: str) -> None:
    answer = answer_to_version(program)
    assert "main(" not in program or json.loads(answer)["supportedVersions"] == ["0.4.0", "1.0.0", "1.1.0"]


def test_every_name_is_public_and_there_when_the_sdk_guide_names_it() -> None:
    named = set(re.findall(r"(?<![/\w])cnimeta(?:\.\w+)+", SDK)) - {GROUP}
    for block in blocks(SDK, "python"):
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("cnimeta"):
                named |= {f"{node.module}.{alias.name}" for alias in node.names}
    assert {"cnimeta.namedtuple", "cnimeta.namedtuple.NamedTuple", "cnimeta.plugin.Plugin"} <= named
    for name in named:
        assert not [part for part in name.split(".") if part.startswith("_")]
        pkgutil.resolve_name(name)


@pytest.mark.parametrize("document", DOCUMENTS, ids=name_of)
def test_make_targets_exist_when_a_document_names_them(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    named = {
        word
        for words in re.findall(r"(?:^|`)make ((?:[a-z]+ ?)+)(?:`|#|$)", text, re.MULTILINE)
        for word in words.split()
    }
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
    assert named <= set(targets)


def test_the_test_command_of_the_readme_is_what_ci_runs_when_both_are_read() -> None:
    checks = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Checks")[2]
    command = blocks(checks, "sh")[0].strip()
    assert command.startswith("make ")
    assert command in (ROOT / ".ci" / "run").read_text(encoding="utf-8")


def test_every_seam_is_in_the_architecture_when_protocols_are_listed() -> None:
    tree = ast.parse((ROOT / "cnimeta" / "host" / "protocols.py").read_text(encoding="utf-8"))
    seams = {node.name for node in tree.body if isinstance(node, ast.ClassDef)}
    section = ARCHITECTURE.partition("## The seams")[2].partition("\n## ")[0]
    listed = [
        name
        for row in re.findall(r"^\| ([A-Z]\w+(?:, [A-Z]\w+)*) \|", section, re.MULTILINE)
        for name in row.split(", ")
    ]
    assert {"Files", "PluginExec"} <= seams
    assert sorted(listed) == sorted({*seams, "Protocol"})


def tree() -> dict[str, str]:
    """The tree of the architecture: path to what is said of it."""
    found: dict[str, str] = {}
    folders: list[str] = []
    for line in blocks(ARCHITECTURE, "")[0].splitlines():
        indent, name, text = re.fullmatch(r"( *)(\S+) +(.*)", line).groups()  # type: ignore[union-attr]
        folders = [*folders[: len(indent) // 2], name]
        found["".join(folders).rstrip("/")] = text
    return found


def test_the_tree_of_the_architecture_is_there_when_the_folders_are_read() -> None:
    listed = tree()
    packages = {
        name_of(path.parent) for folder in ("cnimeta", "plugins") for path in (ROOT / folder).rglob("__init__.py")
    }
    assert {name for name in listed if not (ROOT / name).exists()} == set()
    assert packages - set(listed) == set()


def test_every_file_exists_when_the_architecture_names_it() -> None:
    named = set(re.findall(r"`((?:cnimeta|plugins|tests)/[\w/.]+)`", ARCHITECTURE))
    assert len(named) > 10
    assert {name for name in named if not (ROOT / name).exists()} == set()


def literals(plugin: str) -> set[str]:
    """Every string in the plugin's code and in the SDK's reading of configurations."""
    found = set(SPEC_KEYS)
    for folder in (ROOT / "plugins" / plugin, ROOT / "cnimeta" / "spec"):
        for path in folder.glob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            found |= {
                node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)
            }
    return found


def read_keys(plugin: str) -> set[str]:
    """The keys a plugin's configuration module asks for: string literals given to the readers of `Fields`."""
    readers = {"text", "integer", "boolean", "choice", "object", "objects", "texts", "has", "get", "number"}
    tree = ast.parse((ROOT / "plugins" / plugin / "config.py").read_text(encoding="utf-8"))
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and (
            (isinstance(node.func, ast.Attribute) and node.func.attr in readers)
            or (isinstance(node.func, ast.Name) and node.func.id.startswith("_"))
        ):
            found |= {
                arg.value for arg in node.args[:2] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)
            }
    return {key for key in found if re.fullmatch(r"[a-z][A-Za-z0-9]+", key)} - SPEC_KEYS


@pytest.mark.parametrize("plugin", PLUGINS)
def test_every_key_is_read_by_the_plugin_when_a_document_or_example_shows_it(plugin: str) -> None:
    shown = [
        json.loads(path.read_text(encoding="utf-8")) for path in (ROOT / "examples" / "conflist").glob("*.conflist")
    ]
    for document in DOCUMENTS:
        shown += [json.loads(block) for block in blocks(document.read_text(encoding="utf-8"), "json")]
    ours = [found for whole in shown for found in objects(whole) if found.get("type") == plugin]
    assert ours, f"no document shows a configuration of {plugin}"
    unknown = {key for found in ours for key in found} - literals(plugin)
    assert not unknown


@pytest.mark.parametrize("plugin", PLUGINS)
def test_every_key_is_in_the_plugins_document_when_the_plugin_reads_it(plugin: str) -> None:
    keys = read_keys(plugin)
    assert keys
    text = (ROOT / "docs" / f"{plugin}.md").read_text(encoding="utf-8")
    assert {key for key in keys if key not in text} == set()


def test_no_file_is_longer_than_400_lines_when_it_is_a_module() -> None:
    tracked = subprocess.run(
        ["git", "ls-files", "cnimeta", "plugins"], check=True, capture_output=True, text=True, cwd=ROOT
    )
    long = {
        name: lines
        for name in tracked.stdout.split()
        if name.endswith(".py") and (lines := (ROOT / name).read_text(encoding="utf-8").count("\n")) > 400
    }
    assert not long


def test_no_function_is_longer_than_40_lines_when_its_docstring_is_not_counted() -> None:
    long = []
    for folder in ("cnimeta", "plugins", "examples"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    first = node.body[1] if ast.get_docstring(node) and len(node.body) > 1 else node.body[0]
                    size = (node.end_lineno or 0) - first.lineno + 1
                    if size > 40:
                        long.append(f"{name_of(path)}:{node.lineno} {node.name}: {size}")
    assert not long


@pytest.mark.parametrize("document", ["SECURITY.md", "docs/failure.md"])
def test_every_test_exists_when_a_promise_names_it(document: str) -> None:
    named = set(re.findall(r"`(?:tests/[a-z_]+/)?(test_[a-z_]+\.py)`", (ROOT / document).read_text(encoding="utf-8")))
    assert named
    assert named - {path.name for path in (ROOT / "tests").rglob("test_*.py")} == set()
