"""What goes into a sysdump: a name in the archive and how to read it, for each thing of the node that matters."""

from __future__ import annotations

import functools
import itertools
import os
import stat
import sys
from typing import TYPE_CHECKING, NamedTuple

from cnimeta import __version__
from cnimeta.errors import IoFailure
from cnimeta.host.nodeconfig import DEFAULT_PATH, VARIABLE
from cnimeta.host.process import find_program, run_program
from cnimeta.node.doctor.examination import examine
from cnimeta.node.networks import loadable, uses_of
from cnimeta.plugin import launcher, registry
from cnimeta.spec.jsonio import loads_object

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence

    from cnimeta.spec.jsonio import JSON

_PROGRAM_S = 30.0
_FILE_MAX_BYTES = 8 << 20
_PART_BYTES = 1 << 16
"""Read at once: /proc/sys refuses 4 MiB."""
_CACHE = "/var/lib/cni/results"

_PROGRAMS = {
    "rules/nft.txt": ("nft", "list", "ruleset"),
    "rules/iptables.txt": ("iptables-save",),
    "rules/ip6tables.txt": ("ip6tables-save",),
    "network/addresses.txt": ("ip", "-d", "address"),
    "network/routes.txt": ("ip", "route", "show", "table", "all"),
    "network/routes6.txt": ("ip", "-6", "route", "show", "table", "all"),
    "network/queues.txt": ("tc", "-s", "qdisc"),
    "versions/nft.txt": ("nft", "--version"),
    "versions/iptables.txt": ("iptables", "--version"),
    "versions/kernel.txt": ("uname", "-a"),
    "logs/agent.txt": ("journalctl", "--no-pager", "-n", "2000", "-u", "cnimeta-agent"),
    "logs/runtime.txt": (
        *("journalctl", "--no-pager", "-n", "5000", "-g", "cni|CNI|sandbox"),
        *("-u", "containerd", "-u", "crio", "-u", "kubelet"),
    ),
}
_FILES = (
    *("/etc/os-release", "/proc/uptime", "/proc/loadavg", "/proc/meminfo", "/proc/modules"),
    *("/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"),
    *("/proc/sys/net/ipv4/ip_local_port_range", "/proc/sys/net/ipv4/ip_local_reserved_ports"),
    *("/proc/sys/net/ipv4/conf/all/route_localnet", "/proc/sys/net/ipv4/conf/all/rp_filter"),
    *("/proc/sys/net/netfilter/nf_conntrack_count", "/proc/sys/net/netfilter/nf_conntrack_max"),
)


class Item(NamedTuple):
    """One file of the archive. `read` gives its text, or a JSON value; it raises CniError, OSError or ValueError."""

    name: str
    read: Callable[[], bytes | JSON]


def everything(bin_dirs: Sequence[str], net_dir: str) -> Iterator[Item]:
    """All items, in order."""
    yield Item("versions/cnimeta.json", _versions)
    yield Item("doctor.json", lambda: [dict(finding._asdict()) for finding in examine(bin_dirs, net_dir)])
    yield from _folder("networks", net_dir)
    for path in (os.environ.get(VARIABLE) or DEFAULT_PATH,):
        yield Item("settings/config.toml", functools.partial(_text, path))
    for folder in bin_dirs:
        yield Item(f"plugins{folder.replace('/', '_')}.json", functools.partial(_executables, folder))
    yield from _folder("results", _CACHE)
    yield from _of_plugins(net_dir)
    for name, argv in _PROGRAMS.items():
        yield Item(name, functools.partial(_said, argv))
    for path in _FILES:
        yield Item(f"node{path}", functools.partial(_text, path))


def _of_plugins(net_dir: str) -> Iterator[Item]:
    """What each plugin keeps of containers."""
    plugins = loadable()
    uses = list(uses_of(net_dir, plugins))
    for name, plugin in plugins.items():
        for document, read in plugin.dump([conf for _, conf in uses if conf.type == name]):
            yield Item(f"state/{name}/{document}", read)


def _folder(kind: str, folder: str) -> Iterator[Item]:
    """Every file of a folder; JSON as such, so that secrets are told by their keys."""
    try:
        names = sorted(entry.name for entry in os.scandir(folder) if entry.is_file(follow_symlinks=False))
    except FileNotFoundError:
        names = []
    except OSError as error:
        reason = f"{folder}: {error.strerror or error}"
        yield Item(f"{kind}/(folder)", functools.partial(_raise, reason))
        return
    for name in names:
        if not name.endswith(".kubeconfig"):
            yield Item(f"{kind}/{name}", functools.partial(_document, os.path.join(folder, name)))


def _raise(reason: str) -> bytes:
    raise IoFailure(reason)


def _document(path: str) -> bytes | JSON:
    text = _text(path)
    try:
        return loads_object(text, path)
    except IoFailure:
        raise
    except Exception:  # noqa: BLE001 - what is no JSON is shown as the text it is
        return text


def _text(path: str) -> bytes:
    with open(path, "rb") as file:
        parts = iter(lambda: file.read(_PART_BYTES), b"")
        return b"".join(itertools.islice(parts, _FILE_MAX_BYTES // _PART_BYTES))


def _said(argv: Sequence[str]) -> bytes:
    program = find_program(argv[0])
    if program is None:
        raise IoFailure(f"{argv[0]} is not installed")
    done = run_program([program, *argv[1:]], {"LANG": "C.UTF-8"}, timeout_s=_PROGRAM_S)
    if done.status != 0 and not done.stdout:
        raise IoFailure(f"{argv[0]} failed with status {done.status}: {done.complaint}")
    return done.stdout


def _versions() -> JSON:
    from importlib import metadata

    packages: dict[str, JSON] = {str(found.name): str(found.version) for found in metadata.distributions()}
    plugins: dict[str, JSON] = {name: target.plugin for name, target in registry.installed().items()}
    found: dict[str, JSON] = {
        "cnimeta": __version__,
        "folder": launcher.package_folder(),
        "python": sys.version,
        "interpreter": sys.executable,
        "plugins": plugins,
        "packages": packages,
    }
    return found


def _executables(folder: str) -> JSON:
    """What lies in a folder of plugins."""
    found: list[JSON] = []
    for entry in sorted(os.scandir(folder), key=lambda one: one.name):
        status = entry.stat(follow_symlinks=False)
        kind = "folder" if stat.S_ISDIR(status.st_mode) else "launcher" if launcher.is_launcher(entry.path) else "file"
        found.append({"name": entry.name, "kind": kind, "mode": stat.filemode(status.st_mode), "bytes": status.st_size})
    return found
