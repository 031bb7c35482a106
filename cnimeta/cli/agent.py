"""`cnimeta agent`: keep Python and its packages loaded, so that a plugin costs a fork."""

from __future__ import annotations

import os
import signal
import sys
from typing import TYPE_CHECKING

from cnimeta.agent.listening import listen
from cnimeta.agent.peer import own_capabilities
from cnimeta.agent.plugins import Served
from cnimeta.agent.server import ENDING, WORKERS, Agent, Job
from cnimeta.agent.systemd import Manager
from cnimeta.agent.wire import SOCKET
from cnimeta.agent.worker import Service

if TYPE_CHECKING:
    import argparse

    from cnimeta.plugin.base import Commands


def add_commands(commands: Commands) -> None:
    """Add `agent`."""
    parser = commands.add_parser("agent", help="serve launchers installed with --agent, with everything imported")
    parser.add_argument("--socket", default=SOCKET, help="(%(default)s)")
    parser.add_argument(
        "--workers", type=int, default=WORKERS, metavar="N", help="processes that wait for work (%(default)s)"
    )
    parser.add_argument(
        "--deliver", type=float, default=30, metavar="SECONDS", help="how often to write pending annotations; 0: never"
    )
    parser.add_argument(
        "--conf", metavar="FILE", help="hostport_alloc's configuration, for --deliver; default: as `ports`"
    )
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # until it serves: one that comes meanwhile is not lost
    os.umask(0o022)
    manager = Manager()
    served = Served(_log)
    listening = listen(args.socket)
    jobs = []
    if args.deliver > 0:
        jobs.append(Job("deliver", args.deliver, lambda: _deliver(["--conf", args.conf] if args.conf else [])))
    service = Service(served.plugins, served.code, own_capabilities(), _log)
    if Agent(listening, service, jobs=jobs, workers=args.workers, manager=manager).serve():
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        os.environ.update({**listening.pass_on(), **manager.environ()})
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - no shell, and no new process: the socket goes along
    listening.close()
    return 0


def _log(line: str) -> None:
    print(f"cnimeta agent: {line}", file=sys.stderr, flush=True)


def _deliver(options: list[str]) -> None:
    """`cnimeta ports deliver`. What stays pending, and why, is in `cnimeta ports`."""
    from cnimeta.cli.main import main

    nothing = os.open("/dev/null", os.O_RDWR)
    for descriptor in (1, 2):
        os.dup2(nothing, descriptor)
    main(["ports", "deliver", *options])
