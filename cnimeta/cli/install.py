"""`cnimeta install` and `cnimeta uninstall`: the launchers in the runtime's plugin folder.

A file of another origin is never overwritten unless asked; it is then kept beside the launcher under a name that no
runtime looks up, and put back by uninstall. Both commands can be repeated and interrupted.
"""

from __future__ import annotations

import compileall
import contextlib
import importlib.util
import os
import py_compile
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

_SHEBANG_MAX_BYTES = 127  # the kernel's BINPRM_BUF_SIZE less the newline, on kernels before 5.1


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
        parser.set_defaults(run=run)


def _install_command(args: argparse.Namespace) -> int:
    for line in install(args.bin_dir, args.only or sorted(launcher.PLUGINS), replace=args.replace):
        print(line)
    return 0


def _uninstall_command(args: argparse.Namespace) -> int:
    for line in uninstall(args.bin_dir, args.only or sorted(launcher.PLUGINS)):
        print(line)
    return 0


def install(bin_dir: str, names: Sequence[str], *, replace: bool = False) -> list[str]:
    """Write launchers for `names` into `bin_dir`; what was done, a line each.

    All or none: a foreign file in the way is found before anything is written. Raises IoFailure (code 5).
    """
    os.makedirs(bin_dir, exist_ok=True)
    paths = {name: os.path.join(os.path.abspath(bin_dir), name) for name in names}
    foreign = [path for path in paths.values() if os.path.lexists(path) and not is_launcher(path)]
    if foreign and not replace:
        raise IoFailure(f"not written by cnimeta: {', '.join(foreign)}; --replace keeps a backup and replaces")
    compile_packages()
    lines = []
    for name, path in paths.items():
        text = launcher.render(launcher.PLUGINS[name], interpreter(), plugins_folder(), site_folders())
        if path in foreign:
            os.rename(path, _free_backup(path))
            lines.append(f"{path}: the file that was there is kept as {os.path.basename(path)}{BACKUP_SUFFIX}")
        _write_executable(path, text)
        lines.append(f"{path}: installed")
    return lines


def uninstall(bin_dir: str, names: Sequence[str]) -> list[str]:
    """Remove our launchers and restore backups; what was done, a line each. Foreign files stay."""
    lines = []
    for name in names:
        path = os.path.join(os.path.abspath(bin_dir), name)
        ours = is_launcher(path)
        backup = path + BACKUP_SUFFIX
        if os.path.lexists(backup) and (ours or not os.path.lexists(path)):
            os.replace(backup, path)
            lines.append(f"{path}: restored")
        elif ours:
            os.unlink(path)
            lines.append(f"{path}: removed")
        elif os.path.lexists(path):
            lines.append(f"{path}: not written by cnimeta, left alone")
    return lines


def is_launcher(path: str) -> bool:
    """Whether the file at `path` is a launcher of any cnimeta installation."""
    try:
        with open(path, "rb") as file:
            head = file.read(4096).splitlines()
    except OSError:
        return False
    return any(line.startswith(launcher.MARK.encode() + b" ") for line in head[1:3])


def interpreter() -> str:
    """The interpreter for launchers: the one behind a virtual environment, since launchers name their folders.

    Raises IoFailure (code 5) when its path does not fit a `#!` line.
    """
    path = os.path.realpath(getattr(sys, "_base_executable", "") or sys.executable)
    if len(f"#!{path} -IS") > _SHEBANG_MAX_BYTES or " " in path:
        raise IoFailure(f"the interpreter's path does not fit a #! line: {path}")
    return path


def plugins_folder() -> str:
    """Where the package `cnimeta_plugins` lies: site-packages, or `plugins/` of a checkout."""
    spec = importlib.util.find_spec("cnimeta_plugins")
    if spec is None or not spec.submodule_search_locations:
        raise IoFailure("the package cnimeta_plugins is not installed")
    return os.path.realpath(spec.submodule_search_locations[0])


def site_folders() -> list[str]:
    """Where the third-party packages lie."""
    found = [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    spec = importlib.util.find_spec("pyroute2")
    if spec is not None and spec.origin:
        found.append(os.path.dirname(os.path.dirname(spec.origin)))
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


def _free_backup(path: str) -> str:
    backup = path + BACKUP_SUFFIX
    if os.path.lexists(backup):
        raise IoFailure(f"{backup} is in the way: it is the backup of an earlier replacement")
    return backup


def _write_executable(path: str, text: str) -> None:
    temporary = f"{path}.tmp-{os.getpid()}"
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        os.chmod(temporary, 0o755)  # noqa: S103 - programs are for everybody to run
        os.rename(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise
