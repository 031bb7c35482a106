"""`cnimeta upgrade` and `cnimeta rollback`: a version beside the one that is used, then the switch.

Nothing is stopped: containers that start meanwhile are served by one version or the other, whole. Each step can be
repeated, and a kill between two of them leaves a node that works.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from typing import TYPE_CHECKING

from cnimeta.delegate.find import DEFAULT_BIN_DIR
from cnimeta.errors import InvalidNetworkConfig, IoFailure, legible
from cnimeta.node.networks import file_names
from cnimeta.node.versions import ROOT, Versions, command
from cnimeta.plugin import launcher
from cnimeta.runtime.conf import DEFAULT_FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cnimeta.plugin.base import Commands

_UNITS = ("cnimeta-agent.service", "cnimeta-own.service")
_SYSTEMD = "/run/systemd/system"
_TIMEOUT_S = 300


def add_commands(commands: Commands) -> None:
    """Add `upgrade` and `rollback`."""
    about = "put a version beside the others and switch to it; nothing is stopped"
    parser = commands.add_parser("upgrade", help=about, description=about)
    parser.add_argument(
        "source",
        nargs="?",
        metavar="SOURCE",
        help="a standalone folder or its archive; default: this very installation",
    )
    parser.add_argument("--link", action="store_true", help="link the files of SOURCE where that can be, do not copy")
    parser.add_argument(
        "--keep", type=int, default=2, metavar="N", help="versions that stay beside this one (%(default)s)"
    )
    add_options(parser)
    parser.set_defaults(run=_upgrade)
    about = "switch back to the version that was used before"
    parser = commands.add_parser("rollback", help=about, description=about)
    parser.add_argument("version", nargs="?", metavar="VERSION", help="or to this one, which is still there")
    add_options(parser)
    parser.set_defaults(run=_rollback)


def add_options(parser: argparse.ArgumentParser) -> None:
    """What a switch can be told."""
    parser.add_argument("--root", default=ROOT, metavar="DIR", help="where versions lie (%(default)s)")
    parser.add_argument(
        "--bin-dir", default=DEFAULT_BIN_DIR, metavar="DIR", help="the runtime's plugin folder (%(default)s)"
    )
    parser.add_argument(
        "--net-dir", default=DEFAULT_FOLDER, metavar="DIR", help="the network configurations (%(default)s)"
    )
    parser.add_argument(
        "--only",
        action="append",
        metavar="NAME",
        help="write this launcher only; repeatable; default: those that are there, at first all",
    )
    parser.add_argument("--replace", action="store_true", help="replace foreign files, keeping a backup")
    for name in ("agent", "native"):
        parser.add_argument(
            f"--{name}", action=argparse.BooleanOptionalAction, help="as `install` has it; default: as each launcher is"
        )
    parser.add_argument("--force", action="store_true", help="also when the version refuses a configuration")


def _upgrade(args: argparse.Namespace) -> int:
    if args.keep < 0:
        raise InvalidNetworkConfig(f"--keep must be 0 or more, got {args.keep}")
    for line in upgrade(args):
        print(line)
    return 0


def _rollback(args: argparse.Namespace) -> int:
    versions = Versions(args.root)
    with versions.locked():
        name = args.version or versions.previous
        if not name:
            raise IoFailure(f"{versions.root} has no version that was used before")
        for line in switch(versions, versions.folder(name), args):
            print(line)
    return 0


def upgrade(args: argparse.Namespace) -> Iterator[str]:
    """What is done, a line each. Raises CniError."""
    versions = Versions(args.root)
    with versions.locked():
        source = args.source or sys.prefix
        if not args.source and versions.has(sys.prefix):
            folder = os.path.join(versions.root, os.path.basename(os.path.realpath(sys.prefix)))
        else:
            if not args.source and not os.path.exists(os.path.join(source, "standalone.json")):
                raise IoFailure(
                    f"{source} cannot be copied, since it is no standalone folder: make the virtual environment in"
                    f" {versions.root}, a folder for each version"
                )
            folder = versions.place(source, link=args.link)
        yield f"{folder}: there"
        yield from switch(versions, folder, args)
        for name in versions.prune(args.keep + 1):
            yield f"{os.path.join(versions.root, name)}: removed"


def switch(versions: Versions, folder: str, args: argparse.Namespace) -> Iterator[str]:
    """Have the launchers, the link and the agent use this version. Under the lock."""
    if not args.force:
        _refuse_what_it_would(versions, folder, args.net_dir)
    yield from _install(folder, args)
    before = versions.current
    versions.point(os.path.basename(folder))
    if before != versions.current:
        yield f"{versions.root}/current: {versions.current}" + (f", before: {before}" if before else "")
    if os.path.isdir(_SYSTEMD):
        _run(["systemctl", "try-restart", *_UNITS], check=False)


def _install(folder: str, args: argparse.Namespace) -> Iterator[str]:
    """`cnimeta install` of that version: of the launchers that are there, whichever version wrote them."""
    words = ["install", "--bin-dir", args.bin_dir]
    for name in args.only or written(args.bin_dir):
        words += ["--only", name]
    words += ["--replace"] if args.replace else []
    for name in ("agent", "native"):
        value = getattr(args, name)
        if value is not None:
            words.append(f"--{name}" if value else f"--no-{name}")
    yield from _run([command(folder), *words]).splitlines()


def written(bin_dir: str) -> list[str]:
    """The names of the launchers in a folder."""
    try:
        names = sorted(os.listdir(bin_dir))
    except FileNotFoundError:
        return []
    return [name for name in names if not name.startswith(".") and launcher.is_launcher(os.path.join(bin_dir, name))]


def _refuse_what_it_would(versions: Versions, folder: str, net_dir: str) -> None:
    """Raise InvalidNetworkConfig (code 7) for a configuration that this version refuses and the current one serves."""
    files = [os.path.join(net_dir, name) for name in file_names(net_dir)]
    wrong = _refused(folder, files)
    if not wrong or not versions.current:
        return
    new = [line for line in wrong if line not in _refused(os.path.join(versions.root, versions.current), files)]
    if new:
        raise InvalidNetworkConfig(
            f"this version refuses what the current one serves: {'; '.join(new)}; --force goes on"
        )


def _refused(folder: str, files: Sequence[str]) -> list[str]:
    if not files:
        return []
    done = subprocess.run(
        [command(folder), "validate", "--json", *files], check=False, capture_output=True, text=True, timeout=_TIMEOUT_S
    )
    try:
        return [f"{one['what']}: {one['message']}" for one in json.loads(done.stdout) if one["state"] == "fail"]
    except (ValueError, KeyError, TypeError):
        raise IoFailure(f"{folder} cannot judge configurations: {legible(done.stderr.strip(), 400)}") from None


def _run(words: Sequence[str], *, check: bool = True) -> str:
    """What a command says. Raises IoFailure (code 5) with its own words when it fails."""
    done = subprocess.run(words, check=False, capture_output=True, text=True, timeout=_TIMEOUT_S)
    if check and done.returncode:
        said = (done.stderr or done.stdout).strip().removeprefix("cnimeta: ")
        raise IoFailure(legible(said, 2000) or f"{words[0]} ended with status {done.returncode}")
    return done.stdout
