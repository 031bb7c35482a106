"""`cnimeta deploy`: everything on a node, in the order that leaves a working node wherever it stops.

Plugins first, then what they read, the network configuration last. It is what the DaemonSet in deploy/ runs, once as
its init step, and then again and again: a token is renewed, and a plugin that somebody has replaced is put back.
"""

from __future__ import annotations

import os
import subprocess
import sys
import time
from typing import TYPE_CHECKING

from cnimeta.cli.upgrade import add_options, upgrade, written
from cnimeta.errors import CniError, InvalidEnvironment, IoFailure, legible
from cnimeta.node.deployment import ACCOUNT, KUBECONFIG, credentials, put, read, settings
from cnimeta.node.networks import file_names
from cnimeta.node.versions import Versions, command

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterator

    from cnimeta.plugin.base import Commands

OWN = "00-cnimeta.conflist"
_TIMEOUT_S = 120


def add_commands(commands: Commands) -> None:
    """Add `deploy`."""
    about = "put plugins, settings, credentials and configuration on a node, in this order"
    parser = commands.add_parser("deploy", help=about, description=about)
    add_options(parser)
    parser.add_argument(
        "--source", metavar="SOURCE", help="a standalone folder or its archive; default: this very installation"
    )
    parser.add_argument("--settings", metavar="FILE", help="the node-wide configuration, for /etc/cnimeta/config.toml")
    parser.add_argument(
        "--account", nargs="?", const=ACCOUNT, metavar="DIR", help="a ServiceAccount's files, to annotate Pods with"
    )
    parser.add_argument(
        "--own",
        nargs="?",
        const="",
        metavar="FILE",
        help="write our own configuration, from this one in --net-dir; default: from the first",
    )
    parser.add_argument(
        "--every",
        type=float,
        default=0,
        metavar="SECONDS",
        help="do it again and again; a failure is told and tried again",
    )
    parser.add_argument(
        "--ready", metavar="FILE", help="with --every: make this file when all is in place, for a probe"
    )
    parser.add_argument("words", nargs="*", metavar="-- OPTION", help="options of `cnimeta wrap`, for --own")
    parser.set_defaults(run=_run, link=False, keep=1)


def _run(args: argparse.Namespace) -> int:
    if args.words and args.own is None:
        raise InvalidEnvironment("options of `cnimeta wrap` are for --own")
    if not args.every:
        for line in deploy(args):
            print(line, flush=True)
        return 0
    seen, told = "", ""
    while True:
        said = ""
        try:
            for line in deploy(args, seen):
                print(line, flush=True)
            seen = _look(args)
        except CniError as error:
            seen, said = "", f"cnimeta: {error}"
        if said and said != told:
            print(said, file=sys.stderr, flush=True)
        told = said
        _tell_probe(args.ready, ready=not said)
        time.sleep(args.every)


def _look(args: argparse.Namespace) -> str:
    """What changes when somebody replaces a launcher, or the version, or takes our configuration away."""
    found = [Versions(args.root).current]
    for path in [os.path.join(args.bin_dir, name) for name in written(args.bin_dir)]:
        there = os.stat(path)
        found.append(f"{path} {there.st_ino} {there.st_size} {there.st_mtime_ns}")
    if args.own is not None:
        found.append(str(os.path.exists(os.path.join(args.net_dir, OWN))))
    return "\n".join(found)


def _tell_probe(path: str | None, *, ready: bool) -> None:
    if path is not None and ready:
        with open(path, "w", encoding="utf-8"):
            pass
    elif path is not None and os.path.exists(path):
        os.unlink(path)


def deploy(args: argparse.Namespace, seen: str = "") -> Iterator[str]:
    """Each step, and a line for what it did. Raises CniError; what has been done stays, and works.

    seen: what `_look` gave when all was in place: then only what is mounted may differ.
    """
    as_it_was = bool(seen) and seen == _look(args)
    if not as_it_was:
        yield from upgrade(args)
    if args.settings:
        yield from put([settings(read(args.settings))])
    if args.account:
        yield from put(credentials(read(f"{args.account}/token"), read(f"{args.account}/ca.crt"), os.environ))
    if args.own is not None and not as_it_was:
        yield from _own(args)


def _own(args: argparse.Namespace) -> Iterator[str]:
    """`cnimeta wrap --own`, unless there is nothing to wrap yet: then the next turn does."""
    others = [name for name in file_names(args.net_dir) if name != OWN]
    if args.own and args.own not in others:
        raise IoFailure(f"there is no {args.own} in {args.net_dir} yet")
    if not others:
        raise IoFailure(f"there is no network configuration in {args.net_dir} yet")
    if os.path.exists(os.path.join(args.net_dir, f"{OWN}.cnimeta-own")) and not args.own:
        others = [_primary(args.net_dir) or others[0]]
    versions = Versions(args.root)
    words = [
        command(versions.folder(versions.current)),
        "wrap",
        "--own",
        os.path.join(args.net_dir, args.own or others[0]),
    ]
    words += ["--kubeconfig", KUBECONFIG] if args.account else []
    done = subprocess.run(
        [*words, *args.words], check=False, capture_output=True, text=True, timeout=_TIMEOUT_S, cwd="/"
    )
    if done.returncode:
        raise IoFailure(legible(done.stderr.strip().removeprefix("cnimeta: "), 2000))
    yield from done.stdout.splitlines()


def _primary(net_dir: str) -> str:
    """What our configuration is derived from; empty when that cannot be told, or is gone."""
    import json

    try:
        with open(os.path.join(net_dir, f"{OWN}.cnimeta-own"), encoding="utf-8") as file:
            name = json.load(file)["primary"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    return name if isinstance(name, str) and os.path.isfile(os.path.join(net_dir, os.path.basename(name))) else ""
