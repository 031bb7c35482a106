"""`cnimeta metrics`: the node's metrics as text, on stdout or as a file for node_exporter's textfile collector."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from cnimeta import __version__
from cnimeta.errors import CniError, IoFailure
from cnimeta.observe.metrics import Metric, Sample, gauge, render
from cnimeta.runtime.conf import DEFAULT_FOLDER

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable

    from cnimeta.plugin.base import Commands, Plugin

_MODE = 0o644  # node_exporter is not root


def add_commands(commands: Commands) -> None:
    """Add `metrics`."""
    about = "print the node's metrics in Prometheus's text format, or write them to a file"
    parser = commands.add_parser("metrics", help=about, description=about)
    parser.add_argument("--output", metavar="FILE", help="replace this file atomically, a `.prom` of node_exporter's")
    parser.add_argument("--net-dir", metavar="DIR", default=DEFAULT_FOLDER, help="the configurations (%(default)s)")
    parser.set_defaults(run=_metrics)


def _metrics(args: argparse.Namespace) -> int:
    from cnimeta.node.networks import loadable

    found, failed = collected(loadable(), args.net_dir, lambda line: print(f"cnimeta: {line}", file=sys.stderr))
    text = render(found)
    if args.output:
        _write(args.output, text.encode())
    else:
        sys.stdout.write(text)
    return 1 if failed else 0


def collected(plugins: dict[str, Plugin], net_dir: str, log: Callable[[str], None]) -> tuple[list[Metric], bool]:
    """Every plugin's metrics and what is said of the collection; whether one failed.

    A plugin whose metrics cannot be read has none, not zeros, and `cnimeta_metrics_success` says so.
    """
    found, success = [], []
    for name, plugin in plugins.items():
        try:
            metrics = list(plugin.metrics(net_dir))
        except CniError as error:
            log(f"no metrics of {name}: {error}")
            success.append(Sample(0, (("plugin", name),)))
        else:
            found += metrics
            success.append(Sample(1, (("plugin", name),)))
    info = Sample(1, (("version", __version__),))
    return [
        Metric("cnimeta_info", "The installed version", [info]),
        Metric("cnimeta_metrics_success", "1 when a plugin's metrics could be read", success),
        gauge("cnimeta_metrics_timestamp_seconds", "When they were read", round(time.time(), 3)),
        *found,
    ], any(sample.value == 0 for sample in success)


def _write(path: str, data: bytes) -> None:
    from cnimeta.host.files import replace_file

    try:
        replace_file(path, data, mode=_MODE, durable=False, temporary=f".tmp-{os.getpid()}-", ending=".tmp")
    except OSError as error:
        raise IoFailure(f"cannot write {path}: {error.strerror or error}") from None
