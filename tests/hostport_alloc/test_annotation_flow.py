"""Annotating the Pod during ADD: what is sent, when it fails, what is kept for later. DEL sends nothing."""

from __future__ import annotations

from typing import Any

import pytest
from hostport_harness import POD_ARGS, Node, conf

from cnimeta.errors import CniError
from cnimeta.spec.jsonio import loads
from cnimeta.testing.delegates import FakeDelegate, address_result
from cnimeta.testing.kube import Fault

pytestmark = pytest.mark.unit

API = {"kubeconfig": "/etc/cni/net.d/cnimeta.kubeconfig", "policy": "deferred", "timeout": 5}
REQUIRED = {**API, "policy": "required"}
STATIC_ARGS = POD_ARGS.replace("0a-1b", "d41d8cd98f00b204e9800998ecf8427e")


def a_node(*plugins: FakeDelegate, addresses: tuple[str, ...] = ("10.1.0.2/24",)) -> Node:
    node = Node(*plugins, result=address_result(*addresses))
    node.pods.create("default", "web", uid="0a-1b")
    return node


def written(node: Node, name: str = "web") -> Any:
    text = node.pods.annotations("default", name).get("cnimeta.io/hostports")
    return loads(text) if text is not None else None


def state(node: Node, container_id: str = "c1") -> str:
    record = node.store.load(("pods", container_id, "eth0"))
    assert record is not None
    return record.annotation.state


def test_address_is_written_with_one_patch_that_carries_the_uid() -> None:
    node = a_node()
    node.call("ADD", conf(kubernetes=API), args=POD_ARGS)
    (port,) = node.ports()
    assert written(node) == [
        {"containerPort": 80, "protocol": "TCP", "hostIP": "192.0.2.10", "hostPort": port, "range": "default"}
    ]
    assert node.pods.annotations("default", "web")["cnimeta.io/hostports-container"] == "c1"
    (seen,) = node.pods.requests
    assert seen.line == "PATCH /api/v1/namespaces/default/pods/web/status"
    assert seen.body["metadata"]["uid"] == "0a-1b"
    assert node.kubeconfigs == ["/etc/cni/net.d/cnimeta.kubeconfig"]
    assert state(node) == "done"


def test_one_object_per_address_is_written_when_the_container_is_dual_stack() -> None:
    node = a_node(addresses=("10.1.0.2/24", "fd00::2/64"))
    node.call("ADD", conf(kubernetes=API), args=POD_ARGS)
    assert [entry["hostIP"] for entry in written(node)] == ["192.0.2.10", "2001:db8::10"]
    assert len({entry["hostPort"] for entry in written(node)}) == 1


def test_configured_addresses_are_written_instead_of_detected_ones() -> None:
    node = a_node()
    node.call("ADD", conf(kubernetes=API, hostIP=["203.0.113.5", "203.0.113.6"]), args=POD_ARGS)
    assert [entry["hostIP"] for entry in written(node)] == ["203.0.113.5", "203.0.113.6"]


def test_address_of_the_mapping_is_written_when_the_runtime_gave_one() -> None:
    node = a_node()
    given = [{"hostPort": 0, "containerPort": 80, "hostIP": "198.51.100.7"}]
    node.call("ADD", conf(kubernetes=API, runtimeConfig={"portMappings": given}), args=POD_ARGS)
    assert [entry["hostIP"] for entry in written(node)] == ["198.51.100.7"]


def test_explicit_ports_are_not_in_the_annotation() -> None:
    node = a_node()
    given = [{"hostPort": 8080, "containerPort": 80}]
    node.call("ADD", conf(kubernetes=API, runtimeConfig={"portMappings": given}), args=POD_ARGS)
    assert [entry["hostPort"] for entry in written(node)] == node.ports()


@pytest.mark.parametrize("settings", [{}, {"kubernetes": None}])
def test_nothing_is_sent_when_kubernetes_is_not_configured(settings: dict[str, Any]) -> None:
    node = a_node()
    node.call("ADD", conf(**settings), args=POD_ARGS)
    assert node.kubeconfigs == []
    assert state(node) == "none"


def test_nothing_is_sent_when_there_is_no_pod() -> None:
    node = a_node()
    node.call("ADD", conf(kubernetes=REQUIRED))
    assert node.pods.requests == []


def test_delete_sends_nothing() -> None:
    node = a_node()
    node.call("ADD", conf(kubernetes=REQUIRED), args=POD_ARGS)
    node.pods.requests.clear()
    node.kubeconfigs.clear()
    for _ in range(2):
        node.call("DEL", conf(kubernetes=REQUIRED), args=POD_ARGS, netns="")
    assert node.pods.requests == []
    assert node.kubeconfigs == []


@pytest.mark.parametrize("policy", [API, REQUIRED])
@pytest.mark.parametrize("status", [409, 429, 500, 503])
def test_patch_is_retried_when_the_failure_may_pass(policy: dict[str, Any], status: int) -> None:
    node = a_node()
    node.pods.faults += [Fault(status=status)] * 3
    node.call("ADD", conf(kubernetes=policy), args=POD_ARGS)
    assert state(node) == "done"
    assert len(node.pods.requests) == 4


def test_retry_waits_as_long_as_the_server_asks() -> None:
    node = a_node()
    node.pods.faults.append(Fault(status=429, retry_after_s=3))
    began = node.clock.now()
    node.call("ADD", conf(kubernetes=API), args=POD_ARGS)
    assert node.clock.now() - began == 3


def test_patch_is_sent_again_when_only_the_answer_was_lost() -> None:
    node = a_node()
    node.pods.faults.append(Fault(drop=True, after=True))
    node.call("ADD", conf(kubernetes=API), args=POD_ARGS)
    assert state(node) == "done"
    assert len(written(node)) == 1


def test_add_succeeds_and_keeps_the_write_when_deferred_and_the_server_fails() -> None:
    node = a_node()
    node.pods.faults += [Fault(status=500)] * 100
    began = node.clock.now()
    node.call("ADD", conf(kubernetes=API), args=POD_ARGS)
    assert node.clock.now() - began <= 5
    assert state(node) == "pending"
    record = node.store.load(("pods", "c1", "eth0"))
    assert record is not None
    assert "HTTP 500" in record.annotation.error
    assert any("deferred" in line for line in node.log)


def test_deferred_add_does_not_wait_when_nobody_answers() -> None:
    node = a_node()
    node.pods.faults += [Fault(drop=True)] * 100
    began = node.clock.now()
    node.call("ADD", conf(kubernetes=API), args=POD_ARGS)
    assert node.clock.now() - began < 0.5
    assert len(node.pods.requests) == 2
    assert state(node) == "pending"


def test_add_fails_and_takes_all_back_when_required_and_the_server_fails() -> None:
    node = a_node()
    node.pods.faults += [Fault(drop=True)] * 100
    began = node.clock.now()
    with pytest.raises(CniError, match=r'\$\.kubernetes\.policy is "required"') as caught:
        node.call("ADD", conf(kubernetes=REQUIRED), args=POD_ARGS)
    assert caught.value.code == 102
    assert node.clock.now() - began <= 5
    assert node.ports() == []
    assert node.bridge.attachments == node.portmap.attachments == {}


def test_deferred_add_does_not_insist_when_the_credentials_are_refused() -> None:
    node = a_node()
    node.pods.faults += [Fault(status=401)] * 100
    node.call("ADD", conf(kubernetes=API), args=POD_ARGS)
    assert len(node.pods.requests) == 2
    assert state(node) == "pending"


def test_missing_role_is_told_and_not_retried() -> None:
    node = a_node()
    node.pods.roles.clear()
    with pytest.raises(CniError, match="patch on pods/status") as caught:
        node.call("ADD", conf(kubernetes=REQUIRED), args=POD_ARGS)
    assert caught.value.code == 102
    assert len(node.pods.requests) == 1


@pytest.mark.parametrize("policy", [API, REQUIRED])
@pytest.mark.parametrize("refusal", [409, 422, 404])
def test_add_is_aborted_when_the_pod_is_gone_or_another(policy: dict[str, Any], refusal: int) -> None:
    node = Node()
    if refusal != 404:
        node.pods.create("default", "web", uid="another")
        node.pods.uid_refusal = refusal
    with pytest.raises(CniError, match='Pod "default/web" is not the one of this ADD') as caught:
        node.call("ADD", conf(kubernetes=policy), args=POD_ARGS)
    assert caught.value.code == 103
    assert node.ports() == []
    assert node.bridge.attachments == node.portmap.attachments == {}
    assert len(node.pods.requests) == 1


def test_static_pod_is_annotated_without_uid() -> None:
    node = a_node()
    node.call("ADD", conf(kubernetes=API), args=STATIC_ARGS)
    (seen,) = node.pods.requests
    assert "uid" not in seen.body["metadata"]
    assert len(written(node)) == 1


def test_static_pod_is_known_by_its_annotations() -> None:
    node = a_node()
    given = {"io.kubernetes.cri.pod-annotations": {"kubernetes.io/config.source": "file"}}
    settings = conf(kubernetes=API, runtimeConfig=given)
    node.call("ADD", settings, args=POD_ARGS.replace("0a-1b", "0a-2c"))
    assert len(written(node)) == 1


def test_static_pod_waits_for_its_mirror_when_that_is_not_there_yet() -> None:
    node = Node()
    node.call("ADD", conf(kubernetes=API), args=STATIC_ARGS)
    assert state(node) == "pending"


def test_pending_write_is_delivered_by_a_later_add() -> None:
    node = a_node()
    node.pods.create("default", "web2", uid="2-2")
    node.pods.faults += [Fault(drop=True)] * 2
    node.call("ADD", conf(kubernetes=API), args=POD_ARGS)
    assert state(node) == "pending"
    other = POD_ARGS.replace("web", "web2").replace("0a-1b", "2-2")
    node.call("ADD", conf(kubernetes=API), args=other, container_id="c2")
    assert (state(node), state(node, "c2")) == ("done", "done")
    assert written(node)[0]["hostPort"] == node.ports()[0]


def test_pending_write_is_dropped_when_its_pod_is_gone() -> None:
    node = a_node()
    node.pods.create("default", "web2", uid="2-2")
    node.pods.faults += [Fault(drop=True)] * 2
    node.call("ADD", conf(kubernetes=API), args=POD_ARGS)
    del node.pods.objects["default", "web"]
    other = POD_ARGS.replace("web", "web2").replace("0a-1b", "2-2")
    node.call("ADD", conf(kubernetes=API), args=other, container_id="c2")
    assert state(node) == "none"
    assert node.store.pending() == ()


def test_later_add_leaves_pending_writes_alone_when_the_server_still_fails() -> None:
    node = a_node()
    node.pods.faults += [Fault(drop=True)] * 4
    node.call("ADD", conf(kubernetes=API), args=POD_ARGS)
    node.call("ADD", conf(kubernetes=API), args=POD_ARGS, container_id="c2")
    assert len(node.pods.requests) == 4
    assert len(node.store.pending()) == 2


def test_pod_is_read_when_configured_and_the_runtime_passes_no_annotations() -> None:
    node = Node()
    node.pods.create("default", "web", uid="0a-1b", annotations={"cnimeta.io/expose": "games:9000/udp"})
    node.pods.roles["cnimeta"] |= {"get pods"}
    node.call("ADD", conf(expose=[], kubernetes={**API, "readPod": True}), args=POD_ARGS)
    assert [seen.line.split()[0] for seen in node.pods.requests] == ["GET", "PATCH"]
    assert node.mappings()[0]["containerPort"] == 9000


def test_pod_is_not_read_when_the_runtime_passes_annotations() -> None:
    node = a_node()
    given = {"io.kubernetes.cri.pod-annotations": {"x": "y"}}
    node.call("ADD", conf(kubernetes={**API, "readPod": True}, runtimeConfig=given), args=POD_ARGS)
    assert [seen.line.split()[0] for seen in node.pods.requests] == ["PATCH"]


def test_add_fails_before_anything_is_done_when_the_pod_cannot_be_read() -> None:
    node = a_node()
    with pytest.raises(CniError, match=r"cannot read Pod .*: HTTP 403") as caught:
        node.call("ADD", conf(kubernetes={**API, "readPod": True}), args=POD_ARGS)
    assert caught.value.code == 11
    assert node.executor.calls == []


def test_add_is_aborted_when_the_pod_read_is_another() -> None:
    node = Node()
    node.pods.create("default", "web", uid="another")
    node.pods.roles["cnimeta"] |= {"get pods"}
    with pytest.raises(CniError, match='its uid is "another"') as caught:
        node.call("ADD", conf(kubernetes={**API, "readPod": True}), args=POD_ARGS)
    assert caught.value.code == 103
    assert node.executor.calls == []


@pytest.mark.parametrize("listed", [None, [{"containerID": "c1", "ifname": "eth0"}]])
def test_pending_write_is_delivered_by_gc_when_no_further_add_comes(listed: list[dict[str, str]] | None) -> None:
    node = a_node()
    node.pods.faults += [Fault(drop=True)] * 2
    node.call("ADD", conf(kubernetes=API), args=POD_ARGS)
    assert state(node) == "pending"
    keys = {} if listed is None else {"cni.dev/valid-attachments": listed}
    node.call("GC", {**conf(kubernetes=API), "cniVersion": "1.1.0", **keys})
    assert state(node) == "done"
    assert written(node)[0]["hostPort"] == node.ports()[0]


def test_gc_collects_all_the_same_when_the_server_still_fails() -> None:
    node = a_node()
    node.pods.faults += [Fault(drop=True)] * 9
    for container_id in ("c1", "c2"):
        node.call("ADD", conf(kubernetes=API), args=POD_ARGS, container_id=container_id)
    listed = [{"containerID": "c1", "ifname": "eth0"}]
    node.call("GC", {**conf(kubernetes=API), "cniVersion": "1.1.0", "cni.dev/valid-attachments": listed})
    assert (state(node), node.ports("c2")) == ("pending", [])


def test_gc_sends_nothing_when_nothing_is_pending() -> None:
    node = a_node()
    node.call("ADD", conf(kubernetes=API), args=POD_ARGS)
    sent = len(node.pods.requests)
    node.call("GC", {**conf(kubernetes=API), "cniVersion": "1.1.0", "cni.dev/valid-attachments": []})
    assert len(node.pods.requests) == sent
