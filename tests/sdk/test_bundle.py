"""The bundle of a launcher: every module on the way is taken from it, and nothing that is stale or damaged."""

from __future__ import annotations

import gc
import json
import marshal
import shutil
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from cnimeta.plugin import bundle
from cnimeta.plugin.launcher import package_folder
from cnimeta.plugin.registry import Target

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import CodeType
    from typing import Self

pytestmark = pytest.mark.unit

SOURCE = Path(package_folder())
TELL = """
import atexit
atexit.register(lambda: sys.stderr.write(repr({
    name: getattr(getattr(module, "__spec__", None), "loader", None) is sys.meta_path[0]
    for name, module in list(sys.modules.items()) if name.startswith("cnimeta") and getattr(module, "__file__", None)
})))
"""


class Copy:
    """A copy of the packages, with the bundle of portmap's launcher."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.package = folder / "cnimeta"
        plugin = folder / "plugins" / "__init__.py"
        self.target = Target("cnimeta_plugins.portmap.main:Portmap", "cnimeta_plugins", str(plugin))
        self.path = Path(bundle.path_of(str(self.package), "portmap"))

    @classmethod
    def made(cls, folder: Path) -> Self:
        skipped = shutil.ignore_patterns("__pycache__", "testing")
        for name in ("cnimeta", "plugins"):
            shutil.copytree(SOURCE.parent / name, folder / name, ignore=skipped)
        one = cls(folder)
        one.path.parent.mkdir()
        one.renew()
        return one

    def renew(self) -> None:
        self.path.write_bytes(bundle.build(str(self.package), self.target))

    def is_current(self) -> bool:
        return bundle.is_current(str(self.package), self.target, "portmap")

    def start(self, verb: str = "VERSION", conf: object = None) -> tuple[dict[str, object], dict[str, bool]]:
        """The answer, and which modules were loaded: whether each was taken from the bundle."""
        lines = f"""import sys
sys.modules["cnimeta"] = type(sys)("cnimeta")
sys.modules["cnimeta"].__path__ = [{str(self.package)!r}]
{bundle.reader(str(self.package), self.target, "portmap")}
{TELL}
from cnimeta.plugin.dispatch import start
from cnimeta.plugin.registry import Target, load
start(lambda: load(Target{tuple(self.target)!r}))
"""
        environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c", "CNI_IFNAME": "e", "CNI_NETNS": "/x", "CNI_PATH": "/x"}
        done = subprocess.run(
            [sys.executable, "-I", "-S", "-c", lines], env=environ, input=json.dumps(conf) if conf else "", text=True,
            capture_output=True, check=False, timeout=30,
        )  # fmt: skip
        return json.loads(done.stdout or "{}"), eval(done.stderr)


@pytest.fixture
def copy(tmp_path: Path) -> Copy:
    return Copy.made(tmp_path / "one")


@pytest.fixture(scope="module")
def bundled(tmp_path_factory: pytest.TempPathFactory) -> Copy:
    """One for several tests, which leave it as it was."""
    return Copy.made(tmp_path_factory.mktemp("bundled"))


def test_every_module_is_taken_from_it_when_nothing_has_changed(copy: Copy) -> None:
    conf = {
        "cniVersion": "1.0.0",
        "name": "n",
        "type": "portmap",
        "dataDir": "relative",
        "prevResult": {"cniVersion": "1.0.0", "interfaces": [], "ips": [{"address": "10.0.0.2/24"}]},
        "runtimeConfig": {"portMappings": [{"hostPort": 80, "containerPort": 80, "protocol": "tcp"}]},
    }
    answer, loaded = copy.start("ADD", conf)
    assert "dataDir" in str(answer["msg"])
    assert {"cnimeta.plugin.dispatch", "cnimeta.errors", "cnimeta_plugins.portmap.mapper"} <= set(loaded)
    assert [name for name, bundled in loaded.items() if not bundled] == []
    assert copy.is_current()


def test_a_module_that_has_changed_is_imported_as_usual(copy: Copy) -> None:
    changed = copy.package / "spec" / "version.py"
    changed.write_text(changed.read_text() + "\nCURRENT = '0.4.0'\n")
    answer, loaded = copy.start()
    assert answer["cniVersion"] == "0.4.0"
    assert not loaded["cnimeta.spec.version"]
    assert loaded["cnimeta.plugin.dispatch"]
    assert not copy.is_current()


def test_the_code_of_the_original_is_not_run_when_an_installation_is_copied(copy: Copy) -> None:
    there = Copy(copy.folder.parent / "two")
    shutil.copytree(copy.folder, there.folder)  # times and all, as `cp -a` does
    assert there.path.read_bytes() == copy.path.read_bytes()
    changed = there.package / "spec" / "version.py"
    changed.write_text(changed.read_text() + "\nCURRENT = '0.4.0'\n")
    answer, loaded = there.start()
    assert answer["cniVersion"] == "0.4.0"
    assert not any(loaded.values())
    assert not there.is_current()
    there.renew()
    assert there.is_current()
    answer, loaded = there.start()
    assert answer["cniVersion"] == "0.4.0"
    assert loaded["cnimeta.spec.version"]
    answer, loaded = copy.start()
    assert answer["cniVersion"] == "1.1.0"
    assert loaded["cnimeta.spec.version"]
    assert copy.is_current()


def test_it_is_not_current_when_the_same_package_is_another_plugins(copy: Copy) -> None:
    other = copy.target._replace(plugin="cnimeta_plugins.bandwidth.main:Bandwidth")
    assert not bundle.is_current(str(copy.package), other, "portmap")


def usual_code(path: Path) -> dict[str, CodeType]:
    """The code of the modules that ADD and DEL need as a rule."""
    data = path.read_bytes()
    end = marshal.loads(data[12:])[2][4]
    whole: dict[str, CodeType] = marshal.loads(data[bundle.FIRST_BYTES : end])[3]
    return whole


def other_python(path: Path) -> None:
    path.write_bytes(b"none" + path.read_bytes()[4:])


def code_damaged(path: Path) -> None:
    """Inside the code of a module that every verb needs: the bundle itself can still be read."""
    data = bytearray(path.read_bytes())
    code = usual_code(path)["cnimeta.plugin.dispatch"].co_code
    data[data.index(code) + len(code) // 2] ^= 0xFF
    path.write_bytes(data)


@pytest.mark.parametrize(
    "spoil",
    [
        Path.unlink,
        lambda path: path.write_bytes(b""),
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 3]),
        lambda path: path.write_bytes(b"not a bundle"),
        lambda path: path.write_bytes(marshal.dumps(5)),
        other_python,
        code_damaged,
    ],
    ids=["missing", "empty", "cut", "text", "another value", "another Python", "damaged code"],
)
def test_everything_is_imported_as_usual_without_a_whole_bundle(copy: Copy, spoil: Callable[[Path], object]) -> None:
    spoil(copy.path)
    answer, loaded = copy.start()
    assert answer["cniVersion"] == "1.1.0"
    assert not any(loaded.values())
    assert not copy.is_current()
    copy.renew()
    assert copy.is_current()


@pytest.mark.parametrize("at", [0, 3, 4, 11, 12, 13, 40, 0.005, 0.03, 0.1, 0.2, 0.3, 0.4])
@pytest.mark.parametrize("flip", [1, 0x80])
def test_nothing_is_taken_from_it_when_one_byte_is_damaged(
    bundled: Copy, monkeypatch: pytest.MonkeyPatch, at: float, flip: int
) -> None:
    whole = bundled.path.read_bytes()
    data = bytearray(whole)
    data[at if isinstance(at, int) else int(at * len(data))] ^= flip
    monkeypatch.setattr(sys, "meta_path", [])
    try:
        bundled.path.write_bytes(data)
        exec(bundle.reader(str(bundled.package), bundled.target, "portmap"), {"sys": sys})
        assert sys.meta_path == []
    finally:
        monkeypatch.undo()
        gc.enable()
        current = bundled.is_current()
        bundled.path.write_bytes(whole)
    assert not current
    assert bundled.is_current()


@pytest.mark.parametrize("at", [0.6, 0.8, 0.99, -9, -1, 2.0])
def test_the_rest_is_imported_as_usual_when_one_byte_of_it_is_damaged(bundled: Copy, at: float) -> None:
    """The third part, which is read when something unusual is wanted. (2.0: something follows it.)"""
    whole = bundled.path.read_bytes()
    data = bytearray(whole)
    if at > 1:
        data += b"more"
    else:
        data[at if isinstance(at, int) else int(at * len(data))] ^= 1
    try:
        bundled.path.write_bytes(data)
        answer, loaded = bundled.start("STATUS", {"cniVersion": "1.1.0", "name": "n", "backend": "iptables"})
        assert not bundled.is_current()
    finally:
        bundled.path.write_bytes(whole)
    assert answer in (None, {}) or answer["code"] == 50
    assert not loaded["cnimeta_plugins.portmap.iptables.backend"]
    assert loaded["cnimeta_plugins.portmap.mapper"]


@pytest.mark.parametrize("spoil", [lambda _: None, Path.unlink, code_damaged], ids=["whole", "missing", "damaged"])
def test_install_writes_it_anew_when_it_is_not_whole(bundled: Copy, spoil: Callable[[Path], object]) -> None:
    whole, inode = bundled.path.read_bytes(), bundled.path.stat().st_ino
    spoil(bundled.path)
    kept = bundled.path.exists() and bundled.path.read_bytes() == whole
    lines = f"""import sys
sys.path.insert(0, {str(bundled.folder)!r})
from cnimeta.cli.install import bundle_modules
from cnimeta.plugin.registry import Target
bundle_modules("portmap", Target{tuple(bundled.target)!r})
"""
    subprocess.run([sys.executable, "-I", "-c", lines], check=True, timeout=60)
    assert bundled.is_current()
    assert bundled.path.stat().st_ino == inode or not kept  # left alone when it is whole


def test_documentation_and_types_are_left_out_and_lines_stay(copy: Copy) -> None:
    code = usual_code(copy.path)["cnimeta.plugin.dispatch"]
    run = next(one for one in code.co_consts if getattr(one, "co_name", "") == "run")
    assert "Serve one invocation" not in str(run.co_consts)
    assert "Mapping[str, str]" not in str(code.co_consts)
    source = (copy.package / "plugin" / "dispatch.py").read_text().splitlines()
    assert source[run.co_firstlineno - 1].startswith("def run(")


def test_nothing_stays_of_it_when_it_is_removed_twice(copy: Copy) -> None:
    for _ in range(2):
        bundle.remove(str(copy.package), "portmap")
        assert list(copy.path.parent.iterdir()) == []


class Installed(Copy):
    """A copy with the list of files that pip keeps."""

    @property
    def record(self) -> Path:
        return self.folder / "cnimeta-0.1.0.dist-info" / "RECORD"

    def list(self) -> None:
        self.record.parent.mkdir(exist_ok=True)
        self.record.write_text("cnimeta/__init__.py,sha256=x,1\n")


@pytest.fixture
def installed(tmp_path: Path) -> Installed:
    made = Installed.made(tmp_path / "one")
    assert isinstance(made, Installed)
    made.list()
    made.renew()
    return made


def newer(path: Path) -> None:
    path.write_text(path.read_text() + "\nCURRENT = '0.4.0'\n")


@pytest.mark.parametrize("name", ["plugin/dispatch.py", "spec/version.py"])
@pytest.mark.parametrize(
    "touch", [Path.unlink, lambda path: path.write_text("half of a f("), newer], ids=["gone", "half written", "newer"]
)
def test_every_module_is_taken_from_it_while_pip_is_at_work(
    installed: Installed, name: str, touch: Callable[[Path], object]
) -> None:
    installed.record.unlink()
    touch(installed.package / name)
    (installed.folder / "plugins" / "__init__.py").unlink()
    answer, loaded = installed.start()
    assert answer["cniVersion"] == "1.1.0"
    assert all(loaded.values())


@pytest.mark.parametrize("name", ["cnimeta-0.1.0.dist-info", "cnimeta-0.2.0.dist-info"])
def test_nothing_is_taken_from_it_when_pip_is_done(installed: Installed, name: str) -> None:
    assert all(installed.start()[1].values())
    shutil.rmtree(installed.record.parent)
    newer(installed.package / "spec" / "version.py")
    (installed.folder / name).mkdir()
    (installed.folder / name / "RECORD").write_text("cnimeta/__init__.py,sha256=y,2\n")
    answer, loaded = installed.start()
    assert answer["cniVersion"] == "0.4.0"
    assert not any(loaded.values())
    assert not installed.is_current()


def test_a_module_that_is_gone_is_taken_from_it(installed: Installed) -> None:
    (installed.package / "spec" / "version.py").unlink()
    assert installed.start()[0]["cniVersion"] == "1.1.0"


def test_a_module_that_is_edited_counts_when_the_list_is_as_it_was(installed: Installed) -> None:
    newer(installed.package / "spec" / "version.py")
    assert installed.start()[0]["cniVersion"] == "0.4.0"
