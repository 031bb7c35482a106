"""One contract for every PodApi: in memory, and the kubernetes client against an HTTPS server."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, NamedTuple

import pytest

from cnimeta.host.kube.api import KubernetesPodApi
from cnimeta.host.values import PodApiError
from cnimeta.testing.kube import ANNOTATE, FakePods, Fault, PodServer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from cnimeta.host.protocols import PodApi

pytestmark = pytest.mark.unit

PATCH = {"metadata": {"uid": "u1", "annotations": {"a": "1"}}}


class Cluster(NamedTuple):
    """The Pods of a cluster, and an API that acts for a user with a role."""

    pods: FakePods
    api: Callable[..., PodApi]


@pytest.fixture(params=["memory", "https"])
def cluster(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Cluster]:
    if request.param == "memory":
        pods = FakePods(roles={})

        def known(role: frozenset[str] = ANNOTATE) -> PodApi:
            pods.roles[pods.user] = role
            return pods

        pods.create("default", "web", uid="u1", annotations={"kept": "yes"})
        yield Cluster(pods, known)
        return
    with PodServer(tmp_path / "ca") as server:
        server.pods.create("default", "web", uid="u1", annotations={"kept": "yes"})

        def client(role: frozenset[str] = ANNOTATE) -> PodApi:
            token = server.token(f"user{len(server.tokens)}", role)
            return KubernetesPodApi(server.kubeconfig(tmp_path / "kubeconfig", token=token))

        yield Cluster(server.pods, client)


def failure(attempt: Callable[[], object]) -> tuple[int, str]:
    with pytest.raises(PodApiError) as caught:
        attempt()
    assert caught.value.message
    return caught.value.status, caught.value.reason


def test_annotations_are_merged_with_one_request(cluster: Cluster) -> None:
    api = cluster.api()
    api.patch_status("default", "web", PATCH, 5)
    assert cluster.pods.annotations("default", "web") == {"kept": "yes", "a": "1"}
    api.patch_status("default", "web", {"metadata": {"annotations": {"kept": None, "a": "2"}}}, 5)
    assert cluster.pods.annotations("default", "web") == {"a": "2"}
    assert [seen.line for seen in cluster.pods.requests] == ["PATCH /api/v1/namespaces/default/pods/web/status"] * 2
    assert {seen.content_type for seen in cluster.pods.requests} == {"application/merge-patch+json"}


def test_node_is_read_when_the_role_allows_it(cluster: Cluster) -> None:
    """A node's own credentials reach its own Node alone."""
    cluster.pods.create_node("node1", ("203.0.113.7",), {"a": "b"})
    found = cluster.api(ANNOTATE | {"get nodes"}).node("node1", 5)
    assert found["metadata"]["annotations"] == {"a": "b"}  # type: ignore[index, call-overload]
    assert {"type": "ExternalIP", "address": "203.0.113.7"} in found["addresses"]  # type: ignore[operator]
    assert failure(lambda: cluster.api().node("node1", 5)) == (403, "Forbidden")
    api = cluster.api(ANNOTATE | {"get nodes"})
    for name in ("none", "../pods/web", "n?x=1", ""):
        assert failure(lambda n=name: api.node(n, 5))[0] == 404


def test_pod_is_read_when_the_role_allows_it(cluster: Cluster) -> None:
    cluster.pods.objects["default", "web"]["metadata"]["labels"] = {"app": "web"}
    found = cluster.api(ANNOTATE | {"get pods"}).read("default", "web", 5)
    assert found["metadata"]["labels"] == {"app": "web"}  # type: ignore[index, call-overload]
    assert found["metadata"]["uid"] == "u1"
    assert found["metadata"]["annotations"] == {"kept": "yes"}


def test_request_is_forbidden_when_the_role_lacks_it(cluster: Cluster) -> None:
    assert failure(lambda: cluster.api().read("default", "web", 5)) == (403, "Forbidden")
    assert failure(lambda: cluster.api(frozenset()).patch_status("default", "web", PATCH, 5)) == (403, "Forbidden")
    assert cluster.pods.annotations("default", "web") == {"kept": "yes"}


def test_pod_is_not_found_when_it_is_gone_or_elsewhere(cluster: Cluster) -> None:
    api = cluster.api(ANNOTATE | {"get pods"})
    for namespace, name in (("default", "none"), ("other", "web"), ("a b", "c/d")):
        assert failure(lambda n=namespace, m=name: api.read(n, m, 5)) == (404, "NotFound")
        assert failure(lambda n=namespace, m=name: api.patch_status(n, m, PATCH, 5)) == (404, "NotFound")


@pytest.mark.parametrize(("status", "reason"), [(422, "Invalid"), (409, "Conflict")])
def test_patch_is_refused_when_the_pod_is_another_of_the_name(cluster: Cluster, status: int, reason: str) -> None:
    cluster.pods.uid_refusal = status
    patch = {"metadata": {"uid": "u2", "annotations": {"a": "1"}}}
    assert failure(lambda: cluster.api().patch_status("default", "web", patch, 5)) == (status, reason)
    assert cluster.pods.annotations("default", "web") == {"kept": "yes"}


@pytest.mark.parametrize(
    ("fault", "expected", "wait_s"),
    [
        (Fault(status=500), (500, "InternalError"), 0),
        (Fault(status=409), (409, "Conflict"), 0),
        (Fault(status=429, retry_after_s=7), (429, "TooManyRequests"), 7),
        (Fault(drop=True), (0, "NoAnswer"), 0),
    ],
    ids=["500", "409", "429", "cut off"],
)
@pytest.mark.parametrize("after", [False, True], ids=["before", "after"])
def test_failure_says_what_the_server_said_and_the_next_request_succeeds(
    cluster: Cluster, fault: Fault, expected: tuple[int, str], wait_s: float, after: bool
) -> None:
    api = cluster.api()
    cluster.pods.faults.append(fault._replace(after=after))
    with pytest.raises(PodApiError) as caught:
        api.patch_status("default", "web", PATCH, 5)
    assert (caught.value.status, caught.value.reason) == expected
    assert caught.value.retry_after_s == wait_s
    assert ("a" in cluster.pods.annotations("default", "web")) == after
    api.patch_status("default", "web", PATCH, 5)
    assert cluster.pods.annotations("default", "web")["a"] == "1"


def test_there_is_no_answer_when_the_server_takes_longer_than_the_timeout(cluster: Cluster) -> None:
    api, started = cluster.api(), time.monotonic()
    cluster.pods.faults.append(Fault(delay_s=1))
    assert failure(lambda: api.patch_status("default", "web", PATCH, 0.3)) == (0, "NoAnswer")
    assert time.monotonic() - started < 1
