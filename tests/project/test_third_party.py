"""The proof that plugins of somebody else's are served as ours are, in a clean environment: launcher, agent, delegation,
conformance and pytest, of what `cnimeta new` writes and of examples/plugins/chained.

cnimeta is installed without the packages it depends on, which is enough to write, test and run a plugin that needs none of
them; pytest and mypy come from the index that pip is configured with.
"""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from source_copy import ROOT, copy_source

from cnimeta.agent.wire import VARIABLE
from cnimeta.errors import CheckFailed
from cnimeta.testing.agent import RunningAgent

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.project, pytest.mark.timeout(600)]

PLUGINS = ("chained", "made")
EXAMPLE = ROOT / "examples" / "plugins" / "chained"
PREV = {
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "eth0", "sandbox": "/run/netns/none"}],
    "ips": [{"address": "10.1.0.2/24", "interface": 0}],
}
INTERFACE_PLUGIN = f"#!/bin/sh\ncat > /dev/null\n[ $CNI_COMMAND != ADD ] || echo '{json.dumps(PREV)}'\n"


class Clean:
    """A virtual environment with nothing but cnimeta, the two plugins and what tests them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = str(folder / "venv" / "bin" / "python")
        cnimeta = copy_source(folder / "cnimeta")
        shutil.copytree(EXAMPLE, folder / "chained")
        self.run(sys.executable, "-m", "venv", str(folder / "venv"))
        pip = (self.python, "-m", "pip", "-q", "--disable-pip-version-check", "install")
        self.run(*pip, "mypy", "pytest")
        self.run(*pip, "--no-deps", str(cnimeta))
        self.cnimeta("new", "made", "--dir", str(folder / "made"))
        self.run(*pip, "--no-deps", str(folder / "chained"), str(folder / "made"))

    def run(self, *command: str, stdin: str = "", **environ: str) -> str:
        """Run a program; its stdout."""
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, cwd="/", env={**os.environ, **environ}, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

    def code(self, program: Path, verb: str, conf: dict[str, Any]) -> int:
        """Run a plugin as a runtime does, and have it fail; the code of its error."""
        with pytest.raises(AssertionError) as caught:
            self.call(program, verb, conf)
        return int(re.search(r'"code":(\d+)', str(caught.value)).group(1))  # type: ignore[union-attr]

    def cnimeta(self, *words: str) -> str:
        """Run the installed command."""
        return self.run(str(self.folder / "venv" / "bin" / "cnimeta"), *words)

    def install(self, name: str, *options: str) -> Path:
        """Launchers of all plugins, in a folder of this name."""
        self.cnimeta("install", "--bin-dir", str(self.folder / name), *options)
        return self.folder / name

    def call(self, program: Path, verb: str, conf: dict[str, Any], **environ: str) -> str:
        """Run a plugin as a runtime does; its stdout."""
        environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", **environ}
        environ = {"CNI_NETNS": "/run/netns/none", "CNI_PATH": str(program.parent), **environ}
        return self.run(str(program), stdin=json.dumps(conf), **environ)


@pytest.fixture(scope="module")
def clean(tmp_path_factory: pytest.TempPathFactory) -> Clean:
    return Clean(tmp_path_factory.mktemp("clean"))


def conf(plugin: str, state: Path, **keys: Any) -> dict[str, Any]:
    return {"cniVersion": "1.1.0", "name": "net", "type": plugin, "dataDir": str(state), **keys}


@pytest.mark.parametrize("plugin", PLUGINS)
def test_a_launcher_is_written_when_the_package_is_installed(clean: Clean, plugin: str, tmp_path: Path) -> None:
    folder = clean.install("bin")
    assert sorted(path.name for path in folder.iterdir()) == sorted(
        ["bandwidth", "hostport_alloc", "portmap", *PLUGINS]
    )
    whole = conf(plugin, tmp_path / "state", prevResult=PREV)
    assert json.loads(clean.call(folder / plugin, "ADD", whole)) == PREV
    clean.call(folder / plugin, "CHECK", whole)
    clean.call(folder / plugin, "DEL", whole)
    assert clean.code(folder / plugin, "CHECK", whole) == CheckFailed.code


@pytest.mark.parametrize("plugin", PLUGINS)
def test_it_keeps_every_rule_when_conformance_is_run(clean: Clean, plugin: str, tmp_path: Path) -> None:
    (tmp_path / "conf.json").write_text(json.dumps({"type": plugin}))
    program = str(clean.install("bin") / plugin)
    report = json.loads(clean.cnimeta("conformance", program, "--conf", str(tmp_path / "conf.json"), "--json"))
    outcomes = {finding["rule"]: finding["outcome"] for finding in report}
    assert len(outcomes) > 20
    assert {rule for rule, outcome in outcomes.items() if outcome != "pass"} == {"DEL works without runtimeConfig"}


def test_the_new_package_is_tested_and_typed_when_nothing_else_is_there(clean: Clean) -> None:
    folder = clean.folder / "made"
    words = ("-q", "-p", "no:cacheprovider", "--rootdir", str(folder), "-c", str(folder / "pyproject.toml"))
    conformance = ("--cni-plugin=made", f"--cni-conf={folder / 'conformance.json'}")
    said = clean.run(clean.python, "-m", "pytest", *words, *conformance, str(folder / "tests"))
    assert "1 skipped" in said
    assert int(said.split(" passed")[0].split()[-1]) > 30
    clean.run(clean.python, "-m", "mypy", "--config-file", str(folder / "pyproject.toml"), "-p", "cni_made")


def test_it_is_known_to_every_command_when_it_is_installed(clean: Clean, tmp_path: Path) -> None:
    network = {"cniVersion": "1.1.0", "name": "n", "plugins": [{"type": "made", "dataDirr": "/x"}]}
    (tmp_path / "n.conflist").write_text(json.dumps(network))
    assert "did you mean dataDir?" in clean.cnimeta("validate", str(tmp_path / "n.conflist"))


@pytest.fixture
def asking(clean: Clean) -> Path:
    return clean.install("asking", "--agent")


@pytest.fixture
def agent(clean: Clean, asking: Path, tmp_path: Path) -> Iterator[RunningAgent]:
    """Started after `install`, which writes what it would take for an upgrade."""
    made = RunningAgent(tmp_path, interpreter=clean.python)
    yield made
    made.close()


@pytest.mark.parametrize("plugin", PLUGINS)
def test_the_agent_serves_it_when_its_launcher_asks(
    clean: Clean, asking: Path, agent: RunningAgent, plugin: str, tmp_path: Path
) -> None:
    program = asking / plugin
    text = program.read_text()
    alone = "from cnimeta.plugin.dispatch import start"
    assert alone in text
    program.write_text(text.replace(alone, "raise SystemExit('the agent did not serve this')"))
    whole = conf(plugin, tmp_path / "state", prevResult=PREV)
    assert json.loads(clean.call(program, "ADD", whole, **{VARIABLE: agent.socket})) == PREV
    clean.call(program, "CHECK", whole, **{VARIABLE: agent.socket})


@pytest.mark.parametrize("plugin", PLUGINS)
def test_no_process_is_started_when_hostport_alloc_delegates_to_it(clean: Clean, plugin: str, tmp_path: Path) -> None:
    folder = clean.install("delegating")
    (folder / plugin).chmod(0o644)  # found, and impossible to start
    (folder / "interface").write_text(INTERFACE_PLUGIN)
    (folder / "interface").chmod(0o755)
    delegates = [{"type": "interface"}, {"type": plugin, "dataDir": str(tmp_path / plugin)}]
    whole = conf("hostport_alloc", tmp_path / "state", delegates=delegates)
    assert json.loads(clean.call(folder / "hostport_alloc", "ADD", whole))["ips"] == PREV["ips"]
    clean.call(folder / "hostport_alloc", "CHECK", {**whole, "prevResult": PREV})
    clean.call(folder / "hostport_alloc", "DEL", whole)
    assert clean.code(folder / "hostport_alloc", "CHECK", {**whole, "prevResult": PREV}) == CheckFailed.code


def test_the_example_is_short_and_uses_public_names_alone_when_it_is_read() -> None:
    text = (EXAMPLE / "cni_chained.py").read_text(encoding="utf-8")
    assert len([line for line in text.splitlines() if line.strip()]) <= 30
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            assert not [name for name in names if name.startswith("_")]
        if isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_")
