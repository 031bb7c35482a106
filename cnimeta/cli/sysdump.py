"""`cnimeta sysdump`: everything that is known of the plugins on this node, as one archive."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from cnimeta.delegate.find import DEFAULT_BIN_DIR, split_path
from cnimeta.errors import InvalidEnvironment, counted
from cnimeta.runtime.conf import DEFAULT_FOLDER
from cnimeta.terminal.colour import painted

if TYPE_CHECKING:
    import argparse

    from cnimeta.node.sysdump.archive import Collected
    from cnimeta.plugin.base import Commands


def add_commands(commands: Commands) -> None:
    """Add `sysdump`."""
    about = "put what is known of the plugins on this node into one archive, without secrets"
    parser = commands.add_parser("sysdump", help=about, description=about)
    parser.add_argument(
        "--output", metavar="FILE", help="the archive (cnimeta-sysdump-NODE-TIME.tar.gz); `-` is stdout"
    )
    parser.add_argument(
        "--bin-dir", action="append", metavar="DIR[:DIR]", help=f"where plugins are; repeatable ({DEFAULT_BIN_DIR})"
    )
    parser.add_argument("--net-dir", metavar="DIR", default=DEFAULT_FOLDER, help="the configurations (%(default)s)")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_sysdump)


def _sysdump(args: argparse.Namespace) -> int:
    from cnimeta.node.sysdump.archive import archive, collect, write
    from cnimeta.node.sysdump.items import everything

    bin_dirs = split_path(args.bin_dir or [DEFAULT_BIN_DIR])
    top = f"cnimeta-sysdump-{os.uname().nodename}-{time.strftime('%Y%m%dT%H%M%SZ', time.gmtime())}"
    path = args.output or f"{top}.tar.gz"
    files = collect(everything(bin_dirs, args.net_dir), _progress)
    if path != "-":
        missing = write(path, files, top)
    elif sys.stdout.isatty() or args.json:
        raise InvalidEnvironment("--output -: the archive goes to stdout, which must be a file or a pipe for it alone")
    else:
        missing = archive(files, top, sys.stdout.buffer)
    _progress("")
    _tell(path, missing, as_json=args.json)
    return 0


def _progress(name: str) -> None:
    """One line that is written anew, where somebody sees it."""
    if sys.stderr.isatty():
        print(f"\r\x1b[K{name}", end="", file=sys.stderr, flush=True)


def _tell(path: str, missing: list[Collected], *, as_json: bool) -> None:
    if as_json:
        import json

        body = {"file": path, "missing": [{"file": found.name, "message": found.missing} for found in missing]}
        print(json.dumps(body, indent=2))
        return
    out = sys.stderr if path == "-" else sys.stdout
    for found in missing:
        print(
            f"{painted('missing', 'warn') if out is sys.stdout else 'missing'} {found.name}: {found.missing}", file=out
        )
    left = f", without {counted(len(missing), 'thing')} that could not be read" if missing else ""
    print(f"{path} is written{left}. Secrets are taken out by name and form: look before you give it away.", file=out)
