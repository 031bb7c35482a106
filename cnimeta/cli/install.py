"""`cnimeta install` and `cnimeta uninstall`: the launchers in the runtime's plugin folder.

A file of another origin is never overwritten unless asked; it is then kept beside the launcher under a name that no
runtime looks up, and put back by uninstall. Both commands can be repeated and interrupted.
"""

from __future__ import annotations

import compileall
import contextlib
import filecmp
import functools
import importlib.util
import os
import py_compile
import subprocess
import sys
import sysconfig
from typing import TYPE_CHECKING

from cnimeta import launcher
from cnimeta.errors import IoFailure

if TYPE_CHECKING:
    import argparse
    from collections.abc import Sequence

BACKUP_SUFFIX = ".cnimeta-backup"
"""Never change: uninstall looks for it."""

_MODE = 0o755  # programs are for everybody to run
_THIRD_PARTY = ("filelock", "iptc", "kubernetes", "pyroute2")


def add_commands(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add `install` and `uninstall`."""
    for name, run, text in (
        ("install", _install_command, "write the plugin launchers"),
        ("uninstall", _uninstall_command, "remove the launchers and restore what they replaced"),
    ):
        parser = commands.add_parser(name, help=text)
        parser.add_argument("--bin-dir", default="/opt/cni/bin", help="the runtime's plugin folder (%(default)s)")
        parser.add_argument(
            "--only", action="append", choices=sorted(launcher.PLUGINS), help="this plugin only; can be repeated"
        )
        if name == "install":
            parser.add_argument("--replace", action="store_true", help="replace foreign files, keeping a backup")
            parser.add_argument("--agent", action="store_true", help="launchers ask `cnimeta agent` first")
        parser.set_defaults(run=run)


def _install_command(args: argparse.Namespace) -> int:
    for line in install(args.bin_dir, args.only or sorted(launcher.PLUGINS), replace=args.replace, agent=args.agent):
        print(line)
    return 0


def _uninstall_command(args: argparse.Namespace) -> int:
    for line in uninstall(args.bin_dir, args.only or sorted(launcher.PLUGINS)):
        print(line)
    return 0


def install(bin_dir: str, names: Sequence[str], *, replace: bool = False, agent: bool = False) -> list[str]:
    """Write launchers for `names` into `bin_dir`; what was done, a line each. `agent`: they ask the node agent first.

    What stands in the way is found before anything is written. Raises IoFailure (code 5).
    """
    os.makedirs(bin_dir, exist_ok=True)
    paths = {name: os.path.join(os.path.abspath(bin_dir), name) for name in names}
    foreign = [path for path in paths.values() if os.path.lexists(path) and not is_launcher(path)]
    folders = [path for path in foreign if os.path.isdir(path) and not os.path.islink(path)]
    if folders:
        raise IoFailure(f"folders are in the way: {', '.join(folders)}")
    if foreign and not replace:
        raise IoFailure(f"not written by cnimeta: {', '.join(foreign)}; --replace keeps a backup and replaces")
    texts = {name: launcher_text(name, agent=agent) for name in names}
    compile_packages()
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


def uninstall(bin_dir: str, names: Sequence[str]) -> list[str]:
    """Remove our launchers and restore backups; what was done, a line each. Foreign files stay."""
    lines = []
    for name in names:
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


def is_launcher(path: str) -> bool:
    """Whether the file at `path` is a launcher of any cnimeta installation."""
    try:
        with open(path, "rb") as file:
            head = file.read(4096).splitlines()
    except OSError:
        return False
    return any(line.startswith(launcher.MARK.encode() + b" ") for line in head[1:3])


def launcher_text(name: str, *, agent: bool = False) -> str:
    """The launcher of one plugin of this installation."""
    try:
        return launcher.render(launcher.PLUGINS[name], interpreter(), plugins_folder(), site_folders(), agent=agent)
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


def plugins_folder() -> str:
    """Where the package `cnimeta_plugins` lies: site-packages, or `plugins/` of a checkout."""
    spec = importlib.util.find_spec("cnimeta_plugins")
    if spec is None or not spec.submodule_search_locations:
        raise IoFailure("the package cnimeta_plugins is not installed")
    return os.path.realpath(spec.submodule_search_locations[0])


def site_folders() -> list[str]:
    """Where the third-party packages lie."""
    found = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    for name in _THIRD_PARTY:
        spec = importlib.util.find_spec(name)
        if spec is not None and spec.origin:
            outer = os.path.dirname(spec.origin)
            found.append(os.path.dirname(outer) if spec.submodule_search_locations else outer)
    return [folder for folder in dict.fromkeys(found) if os.path.isdir(folder)]


def compile_packages() -> None:
    """Write the .pyc files: without them a start takes four times as long.

    In site-packages they are trusted unread, since only an upgrade (which writes them anew) changes the sources.
    """
    mode = py_compile.PycInvalidationMode
    for folder in (launcher.package_folder(), plugins_folder()):
        fixed = "site-packages" in folder.split(os.sep) or "dist-packages" in folder.split(os.sep)
        with contextlib.suppress(OSError):  # a read-only installation works, more slowly
            compileall.compile_dir(
                folder, quiet=2, force=fixed, invalidation_mode=mode.UNCHECKED_HASH if fixed else mode.TIMESTAMP
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
