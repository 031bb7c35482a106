"""`cnimeta explain` and `validate`: what is said is what the plugins read, and nothing of the node is looked at."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from cnimeta import errors
from cnimeta.cli.explain import unknown
from cnimeta.cli.main import main
from cnimeta.errors import CniError
from cnimeta.node.explained import SPEC, codes, keys
from cnimeta.node.networks import loadable
from cnimeta.spec.keys import OF_LISTS
from cnimeta_plugins.bandwidth.config import KEYS as BANDWIDTH
from cnimeta_plugins.hostport_alloc.keys import KEYS as HOSTPORT
from cnimeta_plugins.hostport_alloc.keys import NESTED
from cnimeta_plugins.portmap.config import KEYS as PORTMAP

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.project

ROOT = Path(__file__).parents[2]
READ = {
    "hostport_alloc": {*HOSTPORT, *(f"{place}.{key}" for place, keys in NESTED.items() for key in keys)},
    "portmap": set(PORTMAP) - {"managedBy"},
    "bandwidth": set(BANDWIDTH),
}


@pytest.fixture
def said(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    def run(*words: str) -> tuple[int, str]:
        status = main(words)
        text = capsys.readouterr()
        return status, text.out + text.err

    return run


@pytest.mark.parametrize("plugin", READ)
def test_the_keys_that_are_told_of_are_those_that_are_read_when_both_are_listed(plugin: str) -> None:
    told = {name for key in loadable()[plugin].describe() for name in key.names}
    own = {name for name in told if not name.startswith(("runtimeConfig.", "cnimeta.io/"))}
    assert own == READ[plugin]


@pytest.mark.parametrize("plugin", READ)
def test_the_documents_table_says_the_same_when_a_key_is_explained(plugin: str) -> None:
    section = (ROOT / "docs" / f"{plugin}.md").read_text(encoding="utf-8").partition("## Keys")[2].partition("\n## ")[0]
    rows = set(re.findall(r"^\| (`.*) \|$", section, re.MULTILINE))
    told = set()
    for key in loadable()[plugin].describe():
        if not key.names[0].startswith("cnimeta.io/"):
            names = ", ".join(f"`{name.rpartition('[].')[2]}`" for name in key.names)
            told.add(f"{names} | {key.form} | {key.default} | {key.about}")
    assert told == rows


def test_every_key_of_a_list_is_told_of_when_the_specification_has_it() -> None:
    told = {name for found in keys({}) if found.plugin == SPEC for name in found.key.names}
    assert set(OF_LISTS) <= told


def test_every_code_has_a_remedy_when_an_error_can_have_it() -> None:
    kinds = {kind for kind in vars(errors).values() if isinstance(kind, type) and issubclass(kind, CniError)}
    assert {code.code for code in codes()} == {kind.code for kind in kinds}
    assert all(code.about and code.remedy for code in codes())


@pytest.mark.parametrize(
    ("word", "parts"),
    [
        ("dataDir", ["dataDir (hostport_alloc)", "dataDir (portmap)", "absolute path"]),
        ("DATADIR", ["dataDir (portmap)"]),
        ("kubernetes.policy", ["what a failed annotation means for ADD", "deferred"]),
        ("policy", ["kubernetes.policy (hostport_alloc)"]),
        ("portmap.hostIP", ["runtimeConfig.portMappings[].hostIP (portmap)"]),
        ("hostport_alloc.hostIP", ["hostIP (hostport_alloc)"]),
        ("ingressBurst", ["ingressBurst, egressBurst (bandwidth)"]),
        ("104", ["104 StateUnusable", "what to do: free space"]),
        ("StateUnusable", ["104 StateUnusable"]),
        ("disableGC", ["disableGC (network)"]),
        ("cnimeta.io/expose", ["annotation of the Pod"]),
        ("bandwidth", ["shapeInside", "latency"]),
    ],
)
def test_a_word_is_explained_when_it_is_known(said: Any, word: str, parts: list[str]) -> None:
    status, text = said("explain", word)
    assert status == 0
    assert "`" not in text
    for part in parts:
        assert part in text


def test_a_plugin_that_describes_no_keys_is_known_all_the_same() -> None:
    assert unknown("quiet", [], {"quiet"}) == "the plugin quiet is installed, and describes no keys of its own"
    assert unknown("quiet", [], ()).startswith('nothing is known of "quiet"')


def test_the_nearest_is_named_when_a_word_is_not_known(said: Any) -> None:
    assert said("explain", "quarantineSecond") == (
        2,
        'cnimeta: nothing is known of "quarantineSecond": did you mean quarantineSeconds?\n',
    )
    assert said("explain", "4711")[0] == 2


def test_everything_is_listed_when_no_word_is_given(said: Any) -> None:
    body = json.loads(said("explain", "--json")[1])
    assert {key["plugin"] for key in body["keys"]} == {SPEC, *READ}
    assert len(body["codes"]) == len(list(codes()))
    text = said("explain")[1]
    assert "quarantineSeconds" in text
    assert "HostPortConflict" in text


BRIDGE = {"type": "bridge", "ipam": {"type": "host-local"}}


def alloc(**more: Any) -> dict[str, Any]:
    return {"type": "hostport_alloc", "capabilities": {"portMappings": True}, "delegates": [BRIDGE], **more}


@pytest.mark.parametrize(
    ("plugins", "states", "part"),
    [
        ([alloc()], ["ok"], "not looked at: bridge, host-local"),
        ([alloc(ranges={"default": "20000-x"})], ["fail"], "$.ranges.default must be ports"),
        ([alloc(ranges={"default": "30000-30010"})], ["fail"], "overlaps the NodePort range"),
        ([alloc(ranges={"default": "40000-40010"})], ["fail"], "overlaps the ephemeral range"),
        ([alloc(quarantineSecond=3)], ["warn", "ok"], "did you mean quarantineSeconds?"),
        ([alloc(kubernetes={"kubeconfig": "/nowhere", "policy": "required"})], ["ok"], "net, 1.0.0"),
        ([alloc(), {"type": "portmap", "capabilities": {"portMappings": True}}], ["fail"], "mapped more than once"),
        ([alloc(portmap={"type": "portmap", "backend": "ipfw"})], ["fail"], "hostport_alloc > portmap: $.backend"),
        ([BRIDGE, {"type": "bandwidth", "ingressRate": 8}], ["fail"], "burst must also be set"),
        ([BRIDGE, {"type": "bandwidth", "latency": 0}], ["fail"], "$.latency"),
    ],
)
def test_a_file_is_judged_as_add_would_when_it_is_validated(
    said: Any, tmp_path: Path, plugins: list[dict[str, Any]], states: list[str], part: str
) -> None:
    file = tmp_path / "10.conflist"
    file.write_text(json.dumps({"cniVersion": "1.0.0", "name": "net", "plugins": plugins}))
    status, text = said("validate", str(file), "--json")
    findings = json.loads(text)
    assert [finding["state"] for finding in findings] == states
    assert any(part in finding["message"] for finding in findings)
    assert status == ("fail" in states)
    assert said("validate", str(file), "--strict")[0] == (states != ["ok"])


@pytest.mark.parametrize("text", ["", "{", "[]", '{"name": "n", "plugins": []}', '{"name": "a b", "type": "bridge"}'])
def test_a_file_fails_with_its_reason_when_it_is_no_network(said: Any, tmp_path: Path, text: str) -> None:
    file = tmp_path / "10.conf"
    file.write_text(text)
    status, line = said("validate", str(file))
    assert status == 1
    assert line.startswith(f"fail  {file}: ")
    assert line.count(str(file)) == 1


def test_each_file_gets_its_line_when_some_are_not_there(said: Any, tmp_path: Path) -> None:
    status, text = said("validate", str(tmp_path / "none"), str(tmp_path))
    assert status == 1
    assert len(text.splitlines()) == 2


def test_every_example_is_good_when_it_is_validated(said: Any) -> None:
    files = sorted(map(str, (ROOT / "examples" / "conflist").glob("*.conflist")))
    status, text = said("validate", "--strict", *files)
    assert (status, len(text.splitlines())) == (0, len(files))
