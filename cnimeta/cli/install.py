"""`cnimeta install` and `cnimeta uninstall`: the launchers in the runtime's plugin folder.

A file of another origin is never overwritten unless asked; it is then kept beside the launcher under a name that no
runtime looks up, and put back by uninstall. Both commands can be repeated and interrupted.
"""

from __future__ import annotations

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

from cnimeta.errors import IoFailure
from cnimeta.plugin import launcher, registry

if TYPE_CHECKING:
    import argparse
    from collections.abc import Iterable, Iterator, Sequence

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
        parser.add_argument("--bin-dir", default="/opt/cni/bin", help="the runtime's plugin folder (%(default)s)")
        parser.add_argument("--only", action="append", metavar="NAME", help="this plugin only; can be repeated")
        if name == "install":
            parser.add_argument("--replace", action="store_true", help="replace foreign files, keeping a backup")
            parser.add_argument("--agent", action="store_true", help="launchers ask `cnimeta agent` first")
        parser.set_defaults(run=run, refuse=parser.error)


def _install_command(args: argparse.Namespace) -> int:
    _refuse_unknown(args, registry.installed())
    for line in install(args.bin_dir, args.only, replace=args.replace, agent=args.agent):
        print(line)
    return 0


def _uninstall_command(args: argparse.Namespace) -> int:
    _refuse_unknown(args, [*registry.installed(), *_written(args.bin_dir)])
    for line in uninstall(args.bin_dir, args.only):
        print(line)
    return 0


def _refuse_unknown(args: argparse.Namespace, known: Iterable[str]) -> None:
    """Wrong usage: a name that is no plugin's."""
    unknown = sorted(set(args.only or ()) - set(known))
    if unknown:
        args.refuse(f"no such plugin: {', '.join(unknown)} (there are {', '.join(sorted(set(known)))})")


def install(
    bin_dir: str, names: Sequence[str] | None = None, *, replace: bool = False, agent: bool = False
) -> list[str]:
    """Write launchers into `bin_dir`; what was done, a line each. `agent`: they ask the node agent first.

    `names`: of these plugins; None: of every plugin that is installed. What stands in the way, a plugin that cannot be
    loaded too, is found before anything is written. Raises IoFailure (code 5); KeyError for a name that is no plugin's.
    """
    known = registry.installed()
    chosen = {name: known[name] for name in (known if names is None else names)}
    os.makedirs(bin_dir, exist_ok=True)
    paths = {name: os.path.join(os.path.abspath(bin_dir), name) for name in chosen}
    foreign = [path for path in paths.values() if os.path.lexists(path) and not is_launcher(path)]
    folders = [path for path in foreign if os.path.isdir(path) and not os.path.islink(path)]
    if folders:
        raise IoFailure(f"folders are in the way: {', '.join(folders)}")
    if foreign and not replace:
        raise IoFailure(f"not written by cnimeta: {', '.join(foreign)}; --replace keeps a backup and replaces")
    for target in chosen.values():
        registry.load(target)
    texts = {name: launcher_text(target, agent=agent) for name, target in chosen.items()}
    compile_packages(target.file for target in chosen.values())
    lines = []
    for name, path in paths.items():
        data = texts[name].encode()
        if path in foreign:
            lines.append(f"{path}: the file that was there is kept as {os.path.basename(_keep(path))}")
        elif _is_current(path, data):
            lines.append(f"{path}: installed already")
            continue
        _write_executable(path, data)
        lines.append(f"{path}: installed")
    return lines


def uninstall(bin_dir: str, names: Sequence[str] | None = None) -> list[str]:
    """Remove launchers and restore backups; what was done, a line each. Foreign files stay.

    `names`: of these plugins; None: of every plugin that is installed, and what was written for one that no longer is.
    """
    lines = []
    for name in sorted({*registry.installed(), *_written(bin_dir)}) if names is None else names:
        path = os.path.join(os.path.abspath(bin_dir), name)
        ours = is_launcher(path)
        backup = path + BACKUP_SUFFIX
        if os.path.lexists(path) and not ours:
            lines.append(f"{path}: not written by cnimeta, left alone")
        elif os.path.lexists(backup):
            os.replace(backup, path)
            lines.append(f"{path}: restored")
        elif ours:
            os.unlink(path)
            lines.append(f"{path}: removed")
    return lines


def _written(bin_dir: str) -> Iterator[str]:
    """The names of the launchers of this installation in a folder."""
    with contextlib.suppress(FileNotFoundError):
        for name in os.listdir(bin_dir):
            if launcher.read_target(os.path.join(bin_dir, name)) is not None:
                yield name


def is_launcher(path: str) -> bool:
    """Whether the file at `path` is a launcher of any cnimeta installation."""
    try:
        with open(path, "rb") as file:
            head = file.read(4096).splitlines()
    except OSError:
        return False
    return any(line.startswith(launcher.MARK.encode() + b" ") for line in head[1:3])


def launcher_text(target: Target, *, agent: bool = False) -> str:
    """The launcher of one plugin."""
    try:
        return launcher.render(target._replace(path=tuple(site_folders())), interpreter(), agent=agent)
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


def _write_executable(path: str, data: bytes) -> None:
    temporary = f"{path}.tmp-{os.getpid()}"
    try:
        with open(temporary, "wb") as file:
            file.write(data)
            os.fchmod(file.fileno(), _MODE)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, path)
    except BaseException:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
