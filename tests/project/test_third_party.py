"""The proof that a plugin of somebody else's is served as ours are: examples/plugins/chained, in a clean environment.

cnimeta and the example are installed by pip from copies of this checkout, what they depend on from the index that pip is
configured with.
"""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from source_copy import ROOT, copy_source

from cnimeta.agent.wire import VARIABLE
from cnimeta.testing.agent import RunningAgent

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = [pytest.mark.project, pytest.mark.timeout(600)]

EXAMPLE = ROOT / "examples" / "plugins" / "chained"
PREV = {
    "cniVersion": "1.1.0",
    "interfaces": [{"name": "eth0", "sandbox": "/run/netns/none"}],
    "ips": [{"address": "10.1.0.2/24", "interface": 0}],
}
INTERFACE_PLUGIN = f"#!/bin/sh\ncat > /dev/null\n[ $CNI_COMMAND != ADD ] || echo '{json.dumps(PREV)}'\n"


class Clean:
    """A virtual environment with nothing but cnimeta, the example and what they depend on."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.python = str(folder / "venv" / "bin" / "python")
        cnimeta = copy_source(folder / "cnimeta")
        shutil.copytree(EXAMPLE, folder / "chained")
        self.run(sys.executable, "-m", "venv", str(folder / "venv"))
        pip = (self.python, "-m", "pip", "-q", "--disable-pip-version-check", "install")
        self.run(*pip, str(cnimeta), str(folder / "chained"))

    def run(self, *command: str, stdin: str = "", **environ: str) -> str:
        """Run a program; its stdout."""
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, cwd="/", env={**os.environ, **environ}, check=False
        )
        assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
        return done.stdout

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


def test_a_launcher_is_written_when_the_package_is_installed(clean: Clean, tmp_path: Path) -> None:
    folder = clean.install("bin")
    assert sorted(path.name for path in folder.iterdir()) == ["bandwidth", "chained", "hostport_alloc", "portmap"]
    chained = conf("chained", tmp_path, prevResult=PREV)
    assert json.loads(clean.call(folder / "chained", "ADD", chained)) == PREV
    assert (tmp_path / "net" / "c1@eth0").read_text() == "10.1.0.2/24"
    clean.call(folder / "chained", "CHECK", chained)
    clean.call(folder / "chained", "DEL", chained)
    assert list((tmp_path / "net").iterdir()) == []


def test_it_keeps_every_rule_when_conformance_is_run(clean: Clean, tmp_path: Path) -> None:
    (tmp_path / "chained.json").write_text(json.dumps({"type": "chained", "dataDir": str(tmp_path / "state")}))
    program = str(clean.install("bin") / "chained")
    report = json.loads(clean.cnimeta("conformance", program, "--conf", str(tmp_path / "chained.json"), "--json"))
    outcomes = {finding["rule"]: finding["outcome"] for finding in report}
    assert len(outcomes) > 20
    assert {rule for rule, outcome in outcomes.items() if outcome != "pass"} == {"DEL works without runtimeConfig"}


@pytest.fixture
def agent(clean: Clean, tmp_path: Path) -> Iterator[RunningAgent]:
    made = RunningAgent(tmp_path, interpreter=clean.python)
    yield made
    made.close()


def test_the_agent_serves_it_when_its_launcher_asks(clean: Clean, agent: RunningAgent, tmp_path: Path) -> None:
    program = clean.install("asking", "--agent") / "chained"
    text = program.read_text()
    alone = "from cnimeta.plugin.dispatch import start"
    assert alone in text
    program.write_text(text.replace(alone, "raise SystemExit('the agent did not serve this')"))
    chained = conf("chained", tmp_path / "state", prevResult=PREV)
    assert json.loads(clean.call(program, "ADD", chained, **{VARIABLE: agent.socket})) == PREV
    assert (tmp_path / "state" / "net" / "c1@eth0").exists()


def test_no_process_is_started_when_hostport_alloc_delegates_to_it(clean: Clean, tmp_path: Path) -> None:
    folder = clean.install("delegating")
    (folder / "chained").chmod(0o644)  # found, and impossible to start
    (folder / "interface").write_text(INTERFACE_PLUGIN)
    (folder / "interface").chmod(0o755)
    delegates = [{"type": "interface"}, {"type": "chained", "dataDir": str(tmp_path / "chained")}]
    whole = conf("hostport_alloc", tmp_path / "state", delegates=delegates)
    record = tmp_path / "chained" / "net" / "c1@eth0"
    assert json.loads(clean.call(folder / "hostport_alloc", "ADD", whole))["ips"] == PREV["ips"]
    assert record.read_text() == "10.1.0.2/24"
    clean.call(folder / "hostport_alloc", "CHECK", {**whole, "prevResult": PREV})
    clean.call(folder / "hostport_alloc", "DEL", whole)
    assert not record.exists()


def test_the_example_is_short_and_uses_public_names_alone_when_it_is_read() -> None:
    text = (EXAMPLE / "cni_chained.py").read_text(encoding="utf-8")
    assert len([line for line in text.splitlines() if line.strip()]) <= 30
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.ImportFrom):
            names = [*(node.module or "").split("."), *(alias.name for alias in node.names)]
            assert not [name for name in names if name.startswith("_")]
        if isinstance(node, ast.Attribute):
            assert not node.attr.startswith("_")
