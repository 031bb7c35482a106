"""What was installed: packages, plugins, and their launchers."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from cnimeta.errors import CniError
from cnimeta.node.doctor.finding import Finding
from cnimeta.plugin import launcher, registry

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from cnimeta.plugin.registry import Target

_TIMEOUT_S = 30.0
_PACKAGES = {
    "filelock": "hostport_alloc cannot lock its state",
    "kubernetes": "Pods are not annotated through a kubeconfig",
    "python-iptables": "hosts with legacy iptables are not served",
}
"""What the plugins need beside the standard library, and what is missing without."""


def required_packages() -> Iterator[Finding]:
    """Each package that the plugins need."""
    for package, effect in _PACKAGES.items():
        yield _package(package, effect)


def plugins_and_launchers(bin_dirs: Sequence[str]) -> Iterator[Finding]:
    """Each plugin that is installed, and what a runtime finds of it in its folders."""
    for name, target in registry.installed().items():
        yield _plugin(name, target)
        yield _launcher(target, name, bin_dirs)


def _package(name: str, effect: str) -> Finding:
    from importlib import metadata

    try:
        return Finding(f"package {name}", "ok", metadata.version(name))
    except metadata.PackageNotFoundError:
        return Finding(f"package {name}", "fail", f"not installed: {effect}")


def _plugin(name: str, target: Target) -> Finding:
    """An installed plugin can be loaded, whoever wrote it."""
    try:
        plugin = registry.load(target)
    except CniError as error:
        return Finding(f"plugin {name}", "fail", str(error))
    return Finding(f"plugin {name}", "ok", plugin.about)


def _launcher(registered: Target, name: str, bin_dirs: Sequence[str]) -> Finding:
    """A launcher is there, is ours, and answers the way a runtime calls it."""
    from cnimeta.delegate.call import Delegates
    from cnimeta.delegate.spawn import ProcessExec

    what = f"launcher {name}"
    path = next((path for folder in bin_dirs if os.path.lexists(path := os.path.join(folder, name))), "")
    if not path:
        return Finding(what, "warn", f"not in {':'.join(bin_dirs)}: cnimeta install --bin-dir {bin_dirs[0]}")
    if not launcher.is_launcher(path):
        return Finding(what, "warn", f"{path} is not of this installation, nor cnimeta's; install has --replace for it")
    try:
        spoken = Delegates(ProcessExec(_TIMEOUT_S), {}, [os.path.dirname(path)]).versions(name)
    except CniError as error:
        return Finding(what, "fail", f"{path} does not work: {error}")
    target = launcher.read_target(path)
    if target is None or target._replace(path=()) != registered:
        return Finding(what, "warn", f"{path} is not of this installation, but of another cnimeta")
    return Finding(what, "ok", f"{path}, {spoken[0]} to {spoken[-1]}")
