"""`cnimeta new NAME`: a package for a plugin of your own, which passes its tests as it is."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import argparse

    from cnimeta.plugin.base import Commands


def add_commands(commands: Commands) -> None:
    """Add `new`."""
    about = "write a package to start a plugin from"
    parser = commands.add_parser("new", help=about, description=about)
    parser.add_argument("name", metavar="NAME", help="the plugin's type, and the name of its executable")
    parser.add_argument("--dir", default="", metavar="DIR", help="the folder to make (default: cni-NAME, here)")
    parser.set_defaults(run=_new)


def _new(args: argparse.Namespace) -> int:
    from cnimeta.scaffold.package import write

    folder = args.dir or f"cni-{args.name}"
    for path in write(args.name, folder):
        print(os.path.join(folder, path))
    print(f"now: cd {folder} && pip install -e '.[dev]' && pytest")
    return 0
