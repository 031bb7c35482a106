"""The Kubernetes Pod API, on the official `kubernetes` client: two requests, PATCH pods/status and GET pods.

The client's configuration loader finds server, CA and credentials (kubeconfig, in-cluster, the node's own), and its
HTTP pool sends the request. The generated model classes stay out: loading them costs more than half a second and
an annotation needs none. Proxies named in the environment are ignored: a runtime's environment says nothing
about the way to the API server. Credentials are read afresh for every client object, and once more after a
401, so a rotated token or certificate is picked up.
"""

from __future__ import annotations

import errno
import os
import stat

from cnimeta.errors import IoFailure
from cnimeta.host.reading import retried, told
from cnimeta.host.values import PodApiError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from cnimeta.spec.jsonio import JSON

NODE_KUBECONFIGS = (
    "/etc/kubernetes/kubelet.conf",
    "/var/lib/kubelet/kubeconfig",
    "/var/lib/rancher/k3s/agent/kubelet.kubeconfig",
    "/var/lib/rancher/rke2/agent/kubelet.kubeconfig",
    "/var/snap/microk8s/current/credentials/kubelet.config",
)
"""Where nodes keep the kubelet's own credentials: kubeadm, kubelet's default, k3s, RKE2, MicroK8s."""

MERGE_PATCH = "application/merge-patch+json"


class KubernetesPodApi:
    """PodApi on the `kubernetes` client. An empty `kubeconfig`: in-cluster credentials, or else the node's own."""

    def __init__(self, kubeconfig: str = "", environ: Mapping[str, str] | None = None) -> None:
        self.kubeconfig = kubeconfig
        self._environ = os.environ if environ is None else environ
        self._client: _Client | None = None

    def patch_status(self, namespace: str, name: str, patch: Mapping[str, JSON], timeout_s: float) -> None:
        """PATCH …/pods/NAME/status with a merge patch, within `timeout_s`. Raises PodApiError."""
        self._request("PATCH", f"{_pod_path(namespace, name)}/status", patch, timeout_s)

    def read(self, namespace: str, name: str, timeout_s: float) -> dict[str, JSON]:
        """GET the Pod. Raises PodApiError."""
        return self._request("GET", _pod_path(namespace, name), None, timeout_s)

    def _request(self, verb: str, path: str, body: Mapping[str, JSON] | None, timeout_s: float) -> dict[str, JSON]:
        fresh = self._client is None
        client = self._connected()
        try:
            return client.request(verb, path, body, timeout_s)
        except PodApiError as error:
            if error.status == 401:
                self._client = None  # the next attempt reads the credentials again
                if not fresh:
                    return self._connected().request(verb, path, body, timeout_s)
            raise

    def _connected(self) -> _Client:
        if self._client is None:
            self._client = _Client(_load(self.kubeconfig, self._environ))
        return self._client


def _pod_path(namespace: str, name: str) -> str:
    from urllib.parse import quote

    return f"/api/v1/namespaces/{quote(namespace, safe='')}/pods/{quote(name, safe='')}"


def _load(kubeconfig: str, environ: Mapping[str, str]) -> Any:
    """A client Configuration with server and credentials. Raises PodApiError with status 0 when there are none."""
    try:
        from kubernetes import client, config

        configuration = client.Configuration()
        if kubeconfig:
            _load_file(config, kubeconfig, configuration)
        elif environ.get("KUBERNETES_SERVICE_HOST"):
            config.load_incluster_config(client_configuration=configuration)
        else:
            _load_file(config, _node_kubeconfig(), configuration)
    except PodApiError:
        raise
    except Exception as error:
        where = kubeconfig or "the in-cluster or node credentials"
        raise PodApiError(0, "NoCredentials", f"cannot load {where}: {error}") from error
    configuration.proxy = None
    return configuration


def _load_file(config: Any, path: str, configuration: Any) -> None:
    if not _is_file(path):
        raise PodApiError(0, "NoCredentials", f"kubeconfig {path} does not exist")
    config.load_kube_config(config_file=path, client_configuration=configuration, persist_config=False)


def _is_file(path: str) -> bool:
    """Raises PodApiError where it cannot be told: other credentials than the ones there must not be used."""
    try:
        found = told(path, lambda: retried(lambda: os.stat(path)), (errno.ENOENT, errno.ENOTDIR))
    except IoFailure as error:
        raise PodApiError(0, "NoCredentials", error.msg) from None
    return found is not None and stat.S_ISREG(found.st_mode)


def _node_kubeconfig() -> str:
    for path in NODE_KUBECONFIGS:
        if _is_file(path):
            return path
    raise PodApiError(
        0, "NoCredentials", f"no credentials: set kubernetes.kubeconfig; looked for {', '.join(NODE_KUBECONFIGS)}"
    )


class _Client:
    """One set of credentials and the connections made with it."""

    def __init__(self, configuration: Any) -> None:
        from kubernetes.client.rest import RESTClientObject

        self.configuration = configuration
        self.pool = RESTClientObject(configuration).pool_manager

    def request(self, verb: str, path: str, body: Mapping[str, JSON] | None, timeout_s: float) -> dict[str, JSON]:
        import urllib3

        from cnimeta.spec.jsonio import dumps, loads

        headers = {"Accept": "application/json", "User-Agent": "cnimeta", **self._authorization()}
        if body is not None:
            headers["Content-Type"] = MERGE_PATCH
        try:
            answer = self.pool.request(
                verb,
                self.configuration.host.rstrip("/") + path,
                body=None if body is None else dumps(body).encode(),
                headers=headers,
                timeout=urllib3.Timeout(total=timeout_s),
                retries=False,
            )
        except (urllib3.exceptions.HTTPError, OSError) as error:
            raise PodApiError(0, "NoAnswer", f"no answer from {self.configuration.host}: {error}") from error
        try:
            document = loads(answer.data)
        except Exception:  # noqa: BLE001 - then: a proxy's page, a cut answer
            document = None
        content = document if isinstance(document, dict) else {}
        if not 200 <= answer.status < 300:
            raise _failure(answer.status, content, answer.headers.get("Retry-After", ""))
        return content

    def _authorization(self) -> dict[str, str]:
        setting = self.configuration.auth_settings().get("BearerToken")
        return {"Authorization": setting["value"]} if setting else {}


def _failure(status: int, content: Mapping[str, JSON], retry_after: str) -> PodApiError:
    """A PodApiError from a Status object (or whatever else came with the HTTP status)."""
    wait_s = float(retry_after) if retry_after.isascii() and retry_after.isdigit() else 0.0
    return PodApiError(
        status,
        str(content.get("reason") or ""),
        str(content.get("message") or "no Status object in the answer"),
        wait_s,
    )
