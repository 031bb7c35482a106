"""A Kubernetes API server for tests, as far as Pods go: in memory (`FakePods`) and over real HTTPS (`PodServer`).

Both keep Pods, apply merge patches (RFC 7386) the way the `pods/status` sub-resource does, refuse a foreign uid, say
403 to all that the user's role does not allow, record every request, and answer with faults when told to.

    server = PodServer(tmp_path)
    server.pods.create("default", "web", uid="…")
    kubeconfig = server.kubeconfig(tmp_path / "kubeconfig", token=server.token("cnimeta"))
    server.pods.faults += [Fault(status=500), Fault(delay_s=2), Fault(drop=True)]
    ...
    assert [request.line for request in server.pods.requests] == ["PATCH /api/v1/namespaces/default/pods/web/status"]
"""

from __future__ import annotations

import copy
import http.server
import json
import secrets
import socket
import socketserver
import ssl
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, unquote

from cnimeta.host.kube.client import MERGE_PATCH
from cnimeta.host.values import PodApiError
from cnimeta.namedtuple import NamedTuple

if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Self

    from cnimeta.spec.jsonio import JSON

NODE_USER = "system:node:"
"""Users of this prefix are nodes: they reach the Pods bound to them only, and may not patch `pods` itself."""

ANNOTATE = frozenset({"patch pods/status"})
"""The role of deploy/base/rbac.yaml; with `readPod` it has "get pods" too."""


class Fault(NamedTuple):
    """One answer gone wrong: a status, a delay before the true answer, or the connection cut without any."""

    status: int = 0
    delay_s: float = 0
    drop: bool = False
    retry_after_s: int = 0
    after: bool = False
    """Apply the request before failing it: the answer is what gets lost."""


class Seen(NamedTuple):
    """A request as the server got it."""

    line: str
    """Method and path."""
    user: str
    content_type: str
    body: Any


class Answer(NamedTuple):
    """HTTP status, JSON document and headers; `drop` cuts the connection instead."""

    status: int
    document: Mapping[str, Any]
    retry_after_s: int = 0
    drop: bool = False


class FakePods:
    """The Pods and the rules of an API server, and a PodApi on them without a network.

    `roles` holds, per user, the verbs and resources it may use. As a PodApi it acts for `user`.
    """

    def __init__(self, user: str = "cnimeta", roles: Mapping[str, frozenset[str]] | None = None) -> None:
        self.user = user
        self.roles = dict(roles) if roles is not None else {user: ANNOTATE}
        self.objects: dict[tuple[str, str], dict[str, Any]] = {}
        self.nodes: dict[str, dict[str, Any]] = {}
        self.requests: list[Seen] = []
        self.faults: list[Fault] = []
        """Taken from the front, one for each request."""
        self.no_credentials = ""
        """Why there are none, where there are none."""
        self.uid_refusal = 422
        """How a patch with a foreign uid is refused: 422 (Invalid) or 409 (Conflict)."""
        self._lock = threading.Lock()

    def create(
        self,
        namespace: str,
        name: str,
        uid: str = "",
        annotations: Mapping[str, str] | None = None,
        node: str = "node1",
    ) -> dict[str, Any]:
        """Add a Pod, without an annotations' map unless some are given."""
        metadata: dict[str, Any] = {"namespace": namespace, "name": name, "uid": uid or secrets.token_hex(8)}
        metadata["resourceVersion"] = "1"
        if annotations is not None:
            metadata["annotations"] = dict(annotations)
        pod = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": {"nodeName": node}, "status": {}}
        self.objects[namespace, name] = pod
        return pod

    def create_node(
        self, name: str, external: tuple[str, ...] = (), annotations: Mapping[str, str] | None = None
    ) -> None:
        """Add a Node, with addresses of type ExternalIP beside one that is internal."""
        addresses = [("InternalIP", "192.0.2.10"), *(("ExternalIP", address) for address in external)]
        status = {"addresses": [{"type": kind, "address": address} for kind, address in addresses]}
        metadata = {"name": name, "annotations": dict(annotations or {})}
        self.nodes[name] = {"kind": "Node", "metadata": metadata, "status": status}

    def annotations(self, namespace: str, name: str) -> dict[str, str]:
        """The Pod's annotations as they stand."""
        return dict(self.objects[namespace, name]["metadata"].get("annotations") or {})

    # --- PodApi ---------------------------------------------------------------------------------------------

    def sign_in(self, timeout_s: float) -> None:
        """As `KubernetesPodApi.sign_in`."""
        if self.no_credentials:
            raise PodApiError(0, "NoCredentials", self.no_credentials)
        if timeout_s <= 0:
            raise PodApiError(0, "NoAnswer", "no time was left for the request")

    def patch_status(self, namespace: str, name: str, patch: Mapping[str, JSON], timeout_s: float) -> dict[str, JSON]:
        """As `KubernetesPodApi.patch_status`."""
        return self._ask("PATCH", f"{_path(namespace, name)}/status", dict(patch), timeout_s)

    def read(self, namespace: str, name: str, timeout_s: float) -> dict[str, JSON]:
        """As `KubernetesPodApi.read`."""
        return self._ask("GET", _path(namespace, name), None, timeout_s)

    def node(self, name: str, timeout_s: float) -> dict[str, JSON]:
        """As `KubernetesPodApi.node`."""
        found: Any = self._ask("GET", f"/api/v1/nodes/{quote(name, safe='')}", None, timeout_s)
        return {"metadata": found["metadata"], "addresses": found["status"]["addresses"]}

    def _ask(self, method: str, path: str, body: Any, timeout_s: float) -> dict[str, JSON]:
        self.sign_in(timeout_s)
        fault = self.faults[0] if self.faults else Fault()
        answer = self.answer(method, path, self.user, MERGE_PATCH if body is not None else "", body)
        if answer.drop or fault.delay_s >= timeout_s:
            raise PodApiError(0, "NoAnswer", "no answer from the fake API server")
        if answer.status >= 300:
            reason, message = str(answer.document.get("reason", "")), str(answer.document.get("message", ""))
            raise PodApiError(answer.status, reason, message, answer.retry_after_s)
        return dict(answer.document)

    # --- the server's side ----------------------------------------------------------------------------------

    def answer(self, method: str, path: str, user: str, content_type: str, body: Any) -> Answer:
        """Record a request and serve it."""
        with self._lock:
            self.requests.append(Seen(f"{method} {path}", user, content_type, body))
            fault = self.faults.pop(0) if self.faults else Fault()
            if fault.after or not (fault.status or fault.drop):
                answer = self._serve(method, path, user, content_type, body)
        if fault.drop:
            return Answer(0, {}, drop=True)
        if fault.status:
            reason = {409: "Conflict", 429: "TooManyRequests", 401: "Unauthorized"}.get(fault.status, "InternalError")
            return _refuse(fault.status, reason, "a fault of the test server", fault.retry_after_s)
        return answer

    def _serve(self, method: str, path: str, user: str, content_type: str, body: Any) -> Answer:
        parts = [unquote(part) for part in path.partition("?")[0].split("/")[1:]]
        if parts[2:3] == ["nodes"] and len(parts) == 4:
            return self._serve_node(parts[3], user)
        if parts[:3] != ["api", "v1", "namespaces"] or len(parts) not in (6, 7) or parts[4] != "pods":
            return _refuse(404, "NotFound", "the server could not find the requested resource")
        namespace, name = parts[3], parts[5]
        resource = "pods/" + parts[6] if len(parts) == 7 else "pods"
        verb = method.lower()
        pod = self.objects.get((namespace, name))
        if not self._allowed(user, verb, resource, pod):
            return _refuse(
                403,
                "Forbidden",
                f'pods "{name}" is forbidden: User "{user}" cannot {verb} resource "{resource}" in API group "" in'
                f' the namespace "{namespace}"',
            )
        if pod is None:
            return _refuse(404, "NotFound", f'pods "{name}" not found')
        if verb == "get":
            return Answer(200, copy.deepcopy(pod))
        if content_type != MERGE_PATCH or not isinstance(body, dict):
            return _refuse(415, "UnsupportedMediaType", f"the test server takes {MERGE_PATCH} objects only")
        return self._patch((namespace, name), pod, body, user)

    def _serve_node(self, name: str, user: str) -> Answer:
        if user != NODE_USER + name and "get nodes" not in self.roles.get(user, frozenset()):
            return _refuse(403, "Forbidden", f'nodes "{name}" is forbidden: User "{user}" cannot get it')
        return Answer(200, self.nodes[name]) if name in self.nodes else _refuse(404, "NotFound", f'nodes "{name}"')

    def _allowed(self, user: str, verb: str, resource: str, pod: Mapping[str, Any] | None) -> bool:
        if user.startswith(NODE_USER):  # the Node authorizer and NodeRestriction
            own = pod is not None and pod["spec"]["nodeName"] == user[len(NODE_USER) :]
            return own and f"{verb} {resource}" in ("patch pods/status", "get pods")
        return f"{verb} {resource}" in self.roles.get(user, frozenset())

    def _patch(self, key: tuple[str, str], pod: dict[str, Any], body: dict[str, Any], user: str) -> Answer:
        uid = (body.get("metadata") or {}).get("uid")
        own = pod["metadata"]["uid"]
        if uid is not None and uid != own:
            if self.uid_refusal == 409:
                detail = f"Precondition failed: UID in precondition: {uid}, UID in object meta: {own}"
                return _refuse(409, "Conflict", f'Operation cannot be fulfilled on pods "{key[1]}": {detail}')
            detail = f'metadata.uid: Invalid value: "{uid}": field is immutable'
            return _refuse(422, "Invalid", f'Pod "{key[1]}" is invalid: {detail}')
        patched = _merge(pod, body)
        if user.startswith(NODE_USER) and patched["metadata"].get("labels") != pod["metadata"].get("labels"):
            return _refuse(403, "Forbidden", f'pods "{key[1]}" is forbidden: a node cannot update labels')
        patched["spec"] = pod["spec"]  # the status sub-resource leaves the specification alone
        patched["metadata"]["resourceVersion"] = str(int(pod["metadata"]["resourceVersion"]) + 1)
        self.objects[key] = patched
        return Answer(200, copy.deepcopy(patched))


def _path(namespace: str, name: str) -> str:
    return f"/api/v1/namespaces/{quote(namespace, safe='')}/pods/{quote(name, safe='')}"


def _refuse(status: int, reason: str, message: str, retry_after_s: int = 0) -> Answer:
    head = {"kind": "Status", "apiVersion": "v1", "status": "Failure"}
    document = {**head, "reason": reason, "message": message, "code": status}
    return Answer(status, document, retry_after_s)


def _merge(target: Any, patch: Any) -> Any:
    """RFC 7386."""
    if not isinstance(patch, dict):
        return copy.deepcopy(patch)
    merged = dict(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            merged.pop(key, None)
        else:
            merged[key] = _merge(merged.get(key), value)
    return merged


class PodServer:
    """`pods` over HTTPS with a CA of its own; users by bearer token or client certificate. Stops with `close`.

    Needs the `cryptography` package. Made inside a network namespace, it serves that namespace.
    """

    def __init__(self, folder: Path | str, address: str = "127.0.0.1", port: int = 0) -> None:
        from cnimeta.testing.certificates import Authority

        self.folder = Path(folder)
        self.authority = Authority(self.folder)
        self.pods = FakePods(roles={})
        self.tokens: dict[str, str] = {}
        """Bearer token -> user."""
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(self.authority.issue("server", addresses=[address]))
        context.load_verify_locations(self.authority.path)
        context.verify_mode = ssl.CERT_OPTIONAL
        self._server = _Listener((address, port), self, context)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    @property
    def url(self) -> str:
        """https://ADDRESS:PORT"""
        host, port = self._server.server_address[:2]
        return f"https://[{host!s}]:{port}" if ":" in str(host) else f"https://{host!s}:{port}"

    def token(self, user: str, role: frozenset[str] = ANNOTATE) -> str:
        """A new bearer token of `user`, who gets `role`."""
        token = secrets.token_urlsafe(16)
        self.tokens[token] = user
        self.pods.roles.setdefault(user, role)
        return token

    def kubeconfig(self, path: Path | str, *, token: str = "", token_file: Path | str = "", client_of: str = "") -> str:
        """Write a kubeconfig with a token, a token file, or a client certificate of user `client_of`."""
        user: dict[str, str] = {}
        if token:
            user["token"] = token
        if token_file:
            user["tokenFile"] = str(token_file)
        if client_of:
            # One file for certificate and key, as kubelet keeps its own.
            user["client-certificate"] = user["client-key"] = self.authority.issue(client_of)
        document = {
            "apiVersion": "v1",
            "kind": "Config",
            "clusters": [
                {"name": "test", "cluster": {"server": self.url, "certificate-authority": self.authority.path}}
            ],
            "users": [{"name": "test", "user": user}],
            "contexts": [{"name": "test", "context": {"cluster": "test", "user": "test"}}],
            "current-context": "test",
        }
        Path(path).write_text(json.dumps(document), encoding="utf-8")
        return str(path)

    def user_of(self, authorization: str, certificate: Mapping[str, Any] | None) -> str:
        """Who sends a request; empty for nobody known."""
        for part in (certificate or {}).get("subject", ()):
            for name, value in part:
                if name == "commonName":
                    return str(value)
        scheme, _, token = authorization.partition(" ")
        return self.tokens.get(token, "") if scheme.lower() == "bearer" else ""

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Listener(http.server.ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], owner: PodServer, context: ssl.SSLContext) -> None:
        self.owner = owner
        self.context = context
        self.address_family = socket.AF_INET6 if ":" in address[0] else socket.AF_INET
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        """HTTPServer's own would ask DNS for this host's name, which takes as long as DNS does when there is none."""
        socketserver.TCPServer.server_bind(self)

    def get_request(self) -> tuple[socket.socket, Any]:
        connection, address = super().get_request()
        # The handshake belongs to the connection's own thread.
        return self.context.wrap_socket(connection, server_side=True, do_handshake_on_connect=False), address

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that goes away, or refuses our certificate, is part of the tests."""


class _Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Listener

    def setup(self) -> None:
        self.request.do_handshake()
        super().setup()

    def do_GET(self) -> None:
        self._serve()

    def do_PATCH(self) -> None:
        self._serve()

    def do_PUT(self) -> None:
        self._serve()

    def _serve(self) -> None:
        owner = self.server.owner
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        user = owner.user_of(self.headers.get("Authorization", ""), self.request.getpeercert())
        if not user:
            self._send(_refuse(401, "Unauthorized", "Unauthorized"))
            return
        delay_s = owner.pods.faults[0].delay_s if owner.pods.faults else 0
        content_type = self.headers.get("Content-Type", "")
        answer = owner.pods.answer(self.command, self.path, user, content_type, json.loads(data) if data else None)
        time.sleep(delay_s)
        self._send(answer)

    def _send(self, answer: Answer) -> None:
        if answer.drop:
            self.close_connection = True
            return
        body = json.dumps(answer.document).encode()
        self.send_response(answer.status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        if answer.retry_after_s:
            self.send_header("Retry-After", str(answer.retry_after_s))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002
        """Requests are recorded, not printed."""
