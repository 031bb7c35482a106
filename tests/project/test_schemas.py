"""The published JSON Schemas: valid themselves, true of every example, and no more lax than the plugins where they speak."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from cnimeta.node.networks import loadable
from cnimeta.node.schema import of_lists, of_plugin
from cnimeta_plugins.bandwidth.described import KEYS as BANDWIDTH
from cnimeta_plugins.hostport_alloc.described import KEYS as HOSTPORT_ALLOC
from cnimeta_plugins.portmap.described import KEYS as PORTMAP

pytestmark = pytest.mark.project

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "examples").rglob("*.conflist"))
PLUGINS = ("bandwidth", "hostport_alloc", "portmap")
ELSEWHERE = ("defaultRange.", "cnimeta.io/")
"""Keys that another key's schema says, or that stand in annotations."""
WRONG = {
    "a number for a name": {"cniVersion": "1.1.0", "name": 7, "plugins": [{"type": "portmap"}]},
    "no plugins": {"cniVersion": "1.1.0", "name": "n", "plugins": []},
    "no type": {"cniVersion": "1.1.0", "name": "n", "plugins": [{"snat": True}]},
    "an unknown policy": {"type": "hostport_alloc", "kubernetes": {"policy": "never"}},
    "a range of words": {"type": "hostport_alloc", "ranges": {"default": "all"}},
    "a range without ports": {"type": "hostport_alloc", "ranges": {"default": {"by": "random"}}},
    "a port too high": {
        "type": "portmap",
        "runtimeConfig": {"portMappings": [{"hostPort": 65536, "containerPort": 1}]},
    },
    "mappings that are no list": {"type": "portmap", "runtimeConfig": {"portMappings": {"hostPort": 1}}},
    "an unknown backend": {"type": "portmap", "backend": "ipfw"},
    "a relative folder": {"type": "hostport_alloc", "dataDir": "state"},
    "a long latency": {"type": "bandwidth", "latency": 10001},
    "a word for a flag": {"type": "hostport_alloc", "sticky": "yes"},
    "too many ports": {"type": "hostport_alloc", "maxPortsPerPod": 5000},
}


def check(document: dict[str, Any]) -> list[str]:
    body = document if "plugins" in document else {"cniVersion": "1.1.0", "name": "n", "plugins": [document]}
    judge = jsonschema.Draft202012Validator(of_lists(loadable()))
    return [error.message for error in judge.iter_errors(body)]


@pytest.mark.parametrize("name", PLUGINS)
def test_a_plugins_schema_is_one_and_takes_its_own_type(name: str) -> None:
    schema = of_plugin(name, loadable()[name])
    jsonschema.Draft202012Validator.check_schema(schema)
    assert not list(jsonschema.Draft202012Validator(schema).iter_errors({"type": name}))


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_every_example_is_valid(path: Path) -> None:
    assert check(json.loads(path.read_text("utf-8"))) == []


@pytest.mark.parametrize("what", WRONG)
def test_what_is_wrong_is_told(what: str) -> None:
    assert check(WRONG[what])


@pytest.mark.parametrize("key", [*BANDWIDTH, *HOSTPORT_ALLOC, *PORTMAP], ids=lambda key: key.names[0])
def test_every_key_has_a_schema(key: Any) -> None:
    assert bool(key.schema) != key.names[0].startswith(ELSEWHERE)


def test_the_last_part_of_every_path_is_found_in_the_schema() -> None:
    text = json.dumps(of_plugin("hostport_alloc", loadable()["hostport_alloc"]))
    for key in HOSTPORT_ALLOC:
        if key.schema:
            assert f'"{key.names[0].rpartition(".")[2]}":' in text
