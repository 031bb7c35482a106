"""Other people's plugins, in every layout that setuptools knows, installed editable and as wheels: as good as ours.

Each is registered under its own type, imports a third-party package when it works, and is called as a launcher, by
another plugin in one process, and by the commands.
"""

from __future__ import annotations

import json
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from places import Place, copied, run

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = [pytest.mark.project, pytest.mark.timeout(300)]

CODE = """
from cnimeta.plugin import Plugin
{first}

class Mine(Plugin):
    name = "{name}"
    about = "laid out as " + LAYOUT

    def add(self, request):
        import filelock
        from cnimeta.delegate import Delegates
        prev = request.conf.require_prev_result()
        request.log("filelock in " + filelock.__file__)
        for name in request.conf.fields.texts("others"):
            conf = dict(request.conf.raw, type=name, others=[])
            Delegates.of(request).add(conf)
            request.log("called " + name)
        return prev

    def add_commands(self, commands):
        commands.add_parser("{name}-says", help="speak").set_defaults(run=lambda args: print("{name} is here") or 0)
"""
LAYOUTS = {
    "lone": ('py-modules = ["lone"]', {"lone.py": "here"}, "lone:Mine"),
    "flat": ('packages = ["flat"]', {"flat/__init__.py": "constant", "flat/main.py": "flat"}, "flat.main:Mine"),
    "inner": (
        'package-dir = { "" = "src" }\npackages = ["inner", "inner.deep"]',
        {"src/inner/__init__.py": "constant", "src/inner/deep/__init__.py": "", "src/inner/deep/code.py": "inner"},
        "inner.deep.code:Mine",
    ),
    "renamed": (
        'package-dir = { renamed = "code" }\npackages = ["renamed"]',
        {"code/__init__.py": "constant", "code/main.py": "renamed"},
        "renamed.main:Mine",
    ),
    "spaced": (
        'package-dir = { "" = "src" }\npackages = ["spaced.plugin"]',
        {"src/spaced/plugin/__init__.py": "constant", "src/spaced/plugin/main.py": "spaced.plugin"},
        "spaced.plugin.main:Mine",
    ),
}
"""Type: setuptools' options, the files and where each gets its constant from, the entry point."""


def lay_out(folder: Path, name: str) -> Path:
    """The project of one plugin."""
    options, files, target = LAYOUTS[name]
    folder = folder / name
    folder.mkdir()
    (folder / "pyproject.toml").write_text(
        '[build-system]\nrequires = ["setuptools>=77"]\nbuild-backend = "setuptools.build_meta"\n'
        f'[project]\nname = "cni-{name}"\nversion = "1.0"\ndependencies = ["cnimeta"]\n'
        f'[project.entry-points."cnimeta.plugins"]\n{name} = "{target}"\n[tool.setuptools]\n{options}\n'
    )
    constant = f'LAYOUT = "{name}"\n'
    for path, kind in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        first = constant if kind == "here" else f"from {kind} import LAYOUT"
        text = constant if kind == "constant" else CODE.format(name=name, first=first) if kind else ""
        (folder / path).write_text(text)
    return folder


@pytest.fixture(scope="module", params=["editable", "wheel"])
def place(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Place:
    """cnimeta and all the plugins in one virtual environment."""
    folder = tmp_path_factory.mktemp(request.param)
    (folder / "cnimeta").mkdir()
    projects = [copied(folder / "cnimeta"), *(lay_out(folder, name) for name in LAYOUTS)]
    made = Place(folder)
    mark = ["--editable"] if request.param == "editable" else []
    made.install("--no-build-isolation", *(word for path in projects for word in (*mark, str(path))))
    return made


@pytest.fixture(scope="module")
def folder(place: Place) -> Path:
    return place.launchers()


def call(path: Path, verb: str, conf: dict[str, Any]) -> subprocess.CompletedProcess[str]:
    environ = {
        "CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/run/netns/none",
        "CNI_PATH": str(path.parent),
    }  # fmt: skip
    return subprocess.run(
        [str(path)], input=json.dumps(conf), env=environ, cwd="/", capture_output=True, text=True, check=False
    )


def conf(plugin: str, **keys: Any) -> dict[str, Any]:
    prev = {"cniVersion": "1.0.0", "ips": [{"address": "10.1.0.2/24"}]}
    return {"cniVersion": "1.0.0", "name": "net", "type": plugin, "prevResult": prev, **keys}


@pytest.mark.parametrize("name", LAYOUTS)
def test_the_launcher_works_when_the_plugin_is_somebody_elses(place: Place, folder: Path, name: str) -> None:
    by_hand = subprocess.run([str(folder / name)], env={}, cwd="/", capture_output=True, text=True, check=True)
    assert by_hand.stderr.startswith(f"CNI plugin {name}: laid out as {name}\n")
    done = call(folder / name, "ADD", conf(name))
    assert done.returncode == 0, done.stdout
    assert json.loads(done.stdout)["ips"] == [{"address": "10.1.0.2/24"}]
    assert "filelock in " in done.stderr


@pytest.mark.parametrize("name", LAYOUTS)
def test_no_process_is_started_when_one_calls_the_others(folder: Path, name: str) -> None:
    others = [other for other in LAYOUTS if other != name]
    for other in others:
        (folder / other).chmod(0o644)  # found, and impossible to start
    try:
        done = call(folder / name, "ADD", conf(name, others=others))
    finally:
        for other in others:
            (folder / other).chmod(0o755)
    assert done.returncode == 0, done.stdout
    assert [line for line in done.stderr.splitlines() if line.startswith("called")] == [f"called {x}" for x in others]
    assert "runs as a process" not in done.stderr


def test_its_own_commands_are_there_when_a_plugin_adds_some(place: Place) -> None:
    program = str(place.folder / "venv" / "bin" / "cnimeta")
    assert run(program, "flat-says") == "flat is here\n"
    for name in (*LAYOUTS, "ports"):
        assert name in run(program, "--help")


def test_the_doctor_looks_at_all_of_them_when_they_are_installed(place: Place, folder: Path) -> None:
    program = str(place.folder / "venv" / "bin" / "cnimeta")
    done = subprocess.run(
        [program, "doctor", "--bin-dir", str(folder), "--json"], capture_output=True, text=True, check=False
    )
    found = {entry["what"]: (entry["state"], entry["message"]) for entry in json.loads(done.stdout)}
    for name in LAYOUTS:
        assert found[f"plugin {name}"] == ("ok", f"laid out as {name}")
        assert found[f"launcher {name}"] == ("ok", f"{folder}/{name}, 0.1.0 to 1.1.0")


def test_what_works_stays_when_a_plugin_is_broken_and_then_uninstalled(tmp_path: Path) -> None:
    place = Place(tmp_path)
    (tmp_path / "cnimeta").mkdir()
    flat = lay_out(tmp_path, "flat")
    place.install("--no-build-isolation", str(copied(tmp_path / "cnimeta")), "--editable", str(flat))
    folder = place.launchers()
    program = str(tmp_path / "venv" / "bin" / "cnimeta")
    (flat / "flat" / "main.py").write_text("import no_such_package\n")

    def cnimeta(*words: str) -> tuple[int, str, str]:
        done = subprocess.run([program, *words, "--bin-dir", str(folder)], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout, done.stderr

    status, out, err = cnimeta("install")
    assert (status, out) == (1, "")
    assert err.splitlines()[-1].startswith("cnimeta: plugin flat.main:Mine cannot be loaded: ModuleNotFoundError")
    status, out, err = cnimeta("install", "--only", "portmap")
    assert (status, out, err) == (0, f"{folder}/portmap: installed already\n", "")
    status, out, err = cnimeta("ports", "--data-dir", str(tmp_path / "state"))
    assert status == 0
    assert err.startswith("cnimeta: commands of plugin flat are missing: plugin flat.main:Mine cannot be loaded")
    assert "fail  plugin flat " in cnimeta("doctor")[1]
    answer = call(folder / "flat", "VERSION", {})
    assert (answer.returncode, answer.stderr) == (1, "")
    assert json.loads(answer.stdout)["code"] == 5

    place.uninstall("cni-flat")
    status, out, err = cnimeta("uninstall", "--only", "flat")
    assert (status, out, err) == (0, f"{folder}/flat: removed\n", "")
    status, out, err = cnimeta("uninstall", "--only", "flat")
    assert status == 2
    assert "no such plugin: flat (there are bandwidth, hostport_alloc, portmap)" in err


def test_a_launcher_goes_when_its_plugin_went_before(tmp_path: Path) -> None:
    place = Place(tmp_path)
    (tmp_path / "cnimeta").mkdir()
    place.install("--no-build-isolation", str(copied(tmp_path / "cnimeta")), str(lay_out(tmp_path, "lone")))
    folder = place.launchers()
    place.uninstall("cni-lone")
    done = run(
        str(tmp_path / "venv" / "bin" / "cnimeta"),
        "uninstall",
        "--bin-dir",
        str(folder),
        "--net-dir",
        str(tmp_path / "none"),
    )
    assert f"{folder}/lone: removed" in done
    assert list(folder.iterdir()) == []
