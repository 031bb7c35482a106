"""What a plugin author gets wrong at first, and what the SDK says to it."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

import cnimeta
from cnimeta.errors import CheckFailed, CniError, InternalError, IoFailure, TryAgainLater
from cnimeta.plugin import Plugin
from cnimeta.plugin.dispatch import DEBUG, run
from cnimeta.testing import call

pytestmark = pytest.mark.unit

CONF = {"cniVersion": "1.1.0", "name": "n", "type": "mine", "prevResult": {"ips": [{"address": "10.0.0.2/24"}]}}
ENVIRON = {"CNI_CONTAINERID": "c1", "CNI_NETNS": "/run/netns/none", "CNI_IFNAME": "eth0", "CNI_PATH": "/x"}
ROOMS = ("spec", "plugin", "delegate", "runtime", "store", "testing")


class Own(CheckFailed):
    pass


class Failing(Plugin):
    name = "failing"

    def __init__(self, error):
        self.error = error

    def add(self, request):
        raise self.error


@pytest.mark.parametrize("error", [Own("it is gone", "since noon"), TryAgainLater("busy")])
def test_the_kit_raises_the_very_error_when_a_verb_raises_it(error):
    with pytest.raises(type(error)) as caught:
        call(Failing(error), "ADD", CONF)
    assert caught.value is error


@pytest.mark.parametrize(("error", "becomes"), [(KeyError("k"), InternalError), (OSError(28, "full"), IoFailure)])
def test_the_kit_names_the_cause_when_something_else_is_raised(error, becomes):
    with pytest.raises(becomes) as caught:
        call(Failing(error), "ADD", CONF)
    assert caught.value.__cause__ is error


def test_the_kit_raises_what_the_protocol_refuses_when_no_verb_ran():
    with pytest.raises(CniError, match="does not allow STATUS") as caught:
        call(Failing(KeyError()), "STATUS", {**CONF, "cniVersion": "1.0.0"})
    assert caught.value.code == 1


@pytest.mark.parametrize("error", [KeyError("k"), OSError(28, "full"), CheckFailed("gone")])
def test_a_traceback_is_written_when_the_switch_is_on(error):
    for value, shown in ((None, False), ("", False), ("0", False), ("1", True)):
        said: list[str] = []
        environ = {**ENVIRON, "CNI_COMMAND": "ADD", **({} if value is None else {DEBUG: value})}
        outcome = run(Failing(error), environ, b'{"cniVersion": "1.1.0", "name": "n", "type": "m"}', said.append)
        assert outcome.status == 1
        assert ("raise self.error" in "\n".join(said)) is shown


def test_a_traceback_is_written_when_a_plugin_cannot_be_made():
    program = (
        "from cnimeta.plugin.dispatch import start\n"
        "from cnimeta.plugin.registry import Target, load\n"
        "start(lambda: load(Target('nowhere.to_be:Found')))"
    )
    for value, shown in (("0", False), ("1", True)):
        done = subprocess.run(
            [sys.executable, "-c", program], env={"CNI_COMMAND": "ADD", DEBUG: value}, input="", text=True,
            capture_output=True, check=False,
        )  # fmt: skip
        assert done.returncode == 1
        assert '"code":5' in done.stdout
        assert ("Traceback" in done.stderr) is shown


def test_the_command_writes_a_traceback_when_the_switch_is_on(tmp_path, monkeypatch, capsys):
    from cnimeta.cli.main import main

    words = ["conformance", str(tmp_path / "none"), "--conf", str(tmp_path / "none.json")]
    assert main(words) == 1
    assert "Traceback" not in capsys.readouterr().err
    monkeypatch.setenv(DEBUG, "1")
    assert main(words) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("answer", [None, {"ips": []}, ("ips",)])
def test_an_answer_is_named_when_it_is_no_result(answer):
    class Wrong(Plugin):
        name = "wrong"

        def add(self, request):
            return answer

    with pytest.raises(InternalError, match=rf"wrong: add\(\) returned {type(answer).__name__}, not a Result"):
        call(Wrong(), "ADD", CONF)


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("del_", "delete"), ("Add", "add"), ("cmd_add", "add"), ("cmdDel", "delete"), ("chek", "check"),
        ("stauts", "status"), ("GC", "gc"), ("garbage_collect", "gc"), ("delet", "delete"), ("remove", "delete"),
    ],
)  # fmt: skip
def test_a_misspelt_verb_is_told_when_the_class_is_made(name, meant):
    with pytest.warns(RuntimeWarning, match=rf"Mine\.{name} is no verb .* did you mean {meant}\?"):
        type("Mine", (Plugin,), {name: lambda self, request: None})


@pytest.mark.parametrize("name", ["_ad", "records", "add_rules", "gc_rules", "plan", "paths", "open"])
def test_nothing_is_told_when_a_method_is_the_authors_own(name):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        type("Mine", (Plugin,), {name: lambda self, request: None})
        type("Mine", (Plugin,), {"delete": lambda self, request: None, "remove": lambda self, request: None})


BOOT = "cnimeta.plugin.boot"
"""Its code is run by launchers, from their bundles, and imported by nobody."""


def aliases():
    for found in pkgutil.walk_packages(cnimeta.__path__, "cnimeta."):
        if found.name.split(".")[1] not in ROOMS or found.name == BOOT:
            continue
        for node in ast.parse(Path(importlib.util.find_spec(found.name).origin).read_text("utf-8")).body:
            if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
                for inner in node.body:
                    if isinstance(inner, ast.Assign | ast.AnnAssign):
                        target = inner.target if isinstance(inner, ast.AnnAssign) else inner.targets[0]
                        if not target.id.startswith("_") and not target.id.endswith("_co") and len(target.id) > 1:
                            yield found.name, target.id


def test_a_name_of_types_can_be_imported_when_a_program_runs():
    """`from cnimeta.spec.jsonio import JSON` is what an author writes first; an annotation is no type checker's alone."""
    found = list(aliases())
    assert ("cnimeta.spec.jsonio", "JSON") in found
    for module, name in found:
        assert hasattr(importlib.import_module(module), name), f"{module}.{name}"
