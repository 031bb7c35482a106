"""`cnimeta agent`: keep Python and its packages loaded, so that a plugin costs a fork."""

from __future__ import annotations

import os
import signal
import socket
import sys
from typing import TYPE_CHECKING

from cnimeta import __version__
from cnimeta.agent.listening import listen
from cnimeta.agent.log import Log
from cnimeta.agent.peer import own_capabilities
from cnimeta.agent.plugins import Served
from cnimeta.agent.server import ENDING, WORKERS, Agent, Job
from cnimeta.agent.systemd import Manager
from cnimeta.agent.wire import HELLO, PATIENCE_S, SOCKET, Broken, receive
from cnimeta.agent.worker import Service
from cnimeta.cli.metrics import observed_folder
from cnimeta.errors import CniError, IoFailure
from cnimeta.host.spool import Spool
from cnimeta.node.monitor.address import place_of
from cnimeta.node.monitor.collected import process_ticks
from cnimeta.node.monitor.ledger import Ledger
from cnimeta.node.monitor.watch import Watch
from cnimeta.observe.logline import FORMATS, TEXT
from cnimeta.plugin.launcher import package_folder
from cnimeta.plugin.report import event, line
from cnimeta.runtime.conf import DEFAULT_FOLDER

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable
    from typing import Any

    from cnimeta.agent.listening import Listening
    from cnimeta.plugin.base import Commands, Plugin
    from cnimeta.spec.jsonio import JSON

_AGAIN_S = 5.0
"""What ends that should not is started anew no sooner."""


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
    parser.add_argument("--own", action="store_true", help="keep our own configuration in step: wrap --own --keep")
    parser.add_argument("--metrics", metavar="ADDRESS", help="serve /metrics on HOST:PORT or the path of a socket")
    parser.add_argument("--traces", action="store_true", help="export spans, as OTEL_EXPORTER_OTLP_ENDPOINT says")
    parser.add_argument("--net-dir", metavar="DIR", default=DEFAULT_FOLDER, help="the configurations (%(default)s)")
    parser.add_argument("--log-format", choices=FORMATS, default=TEXT, help="of what it logs (%(default)s)")
    parser.add_argument("--probe", action="store_true", help="serve nobody: ask the agent whether it answers")
    parser.set_defaults(run=_run)


def _run(args: argparse.Namespace) -> int:
    if args.probe:
        return _probe(args.socket)
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)  # until it serves: one that comes meanwhile is not lost
    os.umask(0o022)
    if args.metrics:
        place_of(args.metrics)
    manager = Manager()
    spool, problem = _spool()
    log = Log(args.log_format, spool)
    if problem:
        log.warning(problem)
    served = Served(log)
    listening = listen(args.socket)
    service = Service(served.plugins, served.code, own_capabilities(), log, spool, args.traces)
    _tell_start(args, served, listening, log, spool)
    agent = Agent(listening, service, jobs=_jobs(args, served, log, spool), workers=args.workers, manager=manager)
    if agent.serve():
        signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
        os.environ.update({**listening.pass_on(), **manager.environ()})
        os.execv(sys.executable, sys.orig_argv)  # noqa: S606 - no shell, and no new process: the socket goes along
    listening.close()
    return 0


def _spool() -> tuple[Spool | None, str]:
    """Where reports are left. Without one, the agent serves all the same, and says why nothing is counted."""
    try:
        return Spool.made(observed_folder()), ""
    except (CniError, OSError) as error:
        return None, f"nothing is counted: {error}"


def _probe(path: str) -> int:
    """0 when an agent answers on the socket, as it answers a launcher; 1 and why."""
    with socket.socket(socket.AF_UNIX) as connection:
        connection.settimeout(PATIENCE_S)
        try:
            connection.connect(path)
            heard = receive(connection, len(HELLO))
        except (OSError, Broken) as error:
            raise IoFailure(f"no agent answers on {path}: {getattr(error, 'strerror', None) or error}") from None
    if heard != HELLO:
        raise IoFailure(f"what answers on {path} is an agent of another protocol, or refuses")
    return 0


def _tell_start(args: argparse.Namespace, served: Served, listening: Listening, log: Log, spool: Spool | None) -> None:
    plugins = ",".join(sorted(plugin.name for plugin in served.plugins.values()))
    log.info(
        "started",
        version=__version__,
        pid=os.getpid(),
        python=sys.version.split()[0],
        folder=package_folder(),
        socket=listening.path,
        plugins=plugins,
        workers=args.workers,
        deliver=args.deliver,
        own=args.own,
        metrics=args.metrics or "",
        traces=args.traces,
    )
    if spool is not None:
        about: dict[str, JSON] = {"pid": os.getpid(), "ticks": process_ticks(os.getpid()), "version": __version__}
        about.update(folder=package_folder(), socket=listening.path)
        spool.append(line(event("agent started", None, **about)))


def _jobs(args: argparse.Namespace, served: Served, log: Log, spool: Spool | None) -> list[Job]:
    """What it does beside serving, each in a process of its own."""
    jobs = []
    if spool is not None:
        plugins = {plugin.name: plugin for plugin in served.plugins.values()}
        jobs.append(Job("watch", _AGAIN_S, lambda: _watch(args, plugins, log), lasting=True))
    if args.deliver > 0:
        options = ["--conf", args.conf] if args.conf else []
        jobs.append(Job("deliver", args.deliver, lambda: _deliver(options, log)))
    return jobs


def _watch(args: argparse.Namespace, plugins: dict[str, Plugin], log: Log) -> None:
    """Add up what is reported, serve it, and export it."""
    keepers = [plugin.keeper(args.net_dir, log.info) for plugin in plugins.values()] if args.own else []
    looks = [keeper for keeper in keepers if keeper is not None]
    watch = Watch(Ledger(observed_folder()), plugins, args.net_dir, log, keepers=looks, export=_export(args, log))
    server = None
    if args.metrics:
        from cnimeta.node.monitor.serving import Server

        server = Server(place_of(args.metrics), watch.text)
        log.info("metrics are served", address=server.address)
    watch.run(server)


def _export(args: argparse.Namespace, log: Log) -> Callable[[list[dict[str, Any]]], None]:
    """What is done with reports beside adding them up."""
    if args.traces:
        from cnimeta.node.monitor.export import Export

        try:
            return Export()
        except CniError as error:
            log.error(str(error))
    return lambda _: None


def _deliver(options: list[str], log: Log) -> None:
    """`cnimeta ports deliver`. What stays pending, and why, is in `cnimeta ports`."""
    import json

    from cnimeta.cli.main import main

    kept = log.kept()
    nothing, said = os.open("/dev/null", os.O_RDWR), os.memfd_create("said")
    os.dup2(said, 1)
    os.dup2(nothing, 2)
    main(["ports", "deliver", "--json", *options])
    sys.stdout.flush()
    try:
        found = json.loads(os.pread(said, 1 << 16, 0))
    except ValueError:
        return  # nothing to deliver to: `cnimeta doctor` tells of configurations
    if any(found[name] for name in ("written", "dropped", "failed")):
        kept.info("annotations delivered", **{name: int(value) for name, value in found.items()})
