"""Virtual environments to install into, offline: built with this environment's setuptools, its packages borrowed."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import setuptools

ROOT = Path(__file__).parents[2]


class Place:
    """A virtual environment without cnimeta's dependencies (they are borrowed from the one that runs the tests)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        run(sys.executable, "-m", "venv", "--without-pip", str(folder / "venv"))
        self.python = folder / "venv" / "bin" / "python"
        self.site = Path(run(str(self.python), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))").strip())

    def install(self, *what: str) -> None:
        """pip install, as a user would, offline."""
        tools = self.folder / "tools"  # only the build backend: pip is not to see what else is installed there
        tools.mkdir()
        for path in Path(setuptools.__file__).parents[1].glob("*setuptools*"):
            (tools / path.name).symlink_to(path)
        (tools / "_distutils_hack").symlink_to(Path(setuptools.__file__).parents[1] / "_distutils_hack")
        self._pip("install", "--no-index", "--no-deps", *what, PYTHONPATH=str(tools))
        (self.site / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n", encoding="utf-8")

    def replace(self, what: str) -> None:
        """pip install over what is there, whichever version that is."""
        self._pip("install", "--no-index", "--no-deps", "--force-reinstall", what)

    def uninstall(self, name: str) -> None:
        """pip uninstall."""
        self._pip("uninstall", "--yes", name)

    def _pip(self, *words: str, **environ: str) -> None:
        pip = (sys.executable, "-m", "pip", "--python", str(self.python), "--disable-pip-version-check", "-q")
        run(*pip, *words, **environ)

    def launchers(self) -> Path:
        """Written by the installed command."""
        folder = self.folder / "bin"
        run(str(self.folder / "venv" / "bin" / "cnimeta"), "install", "--bin-dir", str(folder))
        return folder


def run(*command: str, **environ: str) -> str:
    known = {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ}
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd="/", env={**known, **environ})
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def copied(folder: Path) -> Path:
    """A copy of what cnimeta is built from: a build writes into its source folder."""
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, folder)
    for name in ("cnimeta", "plugins"):
        shutil.copytree(ROOT / name, folder / name, ignore=shutil.ignore_patterns("__pycache__"))
    return folder
