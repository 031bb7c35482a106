"""`cnimeta agent`: keep Python and its packages loaded, so that a plugin costs a fork."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from cnimeta.agent.plugins import Served
from cnimeta.agent.server import Agent
from cnimeta.agent.wire import SOCKET

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from cnimeta.plugin.base import Commands


def add_commands(commands: Commands) -> None:
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
    served = Served(lambda line: print(f"cnimeta agent: {line}", file=sys.stderr))
    os.umask(0o022)
    Agent(args.socket, served.plugins, served.is_current, _deliverer(args.deliver, args.conf)).serve()
    return 0


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
