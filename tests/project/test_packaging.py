"""What is installed: the wheel, its import names, its files and its command."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest
from source_copy import ROOT, copy_source

import cnimeta

pytestmark = pytest.mark.project

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def build(folder: Path, **environ: str) -> Path:
    """The project's wheel, built from a copy."""
    copy = copy_source(folder / "source")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-index"]
    done = subprocess.run(
        [*pip, "--no-build-isolation", "--no-deps", "--wheel-dir", str(folder), str(copy)],
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, **environ},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("wheel"))


def test_every_source_file_is_in_the_wheel_when_it_is_built(wheel: Path) -> None:
    packed = set(zipfile.ZipFile(wheel).namelist())
    names = {"cnimeta": "cnimeta", "plugins": "cnimeta_plugins"}
    expected = {
        f"{names[folder]}/{path.relative_to(ROOT / folder)}"
        for folder in names
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.parent.name != "__pycache__"
    }
    assert "cnimeta_plugins/hostport_alloc/main.py" in expected
    assert expected - packed == set()
    assert {name.partition("/")[0] for name in packed} == {
        "cnimeta",
        "cnimeta_plugins",
        f"cnimeta-{cnimeta.__version__}.dist-info",
    }


def test_the_command_and_the_launchers_work_when_the_wheel_is_installed(wheel: Path, tmp_path: Path) -> None:
    site, folder = tmp_path / "site", tmp_path / "bin"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-index"]
    subprocess.run([*pip, "--no-deps", "--quiet", "--target", str(site), str(wheel)], check=True, capture_output=True)
    environ = {"PATH": os.environ["PATH"], "PYTHONPATH": str(site)}
    command = [sys.executable, str(site / "bin" / "cnimeta"), "install", "--bin-dir", str(folder)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environ, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("portmap", "bandwidth", "hostport_alloc"):
        launcher = folder / name
        assert str(site) in launcher.read_text(encoding="utf-8")
        answer = subprocess.run(
            [str(launcher)], check=True, capture_output=True, text=True, env={"CNI_COMMAND": "VERSION"}, cwd="/"
        )
        assert '"1.1.0"' in answer.stdout


def test_native_launchers_are_written_without_a_compiler_when_the_wheel_is_of_a_platform(tmp_path: Path) -> None:
    wheel = build(tmp_path, CNIMETA_PLATFORM_WHEEL="1")
    assert re.search(r"-py3-none-linux_\w+\.whl$", wheel.name)
    site, folder = tmp_path / "site", tmp_path / "bin"
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-index"]
    subprocess.run([*pip, "--no-deps", "--quiet", "--target", str(site), str(wheel)], check=True, capture_output=True)
    command = [sys.executable, str(site / "bin" / "cnimeta"), "install", "--native", "--bin-dir", str(folder)]
    environ = {"PATH": str(tmp_path), "PYTHONPATH": str(site), "CC": "no-compiler"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environ, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    environ = {"CNI_COMMAND": "VERSION"}
    answer = subprocess.run([str(folder / "portmap")], check=True, capture_output=True, text=True, env=environ)
    assert '"1.1.0"' in answer.stdout
    assert (folder / "portmap").read_bytes().startswith(b"\x7fELF")


def test_the_version_is_in_the_changelog_when_it_is_set() -> None:
    changelog = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.search(rf"^## \[{re.escape(cnimeta.__version__)}\]", changelog, re.MULTILINE)


def test_the_locks_pin_all_dependencies_by_hash_and_no_address_when_they_are_read() -> None:
    for name in ("requirements-build.lock", "requirements-dev.lock"):
        text = (ROOT / name).read_text(encoding="utf-8")
        assert "://" not in text
        entries = [entry for entry in re.split(r"\n(?=\S)", text) if not entry.startswith("#") and entry.strip()]
        assert entries
        assert [entry for entry in entries if "==" not in entry or "--hash=sha256:" not in entry] == []
    pinned = set(re.findall(r"^([a-z0-9-]+)==", text, re.MULTILINE))
    wanted = [*PROJECT["project"]["dependencies"], *PROJECT["project"]["optional-dependencies"]["dev"]]
    assert {re.split(r"[<>=;]", name)[0] for name in wanted} <= pinned
