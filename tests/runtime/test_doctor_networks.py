"""`cnimeta doctor` on network configurations: it says ok of none whose ADD fails, or does what nobody meant."""

from __future__ import annotations

import ast
import json
from pathlib import Path
from typing import Any

import pytest

from cnimeta.node.doctor.networks import networks
from cnimeta.node.networks import called, loadable
from cnimeta.runtime.conf import parse_list
from cnimeta.spec.fields import Fields
from cnimeta.spec.keys import OF_EVERY_PLUGIN, strangers
from cnimeta.testing.noop import write_noop
from cnimeta_plugins.bandwidth import config as bandwidth
from cnimeta_plugins.hostport_alloc import keys as hostport_alloc
from cnimeta_plugins.portmap import config as portmap

pytestmark = pytest.mark.unit

PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True}}
BRIDGE = {"type": "bridge", "ipam": {"type": "host-local", "subnet": "10.1.0.0/16"}}
KUBECONFIG = {
    "clusters": [{"name": "c", "cluster": {"server": "http://127.0.0.1:9"}}],
    "users": [{"name": "u", "user": {"token": "t"}}],
    "contexts": [{"name": "x", "context": {"cluster": "c", "user": "u"}}],
    "current-context": "x",
}


class Net:
    """A folder with one network, and every plugin's executable."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        (folder / "net.d").mkdir()
        for name in ("bridge", "host-local", "portmap", "bandwidth", "hostport_alloc", "flannel"):
            write_noop(str(folder), name)

    def said(self, *plugins: dict[str, Any], **keys: Any) -> list[tuple[str, str]]:
        """State and message of each finding."""
        body = {"cniVersion": "1.0.0", "name": "net", "plugins": plugins, **keys}
        (self.folder / "net.d" / "10.conflist").write_text(json.dumps(body))
        return [(found.state, found.message) for found in networks(str(self.folder / "net.d"), [str(self.folder)])]


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Net:
    monkeypatch.setenv("CNIMETA_CONFIG", str(tmp_path / "config.toml"))
    return Net(tmp_path)


def alloc(**keys: Any) -> dict[str, Any]:
    return {"type": "hostport_alloc", "capabilities": {"portMappings": True}, "delegates": [BRIDGE], **keys}


@pytest.mark.parametrize(
    "plugins",
    [
        [BRIDGE, PORTMAP],
        [alloc()],
        [alloc(portmap={"type": "portmap", "snat": True}, expose=["80/tcp"])],
        [BRIDGE, {"type": "hostport_alloc"}],
        [BRIDGE, {"type": "bandwidth", "ingressRate": 8000, "ingressBurst": 8000}],
        [alloc(delegates=[BRIDGE, PORTMAP])],
    ],
)
def test_it_is_ok_when_nothing_is_wrong(net: Net, plugins: list[dict[str, Any]]) -> None:
    assert net.said(*plugins) == [("ok", "net, 1.0.0")]


@pytest.mark.parametrize(
    ("plugins", "message"),
    [
        ([BRIDGE, {**PORTMAP, "backend": "ipchains"}], "portmap: $.backend must be one of auto, nftables, iptables"),
        ([BRIDGE, {"type": "bandwidth", "ingressRate": 8000}], "bandwidth: if rate is set, burst must also be set"),
        ([alloc(ranges={"default": "30000-31000"})], "hostport_alloc: $.ranges.default"),
        ([alloc(expose=["web:80/tcp"])], "hostport_alloc: $.expose[0]"),
        ([alloc(kubernetes={"policy": "require"})], "hostport_alloc: $.kubernetes.policy must be one of"),
        (
            [alloc(kubernetes={"kubeconfig": "/no/such", "policy": "required"})],
            'hostport_alloc: $.kubernetes.kubeconfig "/no/such" cannot be read',
        ),
        ([alloc(portmap={"type": "portmap", "snat": "yes"})], "hostport_alloc > portmap: $.snat must be true or false"),
        (
            [alloc(delegates=[BRIDGE, {"type": "bandwidth", "latency": 0}])],
            "hostport_alloc > bandwidth: $.latency must be a whole number",
        ),
        ([{"type": "flannel", "delegate": {**PORTMAP, "markMasqBit": 32}}], "flannel > portmap: $.markMasqBit must be"),
    ],
)
def test_it_fails_with_the_plugins_words_when_add_would_refuse_it(
    net: Net, plugins: list[dict[str, Any]], message: str
) -> None:
    state, said = net.said(*plugins)[0]
    assert state == "fail"
    assert said.startswith(f"net: {message}")


def test_it_fails_when_the_plugin_does_not_speak_the_version(net: Net) -> None:
    assert net.said(BRIDGE, {"type": "bandwidth"}, cniVersion="0.2.0")[0][0] == "fail"


@pytest.mark.parametrize(
    ("plugin", "message"),
    [
        (alloc(expos=["80/tcp"]), 'hostport_alloc: $ has a key "expos" that nothing reads: did you mean expose?'),
        (
            alloc(kubernetes={"polcy": "required"}),
            '$.kubernetes has a key "polcy" that nothing reads: did you mean policy',
        ),
        (
            alloc(portmap={"type": "portmap", "backnd": "iptables"}),
            'hostport_alloc > portmap: $ has a key "backnd" that nothing reads: did you mean backend?',
        ),
        ({**PORTMAP, "MasqAl": True}, 'portmap: $ has a key "MasqAl" that nothing reads: did you mean masqAll?'),
        ({"type": "bandwidth", "zzz": 1}, 'bandwidth: $ has a key "zzz" that nothing reads'),
    ],
)
def test_the_nearest_key_is_named_when_one_is_unknown(net: Net, plugin: dict[str, Any], message: str) -> None:
    found = net.said(plugin)
    assert [state for state, said in found if message in said] == ["warn"], found


def test_a_key_of_the_list_is_named_when_it_is_unknown(net: Net) -> None:
    assert net.said(BRIDGE, disableGc=True, disabelCheck=True) == [
        ("warn", 'net: $ has a key "disabelCheck" that nothing reads: did you mean disableCheck?')
    ]


@pytest.mark.parametrize(("policy", "state"), [("deferred", "warn"), ("required", "fail")])
def test_the_credentials_are_tried_when_pods_are_annotated(net: Net, policy: str, state: str) -> None:
    path = net.folder / "kubeconfig"
    path.write_text(json.dumps({**KUBECONFIG, "apiVersion": "v1", "kind": "Config"}))
    api = {"kubeconfig": str(path), "policy": policy, "timeout": 1}
    ((found, said),) = net.said(alloc(kubernetes=api))
    assert found == state
    assert "Pods cannot be annotated: no answer from http://127.0.0.1:9" in said
    path.write_text("{")
    ((found, said),) = net.said(alloc(kubernetes=api))
    assert found == state
    assert f"cannot load {path}" in said


@pytest.mark.parametrize(
    ("plugins", "state"),
    [
        ([BRIDGE, PORTMAP, PORTMAP], "fail"),
        ([alloc(), PORTMAP], "fail"),
        ([BRIDGE, PORTMAP, {"type": "hostport_alloc"}], "fail"),
        ([alloc(), {"type": "portmap"}], "warn"),
    ],
)
def test_a_second_portmap_is_seen_when_there_is_one(net: Net, plugins: list[dict[str, Any]], state: str) -> None:
    found, said = net.said(*plugins)[-1]
    assert found == state
    assert "ports are mapped more than once, by " in said


def test_missing_executables_are_named_when_delegates_and_ipam_need_them(net: Net) -> None:
    for name in ("host-local", "portmap"):
        (net.folder / name).unlink()
    assert net.said(alloc()) == [("warn", f"net: not in {net.folder}: host-local, portmap")]


def test_every_delegate_is_walked_when_a_plugin_of_others_has_it_under_a_customary_key() -> None:
    inner = {"plugins": [{"type": "c", "ipam": {"type": "d"}}, "no object"]}
    raw = {"name": "n", "plugins": [{"type": "a", "delegates": [{"type": "b"}, 1], "delegate": inner, "ipam": {}}]}
    found = list(called(parse_list(raw), loadable()))
    assert [one.trail for one in found] == [("a",), ("a", "c"), ("a", "c", "d"), ("a", "b")]
    assert {(one.conf.name, one.conf.cni_version) for one in found} == {("n", "0.1.0")}


def test_no_key_is_strange_when_it_is_known_in_another_spelling() -> None:
    assert strangers(Fields({"HostIP": 1, "hostip": 2}), ("hostIP",)) == []
    assert strangers(Fields({"": 1}, "$.x"), ("hostIP",)) == ['$.x has a key "" that nothing reads']


ROOT = Path(__file__).parents[2]


def read_keys(path: Path) -> set[str]:
    """The keys that a module reads of `fields` and `api`: `fields.text("key")`, `_seconds(api, "key", 5)`."""
    found = set()
    for call in (node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)):
        names = [call.func.value] if isinstance(call.func, ast.Attribute) else []
        names += call.args[:1]
        keys = [arg.value for arg in call.args[:2] if isinstance(arg, ast.Constant) and isinstance(arg.value, str)]
        if keys and any(isinstance(name, ast.Name) and name.id in ("fields", "api") for name in names):
            found.add(keys[0])
    return found


@pytest.mark.parametrize(
    ("name", "keys", "some"),
    [
        ("portmap", portmap.KEYS, {"backend", "masqAll", "dataDir"}),
        ("bandwidth", bandwidth.KEYS, {"latency", "shapeInside"}),
        (
            "hostport_alloc",
            (*hostport_alloc.KEYS, *(key for keys in hostport_alloc.NESTED.values() for key in keys)),
            {"ranges", "policy", "lockTimeout"},
        ),
    ],
)
def test_every_key_is_known_when_the_plugin_reads_it(name: str, keys: tuple[str, ...], some: set[str]) -> None:
    read = {key for path in (ROOT / "plugins" / name).glob("*config.py") for key in read_keys(path)}
    assert some <= read
    assert read - set(keys) - set(OF_EVERY_PLUGIN) == set()
