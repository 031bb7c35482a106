"""Every network in examples/networks: its file wrapped as its project ships it, and the wrapped file run with traffic.

bridge, ptp, macvlan, host-device and kube-router are Debian's plugins themselves; tests/harness/stand_ins.py has the rest.
What the runtime sends is what a kubelet and containerd sent (tests/data).
"""

from __future__ import annotations

import argparse
import json
import shutil
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from demo.footprint import footprint
from demo.stage import NODE_IP, Attachment, Stage
from echo import ask, echoing
from stand_ins import flannel, host_ports, multus, stand_in

from cnimeta.cli.validate import examined
from cnimeta.node.networks import loadable
from cnimeta.runtime.conf import load_file
from cnimeta.spec.version import at_least
from cnimeta_plugins.hostport_alloc.operator import own
from cnimeta_plugins.hostport_alloc.operator.commands import add_commands

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
FOLDER = ROOT / "examples" / "networks"
SHIPPED = {path.stem: path for path in sorted(FOLDER.glob("*.conf*"))}
RECORDED = [
    json.loads(line)
    for line in (ROOT / "tests" / "data" / "kubelet_containerd_calls.jsonl").read_text(encoding="utf-8").splitlines()
]
SANDBOX = next(call for call in RECORDED if "io.kubernetes.cri.pod-annotations" in call["stdin"]["runtimeConfig"])
"""Made over CRI: mappings, limits and Pod annotations, the keys as containerd writes them."""


class Case(NamedTuple):
    """What is particular to a network that runs here."""

    stays: frozenset[str] = frozenset()
    """Links that the node keeps without any container."""
    subnet: str = ""
    """What the network's daemon writes into the file as the node's subnet."""
    setup: tuple[str, ...] = ()
    """What the node needs besides, as `ip` commands."""


CASES = {
    "bridge": Case(frozenset({"mynet0"})),
    "ptp": Case(),
    "macvlan": Case(
        frozenset({"shim0"}),
        setup=(
            "link add link eth0 name shim0 type macvlan mode bridge",
            "address add 10.20.0.1/32 dev shim0",
            "link set shim0 up",
            "route add 10.20.0.0/24 dev shim0",
        ),
    ),
    "host-device": Case(
        frozenset({"enp0s1", "lan0"}),
        setup=(
            "link add enp0s1 type veth peer name lan0",
            "address add 10.30.0.1/24 dev lan0",
            "link set lan0 up",
        ),
    ),
    "flannel": Case(),
    "canal": Case(),
    "calico": Case(),
    "weave": Case(frozenset({"weave"})),
    "cilium": Case(),
    "kube-router": Case(frozenset({"kube-bridge"}), subnet="10.40.0.0/24"),
    "antrea": Case(frozenset({"antrea-gw0"})),
    "multus": Case(),
}
HISTORY = {"romana": "romana", "contiv": "0.6.0"}
"""What a refusal names."""


@pytest.mark.project
def test_every_network_is_tried_and_described_when_the_folder_is_listed() -> None:
    assert set(SHIPPED) == {*CASES, *HISTORY}
    listed = (FOLDER / "README.md").read_text(encoding="utf-8")
    assert [path.name for path in SHIPPED.values() if path.name not in listed] == []
    described = (ROOT / "docs" / "networks.md").read_text(encoding="utf-8").lower()
    assert [name for name in SHIPPED if f"| {name}" not in described and f", {name}" not in described] == []


def wrap(*words: str) -> int:
    parser = argparse.ArgumentParser()
    add_commands(parser.add_subparsers())
    args = parser.parse_args(["wrap", *words])
    status: int = args.run(args)
    return status


def delegates(document: dict[str, Any]) -> list[dict[str, Any]]:
    (entry,) = document.get("plugins", [document])
    assert entry["type"] == "hostport_alloc"
    return [*entry["delegates"], *([entry["portmap"]] if "portmap" in entry else [])]


@pytest.mark.project
@pytest.mark.parametrize("name", sorted({*SHIPPED} - {"contiv"}))
def test_the_file_is_wrapped_in_every_way_when_it_is_as_its_project_ships_it(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / SHIPPED[name].name
    shutil.copy(SHIPPED[name], file)
    before = file.read_bytes()
    shipped = json.loads(before)
    types = [plugin["type"] for plugin in shipped.get("plugins", [shipped])]
    options = ("--range", "default=21000-21999", "--expose", "80/tcp", "--data-dir", str(tmp_path / "state"))

    assert wrap(str(file), "--print", *options) == 0
    printed = json.loads(capsys.readouterr().out)
    assert file.read_bytes() == before
    assert wrap(str(file), "--own", *options) == 0
    ours = load_file(str(tmp_path / own.NAME))
    assert file.read_bytes() == before
    assert ours.name == shipped["name"]
    assert wrap(str(file), "--own", "--unwrap") == 0
    assert wrap(str(file), *options) == 0
    wrapped = json.loads(file.read_text(encoding="utf-8"))
    capsys.readouterr()

    assert wrapped == printed
    assert sorted(plugin["type"] for plugin in delegates(wrapped)) == sorted(types)
    assert list(ours.plugins) == wrapped.get("plugins", [{k: v for k, v in wrapped.items() if k in ours.plugins[0]}])
    assert {found.state for found in examined(str(file), loadable())} == {"ok"}
    assert wrap(str(file), "--unwrap") == 0
    assert file.read_bytes() == before


@pytest.mark.project
@pytest.mark.parametrize("words", [["--print"], [], ["--own"]])
def test_contiv_is_refused_when_it_names_a_version_that_never_was(
    words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "1-contiv.conf"
    shutil.copy(SHIPPED["contiv"], file)
    assert wrap(str(file), *words) == 1
    assert HISTORY["contiv"] in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == [file.name]
    assert file.read_bytes() == SHIPPED["contiv"].read_bytes()
    assert [found.state for found in examined(str(file), loadable())] == ["fail"]


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """One node for all the networks: each must leave it as it was."""
    made = Stage(tmp_path_factory.mktemp("networks"))
    try:
        made.install()
        made.state.mkdir(exist_ok=True)
        flannel(made, "10.244.3.1/24")
        multus(made)
        stand_in(made, "calico", {"type": "ptp"}, "10.91.0.0/24", shape="host end")
        stand_in(made, "cilium-cni", {"type": "ptp"}, "10.92.0.0/24")
        bridge = {"type": "bridge", "isDefaultGateway": True, "hairpinMode": True}
        stand_in(made, "weave-net", {**bridge, "bridge": "weave"}, "10.93.0.0/24", shape="addresses")
        stand_in(made, "antrea", {**bridge, "bridge": "antrea-gw0"}, "10.94.0.0/24")
        yield made
    finally:
        made.close()


def wrapped_file(stage: Stage, name: str, folder: Path, subnet: str = "") -> Path:
    """The file as it lies on a node whose daemon has written the subnet into it, wrapped, and for the stage's folders."""
    file = folder / SHIPPED[name].name
    document = json.loads(SHIPPED[name].read_text(encoding="utf-8"))
    if subnet:
        document["plugins"][0]["ipam"]["subnet"] = subnet
    file.write_text(json.dumps(document), encoding="utf-8")
    stage.cnimeta("wrap", str(file))
    return stage.configure(file)


@pytest.mark.kernel
@pytest.mark.parametrize("name", sorted(CASES))
def test_ports_are_reached_and_nothing_is_left_when_the_wrapped_file_is_run(
    name: str, stage: Stage, tmp_path: Path
) -> None:
    case = CASES[name]
    for words in case.setup:
        stage.node.run("ip", *words.split())
    conflist = wrapped_file(stage, name, tmp_path, case.subnet)
    assert [plugin["type"] for plugin in load_file(str(conflist)).plugins] == ["hostport_alloc"]
    attach_and_detach(stage, conflist, checked=name != "multus")
    if name == "host-device":
        stage.node.run("ip", "link", "show", "enp0s1")


@pytest.mark.kernel
def test_ports_are_reached_when_multus_takes_the_wrapped_file_in(stage: Stage, tmp_path: Path) -> None:
    inner = json.loads(wrapped_file(stage, "flannel", tmp_path).read_text(encoding="utf-8"))
    outer = json.loads(SHIPPED["multus"].read_text(encoding="utf-8"))
    outer |= {"delegates": [inner], "capabilities": inner["plugins"][0]["capabilities"]}
    file = stage.folder / "00-multus.conf"
    file.write_text(json.dumps(outer), encoding="utf-8")
    attach_and_detach(stage, file, stage.folder / "flannel.conflist")


def attach_and_detach(stage: Stage, conflist: Path, ours: Path | None = None, *, checked: bool = True) -> None:
    """ADD, CHECK where the version has it, traffic, DEL twice; `ours` is hostport_alloc's file where it is another."""
    network = load_file(str(conflist))
    sent = {key: value for key, value in SANDBOX["stdin"]["runtimeConfig"].items() if key in network.capabilities}
    container = Attachment("n" + uuid.uuid4().hex, stage.namespace("c"), SANDBOX["env"]["CNI_ARGS"], sent)
    shaped = "bandwidth" in sent
    ours = ours or conflist
    found = []
    try:
        found = addresses(json.loads(stage.cnimeta(*stage.run_words("add", conflist, container))))
        if at_least(network.cni_version, "0.4.0"):
            stage.cnimeta(*stage.run_words("check", conflist, container))
        if checked:
            stage.cnimeta("ports", "check", "--conf", str(ours))
        ports = host_ports(stage, ours, container.id)
        asked = [(port, number) for port, (number, ports_of) in ports.items() if ports_of == "default"]
        assert [port for port, _ in asked] == ["80/tcp"]
        asked.append(("80/tcp", 8080))
        with echoing(container.netns, ["80/tcp"], container.id.encode()):
            for port, number in asked:
                for source in (stage.client, stage.node):
                    with source.entered():
                        assert ask(NODE_IP, number, "tcp") == container.id.encode(), (port, number)
        assert ("tbf" in stage.node.run("tc", "qdisc", "show").stdout) == shaped
    finally:
        words = stage.run_words("del", conflist, container)
        stage.cnimeta(*words)
        words[words.index("--netns") + 1] = ""  # as containerd does when it stops a sandbox again
        stage.cnimeta(*words)
    left = footprint(stage.node, stage.state, found)
    left["veth pairs"] = [link for link in left["veth pairs"] if link not in stays()]
    left["flannel"] = [path.name for path in (stage.state / "flannel").rglob("*") if container.id in path.name]
    assert {kind: things for kind, things in left.items() if things} == {}
    assert "tbf" not in stage.node.run("tc", "qdisc", "show").stdout


def addresses(result: dict[str, Any]) -> list[str]:
    found = [ip["address"].partition("/")[0] for ip in result["ips"]]
    assert found
    return found


def stays() -> set[str]:
    """Links that any of the networks leaves on a node: they run on one, in any order."""
    return set().union(*(case.stays for case in CASES.values()))


@pytest.mark.kernel
def test_add_says_what_is_missing_when_the_network_is_history(stage: Stage, tmp_path: Path) -> None:
    conflist = wrapped_file(stage, "romana", tmp_path)
    container = Attachment("n" + uuid.uuid4().hex, stage.namespace("c"))
    with pytest.raises(RuntimeError, match=r"romana"):
        stage.cnimeta(*stage.run_words("add", conflist, container))
    left = footprint(stage.node, stage.state, ())
    left["veth pairs"] = [link for link in left["veth pairs"] if link not in stays()]
    assert {kind: things for kind, things in left.items() if things} == {}
