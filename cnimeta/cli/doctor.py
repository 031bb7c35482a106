"""`cnimeta doctor`: what the plugins need, looked for on this node."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cnimeta.delegate.find import DEFAULT_BIN_DIR, split_path
from cnimeta.errors import InvalidEnvironment
from cnimeta.node.doctor.examination import examine
from cnimeta.runtime.conf import DEFAULT_FOLDER
from cnimeta.terminal.colour import painted

if TYPE_CHECKING:
    import argparse

    from cnimeta.plugin.base import Commands


def add_commands(commands: Commands) -> None:
    """Add `doctor`."""
    parser = commands.add_parser("doctor", help="look at what the plugins need on this node")
    parser.add_argument(
        "--bin-dir", action="append", metavar="DIR[:DIR]", help=f"where plugins are; repeatable ({DEFAULT_BIN_DIR})"
    )
    parser.add_argument(
        "--net-dir", metavar="DIR", default=DEFAULT_FOLDER, help="the network configurations (%(default)s)"
    )
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
            print(f"{painted(f'{finding.state:<5}', finding.state)} {finding.what:<{width}}  {finding.message}")
    return 1 if any(finding.state == "fail" for finding in findings) else 0
