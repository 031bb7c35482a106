"""`cnimeta agent`: keep Python and its packages loaded, so that a plugin costs a fork."""

from __future__ import annotations

import gc
import importlib
import os
import sys
import time
from typing import TYPE_CHECKING

from cnimeta.agent.server import Agent
from cnimeta.agent.wire import SOCKET
from cnimeta.launcher import PLUGINS, package_folder

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from cnimeta.plugin.base import Plugin

PRELOADED = (
    "filelock",
    "pyroute2",
    "kubernetes.client",
    "kubernetes.config",
    "ssl",
    "json",
    "ctypes",
    "cnimeta.host.nftables.program",
    "cnimeta.host.conntrack",
    "cnimeta.host.links.kernel",
    "cnimeta.host.kube",
    "cnimeta.host.lock",
    "cnimeta.host.portscan",
    "cnimeta.host.sockets",
    "cnimeta.host.addresses",
    "cnimeta.delegate.call",
    "cnimeta.delegate.inprocess",
    "cnimeta.delegate.spawn",
    "cnimeta_plugins.portmap.wiring",
    "cnimeta_plugins.portmap.nftables.backend",
    "cnimeta_plugins.bandwidth.shaper",
    "cnimeta_plugins.bandwidth.config",
    "cnimeta_plugins.hostport_alloc.verbs.add",
    "cnimeta_plugins.hostport_alloc.verbs.delete",
    "cnimeta_plugins.hostport_alloc.pod.annotation",
    "cnimeta_plugins.hostport_alloc.state.store",
)
"""What the plugins import on their way, so that no invocation does. One that is not installed is left out."""


def add_command(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `agent`."""
    parser = commands.add_parser("agent", help="serve launchers installed with --agent, with everything imported")
    parser.add_argument("--socket", default=SOCKET, help="(%(default)s)")
    parser.add_argument(
        "--deliver", type=float, default=30, metavar="SECONDS", help="how often to write pending annotations; 0: never"
    )
    parser.add_argument(
        "--conf", metavar="FILE", help="hostport_alloc's configuration, for --deliver; default: as `ports`"
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    plugins = load()
    files = _sources()
    started = _stamps(files)
    os.umask(0o022)
    Agent(args.socket, plugins, lambda: _stamps(files) == started, _deliverer(args.deliver, args.conf)).serve()
    return 0


def load() -> dict[str, Callable[[], Plugin]]:
    """The installed plugins by target, everything they need imported, and its memory shared by all forks."""
    plugins = {}
    for target in PLUGINS.values():
        module, _, name = target.partition(":")
        try:
            plugins[target] = getattr(importlib.import_module(module), name)
        except ImportError as error:
            print(f"cnimeta agent: {module} is left out: {error}", file=sys.stderr)
    for name in PRELOADED:
        try:
            importlib.import_module(name)
        except ImportError:
            continue
    if "cnimeta.host.links.kernel" in sys.modules:
        from cnimeta.host.links.tc import token_bucket

        token_bucket(1, 1000, 1000, 1000, 15.625)  # pyroute2's definitions are made with the first message
    gc.collect()
    gc.freeze()  # a collection in a fork would copy every page
    return plugins


def _sources() -> list[str]:
    """Every source file of the packages."""
    packages = [package_folder()]
    if "cnimeta_plugins" in sys.modules:
        packages.append(sys.modules["cnimeta_plugins"].__path__[0])
    found = [(folder, name) for package in packages for folder, _, names in os.walk(package) for name in names]
    return [os.path.join(folder, name) for folder, name in found if name.endswith(".py")]


def _stamps(files: list[str]) -> list[tuple[int, int, int]]:
    """What changes when a file does; empty when one is gone. 0.2 ms."""
    try:
        stats = [os.stat(path) for path in files]
    except OSError:
        return []
    return [(one.st_ino, one.st_size, one.st_mtime_ns) for one in stats]


def _deliverer(seconds: float, conf: str | None) -> Callable[[], None]:
    """What the agent does between invocations: `cnimeta ports deliver`, in a process of its own."""
    due = time.monotonic() + seconds

    def deliver() -> None:
        nonlocal due
        if seconds <= 0 or time.monotonic() < due:
            return
        due = time.monotonic() + seconds
        if os.fork() == 0:
            _deliver(["--conf", conf] if conf else [])

    return deliver


def _deliver(options: list[str]) -> None:
    """Never returns. What stays pending, and why, is in `cnimeta ports`."""
    try:
        from cnimeta.cli.main import main

        nothing = os.open("/dev/null", os.O_RDWR)
        for descriptor in (1, 2):
            os.dup2(nothing, descriptor)
        main(["ports", "deliver", *options])
    finally:
        os._exit(0)
