"""The launcher files that `cnimeta install` writes: their text, and what one of them runs.

A launcher runs `python -I -S` with nothing of the environment but CNI_* and PATH, from any folder, without HOME. It
says where its packages lie, so neither site-packages nor .pth files are read at start (they cost 3-12 ms); the folders
of the third-party packages are added last, for the work that needs them.
"""

from __future__ import annotations

import os
import struct

from cnimeta.plugin.bundle import reader
from cnimeta.plugin.registry import Target

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.plugin.base import Plugin

MARK = "# cnimeta-launcher"
"""First words of a launcher's second line. Never change: `cnimeta uninstall` and upgrades look for it."""

_ASKING = "from cnimeta.agent.client import hand_over"
"""The line that a launcher of agents has. Never change: upgrades look for it."""
NATIVE_MARK = b"cnimeta-launcher"
"""What stands before the trailer of a native launcher (`cnimeta.agent.native`). Never change."""
TRAILER = struct.Struct("<QQ")
"""Its last bytes: where the text of its Python launcher begins in it, and how long that is."""

_ELF = b"\x7fELF"
_HEAD_BYTES = 8192
_SHEBANG_MAX_BYTES = 127  # kernels before 5.1 read no more of a #! line
_BETWEEN = "\t"  # no path that a launcher names has one

_HOOK = r"""def failed(kind, error, trace):
    import os
    said = "".join(char for char in f"{kind.__name__}: {error}"[:300] if char.isalnum() or char in " .:_/()'-")
    msg = "the installation of cnimeta is not whole: install it again"
    os.write(1, ('{"cniVersion":"1.1.0","code":5,"msg":"%s","details":"%s"}\n' % (msg, said)).encode())
    if "CNIMETA_DEBUG" in os.environ or not issubclass(kind, Exception):
        sys.__excepthook__(kind, error, trace)
sys.excepthook = failed
"""
"""What a launcher says that cannot even load what would answer: one document all the same."""


def package_folder() -> str:
    """Where the running cnimeta package lies."""
    return os.path.dirname(os.path.dirname(os.path.abspath(__file__)))


def render(target: Target, interpreter: str, *, name: str = "", agent: bool = False) -> str:
    """The text of a launcher. Raises ValueError for a path it cannot hold.

    name: it takes its modules from the bundle of this name. agent: it asks the node agent first.
    """
    package = package_folder()
    for path in (package, target.package, target.file, *target.path):
        if not path.isprintable():
            raise ValueError(f"a launcher cannot name {path!r}")
    first, more = _start(interpreter)
    taken = reader(package, target, name) if name else ""
    asked = f"{_ASKING}\nhand_over({target.plugin!r})\n" if agent else ""
    return f"""{first}
{MARK} {target.plugin} {_BETWEEN.join((package, target.package, target.file, *target.path))}
{more}import sys
{_HOOK}sys.modules["cnimeta"] = type(sys)("cnimeta")
sys.modules["cnimeta"].__path__ = [{package!r}]
{taken}{asked}from cnimeta.plugin.dispatch import start
from cnimeta.plugin.registry import Target, load
start(lambda: load(Target{tuple(target)!r}))
"""


def version_answer(plugin: Plugin) -> tuple[str, str]:
    """What the plugin says to a query of VERSION, before and after the version that is echoed."""
    from cnimeta.plugin.dispatch import run

    answer = run(plugin, {"CNI_COMMAND": "VERSION"}, b'{"cniVersion":"0.0.0"}', lambda _: None).stdout
    head, _, tail = answer.partition("0.0.0")
    return head, tail


def _start(interpreter: str) -> tuple[str, str]:
    """The `#!` line, and the lines after the mark.

    A path that does not fit a `#!` line is started by the shell, from two lines that are a string to Python.
    """
    direct = f"#!{interpreter} -IS"
    if len(os.fsencode(direct)) <= _SHEBANG_MAX_BYTES and not any(char.isspace() for char in interpreter):
        return direct, ""
    if not interpreter.isprintable() or "'" in interpreter or "\\" in interpreter:
        raise ValueError(f"a launcher cannot name the interpreter {interpreter!r}")
    return "#!/bin/sh", f"'''exec' '{interpreter}' -IS \"$0\" \"$@\"\n' '''\n"


def asks_agent(path: str) -> bool:
    """Whether the file at `path` is a launcher, of whatever installation, that asks the node agent first."""
    return _ASKING in _lines(path)


def is_launcher(path: str) -> bool:
    """Whether the file at `path` is a launcher of any cnimeta installation."""
    return bool(_lines(path))


def is_native(path: str) -> bool:
    """Whether the file at `path` is a launcher, of whatever installation, and a native one."""
    return is_launcher(path) and _head(path).startswith(_ELF)


def read_target(path: str) -> Target | None:
    """What the launcher at `path` runs, or None unless it is one of this very installation."""
    lines = _lines(path)
    if not lines:
        return None
    plugin, _, places = lines[1][len(MARK) + 1 :].partition(" ")
    cnimeta, *named = places.split(_BETWEEN)
    if cnimeta != package_folder() or len(named) < 2:
        return None
    return Target(plugin, named[0], named[1], tuple(named[2:]))


def _lines(path: str) -> list[str]:
    """The lines of the launcher at `path`, of its Python form; none when it is no launcher."""
    lines = _head(path, text=True).decode("utf-8", "replace").split("\n")
    return lines if len(lines) > 2 and lines[1].startswith(MARK + " ") else []


def _head(path: str, *, text: bool = False) -> bytes:
    """The beginning of the file, or of the `text` in a native launcher; empty when it cannot be read."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
            if not text or not head.startswith(_ELF):
                return head
            file.seek(-len(NATIVE_MARK) - TRAILER.size, os.SEEK_END)
            trailer = file.read()
            if not trailer.startswith(NATIVE_MARK):
                return b""
            at, length = TRAILER.unpack(trailer[len(NATIVE_MARK) :])
            file.seek(at)
            return file.read(min(length, _HEAD_BYTES))
    except (OSError, ValueError, OverflowError):  # unknown: it is overwritten by nobody, and runs as its own process
        return b""
