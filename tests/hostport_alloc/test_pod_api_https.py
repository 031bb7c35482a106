"""The adapter on the `kubernetes` client against a real HTTPS server that enforces who may do what."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import yaml

from cnimeta.host.clock import SystemClock
from cnimeta.host.kube.api import KubernetesPodApi
from cnimeta.host.values import PodApiError
from cnimeta.testing.kube import Fault, PodServer
from cnimeta_plugins.hostport_alloc.pod import annotation
from cnimeta_plugins.hostport_alloc.state.record import Pod

if TYPE_CHECKING:
    from collections.abc import Iterator

pytestmark = pytest.mark.unit

PATCH = {"metadata": {"uid": "u1", "annotations": {"cnimeta.io/hostports": "[]"}}}
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def server(tmp_path: Path) -> Iterator[PodServer]:
    with PodServer(tmp_path / "ca") as running:
        running.pods.create("default", "web", uid="u1")
        yield running


def api_with_token(server: PodServer, tmp_path: Path, user: str = "cnimeta") -> KubernetesPodApi:
    return KubernetesPodApi(server.kubeconfig(tmp_path / "kubeconfig", token=server.token(user)))


def test_annotation_is_written_with_one_patch_when_the_role_allows_only_that(server: PodServer, tmp_path: Path) -> None:
    api_with_token(server, tmp_path).patch_status("default", "web", PATCH, 5)
    assert server.pods.annotations("default", "web") == {"cnimeta.io/hostports": "[]"}
    (seen,) = server.pods.requests
    assert seen.line == "PATCH /api/v1/namespaces/default/pods/web/status"
    assert (seen.user, seen.content_type, seen.body) == ("cnimeta", "application/merge-patch+json", PATCH)


def test_patch_is_refused_with_403_when_the_role_is_missing(server: PodServer, tmp_path: Path) -> None:
    kubeconfig = server.kubeconfig(tmp_path / "kubeconfig", token=server.token("nobody", frozenset()))
    with pytest.raises(PodApiError) as caught:
        KubernetesPodApi(kubeconfig).patch_status("default", "web", PATCH, 5)
    assert (caught.value.status, caught.value.reason) == (403, "Forbidden")
    assert server.pods.annotations("default", "web") == {}


def test_read_is_refused_when_only_the_manifests_role_is_given(server: PodServer, tmp_path: Path) -> None:
    """The role is the one of deploy/base/rbac.yaml, read from the file itself."""
    documents = list(yaml.safe_load_all((ROOT / "deploy" / "base" / "rbac.yaml").read_text()))
    (role,) = (document for document in documents if document["kind"] == "ClusterRole")
    allowed = frozenset(
        f"{verb} {resource}" for rule in role["rules"] for verb in rule["verbs"] for resource in rule["resources"]
    )
    assert allowed == {"patch pods/status"}
    api = KubernetesPodApi(server.kubeconfig(tmp_path / "kubeconfig", token=server.token("sa", allowed)))
    api.patch_status("default", "web", PATCH, 5)
    with pytest.raises(PodApiError) as caught:
        api.read("default", "web", 5)
    assert caught.value.status == 403


def test_node_certificate_may_annotate_pods_of_its_node_and_no_others(server: PodServer, tmp_path: Path) -> None:
    server.pods.create("default", "elsewhere", uid="u2", node="node2")
    api = KubernetesPodApi(server.kubeconfig(tmp_path / "kubelet.conf", client_of="system:node:node1"))
    api.patch_status("default", "web", PATCH, 5)
    assert server.pods.annotations("default", "web") == {"cnimeta.io/hostports": "[]"}
    with pytest.raises(PodApiError) as caught:
        api.patch_status("default", "elsewhere", {"metadata": {"annotations": {"a": "b"}}}, 5)
    assert caught.value.status == 403
    assert api.read("default", "web", 5)["metadata"]["uid"] == "u1"


@pytest.mark.parametrize("status", [409, 422])
def test_pod_is_a_mismatch_when_its_uid_differs(server: PodServer, tmp_path: Path, status: int) -> None:
    server.pods.uid_refusal = status
    server.pods.create("default", "web", uid="another")
    with pytest.raises(PodApiError) as caught:
        api_with_token(server, tmp_path).patch_status("default", "web", PATCH, 5)
    assert caught.value.status == status
    assert annotation._is_mismatch(caught.value, static=False)


def test_conflict_is_not_a_mismatch_when_somebody_else_wrote_the_pod() -> None:
    message = 'Operation cannot be fulfilled on pods "druid-0": the object has been modified'
    assert not annotation._is_mismatch(PodApiError(409, "Conflict", message), static=False)


def test_rotated_token_is_read_again_when_the_old_one_is_refused(server: PodServer, tmp_path: Path) -> None:
    token_file = tmp_path / "token"
    token_file.write_text(server.token("cnimeta"))
    api = KubernetesPodApi(server.kubeconfig(tmp_path / "kubeconfig", token_file=token_file))
    api.patch_status("default", "web", PATCH, 5)
    server.tokens.clear()
    token_file.write_text(server.token("cnimeta"))
    api.patch_status("default", "web", PATCH, 5)
    assert len(server.pods.requests) == 2


def test_in_cluster_credentials_are_used_when_the_environment_names_the_service(
    server: PodServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from kubernetes.config import incluster_config

    (tmp_path / "token").write_text(server.token("sa"))
    monkeypatch.setattr(incluster_config, "SERVICE_TOKEN_FILENAME", str(tmp_path / "token"))
    monkeypatch.setattr(incluster_config, "SERVICE_CERT_FILENAME", server.authority.path)
    host, _, port = server.url.removeprefix("https://").rpartition(":")
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", host)
    monkeypatch.setenv("KUBERNETES_SERVICE_PORT", port)
    KubernetesPodApi().patch_status("default", "web", PATCH, 5)
    assert server.pods.annotations("default", "web") == {"cnimeta.io/hostports": "[]"}


def test_proxy_of_the_environment_is_ignored(
    server: PodServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    api_with_token(server, tmp_path).patch_status("default", "web", PATCH, 5)
    assert len(server.pods.requests) == 1


@pytest.mark.parametrize(
    "fault", [Fault(status=409), Fault(status=429, retry_after_s=1), Fault(status=500), Fault(drop=True)], ids=str
)
def test_patch_is_retried_when_the_server_fails_once(server: PodServer, tmp_path: Path, fault: Fault) -> None:
    server.pods.faults.append(fault)
    api = api_with_token(server, tmp_path)
    error = annotation.attempt(
        api,
        Pod("default", "web", "u1"),
        annotation.Deadline(SystemClock(), 5),
        static=False,
        patient=False,
        request=lambda timeout_s: api.patch_status("default", "web", PATCH, timeout_s),
    )
    assert error == ""
    assert len(server.pods.requests) == 2
    assert server.pods.annotations("default", "web") == {"cnimeta.io/hostports": "[]"}


def test_request_ends_in_time_when_the_server_is_slow(server: PodServer, tmp_path: Path) -> None:
    server.pods.faults.append(Fault(delay_s=3))
    clock = SystemClock()
    began = clock.boottime()
    api = api_with_token(server, tmp_path)
    with pytest.raises(PodApiError) as caught:
        api.patch_status("default", "web", PATCH, 0.3)
    assert caught.value.status == 0
    assert clock.boottime() - began < 2.5


def test_certificates_inside_the_kubeconfig_are_used(server: PodServer, tmp_path: Path) -> None:
    path = Path(server.kubeconfig(tmp_path / "kubeconfig", client_of="system:node:node1"))
    document = yaml.safe_load(path.read_text())
    for section in (document["clusters"][0]["cluster"], document["users"][0]["user"]):
        for key in [key for key in section if key != "server"]:
            section[f"{key}-data"] = base64.b64encode(Path(section.pop(key)).read_bytes()).decode()
    path.write_text(yaml.safe_dump(document))
    KubernetesPodApi(str(path)).patch_status("default", "web", PATCH, 5)
    assert server.pods.requests[0].user == "system:node:node1"


def test_failure_names_the_file_when_there_is_no_kubeconfig(tmp_path: Path) -> None:
    with pytest.raises(PodApiError, match=r"missing\.conf does not exist") as caught:
        KubernetesPodApi(str(tmp_path / "missing.conf")).patch_status("default", "web", PATCH, 1)
    assert (caught.value.status, caught.value.reason) == (0, "NoCredentials")


def test_failure_names_the_file_when_the_kubeconfig_is_broken(tmp_path: Path) -> None:
    (tmp_path / "kubeconfig").write_text("{not yaml")
    with pytest.raises(PodApiError, match=r"cannot load .*kubeconfig"):
        KubernetesPodApi(str(tmp_path / "kubeconfig")).patch_status("default", "web", PATCH, 1)


def test_certificate_of_a_foreign_authority_is_refused(server: PodServer, tmp_path: Path) -> None:
    with PodServer(tmp_path / "other") as other:
        kubeconfig = tmp_path / "kubeconfig"
        server.kubeconfig(kubeconfig, token=server.token("cnimeta"))
        text = kubeconfig.read_text().replace(server.authority.path, other.authority.path)
        kubeconfig.write_text(text)
        with pytest.raises(PodApiError) as caught:
            KubernetesPodApi(str(kubeconfig)).patch_status("default", "web", PATCH, 2)
    assert caught.value.status == 0
    assert server.pods.requests == []
