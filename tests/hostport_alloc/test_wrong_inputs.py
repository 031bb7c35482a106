"""Any key of any wrong type or value: an error with a code and a path, never a defect, and nothing left behind."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from hostport_harness import POD_ARGS, Node, conf

from cnimeta.errors import CniError

pytestmark = pytest.mark.unit

WRONG: list[Any] = [
    None,
    True,
    0,
    -1,
    1.5,
    10**30,
    "",
    "x",
    "\ud800",
    [],
    [None],
    [[]],
    [{}],
    {},
    {"": None},
    {"a": {"b": []}},
]
FULL = conf(
    cniVersion="1.1.0",
    portmap={"type": "portmap", "snat": True},
    hostIP="auto",
    kubernetes={"kubeconfig": "/k", "policy": "deferred", "timeout": 5, "readPod": False},
    quarantineSeconds=30,
    sticky=True,
    stickySeconds=60,
    nodePortRange="30000-32767",
    forceOverlap=False,
    maxPortsPerPod=64,
    lockTimeout=1,
    capabilities={"portMappings": True},
    runtimeConfig={
        "portMappings": [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}],
        "io.kubernetes.cri.pod-annotations": {"cnimeta.io/expose": "81/tcp"},
    },
    delegate={"name": "pods", "plugins": [{"type": "bridge", "capabilities": {"dns": True}}]},
)
del FULL["delegates"]


def places(value: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Every place in a document."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    return [path, *(place for key, part in inner for place in places(part, (*path, key)))]


def replaced(value: Any, path: tuple[Any, ...], by: Any) -> Any:
    if not path:
        return by
    copy = dict(value) if isinstance(value, dict) else list(value)
    copy[path[0]] = replaced(value[path[0]], path[1:], by)
    return copy


@pytest.mark.parametrize("verb", ["ADD", "DEL", "CHECK", "GC", "STATUS"])
@pytest.mark.parametrize("path", [place for place in places(FULL) if place], ids=lambda path: ".".join(map(str, path)))
def test_wrong_value_is_told_and_leaves_nothing(path: tuple[Any, ...], verb: str) -> None:
    for wrong in WRONG:
        node = Node()
        node.pods.create("default", "web", uid="0a-1b")
        failure = None
        try:
            node.call(verb, replaced(FULL, path, wrong), args=POD_ARGS)
        except CniError as error:
            failure = error
        if failure is not None:
            assert failure.code != 999, f"{wrong!r}: {failure}"
            assert failure.msg
            assert node.portmap.attachments == node.bridge.attachments == {}
            assert list(node.store.records()) == []


@pytest.mark.parametrize("text", [",".join(["1-65535"] * count) for count in (1, 100, 1000)] + ["80," * 40_000])
def test_annotation_is_refused_before_it_is_taken_apart_when_it_asks_for_too_much(text: str) -> None:
    node = Node()
    steps = 0

    def counted(*_: object) -> None:
        nonlocal steps
        steps += 1

    annotations = {"io.kubernetes.cri.pod-annotations": {"cnimeta.io/expose": text}}
    sys.setprofile(counted)
    try:
        with pytest.raises(CniError) as caught:
            node.call("ADD", conf(runtimeConfig=annotations))
    finally:
        sys.setprofile(None)
    assert caught.value.code == 7
    assert steps < 100_000 + 60 * len(text.split(","))  # linear in the text, whatever it asks for
    assert node.executor.calls == []


def test_many_explicit_ports_cost_in_proportion() -> None:
    """Calls of functions, C's included: four times the ports, and not sixteen times the calls."""

    def calls(verb: str, count: int, node: Node) -> int:
        mappings = [{"hostPort": 1 + port, "containerPort": 80} for port in range(count)]
        made = 0

        def counted(*_: object) -> None:
            nonlocal made
            made += 1

        sys.setprofile(counted)
        try:
            node.call(verb, conf(runtimeConfig={"portMappings": mappings}))
        finally:
            sys.setprofile(None)
        return made

    few, many = Node(), Node()
    for verb in ("ADD", "ADD", "DEL"):
        assert calls(verb, 1200, many) < 4.5 * calls(verb, 300, few)
