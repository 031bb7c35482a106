"""`cnimeta wrap`: its arguments, what it prints, and its exit status."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING

from cnimeta.errors import InvalidEnvironment, InvalidNetworkConfig, shown
from cnimeta.spec.netconf import NetConf
from cnimeta_plugins.hostport_alloc.allocate.ranges import refuse_reserved
from cnimeta_plugins.hostport_alloc.config import read_settings, refuse_unreadable_credentials
from cnimeta_plugins.hostport_alloc.operator import wrapfile
from cnimeta_plugins.hostport_alloc.operator.conf import entry_of
from cnimeta_plugins.hostport_alloc.operator.wrap import Options, alone, wrapped

if TYPE_CHECKING:
    import argparse
    from collections.abc import Callable, Mapping
    from typing import TypeAlias

    from cnimeta.plugin.base import Commands
    from cnimeta.spec.jsonio import JSON
    from cnimeta_plugins.hostport_alloc.wiring import Wiring

    Run: TypeAlias = Callable[[argparse.Namespace, Wiring], int]
    Guarded: TypeAlias = Callable[[Run], Callable[[argparse.Namespace], int]]


def add_wrap(subparsers: Commands, guarded: Guarded) -> None:
    """Add `wrap`."""
    about = "put hostport_alloc around a network configuration, or take it off again"
    parser = subparsers.add_parser("wrap", help=about, description=about)
    parser.add_argument("file", metavar="FILE", help="a .conf or .conflist file; it is replaced")
    parser.add_argument("--unwrap", action="store_true", help="put the original back")
    parser.add_argument("--force", action="store_true", help="with --unwrap: also when FILE was replaced meanwhile")
    parser.add_argument("--print", action="store_true", dest="only_print", help="print the result, change nothing")
    parser.add_argument("--range", action="append", default=[], metavar="NAME=FIRST-LAST", help="a range of host ports")
    parser.add_argument(
        "--expose", action="append", default=[], metavar="[RANGE:]PORT/PROTO", help="for every container"
    )
    parser.add_argument(
        "--kubeconfig", metavar="FILE", help="annotate Pods with these credentials; `node`: the kubelet's"
    )
    parser.add_argument("--policy", choices=("deferred", "required"), default="", help="when a Pod cannot be annotated")
    parser.add_argument("--data-dir", metavar="DIR", default="", help="where records are kept")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.set_defaults(run=guarded(_wrap))


def _wrap(args: argparse.Namespace, wiring: Wiring) -> int:
    if args.unwrap and args.only_print:
        sys.stdout.write(wrapfile.unwrapped(args.file, force=args.force).decode("utf-8", "replace"))
        return 0
    if args.unwrap:
        original = wrapfile.unwrap_file(args.file, force=args.force)
        _say(args.json, {"action": "unwrap", "file": args.file}, f"{args.file} is as it was; {original} is gone")
        return 0
    options = _options(args)
    document = wrapped(wrapfile.read_document(args.file), options)
    _refuse_what_add_would(document, wiring)
    if args.only_print:
        sys.stdout.write(wrapfile.render(document))
        return 0
    original = wrapfile.wrap_file(args.file, options)
    body = {"action": "wrap", "file": args.file, "original": original}
    _say(args.json, body, f"{args.file} is wrapped; the original is {original}")
    return 0


def _options(args: argparse.Namespace) -> Options:
    """What is to be configured. Raises InvalidEnvironment (code 4), wrong usage, for what no configuration may have."""
    ranges = {}
    for text in args.range:
        name, equals, ports = text.partition("=")
        if not equals:
            raise InvalidEnvironment(f"--range must be NAME=FIRST-LAST, got {shown(text)}")
        ranges[name] = ports
    if args.policy and args.kubeconfig is None:
        raise InvalidEnvironment("--policy is about annotating Pods: it needs --kubeconfig FILE, or --kubeconfig node")
    if args.force:
        raise InvalidEnvironment("--force is for --unwrap")
    kubeconfig = "" if args.kubeconfig == "node" else args.kubeconfig
    options = Options(ranges, args.expose, kubeconfig, args.policy, args.data_dir)
    try:
        read_settings(NetConf(alone(options)))
    except InvalidNetworkConfig as error:
        raise InvalidEnvironment(error.msg) from None
    return options


def _refuse_what_add_would(document: Mapping[str, JSON], wiring: Wiring) -> None:
    """What ADD would refuse on this node is refused now, when somebody looks."""
    conf = entry_of(document)
    if conf is None:
        raise RuntimeError("the wrapped document has no entry of ours")
    settings = read_settings(conf)
    refuse_reserved(settings.ranges, settings.reserved(wiring.sockets.ephemeral()))
    refuse_unreadable_credentials(settings.api)


def _say(as_json: bool, body: object, text: str) -> None:
    print(json.dumps(body) if as_json else text)
