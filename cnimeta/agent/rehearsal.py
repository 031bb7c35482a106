"""Serving before the first container comes: ADD, CHECK and DEL of each plugin, in network namespaces made for it.

One process does so, and tells which pages of memory that takes (`pages.py`). Nothing is left of it, and nothing of the
node is touched: there is a node and a container for it, two namespaces joined by a veth pair, and a folder for state.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from typing import TYPE_CHECKING, NamedTuple

from cnimeta.host.netns import made
from cnimeta.host.network.kernel import KernelNetworks
from cnimeta.host.network.values import AddAddress, AddVeth, SetLink
from cnimeta.spec.jsonio import dumps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cnimeta.plugin.base import Plugin
    from cnimeta.spec.jsonio import JSON

_NAME = "rehearsal"
_VERBS = ("ADD", "ADD", "CHECK", "DEL", "DEL")
_VETH, _IFNAME = "veth0", "eth0"
_GATEWAY, _ADDRESS = "192.0.2.1/24", "192.0.2.2/24"


class Invocation(NamedTuple):
    """What a runtime would give a plugin."""

    environ: dict[str, str]
    stdin: bytes


class Stage:
    """The node and the container. Raises OSError or CniError where they cannot be made.

    `folder`: of state, which is made; what is left there of a rehearsal that was killed goes. `make_namespace`: `made`.
    """

    def __init__(self, folder: str, make_namespace: Callable[[], int] = made) -> None:
        self._folder, self._make_namespace = folder, make_namespace
        self._closing = contextlib.ExitStack()
        with self._closing:
            shutil.rmtree(folder, ignore_errors=True)
            os.mkdir(folder, 0o700)
            self._closing.callback(shutil.rmtree, folder, ignore_errors=True)
            self.node, self._container = self._namespace(), self._namespace()
            network = KernelNetworks()
            with network.within(self.node) as here:
                here.apply(
                    AddVeth(_VETH, _IFNAME, self._container), AddAddress(_VETH, _GATEWAY), SetLink(_VETH, up=True)
                )
            with network.within(self._container) as inside:
                inside.apply(AddAddress(_IFNAME, _ADDRESS), SetLink(_IFNAME, up=True))
            self._closing = self._closing.pop_all()

    def _namespace(self) -> str:
        descriptor = self._make_namespace()
        self._closing.callback(os.close, descriptor)
        return f"/proc/{os.getpid()}/fd/{descriptor}"

    def close(self) -> None:
        """Leave nothing behind."""
        self._closing.close()

    def invocations(self, plugin: Plugin) -> Iterator[Invocation]:
        """Every verb, with each configuration that the plugin names. Raises whatever the plugin does."""
        for conf in plugin.rehearsal():
            for verb in _VERBS:
                yield self._invocation(verb, {"type": plugin.name, **conf})

    def _invocation(self, verb: str, conf: dict[str, JSON]) -> Invocation:
        interfaces: list[JSON] = [{"name": _VETH}, {"name": _IFNAME, "sandbox": self._container}]
        addresses: list[JSON] = [{"address": _ADDRESS, "interface": 1}]
        result: JSON = {"cniVersion": "1.0.0", "interfaces": interfaces, "ips": addresses}
        whole = {"cniVersion": "1.0.0", "name": _NAME, "dataDir": self._folder, "prevResult": result, **conf}
        environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": _NAME, "CNI_IFNAME": _IFNAME, "CNI_NETNS": self._container}
        environ |= {"CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAME=rehearsal", "CNI_PATH": "/nonexistent"}
        environ |= {"PATH": os.environ.get("PATH", ""), "CNIMETA_CONFIG": f"{self._folder}/none"}
        return Invocation(environ, dumps(whole).encode())
