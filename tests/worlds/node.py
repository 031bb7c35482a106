"""A node with a world's containers, made in the calling process's own namespaces (see sandbox.py).

What may be unusual about a node (`World.host`): `localnet-all`: net.ipv4.conf.all.route_localnet is 1;
`settings-sealed`: /proc/sys is read-only; `nft-refuses`: the nft program answers "Operation not supported";
`all-processes`: every process of the machine is seen, so that it can be told whether a namespace is gone.
"""

from __future__ import annotations

import dataclasses
import importlib
import json
import os
import pkgutil
import signal
import subprocess
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from look import SYSTEM, Look, look, run
from others import FLOW, Others
from sandbox import bind, entered, fresh_network, seal, unmount

import cnimeta.host
import cnimeta_plugins.portmap
from cnimeta.plugin.dispatch import run as dispatch
from cnimeta_plugins.portmap.main import Portmap

if TYPE_CHECKING:
    from collections.abc import Iterable

    from worlds import Attachment, World

DATA = "/run/state"
BIN = "/run/bin"
_REFUSING = "#!/bin/sh\necho 'Error: Operation not supported' >&2\nexit 1\n"


def preload() -> None:
    """Import what the plugin imports when it is called: each world is run by a fork of this process."""
    for package in (cnimeta.host, cnimeta_plugins.portmap):
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)
    importlib.import_module("iptc")


preload()


@dataclass(frozen=True)
class Answer:
    """What one call gave: exit status, stdout, the code of its error document (0 without one), its message."""

    status: int
    stdout: str
    code: int
    msg: str


class Box:
    """A container's namespace under the path that the runtime gives."""

    def __init__(self, name: str, kind: str) -> None:
        self.kind = kind
        self.pid = 0
        self.path = f"/run/netns/{name}"
        if kind == "proc":
            self.pid = _sleeper()
            self.path = f"/proc/{self.pid}/ns/net"
        else:
            self._show()
        self.fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)

    def _show(self) -> None:
        """A new namespace, bound to the path."""
        with open(self.path, "a", encoding="ascii"):
            pass
        with fresh_network():
            bind("/proc/thread-self/ns/net", self.path)

    def _end(self) -> None:
        os.close(self.fd)
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        else:
            unmount(self.path)

    def die(self) -> None:
        """The namespace and its path go."""
        self._end()
        if not self.pid:
            os.unlink(self.path)

    def stale(self) -> None:
        """The namespace goes; of a bind mount the file stays."""
        self._end()

    def reuse(self) -> None:
        """The namespace goes; the path leads to another one, by the same name or the same process ID."""
        self._end()
        if self.pid:
            self.pid = _sleeper(self.pid)
        else:
            self._show()

    def hide(self) -> None:
        """The path goes, the namespace lives: a process is in it."""
        with entered(self.fd):
            subprocess.Popen(["sleep", "infinity"])
        if self.pid:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        else:
            unmount(self.path)
            os.unlink(self.path)


def _sleeper(pid: int = 0) -> int:
    """A process with a network namespace of its own; `pid` when it has to have a certain number."""
    with fresh_network():
        if pid:
            with open("/proc/sys/kernel/ns_last_pid", "w", encoding="ascii") as file:
                file.write(str(pid - 1))
        return os.posix_spawn("/bin/sleep", ["sleep", "infinity"], {})


class Node:
    """The node of a world: this very process's namespace, with an interface that all containers are reached by."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.variant = "legacy" if world.backend == "iptables-legacy" else "nft"
        self.others = Others(self.variant, BIN)
        self.boxes: dict[str, Box] = {}
        self.log: list[str] = []
        self._programs()
        lines = "link add br0 type bridge\nlink set br0 up\naddr add 192.0.2.1/24 dev br0\nroute add default dev br0\n"
        lines += "addr add 2001:db8:1::1/64 dev br0 nodad\n"
        run("ip", "-batch", "-", stdin=lines)
        run("ip", "-6", "route", "add", "default", "dev", "br0")
        if "localnet-all" in world.host:
            with open("/proc/sys/net/ipv4/conf/all/route_localnet", "w", encoding="ascii") as file:
                file.write("1")
        if "settings-sealed" in world.host:
            seal("/proc/sys")

    def _programs(self) -> None:
        os.makedirs(BIN)  # first in PATH
        for stem in ("iptables", "ip6tables"):
            for suffix in ("", "-save", "-restore"):
                os.symlink(f"/usr/sbin/{stem}-{self.variant}{suffix}", f"{BIN}/{stem}{suffix}")
        if "nft-refuses" in self.world.host:
            with open(f"{BIN}/nft", "w", encoding="ascii") as file:
                file.write(_REFUSING)
            os.chmod(f"{BIN}/nft", 0o755)

    def box(self, attachment: Attachment) -> Box:
        """The namespace of the attachment's container, made when first asked for."""
        name = attachment.container
        if name not in self.boxes:
            # A process ID can be given anew in a namespace of its own only: the machine's are everybody's.
            kind = "bind" if "all-processes" in self.world.host else attachment.netns
            self.boxes[name] = Box(str(len(self.boxes)), kind)
        return self.boxes[name]

    def environ(self, verb: str, attachment: Attachment | None, netns: str) -> dict[str, str]:
        """What a runtime sets."""
        found = {"CNI_COMMAND": verb, "CNI_PATH": "/usr/lib/cni", "PATH": f"{BIN}:{SYSTEM}"}
        found |= {"CNIMETA_CONFIG": "/run/no-such-file"}
        if attachment is not None:
            found |= {"CNI_CONTAINERID": attachment.container, "CNI_IFNAME": attachment.ifname, "CNI_NETNS": netns}
        return found

    def conf(self, attachment: Attachment, verb: str, how: str) -> dict[str, Any]:
        """The configuration of a call. CHECK is asked in a version that has it."""
        if verb == "CHECK" and attachment.version == "0.3.1":
            attachment = dataclasses.replace(attachment, version="1.0.0")
        conf = attachment.conf(self.world.backend, self.box(attachment).path, DATA)
        if how == "bare":
            del conf["runtimeConfig"], conf["prevResult"]
        return conf

    def call(self, verb: str, attachment: Attachment, how: str = "") -> Answer:
        """ADD, CHECK or DEL."""
        netns = {"nowhere": "", "own": "/proc/self/ns/net"}.get(how, self.box(attachment).path)
        return self.ask(self.environ(verb, attachment, netns), self.conf(attachment, verb, how))

    def gc(self, network: str, valid: Iterable[Attachment]) -> Answer:
        """GC of one network."""
        listed = [{"containerID": a.container, "ifname": a.ifname} for a in valid if a.network == network]
        conf = {"cniVersion": "1.1.0", "name": network, "type": "portmap", "dataDir": DATA}
        conf |= {"backend": self.world.backend.partition("-")[0], "cni.dev/valid-attachments": listed}
        return self.ask(self.environ("GC", None, ""), conf)

    def ask(self, environ: dict[str, str], conf: dict[str, Any]) -> Answer:
        """One call, in this process: the same text in and text out as of the launcher."""
        outcome = dispatch(Portmap(), environ, json.dumps(conf).encode(), self.log.append)
        return read_answer(outcome.status, outcome.stdout)

    def look(self) -> Look:
        """The node now."""
        return look(DATA, flows=FLOW in self.others.there)


def read_answer(status: int, stdout: str) -> Answer:
    """The answer's parts. Raises ValueError when stdout is neither empty nor one JSON document."""
    document = json.loads(stdout) if stdout else {}
    if not isinstance(document, dict):
        raise TypeError(f"the answer is no object: {stdout}")
    return Answer(status, stdout, document.get("code", 0), document.get("msg", ""))
