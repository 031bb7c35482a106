"""What a DaemonSet puts on its node beside the plugins: settings, and credentials of its ServiceAccount.

Each file is written only when it differs, whole, by one rename. The network configuration is not among them: it comes
last, by `cnimeta wrap --own`.
"""

from __future__ import annotations

import json
import os
import tomllib
from typing import TYPE_CHECKING, NamedTuple

from cnimeta.errors import InvalidEnvironment, InvalidNetworkConfig, IoFailure, shown
from cnimeta.host.files import replace_file
from cnimeta.spec.validate import utf8

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

MARK = "# Written by `cnimeta deploy`: change its source, not this copy.\n"
"""First line of settings that are ours to replace. Never change: later versions look for it."""
SETTINGS = "/etc/cnimeta/config.toml"
CREDENTIALS = "/etc/cni/cnimeta"
KUBECONFIG = f"{CREDENTIALS}/kubeconfig"
ACCOUNT = "/var/run/secrets/kubernetes.io/serviceaccount"
_MAX_BYTES = 1 << 20
_PRIVATE, _PUBLIC = 0o600, 0o644


class Placed(NamedTuple):
    """A file as it is to be."""

    path: str
    data: bytes
    mode: int


def settings(text: bytes, path: str = SETTINGS) -> Placed:
    """The node-wide configuration. Raises InvalidNetworkConfig (code 7) for what is no TOML."""
    try:
        tomllib.loads(text.decode())
    except ValueError as error:
        raise InvalidNetworkConfig(f"the settings for {path} are not valid TOML: {error}") from None
    return Placed(path, MARK.encode() + text, _PUBLIC)


def credentials(token: bytes, authority: bytes, environ: Mapping[str, str], folder: str = CREDENTIALS) -> list[Placed]:
    """What a ServiceAccount's token is used with, the kubeconfig last. Raises InvalidEnvironment (code 4)."""
    host, port = environ.get("KUBERNETES_SERVICE_HOST", ""), environ.get("KUBERNETES_SERVICE_PORT", "443")
    utf8("KUBERNETES_SERVICE_HOST", host)
    if not host or any(char.isspace() or char in "/@\"'" for char in host) or not port.isdecimal():
        raise InvalidEnvironment(
            f"KUBERNETES_SERVICE_HOST and _PORT must name the API server, got {shown(host)} and {shown(port)}"
        )
    server = f"https://[{host}]:{port}" if ":" in host else f"https://{host}:{port}"
    cluster = {"server": server, "certificate-authority": f"{folder}/ca.crt"}
    conf = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": "cluster", "cluster": cluster}],
        "users": [{"name": "cnimeta", "user": {"tokenFile": f"{folder}/token"}}],
        "contexts": [{"name": "cnimeta", "context": {"cluster": "cluster", "user": "cnimeta"}}],
        "current-context": "cnimeta",
    }
    return [
        Placed(f"{folder}/token", token, _PRIVATE),
        Placed(f"{folder}/ca.crt", authority, _PUBLIC),
        Placed(f"{folder}/kubeconfig", json.dumps(conf, indent=2).encode() + b"\n", _PRIVATE),
    ]


def put(files: Sequence[Placed]) -> Iterator[str]:
    """Write what differs; a line for each that did. Raises IoFailure (code 5), also for settings of somebody else's."""
    for file in files:
        present = _content(file.path)
        if present == file.data:
            continue
        if file.data.startswith(MARK.encode()) and present is not None and not present.startswith(MARK.encode()):
            raise IoFailure(f"{file.path} was not written by `cnimeta deploy`: move it away, or leave the settings out")
        try:
            os.makedirs(os.path.dirname(file.path), mode=0o755, exist_ok=True)
            replace_file(file.path, file.data, mode=file.mode, temporary=f".tmp-{os.getpid()}-", ending=".new")
        except OSError as error:
            raise IoFailure(f"cannot write {file.path}: {error.strerror or error}") from None
        yield f"{file.path}: written"


def read(path: str) -> bytes:
    """A file that the cluster mounts. Raises IoFailure (code 5)."""
    content = _content(path)
    if content is None:
        raise IoFailure(f"there is no {path}")
    return content


def _content(path: str) -> bytes | None:
    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise IoFailure(f"cannot read {path}: {error.strerror or error}") from None
    if len(data) > _MAX_BYTES:
        raise IoFailure(f"{path} is longer than {_MAX_BYTES} bytes")
    return data
