"""Every file in examples/conflist, run as it stands (its files moved into a folder of the test), with real traffic."""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import pytest
from demo.footprint import footprint
from demo.stage import CLIENT_IP, NODE_IP, NODE_IP6, Attachment, Stage
from echo import ask, echoing
from stand_ins import host_ports, stand_in

from cnimeta.testing.kube import PodServer

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

pytestmark = pytest.mark.kernel

FOLDER = Path(__file__).parents[2] / "examples" / "conflist"


class Case(NamedTuple):
    """What a file promises: capabilities as the runtime sends them, and where each container port is reached."""

    reach: dict[str, str]
    """"80/tcp" -> the range its host port is from, or the host port itself."""
    capabilities: Mapping[str, Any] = {}
    addresses: tuple[str, ...] = (NODE_IP,)
    shaped: bool = False
    pods: bool = False


ANNOTATED = {"io.kubernetes.cri.pod-annotations": {"cnimeta.io/expose": "80/tcp"}}
LIMITS = {"ingressRate": 50_000_000, "ingressBurst": 4_000_000, "egressRate": 20_000_000, "egressBurst": 4_000_000}
CASES = {
    "bridge": Case({"80/tcp": "default"}, {"bandwidth": LIMITS}, shaped=True, pods=True),
    "dual-stack": Case({"80/tcp": "default", "5353/udp": "default"}, addresses=(NODE_IP, NODE_IP6)),
    "explicit-and-random": Case(
        {"9000/tcp": "games", "9000/udp": "games", "80/tcp": "8080"},
        {"portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}]},
    ),
    "flannel": Case({"80/tcp": "default"}, {**ANNOTATED, "bandwidth": LIMITS}, shaped=True, pods=True),
    "ptp-chained": Case({"80/tcp": "default"}, {"bandwidth": LIMITS}, shaped=True),
    "calico-chained": Case({"80/tcp": "default"}, {**ANNOTATED, "bandwidth": LIMITS}, shaped=True, pods=True),
    "portmap": Case(
        {"80/tcp": "8080", "53/udp": "8053"},
        {
            "portMappings": [
                {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
                {"hostPort": 8053, "containerPort": 53, "protocol": "udp"},
            ]
        },
    ),
    "bandwidth": Case({}, shaped=True),
}


def test_every_file_has_a_case_when_the_folder_is_listed() -> None:
    assert {path.stem for path in FOLDER.glob("*.conflist")} == set(CASES)


@pytest.fixture
def stage(tmp_path: Path) -> Iterator[Stage]:
    made = Stage(tmp_path)
    try:
        made.install()
        bridge = {"type": "bridge", "bridge": "cni0", "isGateway": True, "isDefaultGateway": True, "hairpinMode": True}
        stand_in(made, "flannel", bridge, "10.90.0.0/24")
        stand_in(made, "calico", {"type": "ptp"}, "10.90.0.0/24")
        yield made
    finally:
        made.close()


@pytest.fixture
def pods(stage: Stage) -> Iterator[PodServer]:
    (stage.folder / "state").mkdir()
    with stage.client.entered():
        server = PodServer(stage.folder, CLIENT_IP, 6443)
    with server:
        server.kubeconfig(stage.folder / "state" / "kubeconfig", token=server.token("cnimeta"))
        yield server


@pytest.mark.parametrize("name", sorted(CASES))
def test_the_conflist_does_what_it_promises_when_it_is_run(name: str, stage: Stage, pods: PodServer) -> None:
    case = CASES[name]
    conflist = stage.configure(FOLDER / f"{name}.conflist")
    uid = str(uuid.uuid4())
    pods.pods.create("default", "web", uid=uid)
    args = f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID={uid}"
    container = Attachment("c-" + uuid.uuid4().hex, stage.namespace("c"), args, case.capabilities)

    result = json.loads(stage.cnimeta(*stage.run_words("add", conflist, container)))
    addresses = [found["address"].partition("/")[0] for found in result["ips"]]
    stage.cnimeta(*stage.run_words("check", conflist, container))

    plugins = {part["type"] for part in json.loads(conflist.read_text())["plugins"]}
    random = {port for port, where in case.reach.items() if not where.isdigit()}
    found = host_ports(stage, conflist, container.id) if "hostport_alloc" in plugins else {}
    assert random <= set(found)
    with echoing(container.netns, list(case.reach), name.encode()):
        for port, where in case.reach.items():
            host_port = int(where) if where.isdigit() else found[port][0]
            assert where.isdigit() or found[port][1] == where
            for address in case.addresses:
                for source in (stage.client, stage.node):
                    with source.entered():
                        assert ask(address, host_port, port.partition("/")[2]) == name.encode(), (port, address)
    assert ("tbf" in stage.node.run("tc", "qdisc", "show").stdout) == case.shaped
    annotations = pods.pods.annotations("default", "web")
    assert ("cnimeta.io/hostports" in annotations) == case.pods

    for _ in range(2):
        stage.cnimeta(*stage.run_words("del", conflist, container))
    left = footprint(stage.node, stage.state, addresses)
    assert {kind: things for kind, things in left.items() if things} == {}
    assert "tbf" not in stage.node.run("tc", "qdisc", "show").stdout
    if found:
        assert host_ports(stage, conflist, container.id) == {}
