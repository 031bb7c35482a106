"""`cnimeta man` and `cnimeta completion`: manual pages and completion scripts, made from the parser itself."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from cnimeta import __version__
from cnimeta.cli.grammar.completion import SHELLS
from cnimeta.errors import InvalidEnvironment, shown

if TYPE_CHECKING:
    import argparse

    from cnimeta.cli.grammar.tree import Command
    from cnimeta.plugin.base import Commands


def add_commands(commands: Commands) -> None:
    """Add `man` and `completion`."""
    about = "print a manual page, or write all of them"
    parser = commands.add_parser("man", help=about, description=about)
    parser.add_argument("page", nargs="?", metavar="COMMAND", help="the command's page; default: of cnimeta itself")
    parser.add_argument("--output", metavar="DIR", help="write every page there, such as /usr/local/share/man/man1")
    parser.set_defaults(run=_man)
    about = "print the completion script of a shell"
    parser = commands.add_parser("completion", help=about, description=about)
    parser.add_argument("shell", choices=SHELLS, help="source what is printed, or put it where the shell looks")
    parser.set_defaults(run=_completion)


def _man(args: argparse.Namespace) -> int:
    from cnimeta.cli.grammar.man import pages
    from cnimeta.host.files import replace_file

    found = pages(_commands(), __version__)
    if not args.output:
        name = f"cnimeta-{args.page}.1" if args.page else "cnimeta.1"
        if name not in found:
            raise InvalidEnvironment(f"there is no command {shown(args.page)}: cnimeta --help lists them")
        sys.stdout.write(found[name])
        return 0
    os.makedirs(args.output, exist_ok=True)
    for name, text in found.items():
        path = os.path.join(args.output, name)
        replace_file(path, text.encode(), mode=0o644, temporary=f".tmp-{os.getpid()}-")
        print(path)
    return 0


def _completion(args: argparse.Namespace) -> int:
    from cnimeta.cli.grammar.completion import script

    sys.stdout.write(script(args.shell, _commands()))
    return 0


def _commands() -> Command:
    """Every command, those of plugins too."""
    from cnimeta.cli.grammar.tree import read
    from cnimeta.cli.main import build_parser

    return read(build_parser(), "cnimeta")
