"""The registry: plugins that packages register, found, loaded, and what is said when that fails."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from cnimeta.delegate.call import Delegates
from cnimeta.delegate.inprocess import InProcessExec
from cnimeta.delegate.spawn import ProcessExec
from cnimeta.errors import CniError, InvalidNetworkConfig, IoFailure
from cnimeta.plugin import launcher
from cnimeta.plugin.base import VERBS, Plugin
from cnimeta.plugin.registry import GROUP, Target, installed, load, port_mapper, preload

pytestmark = pytest.mark.unit

MODULE = """
from cnimeta.plugin import Plugin

class Mapper:
    refusals = frozenset({7})

class Mine(Plugin):
    name = "mine"
    def port_mapper(self):
        return Mapper()
    def preload(self):
        return ("json", "no_such_module")

class Plain(Plugin):
    name = "plain"
    def preload(self):
        raise OSError("no disk")

class Broken(Plugin):
    def __init__(self):
        raise KeyError("what it needs")
"""


@pytest.fixture
def package(tmp_path, monkeypatch):
    """Install a distribution: its name, and the entry points it registers. Modules are made by the test."""
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(name, **plugins):
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        lines = [f"{plugin} = {value}" for plugin, value in plugins.items()]
        (folder / "entry_points.txt").write_text("\n".join([f"[{GROUP}]", *lines, ""]))

    return install


def module(folder, name):
    """A module of a name that no other test has used: what is imported stays."""
    path = folder / f"{name}.py"
    path.write_text(MODULE)
    return str(path)


def test_ours_are_registered_as_anybody_elses_would_be():
    found = installed()
    assert list(found) == sorted(found)
    assert {"bandwidth", "hostport_alloc", "portmap"} <= set(found)
    assert found["portmap"].plugin == "cnimeta_plugins.portmap.main:Portmap"
    assert {load(target).name for target in found.values()} == set(found)


def test_a_plugin_is_found_and_loaded_when_a_package_registers_it(package, tmp_path):
    file = module(tmp_path, "registered_one")
    package("one", mine="registered_one:Mine")
    assert installed()["mine"] == Target("registered_one:Mine", "registered_one", os.path.realpath(file))
    plugin = load(installed()["mine"])
    assert isinstance(plugin, Plugin)
    assert plugin.name == "mine"


def test_a_port_mapper_is_given_when_the_plugin_of_that_type_has_one(package, tmp_path):
    file = module(tmp_path, "registered_two")
    package("two", mine="registered_two:Mine", plain="registered_two:Plain")
    mapper = port_mapper("mine")
    assert mapper is not None
    assert mapper.refusals == {7}
    assert port_mapper("plain") is None
    assert port_mapper("not-installed") is None
    assert port_mapper("of-a-launcher", Target("registered_two:Mine", "registered_two", file)) is not None


@pytest.mark.parametrize("value", ["module_only", "a:B.C", "a:b:c", "a.:B", "1a:B", "a:B [extra]"])
def test_an_entry_point_is_refused_when_it_names_no_class(package, value):
    package("bad", mine=value)
    with pytest.raises(IoFailure, match=r"the entry point mine of group cnimeta\.plugins must be module:Class"):
        installed()
    assert port_mapper("bandwidth") is None  # another type is not touched by it


def test_a_type_is_refused_when_it_is_no_file_name(package):
    package("bad", **{"a/b": "x:Y"})
    with pytest.raises(InvalidNetworkConfig, match='"a/b" is not the name of a plugin executable'):
        installed()


def test_both_packages_are_named_when_they_register_the_same_type(package):
    package("first", mine="first:Mine")
    package("second", mine="second:Mine")
    with pytest.raises(IoFailure, match='two packages register a plugin "mine", first:Mine and second:Mine'):
        installed()


def test_the_reason_is_told_when_a_plugin_cannot_be_loaded(tmp_path):
    file = module(tmp_path, "registered_three")
    for target, words in (
        (Target("no_such_package.main:Mine"), "ModuleNotFoundError: No module named 'no_such_package'"),
        (Target("registered_three:Other", "registered_three", file), "AttributeError"),
        (Target("registered_three:Mapper", "registered_three", file), "TypeError: it is no cnimeta.plugin.Plugin"),
        (Target("registered_three:Broken", "registered_three", file), "KeyError: 'what it needs'"),
        (Target("registered_four:Mine", "registered_four", str(tmp_path / "gone.py")), "FileNotFoundError"),
        (Target("registered_five:Mine", "registered_five", str(tmp_path / "gone.txt")), "is not a Python module"),
    ):
        with pytest.raises(IoFailure, match=f"plugin {target.plugin} cannot be loaded") as caught:
            load(target)
        assert words in caught.value.msg
        assert caught.value.code == 5
    assert "registered_four" not in sys.modules


def test_a_module_off_the_path_is_loaded_once_when_its_file_is_named(tmp_path):
    file = module(tmp_path, "registered_six")
    first, second = (type(load(Target("registered_six:Mine", "registered_six", file))) for _ in range(2))
    assert first is second
    (tmp_path / "other").mkdir()
    other = module(tmp_path / "other", "registered_six")
    with pytest.raises(IoFailure, match=f"was loaded from {file} already, not from {other}"):
        load(Target("registered_six:Mine", "registered_six", other))


def test_its_packages_are_on_the_path_when_a_plugin_is_loaded(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "path", [*sys.path])
    file = module(tmp_path, "registered_seven")
    for _ in range(2):
        load(Target("registered_seven:Mine", "registered_seven", file, ("/opt/somewhere", sys.path[0])))
    assert sys.path.count("/opt/somewhere") == sys.path.count(sys.path[0]) == 1


def test_what_is_not_there_is_told_when_a_plugin_is_preloaded(tmp_path):
    lines = []
    file = module(tmp_path, "registered_eight")
    for name in ("Mine", "Plain"):
        preload(load(Target(f"registered_eight:{name}", "registered_eight", file)), lines.append)
    assert lines == [
        "mine does without no_such_module: No module named 'no_such_module'",
        "plain could not preload: OSError: no disk",
    ]


@pytest.mark.parametrize("plugin", ["bandwidth", "hostport_alloc", "portmap"])
def test_everything_is_there_when_our_plugins_are_preloaded(plugin):
    lines = []
    preload(load(installed()[plugin]), lines.append)
    assert lines == []


def test_every_verb_of_the_table_is_a_method_of_plugins_and_of_delegates():
    for verb in VERBS.values():
        assert callable(getattr(Plugin, verb.method))
        assert callable(getattr(Delegates, verb.method))


# --- launchers ---


def write_launcher(folder, target):
    path = folder / "mine"
    path.write_text(launcher.render(target, sys.executable))
    path.chmod(0o755)
    return str(path)


def test_a_launcher_is_read_as_it_was_written_when_its_paths_have_spaces(tmp_path):
    target = Target("a.b:C", "a", "/opt/with space/a/__init__.py", ("/opt/with space", "/opt/ü 'quote'"))
    assert launcher.read_target(write_launcher(tmp_path, target)) == target
    assert launcher.read_target(write_launcher(tmp_path, Target("a:B"))) == Target("a:B")


@pytest.mark.parametrize("place", [{"file": "/opt/a\tb.py"}, {"path": ("/opt/a\nb",)}, {"path": ("/opt/\udcff",)}])
def test_a_path_is_refused_when_no_launcher_can_name_it(place):
    with pytest.raises(ValueError, match="a launcher cannot name"):
        launcher.render(Target("a:B", **place), sys.executable)


def test_one_error_object_is_the_answer_when_a_launchers_package_is_gone(tmp_path):
    path = write_launcher(tmp_path, Target("registered_gone:Mine", "registered_gone", str(tmp_path / "gone.py")))
    with pytest.raises(CniError, match="plugin registered_gone:Mine cannot be loaded") as caught:
        Delegates(ProcessExec(20), {}, [str(tmp_path)]).versions("mine")
    assert caught.value.code == 5
    done = subprocess.run([path], env={}, capture_output=True, check=False)
    assert (done.returncode, done.stderr) == (1, b"")


def test_a_plugin_that_cannot_be_loaded_here_runs_as_a_process(tmp_path):
    """Its own process knows the folder that this one has as another package."""
    for folder in ("here", "there"):
        (tmp_path / folder).mkdir()
    load(Target("registered_nine:Mine", "registered_nine", module(tmp_path / "here", "registered_nine")))
    path = write_launcher(
        tmp_path, Target("registered_nine:Mine", "registered_nine", module(tmp_path / "there", "registered_nine"))
    )
    lines = []
    done = InProcessExec(ProcessExec(20), lines.append).run(path, {"CNI_COMMAND": "VERSION"}, b"")
    assert done.status == 0
    assert b"1.1.0" in done.stdout
    assert len(lines) == 1
    assert lines[0].startswith(f"{path} runs as a process of its own: plugin registered_nine:Mine cannot be loaded")
