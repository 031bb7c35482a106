"""What a launcher's bundle does before anything is imported: VERSION, and a lighter `os`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from cnimeta.cli.install import interpreter
from cnimeta.plugin import bundle, launcher
from cnimeta.plugin.launcher import package_folder
from cnimeta.plugin.registry import Target, installed, load

pytestmark = pytest.mark.unit

SOURCE = Path(package_folder())


class Installed:
    """A copy of the packages, and portmap's launcher of it."""

    def __init__(self, folder: Path) -> None:
        for name in ("cnimeta", "plugins"):
            skipped = shutil.ignore_patterns("__pycache__", "testing")
            shutil.copytree(SOURCE.parent / name, folder / name, ignore=skipped)
        self.package = folder / "cnimeta"
        self.target = Target(
            "cnimeta_plugins.portmap.main:Portmap", "cnimeta_plugins", str(folder / "plugins" / "__init__.py")
        )
        self.lines = f"""import sys
sys.modules["cnimeta"] = type(sys)("cnimeta")
sys.modules["cnimeta"].__path__ = [{str(self.package)!r}]
{bundle.reader(str(self.package), self.target, "portmap")}
"""
        self.path = Path(bundle.path_of(str(self.package), "portmap"))
        self.path.parent.mkdir()
        answer = launcher.version_answer(load(installed()["portmap"]))
        self.path.write_bytes(bundle.build(str(self.package), self.target, answer))
        self.silent = bundle.build(str(self.package), self.target)

    def run(self, lines: str, stdin: bytes = b"", **environ: str) -> subprocess.CompletedProcess[bytes]:
        return subprocess.run(
            [interpreter(), "-IS", "-c", self.lines + lines], env=environ, input=stdin, capture_output=True,
            check=False, timeout=60,
        )  # fmt: skip

    def version(self, query: bytes) -> subprocess.CompletedProcess[bytes]:
        """As its launcher answers; `imported` on stderr when it did not do so from the bundle."""
        start = f"""from cnimeta.plugin.dispatch import start
from cnimeta.plugin.registry import Target, load
sys.stderr.write("imported")
start(lambda: load(Target{tuple(self.target)!r}))
"""
        return self.run(start, query, CNI_COMMAND="VERSION")


@pytest.fixture(scope="module")
def there(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return Installed(tmp_path_factory.mktemp("installed"))


PLAIN = [b'{"cniVersion":"1.0.0"}', b'\n{ "cniVersion" : "0.3.1" }\n', b'{"cniVersion":"9.9.9"}']
OTHER = [
    b"", b"{}", b'{"cniVersion":""}', b'{"cniVersion":"1.0.0","x":1}', b'{"x":1,"cniVersion":"1.0.0"}',
    b'{"cniVersion":"1.0\\u002e0"}', b'{"CNIVERSION":"0.4.0"}', b'{"cniVersion":1}', b'{"cniVersion":"1.0.0"',
    b'{"cniVersion":"1.0.0"} {}', b"no", b"\xff", b'{"cniVersion":"1.0.0"}' + b" " * 9000, b"[" * 200_000,
]  # fmt: skip


@pytest.mark.parametrize("query", [*PLAIN, *OTHER])
def test_version_is_answered_from_the_bundle_as_the_plugin_answers(there: Installed, query: bytes) -> None:
    found = there.version(query)
    whole = there.path.read_bytes()
    try:
        there.path.write_bytes(there.silent)
        usual = there.version(query)
    finally:
        there.path.write_bytes(whole)
    assert usual.stderr.startswith(b"imported")
    assert (found.returncode, found.stdout) == (usual.returncode, usual.stdout)
    assert (found.stderr == b"") == (query in PLAIN)


def test_version_is_not_answered_from_a_bundle_of_changed_sources(there: Installed) -> None:
    changed = there.package / "spec" / "version.py"
    text = changed.read_text()
    before = changed.stat()
    try:
        changed.write_text(text + "\nALL = ('1.0.0',)\n")
        found = there.version(PLAIN[0])
    finally:
        changed.write_text(text)
        os.utime(changed, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert found.stderr == b"imported"
    assert there.version(PLAIN[0]).stderr == b""


CALLS = """
import os
slim = type(os) is not type(sys)
before = [os.environ["A"], os.path.join("a", "b"), os.fsencode("x\\udcff"), os.fsdecode(b"\\xff") == "\\udcff", os.getpid() > 0]
%s
import os as again
print(slim, type(os) is type(sys), again is os, before)
"""


@pytest.mark.parametrize(
    ("statement", "whole"),
    [
        ("pass", False),
        ("os.open('/dev/null', os.O_RDONLY)", False),
        ("assert not hasattr(os, 'no_such_thing')", True),
        ("os.makedirs('/', exist_ok=True)", True),
        ("import subprocess, tempfile; subprocess.run(['true'], check=True)", True),
        ("os.environ['B'] = '1'; assert os.environ['B'] == '1' == os.popen('echo $B').read().strip()", True),
        (
            "assert os.environ.pop('A') == 'a'; assert 'A' not in os.environ; assert os.system('test -z \"$A\"') == 0",
            True,
        ),
        ("from os import PathLike; from os.path import exists; assert exists('/')", True),
    ],
)
def test_os_is_light_until_more_of_it_is_asked_for(there: Installed, statement: str, whole: bool) -> None:
    done = there.run(CALLS % statement, A="a", PATH="/usr/bin:/bin")
    assert done.returncode == 0, done.stderr.decode()
    expected = ["a", "a/b", b"x\xff", True, True]
    assert done.stdout.decode() == f"True {whole} True {expected}\n"


def test_a_module_that_fails_is_told_of_by_its_import(there: Installed) -> None:
    broken = there.package.parent / "plugins" / "portmap" / "main.py"
    text, before = broken.read_text(), broken.stat()
    whole = there.path.read_bytes()
    try:
        broken.write_text("raise RuntimeError('broken')\n")
        there.path.write_bytes(bundle.build(str(there.package), there.target))
        found = there.version(b"")
    finally:
        broken.write_text(text)
        os.utime(broken, ns=(before.st_atime_ns, before.st_mtime_ns))
        there.path.write_bytes(whole)
    answer = json.loads(found.stdout)
    assert answer["code"] == 5
    assert "portmap.main:Portmap cannot be loaded: RuntimeError: broken" in answer["msg"]
