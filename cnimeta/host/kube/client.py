"""The helper's side of the Pod API, on the official `kubernetes` client: PATCH pods/status, GET pods and GET nodes.

The client's configuration loader finds server, CA and credentials, and its HTTP pool sends the request. The generated
model classes stay out: an annotation needs none. Proxies named in the environment are ignored: a runtime's environment
says nothing about the way to the API server. Credentials are read once, and again after a 401, so that a rotated token
or certificate is picked up.

What peers and packages say never leaves as it is: a failure is told in words of this module, and of what the server
says only a Status object's reason and message, shortened, printable and without the token.
"""

from __future__ import annotations

import os

from cnimeta.errors import legible
from cnimeta.host.kube.credentials import authorization, load, server_of
from cnimeta.host.values import PodApiError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

    from cnimeta.spec.jsonio import JSON

MERGE_PATCH = "application/merge-patch+json"
BODY_MAX_BYTES = 4 << 20
"""Of an answer. The API server itself takes objects up to 3 MiB."""
_KEPT = ("uid", "annotations", "labels")
_NODES = "/api/v1/nodes/"
_REASON_MAX, _MESSAGE_MAX = 64, 400
_SECRET_MIN = 6
"""Shorter ones are ordinary words to a message, and no secret to anybody."""
_RETRY_AFTER_MAX_S = 86400.0
_OWN_SHARE = 0.9
"""Of the time there is: then a silent server is told of here, where connection and credentials are kept."""


class Server:
    """Serves requests as `api.py` writes them: JSON in, JSON out."""

    def __init__(self, kubeconfig: str, environ: Mapping[str, str]) -> None:
        self._kubeconfig = kubeconfig
        self._environ = environ
        self._client: Client | None = None

    def serve(self, data: bytes) -> bytes:
        """One request."""
        from cnimeta.spec.fields import Fields
        from cnimeta.spec.jsonio import dumps, loads_object

        request = Fields(loads_object(data))
        timeout_s = float(str(request.get("timeout")))
        try:
            pod = self._asked(request.text("verb"), request.text("path"), request.get("body"), timeout_s)
            answer: JSON = {"pod": pod}
        except PodApiError as error:
            answer = {"error": error.encoded()}
        return dumps(answer).encode()

    def _asked(self, verb: str, path: str, body: JSON, timeout_s: float) -> dict[str, JSON]:
        fresh = self._client is None
        client = self._connected()
        if not verb:
            return {}
        try:
            return client.request(verb, path, body, timeout_s)
        except PodApiError as error:
            if error.status == 401:
                self._client = None  # the next attempt reads the credentials again
                if not fresh:
                    return self._connected().request(verb, path, body, timeout_s)
            raise

    def _connected(self) -> Client:
        if self._client is None:
            self._client = Client(self._kubeconfig, self._environ)
        return self._client


class Client:
    """One set of credentials and the connections made with it. Raises PodApiError with status 0 when there are none."""

    def __init__(self, kubeconfig: str, environ: Mapping[str, str]) -> None:
        import shutil
        import tempfile

        # Where the loader writes keys that are inside the kubeconfig; it makes the folder when there are any.
        folder = os.path.join(tempfile.gettempdir(), f"cnimeta-{os.urandom(16).hex()}")
        try:
            configuration, where = load(kubeconfig, environ, folder)
            self._url = configuration.host.rstrip("/")
            self._shown = server_of(self._url)
            self._authorization = authorization(configuration, where)
            self._pool = _pool(configuration, where)
        finally:
            if os.path.isdir(folder):  # unknown: what cannot be looked at cannot be removed either
                shutil.rmtree(folder, ignore_errors=True)

    def request(self, verb: str, path: str, body: JSON, timeout_s: float) -> dict[str, JSON]:
        """Send one request; the metadata of the Pod or Node, and the addresses of the latter."""
        status, data, retry_after = self._exchange(verb, path, body, timeout_s)
        from cnimeta.errors import CniError
        from cnimeta.spec.jsonio import loads

        try:
            document = loads(data)
        except CniError:  # unknown: a proxy's error page
            document = None
        content = document if isinstance(document, dict) else {}
        if not 200 <= status < 300:
            raise self._failure(status, content, retry_after)
        metadata = content.get("metadata")
        kind = "Node" if path.startswith(_NODES) else "Pod"
        if content.get("kind") != kind or not isinstance(metadata, dict):
            raise PodApiError(0, "NotAPod", f"HTTP {status} from {self._shown} without a {kind}: is it the API server?")
        found: dict[str, JSON] = {"metadata": {key: metadata[key] for key in _KEPT if key in metadata}}
        if kind == "Node":
            state = content.get("status")
            found["addresses"] = state.get("addresses") if isinstance(state, dict) else None
        return found

    def _exchange(self, verb: str, path: str, body: JSON, timeout_s: float) -> tuple[int, bytes, str]:
        """HTTP status, body and Retry-After."""
        import urllib3

        from cnimeta.spec.jsonio import dumps

        headers = {"Accept": "application/json", "User-Agent": "cnimeta", **self._authorization}
        if body is not None:
            headers["Content-Type"] = MERGE_PATCH
        try:
            answer = self._pool.request(
                verb,
                self._url + path,
                body=None if body is None else dumps(body).encode(),
                headers=headers,
                timeout=urllib3.Timeout(total=_OWN_SHARE * timeout_s),
                retries=False,
                preload_content=False,
                decode_content=False,
            )
            try:
                data = answer.read(BODY_MAX_BYTES + 1)
            except BaseException:
                answer.close()
                raise
        except Exception as error:  # noqa: BLE001 - told in words of ours, whatever it was
            raise PodApiError(0, "NoAnswer", f"no answer from {self._shown}: {_why(error)}") from None
        if len(data) > BODY_MAX_BYTES:
            answer.close()
            raise PodApiError(
                0,
                "NotAPod",
                f"the answer of {self._shown} is longer than {BODY_MAX_BYTES} bytes: is it the API server?",
            )
        answer.release_conn()
        return answer.status, data, answer.headers.get("Retry-After", "")

    def _failure(self, status: int, content: Mapping[str, Any], retry_after: str) -> PodApiError:
        """A PodApiError from a Status object (or whatever else came with the HTTP status)."""
        number = retry_after if retry_after.isascii() and retry_after.isdigit() else "0"
        return PodApiError(
            status,
            self._told(content.get("reason"), _REASON_MAX),
            self._told(content.get("message"), _MESSAGE_MAX) or "no Status object in the answer",
            min(float(number[:20]), _RETRY_AFTER_MAX_S),
        )

    def _told(self, text: object, limit: int) -> str:
        """What the server says. One that says our token again must not get it into a log."""
        if not isinstance(text, str):
            return ""
        for value in self._authorization.values():
            for part in (value, value.partition(" ")[2]):
                text = text.replace(part, "[token]") if len(part) >= _SECRET_MIN else text
        return legible(text, limit)


def _pool(configuration: Any, where: str) -> Any:
    """The client's HTTP pool. Certificates are read now: the files of those inside a kubeconfig are about to go."""
    from kubernetes.client.rest import RESTClientObject
    from urllib3.util.ssl_ import create_urllib3_context

    try:
        pool = RESTClientObject(configuration).pool_manager
        given = pool.connection_pool_kw
        context = create_urllib3_context(cert_reqs=given.get("cert_reqs"))
        authority, inline = given.pop("ca_certs", None), given.pop("ca_cert_data", None)
        if authority or inline:
            context.load_verify_locations(authority, cadata=inline)
        else:
            context.load_default_certs()
        certificate, key = given.pop("cert_file", None), given.pop("key_file", None)
        if certificate:
            context.load_cert_chain(certificate, key)
    except (OSError, ValueError) as error:  # ssl.SSLError is an OSError
        raise PodApiError(0, "NoCredentials", f"cannot load {where}: a certificate in it: {_why(error)}") from None
    given["ssl_context"] = context
    return pool


def _why(error: BaseException) -> str:
    """What went wrong, in words that hold nothing of what was sent or received."""
    import ssl

    import urllib3

    for cause in _causes(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return f"its certificate is not accepted: {legible(str(cause.verify_message), 120)}"
        if isinstance(cause, ssl.SSLError):
            return f"TLS failed: {legible(str(cause.reason or 'no reason told'), 60)}"
        if isinstance(cause, urllib3.exceptions.NameResolutionError):
            return "its name cannot be resolved"
        if isinstance(cause, urllib3.exceptions.TimeoutError | TimeoutError):
            return "the time ran out"
        if isinstance(cause, OSError) and cause.errno:
            return os.strerror(cause.errno)
        if isinstance(cause, ConnectionError):
            return "the connection was cut"
    return f"it does not speak HTTP as it should ({type(error).__name__})"


def _causes(error: BaseException) -> list[BaseException]:
    """The exception and those it was made of, the innermost first."""
    found: list[BaseException] = []
    pending: list[object] = [error]
    while pending and len(found) < 16:
        one = pending.pop(0)
        if isinstance(one, BaseException) and one not in found:
            found.append(one)
            pending += [one.__cause__, one.__context__, *one.args]
    return found[::-1]
