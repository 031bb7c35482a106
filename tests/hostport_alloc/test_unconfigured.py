"""What is not configured costs nothing: no module of it is loaded by ADD and DEL, and no file of it is read."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.unit

PROGRAM = """
import json, sys
from hostport_harness import POD_ARGS, Node, conf
kept = set(sys.modules)
for name in [name for name in kept if name.startswith("cnimeta_plugins.hostport_alloc")]:
    if name.rpartition(".")[2] in FEATURES:
        del sys.modules[name]
node = Node()
node.pods.create("default", "web", uid="0a-1b")
keys = json.loads(sys.argv[1])
for verb in ("ADD", "DEL"):
    node.call(verb, conf(kubernetes={}, **keys), args=POD_ARGS)
own = [name.rpartition(".")[2] for name in sys.modules if name.startswith("cnimeta_plugins.hostport_alloc")]
print(json.dumps({"loaded": sorted(FEATURES & set(own)), "read": node.files.reads}))
"""
OF_KEYS: dict[str, dict[str, Any]] = {
    "quotas": {"quotas": {"pod": 9}},
    "held": {"quotas": {"pod": 9}},
    "ordinal": {"ranges": {"default": {"ports": "20000-20009", "by": "ordinal", "otherwise": "random"}}},
    "range_config": {"defaultRange": "default"},
    "patterns": {"ranges": {"default": {"ports": "20000-20009", "namespaces": ["default"]}}},
    "reservation": {"reservePorts": True},
    "external": {"external": {"portOffset": 1}},
    "outside": {"external": {"portOffset": 1}},
    "outbox": {"notify": {"program": "/bin/true"}},
    "event": {"notify": {"program": "/bin/true"}},
    "telling": {"notify": {"program": "/bin/true"}},
}


def loaded(keys: dict[str, Any]) -> dict[str, Any]:
    program = f"FEATURES = {set(OF_KEYS)!r}\n{PROGRAM}"
    done = subprocess.run(
        [sys.executable, "-c", program, json.dumps(keys)],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parent,
    )
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def test_modules_of_a_feature_are_loaded_when_it_is_configured_and_only_then() -> None:
    assert loaded({}) == {"loaded": [], "read": []}
    every: dict[str, Any] = {"ranges": {"default": {"ports": "20000-20009", "by": "ordinal", "otherwise": "random"}}}
    for keys in OF_KEYS.values():
        every |= {key: value for key, value in keys.items() if key != "ranges"}
    every["ranges"]["default"]["namespaces"] = ["default"]
    assert loaded(every)["loaded"] == sorted(OF_KEYS)
