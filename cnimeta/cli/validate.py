"""`cnimeta validate FILE …`: network configurations judged without the node they are for."""

from __future__ import annotations

import json
import os
from typing import TYPE_CHECKING

from cnimeta.errors import CniError, IoFailure
from cnimeta.node.doctor.finding import Finding
from cnimeta.terminal.colour import painted

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator

    from cnimeta.plugin.base import Commands, Plugin
    from cnimeta.spec.netconf import NetConf


def add_commands(commands: Commands) -> None:
    """Add `validate`."""
    about = "judge network configuration files, offline"
    parser = commands.add_parser("validate", help=about, description=about)
    parser.add_argument("files", nargs="+", metavar="FILE", help="a .conflist, .conf or .json file")
    parser.add_argument("--strict", action="store_true", help="status 1 for a warning too")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=_validate)


def _validate(args: argparse.Namespace) -> int:
    from cnimeta.node.networks import loadable

    plugins = loadable()
    findings = [finding for path in args.files for finding in examined(path, plugins)]
    if args.json:
        print(json.dumps([finding._asdict() for finding in findings], indent=2))
    else:
        for finding in findings:
            print(f"{painted(f'{finding.state:<5}', finding.state)} {finding.what}: {finding.message}")
    wrong = ("fail", "warn") if args.strict else ("fail",)
    return 1 if any(finding.state in wrong for finding in findings) else 0


def examined(path: str, plugins: dict[str, Plugin]) -> Iterator[Finding]:
    """A finding for each thing that is wrong in a file, or one that says it is good, and what was not looked at."""
    from cnimeta.node.judged import judged
    from cnimeta.node.networks import called
    from cnimeta.runtime.conf import load_file

    try:
        if not os.path.isfile(path):
            raise IoFailure("there is no such file")
        network = load_file(path)
        said = list(judged(path, network, plugins, _ask))
        others = dict.fromkeys(one.type for one in called(network, plugins) if one.type not in plugins)
    except CniError as error:
        yield Finding(path, "fail", str(error).removeprefix(f"{path}: "))
        return
    for state, message in said:
        yield Finding(path, state, message)
    if not any(state == "fail" for state, _ in said):
        unseen = f"; not looked at: {', '.join(others)}" if others else ""
        yield Finding(path, "ok", f"{network.name}, {network.cni_version}{unseen}")


def _ask(plugin: Plugin, conf: NetConf) -> Iterable[str]:
    return plugin.validate(conf)
