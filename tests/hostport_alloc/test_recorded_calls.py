"""What a kubelet and containerd really sent, replayed: capitalised keys, DEL up to three times, the netns gone.

The calls were recorded at portmap and bandwidth in a chain; here hostport_alloc stands in portmap's place, and then
around a bridge.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hostport_harness import DATA_DIR, Node

from cnimeta.spec.jsonio import loads_object

pytestmark = pytest.mark.unit

CALLS = [
    call
    for call in map(
        json.loads, (Path(__file__).parent / "data" / "kubelet_containerd_calls.jsonl").read_text().splitlines()
    )
    if call["plugin"] == "portmap"
]
API = {"kubeconfig": "/etc/kubernetes/kubelet.conf", "policy": "required"}


def replay(node: Node, call: dict[str, Any], **keys: Any) -> Any:
    env = call["env"]
    stdin = {**call["stdin"], "type": "hostport_alloc", "dataDir": DATA_DIR, **keys}
    return node.call(
        env["CNI_COMMAND"],
        stdin,
        container_id=env["CNI_CONTAINERID"],
        ifname=env["CNI_IFNAME"],
        netns=env["CNI_NETNS"],
        args=env["CNI_ARGS"],
        path=env["CNI_PATH"],
    )


def test_recording_has_what_the_tests_are_about() -> None:
    verbs = [call["env"]["CNI_COMMAND"] for call in CALLS]
    assert verbs == ["ADD", "DEL", "ADD", "DEL", "DEL", "DEL", "DEL"]
    assert [call["env"]["CNI_NETNS"] == "" for call in CALLS] == [False] * 4 + [True] * 3


@pytest.mark.parametrize("wrapper", [False, True], ids=["chained", "wrapper"])
def test_recorded_calls_are_served(wrapper: bool) -> None:
    node = Node()
    node.pods.create("default", "web", uid="20a9bcd5-4c6d-4b90-b105-901951e089b6")
    node.pods.create("ns1", "game", uid="6416b650-b76e-4df3-a393-d28b0aba961f")
    keys: dict[str, Any] = {"kubernetes": API}
    if wrapper:
        keys["delegates"] = [{"type": "bridge"}]
    for call in CALLS:
        replay(node, call, **keys)
        explicit = [one["HostPort"] for one in call["stdin"]["runtimeConfig"]["portMappings"]]
        if call["env"]["CNI_COMMAND"] == "ADD":
            assert [one["hostPort"] for one in node.mappings()][: len(explicit)] == explicit
    assert node.portmap.attachments == node.bridge.attachments == {}
    assert node.store.problems() == []
    assert list(node.store.records()) == []


def test_annotation_in_the_recording_asks_for_a_port_and_gets_it_published() -> None:
    node = Node()
    node.pods.create("ns1", "game", uid="6416b650-b76e-4df3-a393-d28b0aba961f")
    replay(node, CALLS[2], kubernetes=API)
    explicit, random = node.mappings()[:2], node.mappings()[2:]
    assert [(one["hostPort"], one.get("hostIP", "")) for one in explicit] == [(8080, ""), (9443, "192.168.77.1")]
    assert [one["containerPort"] for one in random] == [80]
    (entry,) = loads_object('{"x":' + node.pods.annotations("ns1", "game")["cnimeta.io/hostports"] + "}")["x"]
    assert (entry["containerPort"], entry["hostPort"]) == (80, random[0]["hostPort"])
    assert node.pods.annotations("ns1", "game")["cnimeta.io/hostports-container"] == CALLS[2]["env"]["CNI_CONTAINERID"]
