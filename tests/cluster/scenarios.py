"""What a kubelet, containerd and an API server make of hostport_alloc; run by hand, see CONTRIBUTING.md.

The node's own credentials (Node authorizer, NodeRestriction) are used as they are; one scenario uses a ServiceAccount.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from cluster import APP, Cluster, cluster
from private_node import CLIENT, NODE, PLUGINS, eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
pytestmark = pytest.mark.runtime
SUBNET = {"ranges": [[{"subnet": "10.42.0.0/24"}]], "routes": [{"dst": "0.0.0.0/0"}]}
BRIDGE = {"type": "bridge", "bridge": "cni0", "isGateway": True, "ipMasq": True}


def network(**kubernetes: Any) -> dict[str, Any]:
    plugin = {
        "type": "hostport_alloc",
        "capabilities": {"portMappings": True, "bandwidth": True, "io.kubernetes.cri.pod-annotations": True},
        "ranges": {"default": "20000-24999", "games": "7000-7999"},
        "delegates": [
            {**BRIDGE, "ipam": {"type": "host-local", **SUBNET}},
            {"type": "bandwidth", "capabilities": {"bandwidth": True}},
        ],
        "kubernetes": kubernetes,
    }
    return {"cniVersion": "1.0.0", "name": "pods", "plugins": [plugin]}


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    programs = Path(os.environ["KUBERNETES"])
    with cluster(tmp_path_factory.mktemp("cluster"), programs, network()) as made:
        yield made


@pytest.fixture(autouse=True)
def clean(node: Cluster) -> Iterator[None]:
    """After every scenario nothing is allocated and everything agrees."""
    yield
    node.kubectl("delete", "pod", "--all", "--wait=true")
    eventually(lambda: node.allocated() == [], "end of the allocations")
    checked = node.cnimeta("ports", "check")
    assert checked.returncode == 0, checked.stdout


def pod(name: str, expose: str = "", host_port: int = 0, **annotations: str) -> dict[str, Any]:
    container: dict[str, Any] = {
        "name": "app",
        "image": APP,
        "imagePullPolicy": "Never",
        "command": ["/bin/sh", "-c", f"echo {name} > /www/index.html; exec httpd -f -p 80 -h /www"],
    }
    if host_port:
        container["ports"] = [{"containerPort": 80, "hostPort": host_port}]
    if expose:
        annotations["cnimeta.io/expose"] = expose
    file = {"path": "hostports", "fieldRef": {"fieldPath": "metadata.annotations['cnimeta.io/hostports']"}}
    spec = {
        "nodeName": "node1",
        "automountServiceAccountToken": False,
        "terminationGracePeriodSeconds": 1,
        "tolerations": [{"operator": "Exists"}],
        "dnsPolicy": "Default",
        "containers": [container | {"volumeMounts": [{"name": "me", "mountPath": "/etc/pod"}]}],
        "volumes": [{"name": "me", "downwardAPI": {"items": [file]}}],
    }
    return {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "annotations": annotations}, "spec": spec}


def create(node: Cluster, *pods: dict[str, Any]) -> None:
    for one in pods:
        node.kubectl("apply", "-f", "-", stdin=json.dumps(one))
    for one in pods:
        running(node, one["metadata"]["name"])


def get(node: Cluster, name: str) -> dict[str, Any]:
    return dict(json.loads(node.kubectl("get", "pod", name, "-o", "json", check=False) or "{}"))


def running(node: Cluster, name: str) -> None:
    def ready() -> bool:
        states = get(node, name).get("status", {}).get("containerStatuses", [])
        return bool(states) and all(state["ready"] for state in states)

    eventually(ready, f"ready {name}")


def annotation(node: Cluster, name: str, key: str = "hostports") -> str:
    return str(get(node, name).get("metadata", {}).get("annotations", {}).get(f"cnimeta.io/{key}", ""))


def port(node: Cluster, name: str) -> int:
    (one,) = [entry for entry in json.loads(annotation(node, name)) if entry["containerPort"] == 80]
    assert one["hostIP"] == NODE
    return int(one["hostPort"])


def refusal(node: Cluster, name: str) -> str:
    """Why the kubelet could not make the sandbox."""

    def event() -> str:
        lines = node.kubectl("describe", "pod", name).splitlines()
        return next((line for line in lines if "FailedCreatePodSandBox" in line), "")

    return eventually(event, f"refusal of {name}")


def patches(node: Cluster) -> list[dict[str, Any]]:
    """This project's own requests, as the API server has them in its audit log."""
    lines = (node.folder / "audit.log").read_text().splitlines()
    return [entry for entry in map(json.loads, lines) if entry["userAgent"].startswith("cnimeta")]


def test_address_is_reachable_and_in_the_pods_annotation(node: Cluster) -> None:
    create(node, pod("web", "80/tcp"))
    assert node.fetch(port(node, "web")) == "web"
    (patch,) = patches(node)[-1:]
    assert patch["user"]["username"] == "system:node:node1"
    assert patch["responseStatus"]["code"] == 200
    volume = "/var/lib/kubelet/pods/*/volumes/kubernetes.io~downward-api/me/hostports"
    told = eventually(lambda: node.run("sh", "-c", f"cat {volume}").stdout, "downward API file", 120)
    assert json.loads(told)[0]["hostPort"] == port(node, "web")


def test_explicit_and_random_ports_and_limits_go_together(node: Cluster) -> None:
    limits = {"kubernetes.io/ingress-bandwidth": "8M", "kubernetes.io/egress-bandwidth": "8M"}
    create(node, pod("both", "80/tcp", 8088, **limits))
    assert node.fetch(8088) == node.fetch(port(node, "both")) == "both"
    assert node.run("tc", "qdisc", "show").stdout.count("tbf 1: dev ") == 2
    assert "clamp" not in annotation(node, "both")


def test_many_pods_start_at_once_with_a_port_each(node: Cluster) -> None:
    names = [f"r{number}" for number in range(8)]
    create(node, *(pod(name, "80/tcp,games:9000/udp") for name in names))
    assert len({port(node, name) for name in names}) == len(names)
    assert [node.fetch(port(node, name)) for name in names] == names
    assert len(node.allocated()) == 16


def test_port_stays_when_the_sandbox_is_made_anew(node: Cluster) -> None:
    create(node, pod("again", "80/tcp"))
    before, sandbox = port(node, "again"), annotation(node, "again", "hostports-container")
    tasks = node.run("ctr", "-n", "k8s.io", "tasks", "ls").stdout.splitlines()
    (pid,) = [int(line.split()[1]) for line in tasks if line.startswith(sandbox)]
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: annotation(node, "again", "hostports-container") not in ("", sandbox), "new sandbox")
    running(node, "again")
    assert port(node, "again") == before
    assert node.fetch(before) == "again"


def test_refusal_is_told_in_the_pods_events(node: Cluster) -> None:
    node.kubectl("apply", "-f", "-", stdin=json.dumps(pod("wrong", "80/tcq")))
    assert 'got "80/tcq"' in refusal(node, "wrong")


def test_static_pods_come_and_go_without_the_api_server(node: Cluster) -> None:
    manifest = pod("static", "80/tcp")
    del manifest["spec"]["volumes"], manifest["spec"]["nodeName"], manifest["spec"]["containers"][0]["volumeMounts"]
    path = "/etc/kubernetes/manifests/static.json"
    node.run("tee", path, stdin=json.dumps(manifest))
    running(node, "static-node1")
    assert node.fetch(port(node, "static-node1")) == "static"
    node.freeze("kube-apiserver", frozen=True)
    try:
        node.run("rm", path)
        eventually(lambda: node.allocated() == [], "end of the static Pod")
        manifest["metadata"]["name"] = "late"
        node.run("tee", path, stdin=json.dumps(manifest))
        (late,) = eventually(lambda: [one for one in node.allocated() if one["annotation"] == "pending"], "late Pod")
        assert node.fetch(late["hostPort"]) == "static"
    finally:
        node.freeze("kube-apiserver", frozen=False)
    eventually(lambda: node.cnimeta("ports", "deliver").returncode == 0, "delivery")
    assert port(node, "late-node1") == late["hostPort"]
    node.run("rm", path)


def test_service_account_needs_its_role_and_nothing_else(node: Cluster) -> None:
    node.kubectl("apply", "-f", str(DEPLOY / "base" / "rbac.yaml"))
    request = '{"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}'
    path = "/api/v1/namespaces/kube-system/serviceaccounts/cnimeta/token"
    token = json.loads(node.kubectl("create", "--raw", path, "-f", "-", stdin=request))["status"]["token"]
    (node.folder / "token").write_text(token)
    kubeconfig = node.kubeconfig("account", {"tokenFile": str(node.folder / "token")})
    node.configure(network(kubeconfig=kubeconfig, policy="required"))
    try:
        create(node, pod("allowed", "80/tcp"))
        assert patches(node)[-1]["user"]["username"] == "system:serviceaccount:kube-system:cnimeta"
        node.kubectl("delete", "clusterrolebinding", "cnimeta")
        node.kubectl("apply", "-f", "-", stdin=json.dumps(pod("refused", "80/tcp")))
        assert "deploy/base/rbac.yaml" in refusal(node, "refused")
        assert {one["pod"] for one in node.allocated() if one["state"] == "mapped"} == {"default/allowed"}
        node.kubectl("apply", "-f", str(DEPLOY / "base" / "rbac.yaml"))
        running(node, "refused")
        assert node.fetch(port(node, "refused")) == "refused"
    finally:
        node.configure(network())


@pytest.mark.parametrize("overlay", ["nftables", "iptables", "agent"])
def test_an_overlay_is_applied_server_side(node: Cluster, overlay: str) -> None:
    kubectl = subprocess.run([ROOT / "scripts" / "kubectl"], check=True, capture_output=True, text=True).stdout.strip()
    rendered = subprocess.run(
        [kubectl, "kustomize", DEPLOY / "overlays" / overlay], check=True, capture_output=True, text=True
    ).stdout
    for _ in range(2):  # again: nothing is refused, nothing is in conflict
        node.kubectl("apply", "--server-side", "-f", "-", stdin=rendered)
    made = json.loads(node.kubectl("-n", "kube-system", "get", "daemonset", "cnimeta", "-o", "json"))
    spec = made["spec"]["template"]["spec"]
    assert spec["initContainers"][0]["command"][1:] == ["deploy"]
    assert ("agent" in [one["name"] for one in spec["containers"]]) == (overlay == "agent")
    node.kubectl("delete", "-f", "-", stdin=rendered)


def test_pods_of_a_killed_node_are_gone_from_the_state(node: Cluster) -> None:
    """Every plugin process of a storm of ADDs is killed once; the kubelet's retries and DELs leave nothing."""
    names = [f"k{number}" for number in range(6)]
    for name in names:
        node.kubectl("apply", "-f", "-", stdin=json.dumps(pod(name, "80/tcp")))
    killed = set[int]()
    for _ in range(40_000):
        for pid in set(node.containerds(f"{PLUGINS}/hostport_alloc")) - killed:
            if len(killed) < len(names):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.add(pid)
        if len(killed) == len(names):
            break
        time.sleep(0.001)
    assert len(killed) == len(names)
    for name in names:
        running(node, name)
    assert [node.fetch(port(node, name)) for name in names] == names
    assert CLIENT not in annotation(node, names[0])
