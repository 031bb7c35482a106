"""Practising before the first container comes: ADD, CHECK and DEL of each plugin, in network namespaces made for it.

The first time is slow: modules are imported, Python adapts its code to what it meets (PEP 659), kernel modules are
loaded. The agent practises itself, before it forks anything; and then once more in a process that tells which pages of
memory that takes (`pages.py`). Nothing is left of it, and nothing of the node is touched: there is a node and a
container for it, of two namespaces joined by a veth pair, and a folder for state.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from typing import TYPE_CHECKING, NamedTuple

from cnimeta.errors import shown
from cnimeta.host.netns import entered, made
from cnimeta.host.network.kernel import KernelNetworks
from cnimeta.host.network.values import AddAddress, AddVeth, SetLink
from cnimeta.plugin.dispatch import serve
from cnimeta.spec.jsonio import dumps

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

    from cnimeta.plugin.base import Plugin
    from cnimeta.spec.jsonio import JSON

_NAME = "rehearsal"
_ROUNDS = 4  # so that each function is called eight times, which is when Python adapts it
_VERBS = ("ADD", "ADD", "CHECK", "DEL", "DEL")
_VETH, _IFNAME = "veth0", "eth0"
_GATEWAY, _ADDRESS = "192.0.2.1/24", "192.0.2.2/24"


class Invocation(NamedTuple):
    """What a runtime would give a plugin."""

    environ: dict[str, str]
    stdin: bytes


class Stage:
    """The node and the container. Raises OSError or CniError where they cannot be made."""

    def __init__(self) -> None:
        self._closing = contextlib.ExitStack()
        with self._closing:
            self._folder = tempfile.mkdtemp(prefix="cnimeta-rehearsal-")
            self._closing.callback(shutil.rmtree, self._folder, ignore_errors=True)
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
        descriptor = made()
        self._closing.callback(os.close, descriptor)
        return f"/proc/{os.getpid()}/fd/{descriptor}"

    def close(self) -> None:
        """Leave nothing behind."""
        self._closing.close()

    def invocations(self, plugin: Plugin) -> Iterator[Invocation]:
        """Every verb, with each configuration that the plugin wants to practise. Raises whatever the plugin does."""
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


def practise(plugins: Iterable[Plugin], stage: Stage, log: Callable[[str], None]) -> None:
    """Run every verb several times, in this process. What fails is told."""
    for plugin in plugins:
        try:
            with entered(stage.node):
                for invocation in [*stage.invocations(plugin)] * _ROUNDS:
                    _, failure = serve(plugin, *invocation, lambda _: None)
                    if failure is not None:
                        raise failure
        except Exception as error:  # noqa: BLE001 - somebody's plugin must not end the agent
            log(f"{plugin.name} is not rehearsed: {type(error).__name__}: {shown(str(error))}")
