"""Native launchers: `launch.c` compiled, or as a platform wheel ships it, with the settings of one plugin in it.

Written by `cnimeta install --native`; what runs a launcher imports none of this.
"""

from __future__ import annotations

import functools
import os
import shlex
import subprocess
import sys
import tempfile
from typing import TYPE_CHECKING

from cnimeta.agent.wire import SOCKET
from cnimeta.errors import IoFailure, shown
from cnimeta.plugin.launcher import NATIVE_MARK, TRAILER, package_folder, version_answer
from cnimeta.spec.version import CURRENT

if TYPE_CHECKING:
    from collections.abc import Iterable

    from cnimeta.plugin.base import Plugin
    from cnimeta.plugin.registry import Target

SOURCE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "launch.c")
SHIPPED = SOURCE.removesuffix(".c")
"""Where a platform wheel has the compiled program."""

_MARK = b"cnimeta-native-settings\n"
_SETTINGS_BYTES = 32768
_WARNINGS = ("-std=c11", "-Wall", "-Wextra", "-Wconversion")
_HARDENED = (
    *("-O2", "-fPIE", "-fstack-protector-strong", "-fstack-clash-protection", "-D_FORTIFY_SOURCE=2"),
    *("-Wl,-z,relro,-z,now,-z,noexecstack", "-s"),
)
_LINKED = (("-static-pie",), ("-pie",))
"""Static where the C library can be: the dynamic loader costs as much as the rest of the program."""
_COMPILE_S = 120


@functools.cache
def program(shipped: str = SHIPPED) -> bytes:
    """The launcher without settings. IoFailure (code 5) where none was shipped and no compiler makes one."""
    try:
        with open(shipped, "rb") as file:
            return file.read()
    except FileNotFoundError:
        return compiled()


def compiled(options: Iterable[str] | None = None) -> bytes:
    """`launch.c`, compiled by the first of CC, cc, gcc and clang; `options`: instead of those for production."""
    attempts = [(*_HARDENED, *linked) for linked in _LINKED] if options is None else [tuple(options)]
    said = "there is no C compiler"
    for words in [[*shlex.split(os.environ.get("CC", ""))], ["cc"], ["gcc"], ["clang"]]:
        for attempt in attempts if words else ():
            with tempfile.TemporaryDirectory(prefix="cnimeta-") as folder:
                made = os.path.join(folder, "launch")
                command = [*words, *_WARNINGS, *attempt, "-o", made, SOURCE]
                try:
                    done = subprocess.run(command, check=False, capture_output=True, timeout=_COMPILE_S)
                except FileNotFoundError:
                    break
                except (OSError, subprocess.TimeoutExpired) as error:
                    said = f"{words[0]}: {error}"
                    break
                if done.returncode == 0:
                    with open(made, "rb") as file:
                        return file.read()
                said = f"{words[0]}: {done.stderr.decode('utf-8', 'replace')}"
    raise IoFailure(f"the native launcher cannot be made here ({shown(said, 400)}); --no-native does without it")


def render(launcher: bytes, target: Target, plugin: Plugin, text: str, interpreter: str) -> bytes:
    """The launcher of one plugin. `text`: its Python launcher, which is what runs when there is any doubt.

    Raises IoFailure (code 5) when the settings do not fit.
    """
    head, tail = version_answer(plugin)
    strings = [interpreter, text, package_folder(), target.plugin, SOCKET, CURRENT, head, tail]
    for file in _sources(target, plugin):
        found = os.stat(file)
        seconds, nanoseconds = divmod(found.st_mtime_ns, 10**9)
        strings += [file, f"{found.st_ino} {found.st_size} {seconds}.{nanoseconds:09d}"]
    encoded = [os.fsencode(string) for string in strings]
    block = _MARK + b"".join(string + b"\0" for string in encoded)
    start = launcher.find(_MARK)
    if start < 0 or len(block) + 2 > _SETTINGS_BYTES or any(b"\0" in string for string in encoded):
        raise IoFailure(f"the native launcher of {target.plugin} cannot hold its settings ({len(block)} bytes)")
    at = start + len(_MARK) + len(encoded[0]) + 1
    whole = launcher[:start] + block + launcher[start + len(block) :]
    return whole + NATIVE_MARK + TRAILER.pack(at, len(encoded[1]))


def _sources(target: Target, plugin: Plugin) -> list[str]:
    """The files that the answer to VERSION comes from, as far as they are files."""
    module = getattr(sys.modules.get(type(plugin).__module__), "__file__", None) or ""
    package = package_folder()
    found = [f"{package}/__init__.py", f"{package}/spec/version.py", f"{package}/plugin/dispatch.py"]
    return list(dict.fromkeys(file for file in (*found, target.file, module) if file))
