"""A node in namespaces of its own, with containers on it, where one command after another runs in a fork of its own.

c0 is there before and after, whatever fails; c1 is the one that commands are for; c2 is the one that GC takes away; c3
comes and goes while a command for c1 is held.
"""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import pkgutil
import re
import sqlite3
import subprocess
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from look import SYSTEM, look, run
from sandbox import bind, fresh_network

import cnimeta.delegate
import cnimeta.host
import cnimeta.spec
import cnimeta.store
import cnimeta_plugins.bandwidth
import cnimeta_plugins.hostport_alloc
import cnimeta_plugins.portmap
from cnimeta.cli.install import install
from cnimeta.plugin.dispatch import run as dispatch
from cnimeta.plugin.registry import load

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable

    from cnimeta.plugin.base import Plugin

DATA, BIN, LEASES = "/run/state", "/run/bin", "/run/leases"
CONTAINERS = ("c0", "c1", "c2", "c3")
BRIDGE = """#!/bin/sh
# A delegate of somebody else's: an address for each container, a file for each address.
conf=$(cat)
lease=/run/leases/$CNI_CONTAINERID
case $CNI_COMMAND in
ADD)
  echo "$CNI_IFNAME" > "$lease"
  echo '{"cniVersion":"1.1.0","interfaces":[{"name":"v'${CNI_CONTAINERID#c}'"},{"name":"eth0","sandbox":"'$CNI_NETNS'"}],' \\
    '"ips":[{"address":"10.88.0.1'${CNI_CONTAINERID#c}'/16","interface":1}]}' ;;
DEL) rm -f "$lease" ;;
CHECK) [ -f "$lease" ] || { echo '{"cniVersion":"1.1.0","code":101,"msg":"no lease"}'; exit 1; } ;;
GC) for one in /run/leases/*; do
    case $conf in *'"'${one##*/}'"'*) ;; *) rm -f "$one" ;; esac
  done ;;
esac
"""


def preload() -> None:
    """Import what a command imports on its way, so that its calls are those of its work."""
    parts = (cnimeta.host, cnimeta.spec, cnimeta.store, cnimeta.delegate)
    parts += (cnimeta_plugins.portmap, cnimeta_plugins.bandwidth, cnimeta_plugins.hostport_alloc)
    for package in parts:
        for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
            importlib.import_module(module.name)
    for name in (
        "iptc",
        "filelock",
        "pyroute2",
        "json",
        "ssl",
        "http.client",
        "cnimeta.plugin.unexpected",
        "traceback",
    ):
        importlib.import_module(name)


class Stage:
    """The node: namespaces, interfaces and the programs in BIN. Made once, inside `sandbox.inside`."""

    def __init__(self, targets: dict[str, Any], *, shaped: bool, iptables: str = "nft", agent: str = "") -> None:
        """shaped: whether interfaces, queues and filters are looked at. agent: the kind of launcher that asks one."""
        self.shaped = shaped
        preload()
        for folder in (DATA, LEASES):
            os.mkdir(folder, 0o700)
        install(BIN, sorted(targets), agent=bool(agent), native=agent == "native")
        if iptables != "nft":
            Path(BIN, "iptables").symlink_to(f"/usr/sbin/iptables-{iptables}")
        Path(BIN, "bridge").write_text(BRIDGE, encoding="ascii")
        Path(BIN, "bridge").chmod(0o755)
        self.targets = targets
        self._interfaces()

    def _interfaces(self) -> None:
        run("ip", "-batch", "-", stdin="link add br0 type bridge\nlink set br0 up\naddr add 10.88.0.1/16 dev br0\n")
        run("ip", "route", "add", "default", "dev", "br0")
        for number, name in enumerate(CONTAINERS):
            path = f"/run/netns/{name}"
            Path(path).touch()
            with fresh_network():
                bind("/proc/thread-self/ns/net", path)
            run("ip", "link", "add", f"v{number}", "type", "veth", "peer", "name", "eth0", "netns", path)
            run("ip", "link", "set", f"v{number}", "up", "master", "br0")
            run("nsenter", f"--net={path}", "ip", "link", "set", "eth0", "up")

    def plugin(self, name: str) -> Plugin:
        return load(self.targets[name])

    def state(self) -> frozenset[str]:
        """Everything that commands leave on the node, as lines; times and counters left out."""
        seen = look("/nowhere")
        found = {*seen.ours, *seen.others, *seen.settings}
        found |= {f"lease {name}" for name in os.listdir(LEASES)}
        if not self.shaped:
            return frozenset(found | set(_files()) | set(_rows()))
        queues = re.sub(r"direct_packets_stat \d+ ", "", run("tc", "qdisc", "show"))
        found |= {f"qdisc {line}" for line in queues.splitlines() if "noqueue" not in line}
        for link in json.loads(run("ip", "-j", "link", "show")):
            found.add(f"link {link['ifname']} {link.get('txqlen')}")
            ours = link["ifname"].startswith(("v", "bwp"))
            filters = shell("tc", "filter", "show", "dev", link["ifname"], "ingress") if ours else ""
            found |= {f"filter {link['ifname']} {line.strip()}" for line in filters.splitlines()}
        return frozenset(found | set(_files()) | set(_rows()))

    def settled(self, wanted: frozenset[str]) -> frozenset[str]:
        """The state, once it is `wanted` or half a second has gone: an interface goes when its last user has."""
        deadline = time.monotonic() + 0.5
        while (found := self.state()) != wanted and time.monotonic() < deadline:
            time.sleep(0.02)
        return found


def _files() -> Iterable[str]:
    for folder, _, names in os.walk(DATA):
        for name in names:
            path = os.path.join(folder, name)
            if not re.match(r"cnimeta\.db|sequence|reserve|probe", name) and "locks" not in folder:
                text = Path(path).read_text(encoding="utf-8", errors="replace")
                yield f"{os.path.relpath(path, DATA)} {text}"


def _rows() -> Iterable[str]:
    if not os.path.exists(f"{DATA}/cnimeta.db"):
        return
    with contextlib.closing(sqlite3.connect(f"{DATA}/cnimeta.db")) as connection:
        connection.text_factory = lambda data: data.decode("utf-8", "replace")
        for row in connection.execute("SELECT network, container_id, ifname, document FROM attachments"):
            yield f"attachment {row}"
        query = "SELECT protocol, port, host_ip, container_id FROM ports"
        for row in connection.execute(query):
            yield f"port {row}"
        for protocol, bits in connection.execute("SELECT protocol, bits FROM bitmaps"):
            if any(bits):
                yield f"bits {protocol} {sum(byte.bit_count() for byte in bits)}"


def environ(verb: str, name: str) -> dict[str, str]:
    """What a runtime sets."""
    found = {"CNI_COMMAND": verb, "CNI_PATH": BIN, "PATH": f"{BIN}:{SYSTEM}", "CNIMETA_CONFIG": "/run/no-such-file"}
    if verb in ("ADD", "DEL", "CHECK"):
        found |= {"CNI_CONTAINERID": name, "CNI_IFNAME": "eth0", "CNI_NETNS": f"/run/netns/{name}"}
        found["CNI_ARGS"] = f"IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME={name};K8S_POD_UID=uid-{name}"
    return found


def launched(
    name: str, verb: str, container: str, conf: dict[str, Any], socket: dict[str, str]
) -> Callable[[], NoReturn]:
    """A command as a runtime runs it; the process becomes the launcher. `socket`: the variable that names the agent's."""

    def become() -> NoReturn:
        given = os.memfd_create("conf")
        os.write(given, json.dumps(conf).encode())
        os.lseek(given, 0, os.SEEK_SET)
        os.dup2(given, 0)
        os.dup2(os.open("/run/said", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2)
        os.execve(f"{BIN}/{name}", [name], environ(verb, container) | socket)

    return become


def command(plugin: Callable[[], Plugin], verb: str, name: str, conf: dict[str, Any]) -> Callable[[], dict[str, Any]]:
    """A command as a process runs it; its answer, and what it logged."""

    def serve() -> dict[str, Any]:
        os.environ.update(PATH=f"{BIN}:{SYSTEM}")
        lines: list[str] = []
        outcome = dispatch(plugin(), environ(verb, name), json.dumps(conf).encode(), lines.append)
        return {"status": outcome.status, "stdout": outcome.stdout, "log": lines}

    return serve


def forked(work: Callable[[], dict[str, Any]]) -> tuple[int, int]:
    """A command in a fork of its own: its process ID, and the descriptor to read its answer from, as JSON."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            text = json.dumps(work())
        except BaseException as error:  # noqa: BLE001 - told to the test
            text = json.dumps({"status": -1, "stdout": repr(error), "log": []})
        with contextlib.suppress(OSError), open(writer, "wb", closefd=False) as stream:
            stream.write(text.encode())
        os._exit(0)
    os.close(writer)
    return pid, reader


def plain(work: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    """The answer of a command in a fork of its own, with nothing in its way."""
    pid, reader = forked(work)
    with open(reader, "rb") as stream:
        text = stream.read().decode()
    os.waitpid(pid, 0)
    found: dict[str, Any] = json.loads(text)
    return found


def strays(known: set[int], within_s: float = 2.0, more: Callable[[], set[int]] = set) -> list[str]:
    """The processes of this process namespace that are not known: what a command left running.

    Those that sleep off the kernel's grace periods after the answer are given the time for it. `more`: what is known
    besides, asked anew each time.
    """
    deadline = time.monotonic() + within_s
    while (found := _others(known | more())) and time.monotonic() < deadline:
        reap()
        time.sleep(0.02)
    return found


def descended(from_: set[int]) -> set[int]:
    """These processes and all that they, or theirs, have started."""
    parents = {}
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError), open(f"/proc/{name}/stat", "rb") as file:
            parents[int(name)] = int(file.read().rpartition(b") ")[2].split()[1])
    found = set(from_)
    while more := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= more
    return found


def _others(known: set[int]) -> list[str]:
    found = []
    for name in os.listdir("/proc"):
        with contextlib.suppress(OSError):
            if name.isdigit() and int(name) not in known:
                state = Path(f"/proc/{name}/stat").read_text(encoding="ascii", errors="replace").rpartition(") ")[2][0]
                if state not in "ZX":
                    found.append(f"{name} {words_of(int(name))}")
    return found


def words_of(pid: int) -> str:
    """The command line of a process; empty when it is gone."""
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode("utf-8", "replace")
    return ""


def reap() -> None:
    """This process is init here: what has lost its parent is its to wait for."""
    with contextlib.suppress(ChildProcessError):
        while os.waitpid(-1, os.WNOHANG)[0]:
            pass


def shell(*words: str) -> str:
    """A program of the test's; its failure is none."""
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout
