"""The Go cnitool and `cnimeta run` on one cache: what either adds, the other checks and deletes.

cnitool is compiled from the source package of the distribution's libcni, against the library it installs.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from typing import TYPE_CHECKING, Any

import pytest
from runtime_node import CLEAN, Failed, Node
from test_debian_plugins import GIVEN, chain

from cnimeta.cli.run import default_container_id
from cnimeta.testing.noop import received, write_noop

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cnimeta.testing.netns import Namespace

pytestmark = [pytest.mark.runtime, pytest.mark.timeout(300)]

VERSIONS = ("0.3.1", "0.4.0", "1.0.0")
SOURCE = "golang-github-appc-cni"
GO_LIBRARIES = "/usr/share/gocode"


@pytest.fixture(scope="session")
def cnitool(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The program. apt's own configuration and lists are not touched: the source lists are read into the test's folder."""
    folder = tmp_path_factory.mktemp("cnitool")
    sources = folder / "sources"
    sources.mkdir()
    for entry in ("/etc/apt/sources.list", *sorted(os.listdir("/etc/apt/sources.list.d"))):
        path = os.path.join("/etc/apt/sources.list.d", entry)
        if os.path.isfile(path) and path.endswith((".list", ".sources")):
            with open(path, encoding="utf-8") as file:
                lines = [line.replace("Types: deb\n", "Types: deb-src\n") for line in file]
            text = "".join("deb-src" + line[3:] if line.startswith("deb ") else line for line in lines)
            (sources / os.path.basename(path)).write_text(text, encoding="utf-8")
    for name in ("lists", "apt/archives"):
        (folder / name / "partial").mkdir(parents=True)
    apt = ["apt-get", "-q"]
    for key, value in (
        ("Dir::Etc::sourcelist", "/dev/null"),
        ("Dir::Etc::sourceparts", sources),
        ("Dir::State::lists", folder / "lists"),
        ("Dir::Cache", folder / "apt"),
        ("APT::Sandbox::User", "root"),
    ):
        apt += ["-o", f"{key}={value}"]
    subprocess.run([*apt, "update"], check=True, cwd=folder, capture_output=True)
    subprocess.run([*apt, "source", "--download-only", SOURCE], check=True, cwd=folder, capture_output=True)
    archive = next(folder.glob("*.orig.tar.*"))
    subprocess.run(
        ["tar", "xf", str(archive), "--one-top-level=source", "--strip-components=1"], check=True, cwd=folder
    )
    environ = {
        "PATH": os.environ["PATH"],
        "GO111MODULE": "off",
        "GOPATH": GO_LIBRARIES,
        "GOCACHE": str(folder / "cache"),
    }
    go = shutil.which("go", path="/usr/bin") or "go"
    built = subprocess.run(
        [go, "build", "-o", str(folder / "cnitool"), "./cnitool"],
        check=False,
        cwd=folder / "source",
        env={**environ, "HOME": str(folder)},
        capture_output=True,
        text=True,
    )
    assert built.returncode == 0, built.stderr
    return str(folder / "cnitool")


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


@pytest.mark.parametrize("version", VERSIONS)
def test_cnimeta_deletes_everything_when_cnitool_added_it(node: Node, cnitool: str, version: str) -> None:
    node.configure(chain(node, version))
    result = json.loads(node.cnitool(cnitool, "add", "net", capability_args=GIVEN))
    assert node.reach("192.0.2.10", 8080, 80) == "192.0.2.10"
    (cached,) = node.cached()
    assert cached["containerId"] == default_container_id(node.pod.path)
    assert cached["result"] == result
    node.cnimeta("del", "net")
    assert node.footprint() == CLEAN


@pytest.mark.parametrize("version", VERSIONS)
def test_cnitool_deletes_everything_when_cnimeta_added_it(node: Node, cnitool: str, version: str) -> None:
    node.configure(chain(node, version))
    result = json.loads(node.cnimeta("add", "net", capability_args=GIVEN))
    assert node.reach("192.0.2.10", 8080, 80) == "192.0.2.10"
    (cached,) = node.cached()
    assert cached["result"] == result
    node.cnitool(cnitool, "del", "net", capability_args=GIVEN)
    assert node.footprint() == CLEAN


@pytest.mark.parametrize("version", VERSIONS)
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


@pytest.mark.parametrize("version", ["0.4.0", "1.0.0"])
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


@pytest.mark.parametrize("version", ["0.1.0", "0.2.0", *VERSIONS])
def test_plugins_are_asked_the_same_when_either_runs_them(node: Node, cnitool: str, version: str) -> None:
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
    verbs = ["add", *(["check"] if version >= "0.4.0" else []), "del"]
    given = {**GIVEN, "mac": "02:00:00:00:00:01"}
    asked = []
    for run in (
        lambda verb: node.cnitool(cnitool, verb, "net", capability_args=given),
        lambda verb: node.cnimeta(verb, "net", capability_args=given),
    ):
        for verb in verbs:
            run(verb)
        asked.append(
            [[(call.environ, without_empty_dns(call.conf)) for call in received(str(own / name))] for name in names]
        )
        for name in names:
            (own / f"{name}.calls").unlink()
    theirs, ours = asked
    assert ours == theirs
    assert [call[0]["CNI_COMMAND"] for call in ours[0]] == [verb.upper() for verb in verbs]


def without_empty_dns(conf: dict[str, Any]) -> dict[str, Any]:
    """This libcni writes an empty dns from 1.0.0 on; newer ones leave it out, as cnimeta does."""
    if conf.get("prevResult", {}).get("dns") == {}:
        del conf["prevResult"]["dns"]
    return conf


def test_gc_removes_it_when_cnitool_added_it(node: Node, cnitool: str) -> None:
    node.configure(chain(node, "1.0.0"))
    node.cnitool(cnitool, "add", "net", capability_args=GIVEN)
    node.cnimeta("gc", "net", "--none-valid")
    assert node.footprint() == CLEAN  # although this libcni keeps no namespace in its cache
