"""An installation that is not whole, or changes while a plugin starts: one document, code 5 or 11, never 999."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import cnimeta
import cnimeta_plugins
from cnimeta.plugin.launcher import render
from cnimeta.plugin.registry import installed

pytestmark = pytest.mark.crash

ENVIRON = {"CNI_COMMAND": "STATUS", "CNI_PATH": "/usr/lib/cni", "PATH": os.environ["PATH"]}
CONF = {"cniVersion": "1.1.0", "name": "net", "type": "portmap"}
LOADED = (
    *("errors.py", "namedtuple.py", "plugin/dispatch.py", "plugin/registry.py", "plugin/base.py", "spec/jsonio.py"),
    *("spec/netconf.py", "host/files.py"),
)
"""Files that a STATUS of portmap loads, early and late."""
DAMAGE = {
    "gone": lambda path: path.unlink(),
    "empty": lambda path: path.write_text(""),
    "cut off": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2] + b"\n("),
    "older": lambda path: path.write_text("raise ImportError('of another version')"),
}


def copied(folder: Path) -> tuple[Path, str]:
    """A copy of the packages, and the text of portmap's launcher for it."""
    ours, plugins = Path(cnimeta.__file__).parent, Path(next(iter(cnimeta_plugins.__path__)))
    without = shutil.ignore_patterns("__pycache__")
    shutil.copytree(ours, folder / "cnimeta", ignore=without)
    shutil.copytree(plugins, folder / "cnimeta_plugins", ignore=without)
    text = render(installed()["portmap"], sys.executable)
    return folder / "cnimeta", text.replace(str(ours), str(folder / "cnimeta")).replace(
        str(plugins), str(folder / "cnimeta_plugins")
    )


@pytest.mark.parametrize("file", LOADED)
def test_one_document_is_answered_when_a_file_of_the_installation_is_damaged(tmp_path: Path, file: str) -> None:
    package, text = copied(tmp_path)
    launcher = tmp_path / "portmap"
    launcher.write_text(text)
    launcher.chmod(0o755)
    conf = json.dumps({**CONF, "dataDir": str(tmp_path / "state")}).encode()
    whole = (package / file).read_bytes()
    for damage in DAMAGE.values():
        damage(package / file)
        done = subprocess.run([launcher], input=conf, env=ENVIRON, capture_output=True, check=False)
        answer = json.loads(done.stdout)
        assert done.returncode == 1
        assert answer["code"] in (5, 11, 50), answer
        assert done.stderr == b""
        if damage is not DAMAGE["older"]:
            (package / file).write_bytes(whole)
            continue
        told = subprocess.run(
            [launcher], input=conf, env=ENVIRON | {"CNIMETA_DEBUG": "1"}, capture_output=True, check=False
        )
        assert json.loads(told.stdout)["code"] in (5, 11, 50)
        assert b"Traceback" in told.stderr
        (package / file).write_bytes(whole)
    done = subprocess.run([launcher], input=conf, env=ENVIRON, capture_output=True, check=False)
    assert done.returncode == 0, done.stdout
