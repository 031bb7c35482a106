"""`cnimeta conformance PATH --conf FILE`: judge a CNI plugin executable, in any language, by the specification."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cnimeta.delegate.find import split_path
from cnimeta.errors import IoFailure
from cnimeta.spec.jsonio import loads_object
from cnimeta.testing.conformance import FAIL, examine
from cnimeta.testing.conformance.process import CASE_S
from cnimeta.testing.conformance.report import FORMATS, rendered

if TYPE_CHECKING:
    import argparse

    from cnimeta.plugin.base import Commands


def add_commands(commands: Commands) -> None:
    """Add `conformance`."""
    parser = commands.add_parser("conformance", help="test a CNI plugin executable against the specification")
    parser.add_argument("path", metavar="PATH", help="the plugin executable")
    parser.add_argument("--conf", required=True, metavar="FILE", help="its configuration, without prevResult")
    parser.add_argument("--netns", default="", metavar="PATH", help="a container's namespace (default: one is made)")
    parser.add_argument(
        "--bin-dir",
        action="append",
        metavar="DIR[:DIR]",
        help="where its delegates are; repeatable; default: beside it",
    )
    parser.add_argument("--interface-plugin", action="store_true", help="not chained: gets no prevResult")
    parser.add_argument(
        "--timeout", type=float, default=CASE_S, metavar="S", help="for each rule, then it is killed (%(default)s)"
    )
    parser.add_argument("--format", choices=FORMATS, default="text", help="how the findings are printed (%(default)s)")
    parser.add_argument("--json", action="store_const", dest="format", const="json", help="short for --format json")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the findings; 1 when a rule is broken."""
    from cnimeta.testing.conformance.subject import require_executable, sandbox

    require_executable(args.path)
    if os.geteuid() != 0:
        raise IoFailure("conformance runs the plugin in network namespaces of its own and needs root")
    with open(args.conf, "rb") as file:
        conf = loads_object(file.read(), args.conf)
    chained = not args.interface_plugin
    folders = [os.path.abspath(folder) for folder in split_path(args.bin_dir or ())]
    with sandbox(
        args.path, conf, netns=args.netns, chained=chained, timeout_s=args.timeout, folders=folders
    ) as subject:
        findings = examine(subject)
    print(rendered(findings, args.format, args.path))
    return 1 if any(finding.outcome == FAIL for finding in findings) else 0
