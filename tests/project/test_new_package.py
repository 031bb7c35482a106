"""`cnimeta new`: what it writes passes its own tests, strict types and style as it is, whatever the name."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cnimeta.cli.main import main
from cnimeta.errors import InvalidEnvironment
from cnimeta.plugin.registry import GROUP
from cnimeta.scaffold.package import files

pytestmark = [pytest.mark.project, pytest.mark.timeout(300)]

ROOT = Path(__file__).parents[2]


def run(folder: Path, *words: str) -> str:
    environ = {**os.environ, "MYPYPATH": str(ROOT), "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=folder, env=environ, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{words}: {done.stdout}{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("name", ["my-plugin_2"])
def test_a_new_package_passes_tests_types_and_style_when_nothing_was_changed(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "made"
    assert main(["new", name, "--dir", str(folder)]) == 0
    assert " passed" in run(folder, "pytest", "-q", "-p", "no:cacheprovider")
    run(folder, "mypy", "--cache-dir", str(tmp_path / "mypy"))
    run(folder, "ruff", "check", "--no-cache")
    run(folder, "ruff", "format", "--no-cache", "--check")


def test_every_mark_is_filled_in_when_files_are_made() -> None:
    found = files("my-plugin")
    assert {"pyproject.toml", ".github/workflows/ci.yml", "cni_my_plugin/plugin.py", "my-plugin.conflist"} <= set(found)
    for path, text in found.items():
        assert "@NAME" not in path + text
        assert "@MODULE" not in path + text
        assert "@CLASS" not in path + text
    assert f'"{GROUP}"' in found["pyproject.toml"]
    assert json.loads(found["my-plugin.conflist"])["plugins"][1]["type"] == "my-plugin"


@pytest.mark.parametrize("name", ["", "Mine", "../x", "a/b", "1st", "x" * 65, "a b", "käse", "-x", "a.b"])
def test_a_name_is_refused_when_no_module_can_have_it(name: str) -> None:
    with pytest.raises(InvalidEnvironment, match="small letters"):
        files(name)


def test_nothing_is_overwritten_when_the_folder_is_not_empty(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pyproject.toml").write_text("mine")
    assert main(["new", "fw", "--dir", str(tmp_path)]) == 1
    assert "is no empty folder" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["pyproject.toml"]
    assert (tmp_path / "pyproject.toml").read_text() == "mine"
