"""`cnimeta install` and `cnimeta uninstall`: the launchers in the runtime's plugin folder.

A file of another origin is never overwritten unless asked; it is then kept beside the launcher under a name that no
runtime looks up, and put back by uninstall. Both commands can be repeated and interrupted.
"""

from __future__ import annotations

import argparse
import compileall
import contextlib
import filecmp
import functools
import os
import py_compile
import site
import subprocess
import sys
import sysconfig
from typing import TYPE_CHECKING

from cnimeta.agent.native import program, render
from cnimeta.delegate.find import DEFAULT_BIN_DIR, split_path
from cnimeta.errors import IoFailure
from cnimeta.host.files import replace_file
from cnimeta.plugin import bundle, launcher, registry
from cnimeta.runtime.conf import DEFAULT_FOLDER

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from cnimeta.plugin.base import Commands
    from cnimeta.plugin.registry import Target

BACKUP_SUFFIX = ".cnimeta-backup"
"""Never change: uninstall looks for it."""

_MODE = 0o755  # programs are for everybody to run


def add_commands(commands: Commands) -> None:
    """Add `install` and `uninstall`."""
    for name, run, text in (
        ("install", _install_command, "write the plugin launchers"),
        ("uninstall", _uninstall_command, "remove the launchers and restore what they replaced"),
    ):
        parser = commands.add_parser(name, help=text)
        parser.add_argument(
            "--bin-dir", action="append", metavar="DIR", help=f"the runtime's plugin folder ({DEFAULT_BIN_DIR})"
        )
        parser.add_argument("--only", action="append", metavar="NAME", help="this plugin only; can be repeated")
        if name == "install":
            parser.add_argument("--replace", action="store_true", help="replace foreign files, keeping a backup")
            parser.add_argument(
                "--agent",
                action=argparse.BooleanOptionalAction,
                help="launchers ask `cnimeta agent` first; default: as each launcher that is there",
            )
            parser.add_argument(
                "--native",
                action=argparse.BooleanOptionalAction,
                help="launchers that ask it without starting Python; default: as each launcher that is there",
            )
        else:
            parser.add_argument("--force", action="store_true", help="also what containers or configurations need")
            parser.add_argument(
                "--net-dir", metavar="DIR", default=DEFAULT_FOLDER, help="the network configurations (%(default)s)"
            )
        parser.set_defaults(run=run, refuse=parser.error)


def _install_command(args: argparse.Namespace) -> int:
    bin_dir = _one_bin_dir(args)
    _refuse_unknown(args, registry.installed())
    if args.native and args.agent is False:
        args.refuse("argument --native: a native launcher is one that asks the agent, which --no-agent excludes")
    for line in install(bin_dir, args.only, replace=args.replace, agent=args.agent, native=args.native):
        print(line)
    return 0


def _uninstall_command(args: argparse.Namespace) -> int:
    bin_dir = _one_bin_dir(args)
    _refuse_unknown(args, [*registry.installed(), *_written(bin_dir)])
    if not args.force:
        refuse_needed(bin_dir, args.only, args.net_dir)
    gone = _ours(bin_dir, args.only)
    for line in uninstall(bin_dir, args.only):
        print(line)
    from cnimeta.node.needed import leave

    for line in leave(gone, args.net_dir):
        print(line)
    return 0


def _one_bin_dir(args: argparse.Namespace) -> str:
    """The folder to write to. A list of folders, which is where plugins are looked for, is wrong usage here."""
    given = args.bin_dir or [DEFAULT_BIN_DIR]
    folders = split_path(given)
    if len(given) > 1 or len(folders) != 1:
        args.refuse(f"argument --bin-dir: one folder is written to, got {':'.join(given)}")
    return folders[0]


def _refuse_unknown(args: argparse.Namespace, known: Iterable[str]) -> None:
    """Wrong usage: a name that is no plugin's."""
    unknown = sorted(set(args.only or ()) - set(known))
    if unknown:
        args.refuse(f"no such plugin: {', '.join(unknown)} (there are {', '.join(sorted(set(known)))})")


def install(
    bin_dir: str,
    names: Sequence[str] | None = None,
    *,
    replace: bool = False,
    agent: bool | None = None,
    native: bool | None = None,
) -> list[str]:
    """Write launchers into `bin_dir`; what was done, a line each.

    `agent`: whether they ask the node agent first; None: those that do go on doing so. `native`: whether they do so
    without starting Python; None: as before.

    `names`: of these plugins; None: of every plugin that is installed. What stands in the way, a plugin that cannot be
    loaded too, is found before anything is written. Raises IoFailure (code 5); KeyError for a name that is no plugin's.
    """
    known = registry.installed()
    chosen = {name: known[name] for name in (known if names is None else names)}
    os.makedirs(bin_dir, exist_ok=True)
    paths = {name: os.path.join(os.path.abspath(bin_dir), name) for name in chosen}
    foreign = [path for path in paths.values() if os.path.lexists(path) and not launcher.is_launcher(path)]
    folders = [path for path in foreign if os.path.isdir(path) and not os.path.islink(path)]
    if folders:
        raise IoFailure(f"folders are in the way: {', '.join(folders)}")
    if foreign and not replace:
        raise IoFailure(_in_the_way(foreign, [name for name, path in paths.items() if path not in foreign]))
    files = _contents(chosen, paths, agent=agent, native=native)
    compile_packages(target.file for target in chosen.values())
    for name, target in chosen.items():
        bundle_modules(name, target, launcher.version_answer(registry.load(target)))
    lines = []
    for name, path in paths.items():
        data = files[name]
        if path in foreign:
            lines.append(f"{path}: the file that was there is kept as {os.path.basename(_keep(path))}")
        elif _is_current(path, data):
            lines.append(f"{path}: installed already")
            continue
        replace_file(path, data, mode=_MODE, temporary=f".tmp-{os.getpid()}-")
        lines.append(f"{path}: installed")
    return lines


def _contents(
    chosen: Mapping[str, Target], paths: Mapping[str, str], *, agent: bool | None, native: bool | None
) -> dict[str, bytes]:
    """What each launcher is to be."""
    plugins = {name: registry.load(target) for name, target in chosen.items()}
    programs: list[bytes] = []
    found = {}
    for name, target in chosen.items():
        path = paths[name]
        compiled = agent is not False and (launcher.is_native(path) if native is None else native)
        asking = compiled or (launcher.asks_agent(path) if agent is None else agent)
        text = launcher_text(target, name=name, agent=asking)
        if compiled:
            programs = programs or [program()]
            found[name] = render(programs[0], target, plugins[name], text, interpreter())
        else:
            found[name] = text.encode()
    return found


def _in_the_way(foreign: Sequence[str], free: Sequence[str]) -> str:
    """What is said of files of another origin, and every way there is from there."""
    ways = "--replace keeps a backup and replaces"
    if free:
        ways += f"; {' '.join(f'--only {name}' for name in free)} leaves them alone"
    return f"not written by cnimeta: {', '.join(foreign)}; {ways}"


def refuse_needed(bin_dir: str, names: Sequence[str] | None, net_dir: str) -> None:
    """Raise IoFailure (code 5) when a launcher that uninstall would remove is still needed on this node."""
    from cnimeta.node.needed import needs

    gone = _ours(bin_dir, names)
    restored = {name for name in gone if os.path.lexists(os.path.join(bin_dir, name + BACKUP_SUFFIX))}
    found = needs(gone, restored, net_dir) if gone else []
    if found:
        raise IoFailure(f"still needed: {'; '.join(found)}; --force removes all the same")


def _ours(bin_dir: str, names: Sequence[str] | None) -> list[str]:
    """Those that a launcher of this installation is there for."""
    return [name for name in _chosen(bin_dir, names) if launcher.read_target(os.path.join(bin_dir, name)) is not None]


def _chosen(bin_dir: str, names: Sequence[str] | None) -> Sequence[str]:
    return sorted({*registry.installed(), *_written(bin_dir)}) if names is None else names


def uninstall(bin_dir: str, names: Sequence[str] | None = None) -> list[str]:
    """Remove launchers and restore backups; what was done, a line each. Foreign files stay, and launchers of another
    installation of cnimeta: a newer one, say.

    `names`: of these plugins; None: of every plugin that is installed, and what was written for one that no longer is.
    """
    lines = []
    for name in _chosen(bin_dir, names):
        path = os.path.join(os.path.abspath(bin_dir), name)
        ours = launcher.read_target(path) is not None
        backup = path + BACKUP_SUFFIX
        if os.path.lexists(path) and not ours:
            whose = "of another cnimeta" if launcher.is_launcher(path) else "not written by cnimeta"
            lines.append(f"{path}: {whose}, left alone")
        elif os.path.lexists(backup):
            os.replace(backup, path)
            lines.append(f"{path}: restored")
        elif ours:
            os.unlink(path)
            lines.append(f"{path}: removed")
        if ours:
            bundle.remove(launcher.package_folder(), name)
    return lines


def _written(bin_dir: str) -> Iterator[str]:
    """The names of the launchers of this installation in a folder."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(bin_dir):
            if launcher.read_target(os.path.join(bin_dir, name)) is not None:
                yield name


def launcher_text(target: Target, *, name: str = "", agent: bool = False) -> str:
    """The launcher of one plugin; with `name`, it takes its modules from the bundle of that name."""
    try:
        return launcher.render(target._replace(path=tuple(site_folders())), interpreter(), name=name, agent=agent)
    except ValueError as error:
        raise IoFailure(f"{error}: install cnimeta under a plain path") from None


@functools.cache
def interpreter() -> str:
    """The interpreter for launchers: the one behind a virtual environment, since launchers name their folders.

    A virtual environment's own costs a start more: it looks for pyvenv.cfg, and its links can lead anywhere.
    """
    for path in (os.path.realpath(getattr(sys, "_base_executable", "") or ""), sys.executable):
        probe = f"import sys, _json; sys.exit(sys.version_info[:2] != {tuple(sys.version_info[:2])})"
        with contextlib.suppress(OSError):
            if subprocess.run([path, "-IS", "-c", probe], check=False, env={}).returncode == 0:
                return path
    raise IoFailure(f"no interpreter was found that starts by itself; tried {sys.executable}")


def site_folders() -> list[str]:
    """Where installed packages lie: what `site` puts on this interpreter's path, and the folders of PYTHONPATH that
    packages were installed in. Of .pth files the folders count, not the statements.
    """
    sites = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()]
    if site.ENABLE_USER_SITE:
        sites.append(site.getusersitepackages())
    found = [*sites, *(folder for place in sites for folder in _folders_of_pth(place))]
    for folder in os.environ.get("PYTHONPATH", "").split(os.pathsep):
        if os.path.isabs(folder) and any(name.endswith(".dist-info") for name in _names(folder)):
            found.append(folder)
    return [folder for folder in dict.fromkeys(found) if os.path.isdir(folder)]


def _folders_of_pth(folder: str) -> Iterator[str]:
    for name in _names(folder):
        if name.endswith(".pth"):
            with open(os.path.join(folder, name), encoding="utf-8", errors="replace") as file:
                for line in file.read().splitlines():
                    if line.strip() and not line.startswith(("#", "import ", "import\t")):
                        yield os.path.abspath(os.path.join(folder, line.strip()))


def _names(folder: str) -> list[str]:
    """What is in a folder; nothing when it cannot be read, as `site` has it."""
    try:
        return sorted(os.listdir(folder))
    except OSError:
        return []


def compile_packages(files: Iterable[str]) -> None:
    """Write the .pyc files of cnimeta and of the plugins' packages: without them a start takes four times as long.

    In site-packages they are trusted unread, since only an upgrade (which writes them anew) changes the sources.
    """
    mode = py_compile.PycInvalidationMode
    for file in {os.path.join(launcher.package_folder(), "__init__.py"), *files} - {""}:
        folder, name = os.path.split(file)
        fixed = "site-packages" in folder.split(os.sep) or "dist-packages" in folder.split(os.sep)
        work = compileall.compile_dir if name == "__init__.py" else compileall.compile_file
        with contextlib.suppress(OSError):  # a read-only installation works, more slowly
            work(
                folder if name == "__init__.py" else file,
                quiet=2,
                force=fixed,
                invalidation_mode=mode.UNCHECKED_HASH if fixed else mode.TIMESTAMP,
            )


def bundle_modules(name: str, target: Target, answer: tuple[str, str] = ("", "")) -> None:
    """Write the file that the launcher takes its modules from. What it says is verified by each that reads it.

    answer: `launcher.version_answer`, for a launcher that is to answer VERSION from it.
    """
    package = launcher.package_folder()
    if not bundle.is_current(package, target, name):
        path = bundle.path_of(package, name)
        with contextlib.suppress(OSError):  # a read-only installation works, more slowly
            replace_file(path, bundle.build(package, target, answer), mode=0o644, temporary=f".tmp-{os.getpid()}-")


def _keep(path: str) -> str:
    """Give the file at `path` a second name, so that the first is never missing; that name.

    The last file that was there is the one that uninstall restores: a package's newer plugin, say. An older backup that
    differs gets a number.
    """
    backup = path + BACKUP_SUFFIX
    if os.path.lexists(backup):
        if not _same(path, backup):
            number = 1
            while os.path.lexists(f"{backup}.{number}"):
                number += 1
            os.rename(backup, f"{backup}.{number}")
        else:
            os.unlink(backup)
    try:
        os.link(path, backup, follow_symlinks=False)
    except OSError:  # a file system without hard links
        os.rename(path, backup)
    return backup


def _same(path: str, other: str) -> bool:
    if os.path.islink(path) or os.path.islink(other):
        return os.path.islink(path) and os.path.islink(other) and os.readlink(path) == os.readlink(other)
    return filecmp.cmp(path, other, shallow=False)


def _is_current(path: str, data: bytes) -> bool:
    """Whether the launcher at `path` is what would be written."""
    try:
        with open(path, "rb") as file:
            return file.read() == data and os.stat(file.fileno()).st_mode & 0o777 == _MODE and not os.path.islink(path)
    except OSError:
        return False
