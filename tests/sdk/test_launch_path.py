"""What a plugin's process imports before it touches the host, pinned: start-up time is paid once per Pod."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from cnimeta.cli.install import install, launcher_text
from cnimeta.plugin.launcher import package_folder
from cnimeta.plugin.registry import installed

pytestmark = pytest.mark.unit

PLUGINS = ["portmap", "bandwidth", "hostport_alloc"]
FORBIDDEN = {
    "typing", "re", "json", "enum", "dataclasses", "collections", "logging", "argparse", "pathlib", "tempfile",
    "subprocess", "ipaddress", "hashlib", "socket", "inspect", "functools", "contextlib", "shutil", "threading",
    "importlib.metadata", "importlib.util", "tomllib", "ctypes", "random", "datetime", "pyroute2", "kubernetes", "iptc", "filelock",
    "cnimeta.host.protocols", "cnimeta.testing",
}  # fmt: skip
PROBE = "\nimport atexit, sys\natexit.register(lambda: sys.stderr.write('MODULES ' + ' '.join(sys.modules) + '\\n'))\n"
PREV = {
    "interfaces": [{"name": "veth1"}, {"name": "eth0", "sandbox": "/run/netns/none"}],
    "ips": [{"address": "10.1.0.2/24", "interface": 1}],
}


def modules(tmp_path, plugin, verb, conf):
    head, body = launcher_text(installed()[plugin]).split("import sys\n", 1)
    path = tmp_path / plugin
    path.write_text(head + "import sys" + PROBE + body)
    environ = {
        "CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/run/netns/none",
        "CNI_PATH": str(tmp_path / "none"),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(path)],
        input=json.dumps({"cniVersion": "1.1.0", "name": "n", "type": plugin, "dataDir": str(tmp_path / "d"), **conf}),
        env=environ, capture_output=True, text=True, check=False,
    )  # fmt: skip
    line = next(line for line in done.stderr.splitlines() if line.startswith("MODULES "))
    return done, set(line.split()[1:])


@pytest.mark.parametrize("plugin", PLUGINS)
def test_version_imports_nothing_heavy(tmp_path, plugin):
    done, loaded = modules(tmp_path, plugin, "VERSION", {})
    assert done.returncode == 0
    assert loaded & FORBIDDEN == set()


@pytest.mark.parametrize("plugin", PLUGINS)
def test_an_add_that_fails_in_the_configuration_imports_nothing_heavy(tmp_path, plugin):
    done, loaded = modules(tmp_path, plugin, "ADD", {"runtimeConfig": {"portMappings": 5, "bandwidth": 5}})
    assert done.returncode == 1
    assert loaded & FORBIDDEN == set()


@pytest.mark.parametrize("plugin", ["portmap", "bandwidth"])
def test_an_add_with_nothing_to_do_imports_nothing_heavy(tmp_path, plugin):
    done, loaded = modules(tmp_path, plugin, "ADD", {"prevResult": PREV})
    assert done.returncode == 0, done.stdout
    assert loaded & FORBIDDEN == set()


CALLER = """
import sys
sys.modules["cnimeta"] = type(sys)("cnimeta")
sys.modules["cnimeta"].__path__ = [sys.argv[1]]
from cnimeta.delegate import Delegates
from cnimeta.delegate.inprocess import InProcessExec
delegates = Delegates(InProcessExec(None, print), {}, [sys.argv[2]])
for name in sys.argv[3:]:
    assert "1.1.0" in delegates.versions(name)
print(*sys.modules)
"""


def test_nothing_heavy_is_imported_when_one_plugin_calls_another_in_its_process(tmp_path):
    """Above all not the metadata of installed packages: launchers say what they run."""
    install(str(tmp_path), PLUGINS)
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", CALLER, package_folder(), str(tmp_path), *PLUGINS],
        env={}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    loaded = set(done.stdout.split())
    assert {f"cnimeta_plugins.{name}.main" for name in PLUGINS} <= loaded
    assert loaded & FORBIDDEN == set()


EVERYTHING = """
import importlib, pkgutil, sys
import cnimeta
names = [found.name for found in pkgutil.walk_packages(cnimeta.__path__, "cnimeta.")]
for name in names:
    importlib.import_module(name)
print(len(names), *(name for name in ("pyroute2", "kubernetes", "iptc", "filelock") if name in sys.modules))
"""


def test_no_third_party_package_is_imported_when_the_whole_sdk_is():
    """So that `pip install --no-deps cnimeta` is enough for a plugin that needs none (and pytest for its tests)."""
    done = subprocess.run([sys.executable, "-c", EVERYTHING], capture_output=True, text=True, check=True)
    count, *found = done.stdout.split()
    assert int(count) > 100
    assert found == []
