"""The PodApi adapter: each request is made by a helper process, so that one deadline holds for all of it.

The helper loads credentials, resolves the name, speaks TLS and reads the answer (`client.py`, `credentials.py`); it is
killed when the time is up, whatever it waits for. It stays for further requests, with its connection.
"""

from __future__ import annotations

import os
import time

from cnimeta.host.helper import Helper, HelperFailed, HelperTooSlow
from cnimeta.host.values import PodApiError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cnimeta.spec.jsonio import JSON

_ANSWER_MAX_BYTES = 1 << 20
"""Of what the helper passes on: a Pod's metadata, whose annotations may have 256 KiB."""


class KubernetesPodApi:
    """PodApi on the `kubernetes` client. An empty `kubeconfig`: in-cluster credentials, or else the node's own."""

    def __init__(self, kubeconfig: str = "", environ: Mapping[str, str] | None = None) -> None:
        self.kubeconfig = kubeconfig
        self._environ = os.environ if environ is None else environ
        self._helper = Helper(self._serve, _ANSWER_MAX_BYTES)

    def sign_in(self, timeout_s: float) -> None:
        """Load the credentials, if that is yet to be done, within `timeout_s`. Raises PodApiError."""
        self._ask({"verb": ""}, timeout_s)

    def patch_status(self, namespace: str, name: str, patch: Mapping[str, JSON], timeout_s: float) -> dict[str, JSON]:
        """PATCH …/pods/NAME/status with a merge patch, within `timeout_s`; the metadata after it.

        Raises PodApiError.
        """
        path = f"{_pod_path(namespace, name)}/status"
        return self._ask({"verb": "PATCH", "path": path, "body": patch}, timeout_s)

    def read(self, namespace: str, name: str, timeout_s: float) -> dict[str, JSON]:
        """GET the Pod, within `timeout_s`; its metadata. Raises PodApiError."""
        return self._ask({"verb": "GET", "path": _pod_path(namespace, name), "body": None}, timeout_s)

    def node(self, name: str, timeout_s: float) -> dict[str, JSON]:
        """GET the Node, within `timeout_s`; its metadata and addresses. Raises PodApiError."""
        from urllib.parse import quote

        return self._ask({"verb": "GET", "path": f"/api/v1/nodes/{quote(name, safe='')}", "body": None}, timeout_s)

    def _ask(self, request: Mapping[str, JSON], timeout_s: float) -> dict[str, JSON]:
        from cnimeta.spec.fields import Fields
        from cnimeta.spec.jsonio import dumps, loads_object

        deadline = time.monotonic() + timeout_s
        _import_client()
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise PodApiError(0, "NoAnswer", f"no time was left of {max(timeout_s, 0):g} s for the request")
        try:
            answer = self._helper.ask(dumps({**request, "timeout": left_s}).encode(), left_s)
        except HelperTooSlow:
            raise PodApiError(
                0, "NoAnswer", f"no answer within {timeout_s:g} s, credentials and name resolution included"
            ) from None
        except HelperFailed as error:
            raise PodApiError(0, "NoAnswer", f"the process that asks the API server failed: {error}") from None
        said = Fields(loads_object(answer))
        if said.has("error"):
            raise PodApiError.decoded(said.object("error"))
        return dict(said.object("pod").raw)

    def _serve(self) -> Callable[[bytes], bytes]:
        from cnimeta.host.kube.client import Server

        return Server(self.kubeconfig, self._environ).serve


def _import_client() -> None:
    """Here, and not in the helper: so it is done once, however many helpers are killed."""
    try:
        import kubernetes.client
        import kubernetes.config  # noqa: F401
    except Exception as error:  # noqa: BLE001 - a package that is gone, or being replaced at this moment
        raise PodApiError(
            0, "NoCredentials", f"the Python package kubernetes cannot be loaded ({type(error).__name__})"
        ) from None


def _pod_path(namespace: str, name: str) -> str:
    from urllib.parse import quote

    return f"/api/v1/namespaces/{quote(namespace, safe='')}/pods/{quote(name, safe='')}"
