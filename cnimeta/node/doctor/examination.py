"""Everything the doctor looks at, in the order people look for it."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from cnimeta import __version__
from cnimeta.node.doctor.agent import agent
from cnimeta.node.doctor.finding import Finding
from cnimeta.node.doctor.installation import plugins_and_launchers, required_packages
from cnimeta.node.doctor.networks import networks, plugins_of_node
from cnimeta.node.doctor.node import forwarding, mapping, settings, shaping
from cnimeta.plugin import launcher

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence


def examine(bin_dirs: Sequence[str], net_dir: str) -> Iterator[Finding]:
    """Everything, in the order people look for it."""
    yield Finding("cnimeta", "ok", f"{__version__}, {launcher.package_folder()}")
    yield Finding("python", "ok", f"{sys.version.split()[0]}, {sys.executable}")
    root = os.geteuid() == 0
    yield Finding("root", "ok" if root else "fail", "plugins change the network: run as root" * (not root))
    yield from required_packages()
    yield from plugins_and_launchers(bin_dirs)
    yield from agent(bin_dirs)
    yield from mapping()
    yield from forwarding()
    yield shaping(root)
    yield from settings()
    yield from networks(net_dir, bin_dirs)
    yield from plugins_of_node(net_dir)
