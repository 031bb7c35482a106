"""A node for interop tests: a network namespace, and a /var/lib of its own around every program.

cnitool's cache is always in /var/lib/cni; a private mount keeps it inside the test.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from pathlib import Path

    from cnimeta.testing.netns import Namespace

DEBIAN_PLUGINS = "/usr/lib/cni"
PRIVATE = 'mount --bind "$0" /var/lib; exec "$@"'
CNIMETA = (sys.executable, "-m", "cnimeta.cli.main")


class Failed(Exception):
    """A program's exit status was not 0."""

    def __init__(self, done: subprocess.CompletedProcess[str]) -> None:
        super().__init__(f"{done.args}: {done.returncode}: {done.stdout} {done.stderr}")
        self.done = done

    @property
    def error(self) -> dict[str, Any]:
        """The CNI error on stdout."""
        found: dict[str, Any] = json.loads(self.done.stdout)
        return found


class Node:
    """A node with one container. `bin_dirs` is CNI_PATH."""

    def __init__(self, folder: Path, make_netns: Callable[[str], Namespace], *bin_dirs: str) -> None:
        self.namespace = make_netns("node")
        self.pod = make_netns("pod")
        self.folder = folder
        self.conf_dir = folder / "net.d"
        self.conf_dir.mkdir()
        self.path = ":".join((*bin_dirs, DEBIAN_PLUGINS))
        (folder / "lib" / "cni").mkdir(parents=True)
        self.namespace.run("sysctl", "-qw", "net.ipv4.ip_forward=1")
        self.namespace.run("ip", "address", "add", "192.0.2.10/32", "dev", "lo")
        self.cache = folder / "lib" / "cni" / "results"

    def configure(self, conflist: Mapping[str, Any]) -> str:
        """Write a list into the node's configuration folder."""
        path = self.conf_dir / f"{conflist['name']}.conflist"
        path.write_text(json.dumps(conflist), encoding="utf-8")
        return str(path)

    def run(self, *command: str, environ: Mapping[str, str] | None = None) -> str:
        """Run a program in the node. Raises Failed."""
        wrapped = ["unshare", "--mount", "sh", "-ec", PRIVATE, str(self.folder / "lib"), *command]
        done = subprocess.run(
            ["ip", "netns", "exec", self.namespace.name, *wrapped],
            check=False,
            capture_output=True,
            text=True,
            cwd="/",
            env={"PATH": os.environ["PATH"], **(environ or {})},
        )
        if done.returncode != 0:
            raise Failed(done)
        return done.stdout

    def cnimeta(self, verb: str, network: str, *options: str, capability_args: Any = None) -> str:
        """`cnimeta run VERB` on the container, with the identity and the cache that cnitool would use."""
        named = ["--name", network, "--net-dir", str(self.conf_dir), "--netns", self.pod.path]
        if capability_args is not None:
            named += ["--capability-args", json.dumps(capability_args)]
        return self.run(*CNIMETA, "run", verb, *named, "--bin-dir", self.path, *options)

    def cnitool(self, tool: str, verb: str, network: str, *, capability_args: Any = None) -> str:
        """`cnitool VERB` on the container."""
        environ = {"CNI_PATH": self.path, "NETCONFPATH": str(self.conf_dir)}
        if capability_args is not None:
            environ["CAP_ARGS"] = json.dumps(capability_args)
        return self.run(tool, verb, network, self.pod.path, environ=environ)

    def cached(self) -> list[dict[str, Any]]:
        """What the cache holds."""
        if not self.cache.is_dir():
            return []
        return [json.loads(path.read_text(encoding="utf-8")) for path in sorted(self.cache.iterdir())]

    def reach(self, address: str, port: int, pod_port: int) -> str:
        """Connect from the node to an address that leads to the pod; the address that the pod sees."""
        with self.pod.entered():
            server = socket.create_server(("", pod_port))
        with server:
            server.settimeout(5)
            with self.namespace.entered():
                client = socket.create_connection((address, port), timeout=5)
            with client:
                connection, peer = server.accept()
                connection.close()
        return str(peer[0])

    def footprint(self) -> dict[str, list[str]]:
        """What plugins leave on a node: interfaces, rules, queues, leases, cached results."""
        links = json.loads(self.namespace.run("ip", "-j", "link").stdout)
        leases = [path.name for path in (self.folder / "leases").rglob("*") if path.name[0].isdigit()]
        return {
            "links": sorted(link["ifname"] for link in links if link["ifname"] not in ("lo", "br0")),
            "pod": sorted(link["ifname"] for link in json.loads(self.pod.run("ip", "-j", "link").stdout)),
            "rules": [line for line in self.namespace.run("iptables-save").stdout.splitlines() if self.is_ours(line)],
            "queues": [line for line in self.namespace.run("tc", "qdisc").stdout.splitlines() if " tbf " in line],
            "leases": leases,
            "cache": [entry["containerId"] for entry in self.cached()],
        }

    @staticmethod
    def is_ours(line: str) -> bool:
        """Rules for one container: chains that belong to no container stay by design."""
        return line.startswith("-A") and ("CNI-DN-" in line or "10.77.0." in line)


CLEAN = {"links": [], "pod": ["lo"], "rules": [], "queues": [], "leases": [], "cache": []}
