"""The Go cnitool and `cnimeta run` on one cache: what either adds, the other checks and deletes.

scripts/cnitool compiles it from Debian's source packages: libcni 1.1.2, which Debian 12's runtimes are built with, and
the newest (1.3.0 or later), which knows GC, STATUS and version 1.1.0.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from runtime_node import CLEAN, CNIMETA, Failed, Node
from test_debian_plugins import GIVEN, chain

from cnimeta.cli.run import default_container_id
from cnimeta.testing.noop import received, write_noop

if TYPE_CHECKING:
    from collections.abc import Callable

    from cnimeta.testing.netns import Namespace
    from cnimeta.testing.noop import Received

pytestmark = [pytest.mark.runtime, pytest.mark.timeout(600)]  # the first one compiles

VERSIONS = ("0.3.1", "0.4.0", "1.0.0")
OLD, NEW = "cnitool-bookworm", "cnitool-forky"
NOTHING_VALID = {"gc": ("--none-valid",)}
"""What cnitool means by `gc`, which takes no list of attachments that stay."""
SCRIPT = Path(__file__).parents[2] / "scripts" / "cnitool"


@pytest.fixture(scope="session")
def cnitools() -> Path:
    """The folder of both programs."""
    built = subprocess.run([SCRIPT], check=False, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    return Path(built.stdout.strip())


@pytest.fixture
def cnitool(cnitools: Path, request: pytest.FixtureRequest) -> str:
    return str(cnitools / request.param)


def each(*versions: str) -> pytest.MarkDecorator:
    """The old program at these versions, the newest at the last of them."""
    pairs = [*((OLD, version) for version in versions), (NEW, versions[-1])]
    return pytest.mark.parametrize(("cnitool", "version"), pairs, indirect=["cnitool"])


@pytest.fixture(scope="session")
def launchers(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with this project's launchers."""
    folder = str(tmp_path_factory.mktemp("bin"))
    subprocess.run([*CNIMETA, "install", "--bin-dir", folder], check=True, capture_output=True)
    return folder


@pytest.fixture
def node(tmp_path: Path, make_netns: Callable[[str], Namespace]) -> Node:
    return Node(tmp_path, make_netns)


def without_macs(entry: dict[str, Any]) -> dict[str, Any]:
    """A cached attachment less what differs from ADD to ADD or between versions of libcni, and the configuration."""
    if entry["result"].get("dns") == {}:
        del entry["result"]["dns"]
    for interface in entry["result"].get("interfaces", []):
        del interface["mac"]
        if interface["name"].startswith("veth"):
            del interface["name"]
    return {key: value for key, value in entry.items() if key not in ("config", "netns")}


@each(*VERSIONS)
def test_cnimeta_deletes_everything_when_cnitool_added_it(node: Node, cnitool: str, version: str) -> None:
    node.configure(chain(node, version))
    result = json.loads(node.cnitool(cnitool, "add", "net", capability_args=GIVEN))
    assert node.reach("192.0.2.10", 8080, 80) == "192.0.2.10"
    (cached,) = node.cached()
    assert cached["containerId"] == default_container_id(node.pod.path)
    assert cached["result"] == result
    node.cnimeta("del", "net")
    assert node.footprint() == CLEAN


@each(*VERSIONS)
def test_cnitool_deletes_everything_when_cnimeta_added_it(node: Node, cnitool: str, version: str) -> None:
    node.configure(chain(node, version))
    result = json.loads(node.cnimeta("add", "net", capability_args=GIVEN))
    assert node.reach("192.0.2.10", 8080, 80) == "192.0.2.10"
    (cached,) = node.cached()
    assert cached["result"] == result
    node.cnitool(cnitool, "del", "net", capability_args=GIVEN)
    assert node.footprint() == CLEAN


@each(*VERSIONS)
def test_both_cache_the_same_when_they_add_the_same(node: Node, cnitool: str, version: str) -> None:
    conflist = chain(node, version)
    node.configure(conflist)
    node.cnitool(cnitool, "add", "net", capability_args=GIVEN)
    theirs = node.cached()
    node.cnitool(cnitool, "del", "net", capability_args=GIVEN)
    shutil.rmtree(node.folder / "leases")  # host-local would go on with the next address
    node.cnimeta("add", "net", capability_args=GIVEN)
    ours = node.cached()
    assert [without_macs(entry) for entry in ours] == [without_macs(entry) for entry in theirs]
    assert [path.name for path in node.cache.iterdir()] == [f"net-{default_container_id(node.pod.path)}-eth0"]
    node.cnimeta("del", "net")


@each("0.4.0", "1.0.0")
def test_both_judge_alike_when_either_checks_what_the_other_added(node: Node, cnitool: str, version: str) -> None:
    conflist = chain(node, version)
    conflist["plugins"] = [plugin for plugin in conflist["plugins"] if plugin["type"] != "portmap"]
    node.configure(conflist)
    node.cnitool(cnitool, "add", "net", capability_args=GIVEN)
    node.cnimeta("check", "net", capability_args=GIVEN)
    node.cnimeta("check", "net")
    node.cnitool(cnitool, "del", "net", capability_args=GIVEN)
    node.cnimeta("add", "net", capability_args=GIVEN)
    node.cnitool(cnitool, "check", "net", capability_args=GIVEN)
    node.pod.run("ip", "address", "flush", "dev", "eth0")
    with pytest.raises(Failed):
        node.cnitool(cnitool, "check", "net", capability_args=GIVEN)
    with pytest.raises(Failed) as caught:
        node.cnimeta("check", "net", capability_args=GIVEN)
    assert caught.value.error["msg"].startswith("plugin bridge failed CHECK: ")
    node.cnimeta("del", "net")
    assert node.footprint() == CLEAN


@each("0.1.0", "0.2.0", *VERSIONS)
def test_plugins_are_asked_the_same_when_either_runs_them(node: Node, cnitool: str, version: str) -> None:
    compare_calls(node, cnitool, version, ["add", *(["check"] if version >= "0.4.0" else []), "del"])


@pytest.mark.parametrize("cnitool", [NEW], indirect=True)
def test_plugins_are_asked_the_same_when_the_version_has_every_verb(node: Node, cnitool: str) -> None:
    compare_calls(node, cnitool, "1.1.0", ["status", "add", "check", "del", "add", "gc"])


def compare_calls(node: Node, cnitool: str, version: str, verbs: list[str]) -> None:
    """Scripted plugins write down environment and stdin of every call: not one key may differ."""
    own = node.folder / "own"
    own.mkdir()
    result = {
        "cniVersion": version,
        **({"ip4": {"ip": "10.9.0.2/24"}} if version < "0.3.0" else {}),
        **({"interfaces": [{"name": "eth0", "sandbox": node.pod.path}]} if version >= "0.3.0" else {}),
        **({"ips": [{"version": "4", "address": "10.9.0.2/24", "interface": 0}]} if "0.3.0" <= version < "1" else {}),
        **({"ips": [{"address": "10.9.0.2/24", "interface": 0}]} if version >= "1" else {}),
        "routes": [{"dst": "0.0.0.0/0", "gw": "10.9.0.1"}] if version >= "0.3.0" else [],
        "dns": {"nameservers": ["10.9.0.1"], "search": ["a", "b"]},
    }
    names = ("first", "second", "third")
    for name in names:
        write_noop(str(own), name, {"ADD": {"result": result}} if name == "first" else {})
    node.path = str(own)
    plugins = [
        {"type": "first", "name": "own name", "cniVersion": "0.1.0", "ipam": {"type": "x", "list": [1, 2.5, None, {}]}},
        {"type": "second", "capabilities": {"portMappings": True, "mac": False, "ips": True}, "prevResult": result},
        {
            "type": "third",
            "capabilities": {"bandwidth": True},
            "runtimeConfig": {"written": "here"},
            "ünïcode": "\u2028<>&",
        },
    ]
    node.configure({"cniVersion": version, "name": "net", "plugins": plugins, "unknown": True})
    given = {**GIVEN, "mac": "02:00:00:00:00:01"}
    asked = []
    for run in (
        lambda verb: node.cnitool(cnitool, verb, "net", capability_args=given),
        lambda verb: node.cnimeta(verb, "net", *NOTHING_VALID.get(verb, ()), capability_args=given),
    ):
        for verb in verbs:
            run(verb)
        asked.append([[asked_of(call) for call in received(str(own / name))] for name in names])
        for name in names:
            (own / f"{name}.calls").unlink()
    theirs, ours = asked
    assert ours == theirs
    expected = [verb.upper() for verb in verbs]
    if expected[-1] == "GC":
        expected.insert(-1, "DEL")  # of what is in the cache and not named as valid
    assert [call[0]["CNI_COMMAND"] for call in ours[0]] == expected


def asked_of(call: Received) -> tuple[dict[str, str], dict[str, Any]]:
    """A call's environment and configuration, less what says the same in two ways."""
    environ, conf = call.environ, call.conf
    if call.verb in ("STATUS", "GC"):  # libcni sets to "" what these do not have
        environ = {key: value for key, value in environ.items() if value}
    for key in ("cni.dev/valid-attachments", "cni.dev/attachments"):  # cnitool leaves an empty list out
        assert conf.pop(key, []) == []
    if conf.get("prevResult", {}).get("dns") == {}:  # libcni 1.1.2 has it from 1.0.0 on; newer ones leave it out
        del conf["prevResult"]["dns"]
    return environ, conf


@pytest.mark.parametrize("cnitool", [OLD, NEW], indirect=True)
def test_gc_removes_it_when_cnitool_added_it(node: Node, cnitool: str) -> None:
    node.configure(chain(node, "1.0.0"))
    node.cnitool(cnitool, "add", "net", capability_args=GIVEN)
    node.cnimeta("gc", "net", "--none-valid")
    assert node.footprint() == CLEAN  # although libcni 1.1.2 keeps no namespace in its cache


RANDOM = {**GIVEN, "portMappings": [*GIVEN["portMappings"], {"hostPort": 0, "containerPort": 81, "protocol": "tcp"}]}
"""An explicit port, a random one, and limits."""


def configure_ours(node: Node, launchers: str) -> None:
    """This project's plugins in a network of version 1.1.0; Debian's bridge speaks an older one."""
    node.path = f"{launchers}:{node.path}"
    wrapper = {
        "type": "hostport_alloc",
        "capabilities": {"portMappings": True},
        "delegate": {"cniVersion": "1.0.0", "name": "net", "plugins": chain(node, "1.0.0")["plugins"][:1]},
        "quarantineSeconds": 0,
    }
    shaping = {"type": "bandwidth", "capabilities": {"bandwidth": True}}
    node.configure({"cniVersion": "1.1.0", "name": "net", "plugins": [wrapper, shaping]})


def reached(node: Node) -> None:
    """Both host ports lead to the container."""
    ports = json.loads(node.run(*CNIMETA, "ports", "--json"))
    (random,) = [int(port["hostPort"]) for port in ports if port["containerPort"] == 81]
    assert node.reach("192.0.2.10", 8080, 80) == "192.0.2.10"
    assert node.reach("192.0.2.10", random, 81) == "192.0.2.10"


def nothing_is_left(node: Node) -> None:
    assert node.footprint() == CLEAN
    assert "10.77.0.2" not in node.namespace.run("nft", "list", "ruleset").stdout
    assert json.loads(node.run(*CNIMETA, "ports", "--json")) == []


@pytest.mark.parametrize("cnitool", [NEW], indirect=True)
@pytest.mark.parametrize("verb", ["del", "gc"])
def test_cnimeta_takes_ours_away_when_cnitool_added_it(node: Node, launchers: str, cnitool: str, verb: str) -> None:
    configure_ours(node, launchers)
    node.cnitool(cnitool, "status", "net")
    node.cnitool(cnitool, "add", "net", capability_args=RANDOM)
    node.cnimeta("check", "net")
    reached(node)
    node.cnimeta(verb, "net", *NOTHING_VALID.get(verb, ()))
    nothing_is_left(node)


@pytest.mark.parametrize("cnitool", [NEW], indirect=True)
@pytest.mark.parametrize("verb", ["del", "gc"])
def test_cnitool_takes_ours_away_when_cnimeta_added_it(node: Node, launchers: str, cnitool: str, verb: str) -> None:
    configure_ours(node, launchers)
    node.cnimeta("status", "net")
    node.cnimeta("add", "net", capability_args=RANDOM)
    node.cnitool(cnitool, "check", "net", capability_args=RANDOM)
    reached(node)
    node.cnitool(cnitool, verb, "net", capability_args=RANDOM)
    nothing_is_left(node)
