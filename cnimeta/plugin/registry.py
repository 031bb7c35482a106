"""Which plugins there are, and the one place that loads code by name.

A package registers its plugins as entry points of the group `cnimeta.plugins`; ours do so in pyproject.toml:

    [project.entry-points."cnimeta.plugins"]
    mine = "my_package.main:Mine"

`mine` is the plugin's type: the executable that `cnimeta install` writes has this name. Reading the entry points of all
installed packages costs about 40 ms. Nothing does so where a plugin starts: a launcher says what it loads, and where
that lies, and so a plugin that is called by another in one process is loaded by its launcher's words too.
"""

from __future__ import annotations

import os
import sys

from cnimeta.errors import IoFailure, shown
from cnimeta.namedtuple import NamedTuple
from cnimeta.plugin.base import Plugin

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable

    from cnimeta.ports.mapper import PortMapper

GROUP = "cnimeta.plugins"
"""The group of entry points. Never change: packages of others name it."""


class Target(NamedTuple):
    """A plugin as it is loaded."""

    plugin: str
    """module:Class"""
    package: str = ""
    """The outermost package around it that has a file, or its module; empty: it is found on the path."""
    file: str = ""
    """That package's `__init__.py`, or the module's file."""
    path: tuple[str, ...] = ()
    """The folders that other packages lie in, for when the interpreter does not know them."""


def installed() -> dict[str, Target]:
    """The plugins that installed packages register, by type, in order. Loads none of them.

    Raises IoFailure (code 5) for an entry point that names no class, and for a type that two packages register.
    """
    return _registered()


def load(target: Target) -> Plugin:
    """Import the class and make the plugin. Raises IoFailure (code 5), whatever stands in the way."""
    sys.path += [folder for folder in target.path if folder not in sys.path]
    module, _, name = target.plugin.partition(":")
    try:
        if target.file:
            _import_file(target.package, target.file)
        __import__(module)
        plugin = getattr(sys.modules[module], name)()
        if not isinstance(plugin, Plugin):
            raise TypeError("it is no cnimeta.plugin.Plugin")
    except Exception as error:
        raise IoFailure(f"plugin {target.plugin} cannot be loaded: {type(error).__name__}: {error}") from error
    return plugin


def port_mapper(plugin_type: str, target: Target | None = None) -> PortMapper | None:
    """What the installed plugin of this type offers to others as a mapper of host ports.

    None when no such plugin is installed, or it maps no ports. Raises IoFailure (code 5) when it cannot be loaded.
    `target` (of its launcher, say) saves looking through the installed packages.
    """
    if target is None:
        target = _registered(plugin_type).get(plugin_type)
    return None if target is None else load(target).port_mapper()


def preload(plugin: Plugin, log: Callable[[str], None]) -> None:
    """Import what the plugin names, once for all the processes forked from this one. What fails is told."""
    try:
        for name in plugin.preload():
            try:
                __import__(name)
            except ImportError as error:
                log(f"{plugin.name} does without {name}: {error}")
    except Exception as error:  # noqa: BLE001 - somebody's plugin must not end the agent
        log(f"{plugin.name} could not preload: {type(error).__name__}: {error}")


def _registered(only: str = "") -> dict[str, Target]:
    from importlib import metadata

    from cnimeta.spec.validate import plugin_type

    found: dict[str, Target] = {}
    entries = metadata.entry_points(group=GROUP)
    for entry in sorted(entries.select(name=only) if only else entries):
        plugin_type(entry.name, f"the name of an entry point of group {GROUP}")
        parts = entry.value.split(":")
        if len(parts) != 2 or not all(word.isidentifier() for word in (*parts[0].split("."), parts[1])):
            raise IoFailure(f"the entry point {entry.name} of group {GROUP} must be module:Class: {shown(entry.value)}")
        if entry.name in found and found[entry.name].plugin != entry.value:
            raise IoFailure(
                f"two packages register a plugin {shown(entry.name)}, "
                f"{found[entry.name].plugin} and {entry.value}: uninstall one of them"
            )
        found[entry.name] = Target(entry.value, *_home(parts[0]))
    return found


def _home(module: str) -> tuple[str, str]:
    """The package and the file of a Target. Empty for a module that is not there."""
    from importlib.util import find_spec

    parts = module.split(".")
    for count in range(1, len(parts) + 1):
        package = ".".join(parts[:count])
        try:
            spec = find_spec(package)
        except (ImportError, ValueError):
            break
        if spec is not None and spec.has_location and spec.origin:
            return package, os.path.realpath(spec.origin)
    return "", ""


def _import_file(name: str, file: str) -> None:
    """Import a package or module from its file.

    So it need not be on the path: a checkout that is installed editable is not, for an interpreter started with -S.
    """
    from _frozen_importlib import module_from_spec  # importlib.util is made of these; importing that costs 8 ms
    from _frozen_importlib_external import spec_from_file_location

    known = sys.modules.get(name)
    if known is not None:
        place = getattr(known, "__file__", None) or ""
        if place != file and os.path.realpath(place) != os.path.realpath(file):
            raise ImportError(f"{name} was loaded from {place} already, not from {file}")
        return
    from cnimeta.plugin.bundle import bundled

    spec = bundled(name, file) or spec_from_file_location(name, file)
    if spec is None or spec.loader is None:
        raise ImportError(f"{file} is not a Python module")
    outer, _, inner = name.rpartition(".")
    _have_namespace(outer)
    module = sys.modules[name] = module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    if outer:
        setattr(sys.modules[outer], inner, module)


def _have_namespace(name: str) -> None:
    """Have the packages around a package, which have no files, and other parts of which may be on the path."""
    if not name:
        return
    try:
        __import__(name)
    except ImportError:
        _have_namespace(name.rpartition(".")[0])
        sys.modules[name] = type(sys)(name)
        sys.modules[name].__path__ = []
