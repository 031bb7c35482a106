"""The launcher files that `cnimeta install` writes: their text, and how to recognise one.

A launcher runs `python -I -S` with nothing of the environment but CNI_* and PATH, from any folder, without HOME. It
names the folders its packages lie in, so neither site-packages nor .pth files are read at start (they cost
3-12 ms); the folder of the third-party packages is added last, for the work that needs them.
"""

from __future__ import annotations

import os
import sys

from cnimeta.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from cnimeta.plugin.base import Plugin

MARK = "# cnimeta-launcher"
"""First words of a launcher's second line. Never change: `cnimeta uninstall` and upgrades look for it."""

_HEAD_BYTES = 512
_SHEBANG_MAX_BYTES = 127  # kernels before 5.1 read no more of a #! line

PLUGINS = {
    "portmap": "cnimeta_plugins.portmap.main:Portmap",
    "bandwidth": "cnimeta_plugins.bandwidth.main:Bandwidth",
    "hostport_alloc": "cnimeta_plugins.hostport_alloc.main:HostportAlloc",
}
"""The executables this project installs, by name: where the plugin class is."""


_ASK_AGENT = """from cnimeta.agent.client import hand_over
hand_over({!r})
"""


class Target(NamedTuple):
    """What a launcher runs: the class, and the folder of the cnimeta package it belongs to."""

    plugin: str
    package: str

    def load(self) -> Plugin:
        """Import the class and make the plugin."""
        module, _, name = self.plugin.partition(":")
        __import__(module)
        plugin: Plugin = getattr(sys.modules[module], name)()
        return plugin


def package_folder() -> str:
    """Where the running cnimeta package lies."""
    return os.path.dirname(os.path.abspath(__file__))


def render(plugin: str, interpreter: str, plugins_folder: str, site_folders: list[str], *, agent: bool = False) -> str:
    """The text of the launcher for `plugin` ("module:Class"). Raises ValueError for a path it cannot hold.

    agent: it asks the node agent first.
    """
    module, _, name = plugin.partition(":")
    package = package_folder()
    if not package.isprintable():
        raise ValueError(f"a launcher cannot name the folder {package!r}")
    first, more = _start(interpreter)
    return f"""{first}
{MARK} {plugin} {package}
{more}import sys
for _name, _folder in (("cnimeta", {package!r}), ("cnimeta_plugins", {plugins_folder!r})):
    sys.modules[_name] = type(sys)(_name)
    sys.modules[_name].__path__ = [_folder]
sys.path += {site_folders!r}
{_ASK_AGENT.format(plugin) if agent else ""}from {module} import {name}
from cnimeta.plugin.dispatch import main
main({name}())
"""


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


def read_target(path: str) -> Target | None:
    """What the launcher at `path` runs, or None unless it is one of this very installation."""
    try:
        with open(path, "rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return None
    lines = head.decode("utf-8", "replace").splitlines()
    if len(lines) < 3 or not lines[1].startswith(MARK + " "):
        return None
    plugin, _, package = lines[1][len(MARK) + 1 :].partition(" ")
    if plugin not in PLUGINS.values() or package != package_folder():
        return None
    return Target(plugin, package)
