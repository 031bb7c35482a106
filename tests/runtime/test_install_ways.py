"""Wheel, editable install and type checker all know the plugins as `cnimeta_plugins`, and launchers work from each."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from places import ROOT, Place, copied, run

pytestmark = [pytest.mark.project, pytest.mark.timeout(300)]

NAMES = ("bandwidth", "hostport_alloc", "portmap")
ASKED = "import json, cnimeta, cnimeta_plugins.portmap.main as m; print(json.dumps([m.Portmap.name, m.__file__, cnimeta.__file__]))"


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copied(tmp_path_factory.mktemp("source"))


@pytest.fixture(scope="module")
def wheel(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "wheel", "--no-index", "--no-deps"]
    run(*pip, "--no-build-isolation", "--wheel-dir", str(folder), str(source))
    return next(folder.glob("*.whl"))


@pytest.fixture(scope="module")
def from_wheel(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("from-wheel"))
    place.install(str(wheel))
    return place


@pytest.fixture(scope="module")
def editable(source: Path, tmp_path_factory: pytest.TempPathFactory) -> Place:
    place = Place(tmp_path_factory.mktemp("editable"))
    place.install("--no-build-isolation", "--editable", str(source))
    return place


@pytest.fixture(params=["from_wheel", "editable"])
def place(request: pytest.FixtureRequest) -> Place:
    found: Place = request.getfixturevalue(request.param)
    return found


def test_the_plugins_have_one_name_when_they_are_imported(from_wheel: Place, editable: Place, source: Path) -> None:
    for place, plugins, package in (
        (from_wheel, from_wheel.site / "cnimeta_plugins", from_wheel.site / "cnimeta"),
        (editable, source / "plugins", source / "cnimeta"),
    ):
        name, where, sdk = json.loads(run(str(place.python), "-c", ASKED))
        assert name == "portmap"
        assert Path(where) == plugins / "portmap" / "main.py"
        assert Path(sdk) == package / "__init__.py"


def test_nothing_is_called_plugins_when_the_project_is_installed(place: Place) -> None:
    probe = "import importlib.util as u; print(u.find_spec('plugins'), u.find_spec('tests'), u.find_spec('examples'))"
    assert run(str(place.python), "-I", "-c", probe).split() == ["None"] * 3


def test_every_launcher_answers_when_the_installed_command_wrote_it(place: Place) -> None:
    folder = place.launchers()
    for name in NAMES:
        done = subprocess.run(
            [str(folder / name)], check=True, capture_output=True, env={"CNI_COMMAND": "VERSION"}, cwd="/"
        )
        assert "1.1.0" in json.loads(done.stdout)["supportedVersions"]
    assert str(place.site) in (folder / "portmap").read_text(encoding="utf-8")


def test_a_launcher_does_its_work_when_it_needs_third_party_packages(place: Place, tmp_path: Path) -> None:
    """bandwidth loads pyroute2 to look for the container's interface; that there is none is its own error."""
    conf = {
        "cniVersion": "1.0.0",
        "name": "net",
        "type": "bandwidth",
        "ingressRate": 8000,
        "ingressBurst": 8000,
        "prevResult": {"cniVersion": "1.0.0", "interfaces": [{"name": "veth0"}, {"name": "eth0", "sandbox": "/x"}]},
    }
    environ = {"CNI_COMMAND": "ADD", "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": str(tmp_path / "none")}
    done = subprocess.run(
        [str(place.launchers() / "bandwidth")],
        check=False,
        capture_output=True,
        input=json.dumps(conf).encode(),
        env=environ,
    )
    error = json.loads(done.stdout)
    assert error["code"] != 999
    assert "No module named" not in error["msg"]


def test_compiled_modules_are_trusted_unread_when_they_lie_in_site_packages(from_wheel: Place) -> None:
    """PEP 552: the flags of an unchecked hash are 1."""
    from_wheel.launchers()
    compiled = sorted((from_wheel.site / "cnimeta").rglob("*.pyc"))
    assert len(compiled) >= len(list((from_wheel.site / "cnimeta").rglob("*.py")))
    assert {path.read_bytes()[4:8] for path in compiled} == {b"\1\0\0\0"}


def test_changes_count_at_once_when_the_install_is_editable(editable: Place, source: Path) -> None:
    folder = editable.launchers()
    main = source / "plugins" / "portmap" / "main.py"
    text = main.read_text(encoding="utf-8")
    try:
        main.write_text(text + "\nPortmap.about = 'changed text'\n", encoding="utf-8")
        done = subprocess.run([str(folder / "portmap")], check=True, capture_output=True, text=True, env={})
        assert "changed text" in done.stderr
    finally:
        main.write_text(text, encoding="utf-8")


def test_the_type_checker_sees_the_types_when_the_wheel_is_installed(from_wheel: Place, tmp_path: Path) -> None:
    program = tmp_path / "program.py"
    program.write_text(
        "from cnimeta.plugin import Plugin\nfrom cnimeta_plugins.portmap.main import Portmap\n"
        "plugin: Plugin = Portmap()\nreveal_type(plugin.versions)\n"
    )
    mypy = [sys.executable, "-m", "mypy", "--strict", "--python-executable", str(from_wheel.python)]
    out = run(*mypy, "--cache-dir", str(tmp_path / "cache"), "--config-file", os.devnull, str(program))
    assert re.search(r'Revealed type is "(builtins\.)?tuple\[(builtins\.)?str, \.\.\.\]"', out)
    assert "Success" in out


def test_the_type_checker_sees_the_same_name_when_it_reads_the_checkout() -> None:
    assert os.path.realpath(ROOT / "typings" / "cnimeta_plugins") == str(ROOT / "plugins")
