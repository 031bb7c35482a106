"""`cnimeta schema [PLUGIN]`: JSON Schema of network configurations, for editors and for checks before a rollout."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from cnimeta.errors import InvalidEnvironment, shown

if TYPE_CHECKING:
    import argparse

    from cnimeta.plugin.base import Commands


def add_commands(commands: Commands) -> None:
    """Add `schema`."""
    about = "print the JSON Schema of a network configuration, for editors"
    parser = commands.add_parser("schema", help=about, description=about)
    parser.add_argument("plugin", nargs="?", metavar="PLUGIN", help="one plugin's; default: of a whole .conflist")
    parser.set_defaults(run=_schema)


def _schema(args: argparse.Namespace) -> int:
    from cnimeta.node.networks import loadable
    from cnimeta.node.schema import of_lists, of_plugin

    plugins = loadable()
    if args.plugin and args.plugin not in plugins:
        raise InvalidEnvironment(f"there is no plugin {shown(args.plugin)} here: {', '.join(sorted(plugins))}")
    found = of_plugin(args.plugin, plugins[args.plugin]) if args.plugin else of_lists(plugins)
    print(json.dumps(found, indent=2, ensure_ascii=False))
    return 0
