"""A container's networking along a chain of plugins: ADD forward, DEL back, CHECK, GC and STATUS, as libcni does them.

Where this differs from libcni, on purpose:

- DEL goes on to the earlier plugins after one fails and reports every failure (libcni stops, and leaks the rest).
- A failed ADD is undone at once by DEL of the whole chain, unless asked not to (libcni leaves that to the runtime).
- One attachment is worked on by one caller at a time: a lock file per attachment (libcni has no locks).
"""

from __future__ import annotations

import os
from binascii import crc32
from typing import TYPE_CHECKING

from cnimeta._record import NamedTuple
from cnimeta.delegate.call import Delegates
from cnimeta.delegate.spawn import ProcessExec
from cnimeta.errors import CniError, IncompatibleVersion, IoFailure, joined
from cnimeta.host.files import PosixFiles
from cnimeta.host.lock import NodeLock
from cnimeta.runtime.cache import DEFAULT_FOLDER, Cache, Cached
from cnimeta.spec import validate
from cnimeta.spec.convert import parse_result, render_result
from cnimeta.spec.fields import Fields, without
from cnimeta.spec.jsonio import dumps
from cnimeta.spec.netconf import VALID_ATTACHMENTS
from cnimeta.spec.version import at_least

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from cnimeta.host.protocols import Files, PluginExec
    from cnimeta.runtime.conf import NetworkList
    from cnimeta.spec.jsonio import JSON
    from cnimeta.spec.result import Result

DEFAULT_PATH = ("/opt/cni/bin",)
DEFAULT_TIMEOUT_S = 120.0
_LOCKS = 64
_LOCK_WAIT_S = 300.0
_PREV_RESULT_SINCE = "0.4.0"
_CHECK_SINCE = "0.4.0"
_GC_SINCE = "1.1.0"
_STATUS_SINCE = "1.1.0"


class Container(NamedTuple):
    """One attachment as the runtime sees it, and the capability arguments it has for the plugins."""

    container_id: str
    netns: str
    ifname: str = "eth0"
    args: tuple[tuple[str, str], ...] = ()
    """CNI_ARGS, in order."""
    capability_args: Mapping[str, JSON] = {}
    """By capability, e.g. `{"portMappings": [...]}`; each plugin gets those that it declares."""


class Runtime:
    """Runs networks. `path` is CNI_PATH as folders; `timeout_s` bounds each plugin; `cache_dir` is libcni's."""

    def __init__(
        self,
        path: Sequence[str] = DEFAULT_PATH,
        cache_dir: str = DEFAULT_FOLDER,
        *,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        executor: PluginExec | None = None,
        files: Files | None = None,
        environ: Mapping[str, str] | None = None,
        log: Callable[[str], None] = print,
        locate: Callable[[str, Sequence[str]], str] | None = None,
    ) -> None:
        self.path = tuple(path)
        self.executor = executor or ProcessExec(timeout_s)
        self.cache = Cache(files or PosixFiles(), cache_dir, log)
        self.lock_dir = os.path.join(cache_dir, "locks")
        self.environ = dict(os.environ if environ is None else environ)
        self.log = log
        self.locate = locate

    def add(self, network: NetworkList, container: Container, *, undo: bool = True) -> Result:
        """ADD along the chain and remember the result. With `undo`, a failure is followed by DEL of the chain."""
        _validate(container)
        with self._lock(network, container):
            try:
                return self._add(network, container)
            except CniError as error:
                if undo:
                    cleanup = self._delete(network, container, None)
                    if cleanup is not None:
                        error.details = "; ".join(filter(None, [error.details, f"and DEL after it: {cleanup}"]))
                raise

    def delete(self, network: NetworkList, container: Container) -> None:
        """DEL back along the chain; every plugin is called whatever the others do. Raises all failures as one."""
        _validate(container)
        with self._lock(network, container):
            cached = self.cache.load(network.name, container.container_id, container.ifname)
            known = None if cached is None else cached.result
            failed = self._delete(network, _as_added(container, cached), known)
            if failed is not None:
                raise failed
            self.cache.forget(network.name, container.container_id, container.ifname)

    def check(self, network: NetworkList, container: Container) -> None:
        """CHECK along the chain with ADD's result. IncompatibleVersion (1) below 0.4.0; nothing when disabled."""
        _validate(container)
        if not at_least(network.cni_version, _CHECK_SINCE):
            raise IncompatibleVersion(
                f"configuration version {network.cni_version} does not have CHECK, which came with {_CHECK_SINCE}"
            )
        if network.disable_check:
            return
        with self._lock(network, container):
            cached = self.cache.load(network.name, container.container_id, container.ifname)
            if cached is None or cached.result is None:
                raise IoFailure(
                    f"no cached result of {container.container_id} {container.ifname}: CHECK needs the result of ADD"
                )
            added = _as_added(container, cached)
            for plugin in network.plugins:
                conf = request_conf(network, plugin, added, self._prev(network, cached.result))
                self._delegates(added).check(conf)

    def gc(self, network: NetworkList, valid: Iterable[tuple[str, str]]) -> None:
        """DEL what is remembered and not in `valid` ((container ID, ifname) pairs), then GC from 1.1.0 on."""
        if network.disable_gc:
            return
        keep = set(valid)
        errors: list[CniError] = []
        for cached in self.cache.of_network(network.name):
            if (cached.container_id, cached.ifname) in keep:
                continue
            gone = Container(cached.container_id, cached.netns, cached.ifname, cached.args, cached.capability_args)
            _collect(errors, lambda gone=gone: self.delete(network, gone))  # type: ignore[misc]
        if at_least(network.cni_version, _GC_SINCE):
            listed: list[JSON] = [{"containerID": one, "ifname": ifname} for one, ifname in sorted(keep)]
            for plugin in network.plugins:
                conf = {**request_conf(network, plugin, None, None), **dict.fromkeys(VALID_ATTACHMENTS, listed)}
                _collect(errors, lambda conf=conf: self._delegates(None).gc(conf))  # type: ignore[misc]
        failed = joined(errors)
        if failed is not None:
            raise failed

    def status(self, network: NetworkList) -> None:
        """STATUS of each plugin, up to the first that is not ready; nothing below 1.1.0."""
        if at_least(network.cni_version, _STATUS_SINCE):
            for plugin in network.plugins:
                self._delegates(None).status(request_conf(network, plugin, None, None))

    def validate(self, network: NetworkList) -> None:
        """Every plugin is found and speaks the network's version. Raises the first that does not."""
        for plugin in network.plugins:
            name = Fields(plugin).text("type")
            spoken = self._delegates(None).versions(name)
            if network.cni_version not in spoken:
                raise IncompatibleVersion(
                    f"plugin {name} does not support version {network.cni_version}, only {', '.join(spoken)}"
                )

    def _add(self, network: NetworkList, container: Container) -> Result:
        result: Result | None = None
        for plugin in network.plugins:
            prev = None if result is None else render_result(result, network.cni_version)
            result = self._delegates(container).add(request_conf(network, plugin, container, prev), undo=False)
        assert result is not None  # noqa: S101 - a list has at least one plugin
        self.cache.store(
            Cached(
                network.name,
                container.container_id,
                container.ifname,
                container.netns,
                container.args,
                container.capability_args,
                dumps(list_json(network)).encode(),
                render_result(result, network.cni_version),
            )
        )
        return result

    def _delete(self, network: NetworkList, container: Container, known: Mapping[str, JSON] | None) -> CniError | None:
        errors: list[CniError] = []
        prev = self._prev(network, known)
        for plugin in reversed(network.plugins):
            conf = request_conf(network, plugin, container, prev)
            _collect(errors, lambda conf=conf: self._delegates(container).delete(conf))  # type: ignore[misc]
        return joined(errors)

    def _prev(self, network: NetworkList, known: Mapping[str, JSON] | None) -> Mapping[str, JSON] | None:
        """The cached result in the network's version, for versions that have prevResult on DEL and CHECK."""
        if known is None or not at_least(network.cni_version, _PREV_RESULT_SINCE):
            return None
        try:
            version = Fields(known).text("cniVersion") or network.cni_version
            return render_result(parse_result(known, version), network.cni_version)
        except CniError as error:
            self.log(f"the cached result is ignored: {error}")
            return None

    def _delegates(self, container: Container | None) -> Delegates:
        environ = {**self.environ, "CNI_PATH": ":".join(self.path)}
        if container is not None:
            environ["CNI_CONTAINERID"] = container.container_id
            environ["CNI_NETNS"] = container.netns
            environ["CNI_IFNAME"] = container.ifname
            environ["CNI_ARGS"] = ";".join(f"{key}={value}" for key, value in container.args)
        if self.locate is None:
            return Delegates(self.executor, environ, self.path)
        return Delegates(self.executor, environ, self.path, self.locate)

    def _lock(self, network: NetworkList, container: Container) -> AbstractContextManager[None]:
        """One of a fixed number of lock files, so that none is ever removed (which would let two callers in)."""
        name = f"{network.name}-{container.container_id}-{container.ifname}"
        return NodeLock(os.path.join(self.lock_dir, f"{crc32(name.encode()) % _LOCKS:02x}"), _LOCK_WAIT_S).held()


def request_conf(
    network: NetworkList, plugin: Mapping[str, JSON], container: Container | None, prev: Mapping[str, JSON] | None
) -> dict[str, JSON]:
    """What one plugin of the list gets on stdin (spec §3, "Deriving execution configuration")."""
    conf = without(plugin, "name", "cniVersion", "prevResult", "runtimeConfig")
    conf = {"cniVersion": network.cni_version, "name": network.name, **conf}
    if prev is not None:
        conf["prevResult"] = dict(prev)
    if container is not None:
        declared = Fields(plugin).object("capabilities")
        given = {key: value for key, value in container.capability_args.items() if declared.get(key) is True}
        if given:
            conf["runtimeConfig"] = given
    return conf


def list_json(network: NetworkList) -> dict[str, JSON]:
    """The list as a configuration file would have it."""
    body: dict[str, JSON] = {"cniVersion": network.cni_version, "name": network.name}
    if network.disable_check:
        body["disableCheck"] = True
    if network.disable_gc:
        body["disableGC"] = True
    return {**body, "plugins": list(network.plugins)}


def _as_added(container: Container, cached: Cached | None) -> Container:
    """What the caller left out, as ADD had it."""
    if cached is None:
        return container
    return container._replace(
        netns=container.netns or cached.netns,
        args=container.args or cached.args,
        capability_args=container.capability_args or cached.capability_args,
    )


def _validate(container: Container) -> None:
    validate.container_id(container.container_id)
    validate.ifname(container.ifname)


def _collect(errors: list[CniError], call: Callable[[], None]) -> None:
    try:
        call()
    except CniError as error:
        errors.append(error)
