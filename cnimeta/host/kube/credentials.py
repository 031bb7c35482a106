"""Server and credentials, from a kubeconfig, the cluster's own files or the node's. Runs in the helper process.

The `kubernetes` package's loader reads them; it knows every way there is, credential plugins (`exec`) among them, which
it runs as this user: who may write a kubeconfig decides what this user runs. What it says when it fails may quote what
is secret, so the document is looked at first, and a failure is told by where it is.
"""

from __future__ import annotations

import errno
import os
import stat

from cnimeta.errors import IoFailure, legible, shown
from cnimeta.host.reading import retried, told
from cnimeta.host.values import PodApiError

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping
    from typing import Any

NODE_KUBECONFIGS = (
    "/etc/kubernetes/kubelet.conf",
    "/var/lib/kubelet/kubeconfig",
    "/var/lib/rancher/k3s/agent/kubelet.kubeconfig",
    "/var/lib/rancher/rke2/agent/kubelet.kubeconfig",
    "/var/snap/microk8s/current/credentials/kubelet.config",
)
"""Where nodes keep the kubelet's own credentials: kubeadm, kubelet's default, k3s, RKE2, MicroK8s."""

_MAX_BYTES = 1 << 20
_FILES = {"cluster": ("certificate-authority",), "user": ("client-certificate", "client-key", "tokenFile")}
_GIVES_CREDENTIALS = ("token", "tokenFile", "exec", "auth-provider", "client-certificate", "client-certificate-data")


def load(kubeconfig: str, environ: Mapping[str, str], folder: str) -> tuple[Any, str]:
    """A client Configuration with server and credentials, and what it was read from.

    folder: for the files that are made of inline certificates and keys. Raises PodApiError with status 0.
    """
    from kubernetes import client, config

    user: Mapping[str, Any] = {}
    where = kubeconfig or "the credentials that the cluster gives its Pods"
    configuration = client.Configuration()
    try:
        if not kubeconfig and environ.get("KUBERNETES_SERVICE_HOST"):
            config.load_incluster_config(client_configuration=configuration)
        else:
            where = kubeconfig or _node_kubeconfig()
            document, user = _checked(where)
            config.kube_config.KubeConfigLoader(  # read once, by the parser in C
                document, config_base_path=os.path.dirname(os.path.abspath(where)), temp_file_path=folder
            ).load_and_set(configuration)
    except PodApiError:
        raise
    except Exception as error:  # noqa: BLE001 - it may quote what it read
        raise _missing(f"cannot load {where} ({type(error).__name__})") from None
    given = [key for key in _GIVES_CREDENTIALS if key in user]
    if "exec" in given and not configuration.api_key and not configuration.cert_file:
        raise _missing(
            f"cannot load {where}: its credential plugin {shown(_command(user))} gave no credentials;"
            " run it by hand to see why"
        )
    configuration.proxy = None
    return configuration, where


def authorization(configuration: Any, where: str) -> dict[str, str]:
    """The header that carries the token; none without a token."""
    setting = configuration.auth_settings().get("BearerToken")
    value = str(setting["value"] or "").strip() if setting else ""
    scheme, _, token = value.partition(" ")
    token = token.strip()
    if not token:
        return {}
    if not (token.isascii() and token.isprintable()):
        raise _missing(f"cannot load {where}: its token has a character that no HTTP header may hold")
    return {"Authorization": f"{scheme} {token}"}


def server_of(url: str) -> str:
    """A server's URL for messages: without what else it may hold, a password among it."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(url)
        host, port = parts.hostname or "", parts.port
    except ValueError:
        return "the server"
    host = f"[{host}]" if ":" in host else host
    return legible(f"{parts.scheme}://{host}{f':{port}' if port else ''}", 200)


def _checked(path: str) -> tuple[dict[str, Any], Mapping[str, Any]]:
    """A kubeconfig, and the user that its current context names. PodApiError for one that the loader would not take."""
    import yaml

    if not _is_file(path):
        raise _missing(f"kubeconfig {path} does not exist")
    try:
        document = yaml.load(_content(path), Loader=getattr(yaml, "CSafeLoader", yaml.SafeLoader))  # noqa: S506
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark is not None else ""
        raise _missing(f"cannot load {path}: it is not YAML{line}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise _missing(f"cannot load {path} ({type(error).__name__})") from None
    document = _object(path, document, "the document")
    context = _object(
        path, _named(path, document, "contexts", document.get("current-context")).get("context"), "context"
    )
    cluster = _object(path, _named(path, document, "clusters", context.get("cluster")).get("cluster"), "cluster")
    user = _object(path, _named(path, document, "users", context.get("user")).get("user") or {}, "user")
    server = cluster.get("server")
    if not isinstance(server, str) or not server.startswith(("https://", "http://")):
        raise _missing(f"cannot load {path}: the cluster's server is no http(s) URL")
    for part, keys in ((cluster, _FILES["cluster"]), (user, _FILES["user"])):
        for key in keys:
            _refuse_missing(path, part, key)
    return document, user


def _named(path: str, document: Mapping[str, Any], section: str, name: object) -> Mapping[str, Any]:
    entries = document.get(section)
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and name is not None and entry.get("name") == name:
            return entry
    key = "current-context" if section == "contexts" else f"the context's {section[:-1]}"
    raise _missing(f"cannot load {path}: {key} is {shown(name)}, which {section} does not have")


def _object(path: str, value: object, what: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _missing(f"cannot load {path}: {what} is no object")
    return value


def _refuse_missing(path: str, part: Mapping[str, Any], key: str) -> None:
    name = part.get(key)
    if not name or f"{key}-data" in part or (key == "tokenFile" and part.get("token")):
        return
    file = os.path.join(os.path.dirname(os.path.abspath(path)), str(name))
    if not _is_file(file):
        raise _missing(f"cannot load {path}: {key} {shown(file)} is not there, or no file")


def _command(user: Mapping[str, Any]) -> str:
    plugin = user.get("exec")
    return str(plugin.get("command", "")) if isinstance(plugin, dict) else ""


def _content(path: str) -> bytes:
    with open(path, "rb", buffering=0) as file:
        data = file.read(_MAX_BYTES + 1)
    if len(data) > _MAX_BYTES:
        raise _missing(f"cannot load {path}: it is longer than {_MAX_BYTES} bytes")
    return data


def _is_file(path: str) -> bool:
    """Raises PodApiError where it cannot be told: other credentials than the ones there must not be used."""
    try:
        found = told(path, lambda: retried(lambda: os.stat(path)), (errno.ENOENT, errno.ENOTDIR))
    except IoFailure as error:
        raise _missing(error.msg) from None
    return found is not None and stat.S_ISREG(found.st_mode)


def _node_kubeconfig() -> str:
    for path in NODE_KUBECONFIGS:
        if _is_file(path):
            return path
    raise _missing(f"no credentials: set kubernetes.kubeconfig; looked for {', '.join(NODE_KUBECONFIGS)}")


def _missing(message: str) -> PodApiError:
    return PodApiError(0, "NoCredentials", legible(message, 1000))
