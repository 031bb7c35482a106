"""A node in namespaces of its own, and a client beside it.

Every folder of the machine that a runtime and the plugins write to (/etc/cni, /opt/cni, /var/lib/cni, /run/netns, …) is
a tmpfs of a private mount namespace, and the node's network is a network namespace; nothing of the machine itself is
changed.
"""

from __future__ import annotations

import contextlib
import glob
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cnimeta.testing.netns import Namespace

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import TypeVar

    T = TypeVar("T")

NODE, CLIENT = "10.200.0.1", "10.200.0.2"
PLUGINS = "/opt/cni/bin"
_TMPFS = ("/etc/cni", "/opt/cni", "/var/lib/cni", "/run/netns")
_DEBIAN_PLUGINS = ("bridge", "host-local", "loopback")
_LOOK = """
nft -s list ruleset
for family in iptables ip6tables; do $family-save | sed 's/ \\[[0-9:]*\\]$//'; done
ip -o link | cut -d: -f2
find /var/lib/cni /run/netns -type f 2>/dev/null | sort
"""
_KEPT = ("/last_reserved_ip.0", "/lock")  # host-local's files that belong to no container
_STATE = (
    "/cnimeta/locks",
    "/cnimeta/portmap-locks",
    "/cnimeta/cnimeta.db",
    "/cnimeta/sequence",
    "/cnimeta/reserve",
)  # what is in it, `ports` tells


class PrivateNode:
    """What it starts logs into `folder`. tmpfs: folders to be private beside CNI's own."""

    def __init__(self, folder: Path, *tmpfs: str) -> None:
        self.folder, self.tmpfs = folder, (*_TMPFS, *tmpfs)
        self.environ: dict[str, str] = {}
        self.node, self.client = Namespace("node"), Namespace("client")
        self.running: dict[str, subprocess.Popen[bytes]] = {}
        self._holder: subprocess.Popen[bytes] | None = None

    # --- commands on the node --------------------------------------------------------------------------

    def command(self, *words: str) -> list[str]:
        """The words as a command in the node's namespaces."""
        assert self._holder is not None
        where = ["--target", str(self._holder.pid), "--mount", f"--net={self.node.path}", f"--wd={self.folder}"]
        return ["nsenter", *where, "env", *(f"{key}={value}" for key, value in self.environ.items()), *words]

    def run(self, *words: str, stdin: str = "", check: bool = True) -> subprocess.CompletedProcess[str]:
        """Run a program on the node."""
        done = subprocess.run(
            self.command(*words), input=stdin, check=False, capture_output=True, text=True, timeout=120
        )
        assert not check or done.returncode == 0, (words, done.stdout, done.stderr)
        return done

    def cnimeta(self, *words: str) -> subprocess.CompletedProcess[str]:
        """The command on the node."""
        return self.run(str(Path(sys.executable).with_name("cnimeta")), *words, check=False)

    def path(self, path: str) -> Path:
        """A path of the node as this process reaches it."""
        assert self._holder is not None
        return Path(f"/proc/{self._holder.pid}/root{path}")

    def configure(self, network: Mapping[str, Any], folder: str = "/etc/cni/net.d") -> None:
        """Write a network configuration list."""
        self.run("mkdir", "-p", folder)
        self.run("tee", f"{folder}/10-{network['name']}.conflist", stdin=json.dumps(network))

    # --- what is seen ------------------------------------------------------------------------------------

    def fetch(self, port: int, page: str = "", address: str = NODE) -> str:
        """What the client beside the node gets; the server in the container may need a moment."""
        url = f"http://{address}:{port}/{page}"
        program = f"import urllib.request as r; print(r.urlopen({url!r}, timeout=2).read().decode())"

        def answer() -> str:
            return self.client.run(sys.executable, "-c", program, check=False).stdout.strip()

        return eventually(answer, f"answer from {url}", 10)

    def footprint(self) -> list[str]:
        """What plugins leave on a node, line by line: rules, interfaces, files."""
        listed = self.run("sh", "-c", _LOOK).stdout.splitlines()
        kept = (line.endswith(_KEPT) or line.startswith("#") or any(name in line for name in _STATE) for line in listed)
        return [line for line, stays in zip(listed, kept, strict=True) if not stays]

    def allocated(self) -> list[dict[str, Any]]:
        """What hostport_alloc has given out."""
        return list(json.loads(self.cnimeta("ports", "--json").stdout))

    # --- life --------------------------------------------------------------------------------------------

    def prepare(self) -> None:
        """Namespaces, links, folders, plugins."""
        self._link()
        keep = ["unshare", "--mount", "--propagation", "private", "sleep", "100000"]
        self._holder = holder = subprocess.Popen(["nsenter", f"--net={self.node.path}", *keep])
        mine = os.readlink("/proc/self/ns/mnt")
        eventually(lambda: os.readlink(f"/proc/{holder.pid}/ns/mnt") != mine, "mount namespace")
        for place in self.tmpfs:
            os.makedirs(place, exist_ok=True)
            self.run("mount", "-t", "tmpfs", "tmpfs", place)
        self.run("mkdir", "-p", "/etc/cni/net.d", PLUGINS)
        self.run("cp", *(f"/usr/lib/cni/{name}" for name in _DEBIAN_PLUGINS), PLUGINS)
        assert self.cnimeta("install", "--bin-dir", PLUGINS).returncode == 0
        self.run("sysctl", "-qw", "net.ipv4.ip_forward=1")

    def close(self) -> None:
        """End everything that was started; the tmpfs and the network go with their namespaces."""
        for name in list(self.running):
            self.end(name)
        if self._holder is not None:
            self._holder.kill()
            self._holder.wait()
        for pattern in ("/sys/fs/cgroup", "/sys/fs/cgroup/*"):
            for place in glob.glob(f"{pattern}/{self.node.name}"):
                os.rmdir(place)
        self.node.close()
        self.client.close()

    def start(self, name: str, *words: str) -> None:
        """Start a program on the node that runs until `end` or `close`."""
        with open(self.folder / f"{name}.log", "ab") as log:
            # nsenter and env become the program, so the process is the program's own
            self.running[name] = subprocess.Popen(self.command(*words), stdout=log, stderr=log)

    def end(self, name: str) -> None:
        """End what was started under this name."""
        process = self.running.pop(name, None)
        if process is not None:
            process.send_signal(signal.SIGCONT)
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(15)
            process.kill()
            process.wait()

    def _link(self) -> None:
        self.client.veth("kcl0", self.node, "eth0")
        self.node.run("ip", "addr", "add", f"{NODE}/24", "dev", "eth0")
        self.client.run("ip", "addr", "add", f"{CLIENT}/24", "dev", "kcl0")
        self.node.run("ip", "route", "add", "default", "via", CLIENT)


def eventually(look: Callable[[], T], what: str, seconds: float = 60, pause_s: float = 0.1) -> T:
    """The first true answer of `look`."""
    until = time.monotonic() + seconds
    while not (found := look()):
        assert time.monotonic() < until, f"no {what} after {seconds:g} s"
        time.sleep(pause_s)
    return found
