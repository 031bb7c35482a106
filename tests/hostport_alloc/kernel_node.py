"""A node on a real kernel: namespaces of its own, Debian's plugins and our launchers, run as a runtime runs them."""

from __future__ import annotations

import json
import os
import re
import sqlite3
import subprocess
import sys
from typing import TYPE_CHECKING, Any

from cnimeta.agent.wire import VARIABLE
from cnimeta.cli.install import install
from cnimeta.testing.agent import forbid_working_alone

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from cnimeta.testing.netns import Namespace

DEBIAN = "/usr/lib/cni"
SERVER = """
import socket, sys
family = socket.AF_INET6
with socket.create_server(("::", int(sys.argv[1])), family=family, dualstack_ipv6=True) as server:
    print("ready", flush=True)
    while True:
        connection, _ = server.accept()
        connection.sendall(sys.argv[2].encode())
        connection.close()
"""
CLIENT = """
import socket, sys
try:
    with socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=1) as connection:
        print(connection.recv(100).decode())
except OSError:
    print("")
"""
NATIVE = "CNIMETA_TEST_NATIVE"
"""With CNIMETA_AGENT: the launchers that ask it are native."""
POD_ARGS = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=0a-1b"


class Failed(Exception):
    """The plugin answered with an error."""

    def __init__(self, error: dict[str, Any]) -> None:
        super().__init__(error["msg"])
        self.code = error["code"]
        self.details = error.get("details", "")


class Killed(Exception):
    """The plugin died of a signal."""


class KernelNode:
    """A node with a client beside it, both namespaces; the plugin runs as a runtime would start it."""

    def __init__(self, make: Callable[[str], Namespace], folder: Path, plugins: tuple[str, ...]) -> None:
        self.make = make
        self.folder = folder
        self.bin = folder / "bin"
        self.bin.mkdir()
        self.agent = os.environ.get(VARIABLE, "")
        install(str(self.bin), plugins, agent=bool(self.agent), native=bool(self.agent and os.environ.get(NATIVE)))
        for name in plugins if self.agent else ():
            forbid_working_alone(self.bin / name)
        self.node, self.client = make("node"), make("client")
        self.node.veth("up0", self.client, "eth0")
        self.node.run("ip", "addr", "add", "192.0.2.10/24", "dev", "up0")
        self.client.run("ip", "addr", "add", "192.0.2.20/24", "dev", "eth0")
        self.containers: dict[str, Namespace] = {}
        self.processes: list[subprocess.Popen[str]] = []

    def conf(self, **keys: Any) -> dict[str, Any]:
        return {
            "cniVersion": "1.0.0",
            "name": "pods",
            "type": "hostport_alloc",
            "ranges": {"default": "20000-20099"},
            "expose": ["80/tcp"],
            "delegates": [self.bridge()],
            "dataDir": str(self.folder / "state"),
            **keys,
        }

    def bridge(self) -> dict[str, Any]:
        return {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipMasq": False,
            "hairpinMode": True,
            "ipam": {
                "type": "host-local",
                "ranges": [[{"subnet": "10.88.0.0/16"}]],
                "routes": [{"dst": "0.0.0.0/0"}],
                "dataDir": str(self.folder / "leases"),
            },
        }

    def container(self, name: str) -> Namespace:
        if name not in self.containers:
            self.containers[name] = self.make(name)
        return self.containers[name]

    def call(
        self,
        verb: str,
        conf: dict[str, Any],
        name: str = "c1",
        *,
        netns: str | None = None,
        args: str = "",
        under: tuple[str, ...] = (),
    ) -> dict[str, Any]:
        environ = {
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": name,
            "CNI_IFNAME": "eth0",
            "CNI_NETNS": self.container(name).path if netns is None else netns,
            "CNI_ARGS": args,
            "CNI_PATH": f"{self.bin}:{DEBIAN}",
            "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
            **({VARIABLE: self.agent} if self.agent else {}),
        }
        done = subprocess.run(
            [
                "ip",
                "netns",
                "exec",
                self.node.name,
                "env",
                "-i",
                *(f"{key}={value}" for key, value in environ.items()),
                *under,
                str(self.bin / "hostport_alloc"),
            ],
            input=json.dumps(conf),
            capture_output=True,
            text=True,
            cwd="/",
            check=False,
        )
        assert "Traceback" not in done.stderr
        answer = (
            json.loads(done.stdout) if done.stdout.strip() else {"code": -1, "msg": f"no answer, only: {done.stderr}"}
        )
        if done.returncode < 0 or done.returncode > 128:
            raise Killed
        if done.returncode != 0:
            raise Failed(answer)
        return answer

    def serve(self, name: str, port: int = 80) -> None:
        process = self.container(name).start(sys.executable, "-c", SERVER, str(port), f"hello from {name}")
        self.processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"

    def fetch(self, port: int, *, source: Namespace | None = None, address: str = "192.0.2.10") -> str:
        done = (source or self.client).run(sys.executable, "-c", CLIENT, address, str(port))
        return done.stdout.strip()

    def record(self, name: str = "c1") -> dict[str, Any] | None:
        return self.records().get(name)

    def records(self) -> dict[str, dict[str, Any]]:
        """Every record of the state, by container."""
        path = self.folder / "state" / "cnimeta.db"
        if not path.exists():
            return {}
        connection = sqlite3.connect(path)
        try:
            found = connection.execute("SELECT container_id, document FROM attachments").fetchall()
        finally:
            connection.close()
        return {name: json.loads(document)["record"] for name, document in found}

    def ports(self, name: str = "c1") -> list[int]:
        record = self.record(name)
        return [port["hostPort"] for port in record["ports"]] if record is not None else []

    def rules(self) -> str:
        """Every rule, map element and chain that belongs to a container."""
        text = self.node.run("nft", "list", "ruleset", check=False).stdout
        return "\n".join(line for line in text.splitlines() if re.search(r"CNI-DN-|10\.88\.\d+\.[1-9]", line))

    def leases(self) -> list[str]:
        return sorted(path.name for path in (self.folder / "leases").rglob("10.88.*"))

    def close(self) -> None:
        for process in self.processes:
            process.terminate()
            process.communicate()


def assert_nothing_left(node: KernelNode) -> None:
    assert node.rules() == ""
    assert node.leases() == []
    assert node.records() == {}
