"""The `cnimeta` command: one module per sub-command, imported only when it is used.

A module here has `add_command(subparsers)`; a plugin's own commands are loaded by name, since the SDK does not import
plugins. A command returns its exit status: 0 done, 1 failed or found fault, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from typing import TYPE_CHECKING

from cnimeta import __version__
from cnimeta.errors import CniError

if TYPE_CHECKING:
    from collections.abc import Sequence

MODULES = (
    "cnimeta.cli.install",
    "cnimeta.cli.run",
    "cnimeta.cli.agent",
    "cnimeta.cli.doctor",
    "cnimeta.cli.conformance",
    "cnimeta_plugins.hostport_alloc.operator.commands",
)
"""Where sub-commands come from. One that is not installed is left out, and the help says so."""


def build_parser() -> argparse.ArgumentParser:
    """The parser with every sub-command."""
    parser = argparse.ArgumentParser(prog="cnimeta", description="CNI plugins, their runtime and their state.")
    parser.add_argument("--version", action="version", version=f"cnimeta {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    version = commands.add_parser("version", help="print the version")
    version.set_defaults(run=_version)
    missing = []
    for name in MODULES:
        try:
            module = importlib.import_module(name)
        except ModuleNotFoundError as error:
            if error.name is None or not f"{name}.".startswith(f"{error.name}."):
                raise
            missing.append(name)
            continue
        add = getattr(module, "add_commands", None) or module.add_command
        add(commands)
    if missing:
        parser.epilog = f"Not installed, and so without their commands: {', '.join(missing)}"
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command."""
    args = build_parser().parse_args(argv)
    try:
        status: int = args.run(args)
    except CniError as error:
        print(f"cnimeta: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # `cnimeta ports | head`
        sys.stderr.close()
        return 1
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"cnimeta: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _version(_: argparse.Namespace) -> int:
    print(f"cnimeta {__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
