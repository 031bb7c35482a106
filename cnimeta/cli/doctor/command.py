"""The command: its arguments, the order in which things are looked at, what is printed."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from cnimeta import __version__
from cnimeta.cli.doctor.finding import Finding
from cnimeta.cli.doctor.installation import plugins_and_launchers, required_packages
from cnimeta.cli.doctor.networks import networks
from cnimeta.cli.doctor.node import forwarding, mapping, settings, shaping
from cnimeta.delegate.find import DEFAULT_BIN_DIR, split_path
from cnimeta.errors import InvalidEnvironment
from cnimeta.plugin import launcher
from cnimeta.runtime.conf import DEFAULT_FOLDER

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator, Sequence

    from cnimeta.plugin.base import Commands


def add_commands(commands: Commands) -> None:
    """Add `doctor`."""
    parser = commands.add_parser("doctor", help="look at what the plugins need on this node")
    parser.add_argument(
        "--bin-dir", action="append", metavar="DIR[:DIR]", help=f"where plugins are; repeatable ({DEFAULT_BIN_DIR})"
    )
    parser.add_argument("--net-dir", default=DEFAULT_FOLDER, help="the network configurations (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the findings; 1 when one of them is `fail`."""
    bin_dirs = split_path(args.bin_dir or [DEFAULT_BIN_DIR])
    if not bin_dirs:
        raise InvalidEnvironment("--bin-dir names no folder")
    findings = list(examine(bin_dirs, args.net_dir))
    if args.json:
        import json

        print(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        width = max(len(finding.what) for finding in findings)
        for finding in findings:
            print(f"{finding.state:<5} {finding.what:<{width}}  {finding.message}")
    return 1 if any(finding.state == "fail" for finding in findings) else 0


def examine(bin_dirs: Sequence[str], net_dir: str) -> Iterator[Finding]:
    """Everything, in the order people look for it."""
    yield Finding("cnimeta", "ok", f"{__version__}, {launcher.package_folder()}")
    yield Finding("python", "ok", f"{sys.version.split()[0]}, {sys.executable}")
    root = os.geteuid() == 0
    yield Finding("root", "ok" if root else "fail", "plugins change the network: run as root" * (not root))
    yield from required_packages()
    yield from plugins_and_launchers(bin_dirs)
    yield from mapping()
    yield from forwarding()
    yield shaping(root)
    yield from settings()
    yield from networks(net_dir, bin_dirs)
