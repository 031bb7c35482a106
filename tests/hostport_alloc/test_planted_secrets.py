"""A secret in every place that may hold one comes out nowhere: not in answers, on stderr, in logs, records, or the doctor."""

from __future__ import annotations

import base64
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hostile_api import HostileServer, http, status_object
from hostport_harness import DATA_DIR, POD_ARGS, Node, conf

from cnimeta.errors import CniError
from cnimeta.host.clock import SystemClock
from cnimeta.host.kube.api import KubernetesPodApi
from cnimeta.spec.netconf import NetConf
from cnimeta_plugins.hostport_alloc.operator.examine import examine
from cnimeta_plugins.hostport_alloc.operator.formats import FORMATS, rendered
from cnimeta_plugins.hostport_alloc.operator.listing import entries_of

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytestmark = pytest.mark.unit

SECRET = "hunter2-of-a-test"
ENCODED = base64.b64encode(SECRET.encode()).decode()


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[HostileServer]:
    with HostileServer(tmp_path_factory.mktemp("ca")) as one:
        yield one


class ApiNode(Node):
    """A node with the real adapter and the real time."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = SystemClock()  # type: ignore[assignment]

    def _pods(self, kubeconfig: str) -> Any:
        return KubernetesPodApi(kubeconfig)


def program(folder: Path, code: str) -> str:
    path = folder / "credentials"
    path.write_text(f"#!{sys.executable} -IS\nimport sys\n{code}\n")
    path.chmod(0o755)
    return str(path)


def token_file(folder: Path) -> str:
    (folder / "token").write_text(SECRET)
    return str(folder / "token")


Places = "dict[str, Callable[[Path], dict[str, Any]]]"
USERS: Places = {
    "token": lambda _: {"token": SECRET},
    "token that no header can hold": lambda _: {"token": f"{SECRET}\r\n{SECRET}"},
    "token file": lambda folder: {"tokenFile": token_file(folder)},
    "username and password": lambda _: {"username": "admin", "password": SECRET},
    "inline key": lambda _: {"client-certificate-data": ENCODED, "client-key-data": ENCODED},
    "key that is no base64": lambda _: {"client-certificate-data": f"!{SECRET}", "client-key-data": f"!{SECRET}"},
    "what a credential plugin prints": lambda folder: {
        "exec": {"apiVersion": "v1", "command": program(folder, f"print('{SECRET}'); sys.exit('{SECRET}')")}
    },
    "arguments of a credential plugin": lambda _: {
        "exec": {"apiVersion": "v1", "command": "/bin/false", "args": [SECRET], "env": [{"name": "A", "value": SECRET}]}
    },
    "impersonation": lambda _: {"token": "other-token", "as": SECRET},
    "auth provider": lambda _: {
        "auth-provider": {
            "name": "oidc",
            "config": {"id-token": SECRET, "refresh-token": SECRET, "client-secret": SECRET},
        }
    },
}
SERVERS: dict[str, Callable[[str], str]] = {
    "as it is": lambda url: url,
    "a password in its URL": lambda url: url.replace("https://", f"https://admin:{SECRET}@"),
    "nobody there": lambda _: f"https://admin:{SECRET}@127.0.0.1:9",
    "no such name": lambda _: f"https://admin:{SECRET}@none.invalid",
    "a query": lambda url: f"{url}/?token={SECRET}",
}


CASES = [(user, "as it is") for user in USERS]
CASES += [(user, server) for user in ("token", "inline key") for server in SERVERS if server != "as it is"]


@pytest.mark.parametrize(("user", "server"), CASES)
def test_secret_comes_out_nowhere(
    running: HostileServer, tmp_path: Path, capfd: pytest.CaptureFixture[str], user: str, server: str
) -> None:
    heard: list[bytes] = []
    running.heard = heard.append

    def behave(connection: Any) -> None:
        """Repeats what it was sent."""
        lines = heard[-1].decode("latin-1").split("\r\n")
        sent = next((line for line in lines if line.lower().startswith("authorization")), "nobody")
        echo = status_object(f"{sent} is not who you are: {sent.rpartition(' ')[2]}", "Unauthorized")
        connection.sendall(http(echo, "403 Forbidden"))

    running.behave = behave
    kubeconfig = Path(running.kubeconfig(tmp_path / "kubeconfig", **USERS[user](tmp_path)))
    kubeconfig.write_text(kubeconfig.read_text().replace(running.url, SERVERS[server](running.url)))
    node = ApiNode()
    said: list[str] = []
    for policy in ("deferred", "required"):
        api = {"kubeconfig": str(kubeconfig), "timeout": 2, "policy": policy}
        settings = {**conf(kubernetes=api), "cniVersion": "1.1.0"}
        for attempt in (
            lambda given=settings: node.call("ADD", given, args=POD_ARGS),
            lambda given=settings: node.call("GC", given),
            lambda given=settings: said.extend(examine(node.wiring, NetConf(given))),  # noqa: B023
        ):
            try:
                attempt()
            except CniError as error:
                said += [json.dumps(error.as_json("1.1.0")), str(error)]
    entries = entries_of(node.store)
    assert entries
    said += [rendered(entries, form) for form in FORMATS]
    said += node.databases.connections[DATA_DIR].iterdump()
    said += [*node.log, *capfd.readouterr()]
    told = "\n".join(said)
    for secret in (SECRET, ENCODED, base64.b64encode(f"admin:{SECRET}".encode()).decode()):
        assert secret not in told.replace(str(tmp_path), "")
