"""The `cnimeta` command: one module here per sub-command, and the sub-commands that installed plugins bring along.

Each has `add_commands(commands)`: a module here, and a plugin (`cnimeta.plugin.Plugin.add_commands`). A command returns
its exit status: 0 done, 1 failed or found fault, 2 wrong usage.
"""

from __future__ import annotations

import argparse
import os
import sys
from typing import TYPE_CHECKING

from cnimeta import __version__
from cnimeta.errors import CniError, InvalidEnvironment
from cnimeta.plugin import registry

if TYPE_CHECKING:
    from collections.abc import Sequence

    from cnimeta.plugin.base import Commands


OWN = (
    *(
        "version",
        "install",
        "uninstall",
        "upgrade",
        "rollback",
        "deploy",
        "run",
        "agent",
        "doctor",
        "metrics",
        "sysdump",
        "validate",
        "explain",
        "schema",
        "conformance",
    ),
    *("new", "man", "completion"),
)
"""The commands of this package; all others are plugins'."""


def build_parser(command: str = "") -> argparse.ArgumentParser:
    """The parser with every sub-command; with `command`, perhaps with no other, for each costs time to load."""
    parser = argparse.ArgumentParser(prog="cnimeta", description="CNI plugins, their runtime and their state.")
    parser.add_argument("--version", action="version", version=f"cnimeta {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)
    if command in OWN:
        _add_own(commands)
    elif not command or command.startswith("-"):
        _add_own(commands)
        _add_plugins(commands)
    else:
        _add_plugins(commands)
        if command not in (commands.choices or ()):
            _add_own(commands)
    return parser


def _add_own(commands: Commands) -> None:
    from cnimeta.cli import (
        agent,
        conformance,
        deploy,
        doctor,
        explain,
        install,
        manual,
        metrics,
        new,
        run,
        schema,
        sysdump,
        upgrade,
        validate,
    )

    version = commands.add_parser("version", help="print the version")
    version.set_defaults(run=_version)
    for module in (
        install,
        upgrade,
        deploy,
        run,
        agent,
        doctor,
        metrics,
        sysdump,
        validate,
        explain,
        schema,
        conformance,
        new,
        manual,
    ):
        module.add_commands(commands)


def _add_plugins(commands: Commands) -> None:
    """A plugin that cannot be loaded takes only its own commands away; the doctor tells what is wrong with it."""
    for name, target in registry.installed().items():
        try:
            registry.load(target).add_commands(commands)
        except Exception as error:  # noqa: BLE001 - the node's operator needs the other commands
            print(f"cnimeta: commands of plugin {name} are missing: {error}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command."""
    words = sys.argv[1:] if argv is None else argv
    try:
        args = build_parser(*words[:1]).parse_args(words)
        status: int = args.run(args)
    except CniError as error:
        _trace(error)
        print(f"cnimeta: {error}", file=sys.stderr)
        return 2 if isinstance(error, InvalidEnvironment) else 1
    except BrokenPipeError:  # `cnimeta ports | head`
        sys.stderr.close()
        return 1
    except OSError as error:
        _trace(error)
        where = f"{error.filename}: " if error.filename else ""
        print(f"cnimeta: {where}{error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        return 130
    return status


def _trace(error: Exception) -> None:
    from cnimeta.plugin.dispatch import trace

    trace(error, os.environ, lambda text: print(text, file=sys.stderr))


def _version(_: argparse.Namespace) -> int:
    print(f"cnimeta {__version__}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
