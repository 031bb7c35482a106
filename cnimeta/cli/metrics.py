"""`cnimeta metrics`: the node's metrics as text: on stdout, as a file for node_exporter, or served to Prometheus."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from cnimeta.errors import CniError, IoFailure
from cnimeta.observe import notes
from cnimeta.observe.metrics import render
from cnimeta.runtime.conf import DEFAULT_FOLDER

if TYPE_CHECKING:
    import argparse

    from cnimeta.observe.totals import Totals
    from cnimeta.plugin.base import Commands

_MODE = 0o644  # node_exporter is not root


def add_commands(commands: Commands) -> None:
    """Add `metrics`."""
    about = "print the node's metrics in Prometheus's text format, write them to a file, or serve them"
    parser = commands.add_parser("metrics", help=about, description=about)
    ways = parser.add_mutually_exclusive_group()
    ways.add_argument(
        *("--output", "--textfile"), metavar="FILE", help="replace this file atomically, a `.prom` of node_exporter's"
    )
    ways.add_argument("--listen", metavar="ADDRESS", help="serve /metrics on HOST:PORT or the path of a socket")
    parser.add_argument("--net-dir", metavar="DIR", default=DEFAULT_FOLDER, help="the configurations (%(default)s)")
    parser.set_defaults(run=_metrics)


def observed_folder() -> str:
    """Where launchers and agent leave their reports."""
    return os.environ.get(notes.VARIABLE) or notes.FOLDER


def _metrics(args: argparse.Namespace) -> int:
    from cnimeta.node.monitor.collected import collected
    from cnimeta.node.networks import loadable

    if args.listen:
        return _serve(args.listen, args.net_dir)
    found, failed = collected(loadable(), args.net_dir, _log, _totals(counting=bool(args.output)))
    text = render(found)
    if args.output:
        _write(args.output, text.encode())
    else:
        sys.stdout.write(text)
    return 1 if failed else 0


def _totals(*, counting: bool) -> Totals | None:
    """What was counted; `counting`: from now on, if it was not before. None where nothing is."""
    from cnimeta.node.monitor.ledger import Ledger

    ledger = Ledger(observed_folder())
    try:
        if (counting or os.path.isdir(ledger.folder)) and ledger.hold():
            ledger.fold()
        return ledger.totals if os.path.isdir(ledger.folder) else None
    except CniError as error:
        _log(f"nothing is counted: {error}")
        return None
    finally:
        ledger.release()


def _serve(address: str, net_dir: str) -> int:
    from cnimeta.node.monitor.address import place_of
    from cnimeta.node.monitor.ledger import Ledger
    from cnimeta.node.monitor.serving import Server
    from cnimeta.node.monitor.watch import Watch
    from cnimeta.node.networks import loadable

    watch = Watch(Ledger(observed_folder()), loadable(), net_dir, _log)
    server = Server(place_of(address), watch.text)
    _log(f"metrics are served on {server.address}")
    watch.run(server)


def _log(line: str) -> None:
    print(f"cnimeta: {line}", file=sys.stderr, flush=True)


def _write(path: str, data: bytes) -> None:
    from cnimeta.host.files import replace_file

    try:
        replace_file(path, data, mode=_MODE, durable=False, temporary=f".tmp-{os.getpid()}-", ending=".tmp")
    except OSError as error:
        raise IoFailure(f"cannot write {path}: {error.strerror or error}") from None
