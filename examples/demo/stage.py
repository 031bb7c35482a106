"""The scenery: a folder and network namespaces of the demo's own, removed at the end whatever happens.

    client 192.0.2.20 ----veth---- 192.0.2.10 node ----cni0 (made by the bridge plugin)---- web-1, web-2

The containers are network namespaces with a web server in each. Nothing outside the folder and these namespaces is
read for configuration or written.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import sys
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cnimeta.testing.netns import Namespace

if TYPE_CHECKING:
    import subprocess
    from collections.abc import Callable, Iterator, Mapping

NODE_IP, NODE_IP6 = "192.0.2.10", "2001:db8::10"
CLIENT_IP, CLIENT_IP6 = "192.0.2.20", "2001:db8::20"

DEBIAN_PLUGINS = "/usr/lib/cni"
"""Where Debian's containernetworking-plugins lie."""

_WEBSERVER = Path(__file__).with_name("webserver.py")
_START_S = 10
_REMOVALS = 100


class Attachment(NamedTuple):
    """A container as a runtime presents it to the plugins."""

    id: str
    netns: Namespace
    args: str = ""
    capability_args: Mapping[str, Any] = {}


class Stage:
    """The namespaces and the folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.bin = folder / "bin"
        self.state = folder / "state"
        self._namespaces: list[Namespace] = []
        self._servers: list[subprocess.Popen[str]] = []
        try:
            self.node = self.namespace("node")
            self.client = self.namespace("client")
            self._join()
        except BaseException:
            self.close()
            raise

    def namespace(self, label: str) -> Namespace:
        """One more network namespace."""
        made = Namespace(label)
        self._namespaces.append(made)
        return made

    def serve(self, container: Namespace, name: str, *ports: int) -> None:
        """Start a container's web server and wait until it listens."""
        server = container.start(sys.executable, "-I", str(_WEBSERVER), name, *map(str, ports))
        self._servers.append(server)
        deadline = time.monotonic() + _START_S
        while len(container.run("ss", "-Hltn").stdout.splitlines()) < len(ports):
            if server.poll() is not None or time.monotonic() > deadline:
                server.kill()
                raise RuntimeError(f"the web server of {name} did not start: {server.communicate()[1].strip()}")
            time.sleep(0.05)

    def cnimeta(self, *words: str) -> str:
        """Run the command line tool in the node; what it printed. Raises RuntimeError with its words if it fails."""
        done = self.node.run(cnimeta_program(), *words, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"cnimeta {' '.join(words[:2])} failed: {(done.stderr + done.stdout).strip()}")
        return done.stdout

    def install(self) -> None:
        """Write the launchers into the stage's folder."""
        self.cnimeta("install", "--bin-dir", str(self.bin))

    def configure(self, conflist: Path) -> Path:
        """Write a conflist with its files moved into the stage's folder; where it is."""
        moved = self.folder / conflist.name
        document = relocated(json.loads(conflist.read_text(encoding="utf-8")), self.state)
        moved.write_text(json.dumps(document, indent=2), encoding="utf-8")
        self.state.mkdir(exist_ok=True)
        return moved

    def run_words(self, verb: str, conflist: Path, attachment: Attachment) -> list[str]:
        """The words of `cnimeta run VERB`, for `cnimeta`."""
        return [
            *("run", verb, "--conflist", str(conflist), "--container-id", attachment.id),
            *("--netns", attachment.netns.path, "--args", attachment.args),
            *("--capability-args", json.dumps(attachment.capability_args)),
            *("--bin-dir", f"{self.bin}:{DEBIAN_PLUGINS}", "--cache-dir", str(self.state)),
        ]

    def close(self) -> None:
        """Stop the servers, remove the namespaces."""
        for server in self._servers:
            server.kill()
            server.communicate()
        for namespace in reversed(self._namespaces):
            namespace.close()

    def _join(self) -> None:
        """Node and client on one wire, with the client as the node's way out (so that it has a default route)."""
        self.node.veth("eth0", self.client, "eth0")
        for namespace, ip, ip6 in ((self.node, NODE_IP, NODE_IP6), (self.client, CLIENT_IP, CLIENT_IP6)):
            namespace.run("ip", "address", "add", f"{ip}/24", "dev", "eth0")
            namespace.run("ip", "address", "add", f"{ip6}/64", "dev", "eth0", "nodad")
        self.node.run("ip", "route", "add", "default", "via", CLIENT_IP)
        self.node.run("ip", "-6", "route", "add", "default", "via", CLIENT_IP6)
        for key in ("net.ipv4.ip_forward", "net.ipv6.conf.all.forwarding"):
            self.node.run("sysctl", "-qw", f"{key}=1")


@contextlib.contextmanager
def raised() -> Iterator[Stage]:
    """A stage, taken down at the end; SIGTERM and SIGHUP end the demo as Ctrl-C does."""
    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.default_int_handler)
    folder = Path(tempfile.mkdtemp(prefix="cnimeta-demo-"))
    stage = None
    try:
        stage = Stage(folder)
        yield stage
    finally:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)  # a second Ctrl-C must not stop the cleaning up
        if stage is not None:
            stage.close()
        _remove(folder)


def _remove(folder: Path) -> None:
    """Remove the folder, again while a plugin that was interrupted still writes its last file into it."""
    for _ in range(_REMOVALS):
        shutil.rmtree(folder, ignore_errors=True)
        if not folder.exists():
            return
        time.sleep(0.05)


def relocated(conflist: Mapping[str, Any], state: Path) -> dict[str, Any]:
    """A copy of a conflist whose files lie under `state` instead of /etc and /var; nothing else differs.

    These are hostport_alloc's and portmap's dataDir, host-local's dataDir and the kubeconfig.
    """
    moved: dict[str, Any] = json.loads(json.dumps(conflist))
    _each_object(moved, lambda part: _relocate(part, state))
    return moved


def _relocate(part: dict[str, Any], state: Path) -> None:
    if part.get("type") in ("hostport_alloc", "portmap"):
        part["dataDir"] = str(state / "cnimeta")
    if part.get("type") == "host-local":
        part["dataDir"] = str(state / "host-local")
    if "kubeconfig" in part:
        part["kubeconfig"] = str(state / "kubeconfig")


def _each_object(value: Any, act: Callable[[dict[str, Any]], None]) -> None:
    if isinstance(value, dict):
        for inner in list(value.values()):
            _each_object(inner, act)
        act(value)
    elif isinstance(value, list):
        for inner in value:
            _each_object(inner, act)


def cnimeta_program() -> str:
    """The `cnimeta` command beside the interpreter that runs this."""
    return os.path.join(os.path.dirname(sys.executable), "cnimeta")
