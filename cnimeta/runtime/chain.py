"""A container's networking along a chain of plugins: ADD forward, DEL back, CHECK, GC and STATUS, as libcni does them.

Where this differs from libcni, on purpose:

- DEL goes on to the earlier plugins after one fails and reports every failure (libcni stops, and leaks the rest).
- A failed ADD is undone at once by DEL of the whole chain, unless asked not to (libcni leaves that to the runtime, and
  then has no result for the plugins, some of which remove only what prevResult shows).
- One attachment is worked on by one caller at a time, and GC runs alone (libcni has no locks).
- CHECK without a cached result fails here, not in every plugin in its own way.
"""

from __future__ import annotations

import contextlib
import os
import sys
from typing import TYPE_CHECKING

from cnimeta.delegate.call import Delegates
from cnimeta.delegate.find import find
from cnimeta.delegate.spawn import ProcessExec
from cnimeta.errors import CniError, Failures, IncompatibleVersion, InvalidEnvironment, IoFailure, legible, shown
from cnimeta.host.files import PosixFiles
from cnimeta.namedtuple import NamedTuple
from cnimeta.plugin.base import VERBS
from cnimeta.runtime.cache import DEFAULT_FOLDER, Cache, Cached
from cnimeta.runtime.conf import declared, network_of
from cnimeta.runtime.locks import Locks
from cnimeta.spec import validate
from cnimeta.spec.convert import parse_result, render_result
from cnimeta.spec.fields import Fields, without
from cnimeta.spec.jsonio import dumps
from cnimeta.spec.netconf import VALID_ATTACHMENTS
from cnimeta.spec.trace import TraceContext
from cnimeta.spec.version import at_least

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager

    from cnimeta.host.protocols import Files, PluginExec
    from cnimeta.runtime.conf import Network, NetworkList
    from cnimeta.spec.jsonio import JSON
    from cnimeta.spec.result import Result

DEFAULT_PATH = ("/opt/cni/bin",)
DEFAULT_TIMEOUT_S = 120.0
_LOCK_WAIT_S = 300.0
_PREV_RESULT_SINCE = "0.4.0"
_OWN = ("CNI_COMMAND", "CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME", "CNI_ARGS", "CNI_PATH")
"""What the runtime says to a plugin; never passed on from its own environment."""


class Container(NamedTuple):
    """One attachment as the runtime sees it, and the capability arguments it has for the plugins."""

    container_id: str
    netns: str
    """The namespace's path; empty on a DEL after it is gone."""
    ifname: str = "eth0"
    args: tuple[tuple[str, str], ...] = ()
    """CNI_ARGS, in order."""
    capability_args: Mapping[str, JSON] = {}
    """By capability, e.g. `{"portMappings": [...]}`; each plugin gets those that it declares."""


def current_trace() -> TraceContext | None:
    """The span that OpenTelemetry says is the current one, in a program that uses it; None in any other."""
    if "opentelemetry" not in sys.modules:
        return None
    from opentelemetry import propagate  # type: ignore[import-not-found,unused-ignore]  # whose program has it

    carrier: dict[str, str] = {}
    propagate.inject(carrier)
    context = TraceContext(*(carrier.get(key, "") for key in ("traceparent", "tracestate", "baggage")))
    return context if context.is_valid else None


def to_stderr(line: str) -> None:
    """Where a runtime's remarks go unless told otherwise."""
    print(legible(line), file=sys.stderr)


class Runtime:
    """Runs networks. All failures are CniErrors.

    `path` is CNI_PATH as folders, `cache_dir` libcni's; `timeout_s` bounds each run of a plugin (None: no bound).
    `executor` runs plugins and `locate` finds them (`cnimeta.testing.FakeExec` has both); `environ` is what they see
    beside CNI_*, and `trace` gives the trace context that they are told of. A network is a NetworkList, or the object
    of a configuration file, of a list or a single plugin.
    """

    def __init__(
        self,
        path: Sequence[str] = DEFAULT_PATH,
        cache_dir: str = DEFAULT_FOLDER,
        *,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        lock_timeout_s: float = _LOCK_WAIT_S,
        executor: PluginExec | None = None,
        locate: Callable[[str, Sequence[str]], str] | None = None,
        files: Files | None = None,
        environ: Mapping[str, str] | None = None,
        trace: Callable[[], TraceContext | None] = current_trace,
        log: Callable[[str], None] = to_stderr,
    ) -> None:
        self.path = tuple(path)
        self.executor = executor or ProcessExec(timeout_s, keep_stderr=True)
        own: Callable[[str, Sequence[str]], str] = getattr(self.executor, "locate", find)
        self.locate = locate or own
        self.cache = Cache(files or PosixFiles(), cache_dir, log)
        self.locks = Locks(cache_dir, lock_timeout_s)
        inherited = os.environ if environ is None else environ
        self.trace = trace
        self.environ = {name: value for name, value in inherited.items() if name not in _OWN}
        self.log = log

    def add(self, network: Network, container: Container, *, undo: bool = True) -> Result:
        """ADD along the chain and remember the result.

        With `undo`, a failure (Ctrl-C too) is followed by DEL of the whole chain with the last result there was; what
        that fails with is added to the error's details. Not when the attachment was there before: it may still be used.
        """
        network = network_of(network)
        _validate(container)
        if not container.netns:
            raise InvalidEnvironment("ADD needs the path of the container's network namespace")
        with self._alone(network, container):
            known = self._cached(network, container)
            results: list[Result] = []
            try:
                self._add(network, container, results)
            except BaseException as error:
                if undo and known is None:
                    self._undo(network, container, results, error)
                elif undo and isinstance(error, CniError):
                    _remark(error, "nothing was undone: a cached result shows that the attachment was there before")
                raise
            return results[-1]

    def delete(self, network: Network, container: Container) -> None:
        """DEL back along the chain; every plugin is called whatever the others do. Raises all failures as one.

        What `container` leaves out (netns, args, capability arguments) is taken from the cached ADD. The cached result
        stays until DEL has succeeded.
        """
        network = network_of(network)
        with self._alone(network, container):
            self._delete_cached(network, container)

    def check(self, network: Network, container: Container) -> None:
        """CHECK along the chain with ADD's result, up to the first failure; nothing when the list disables it.

        IncompatibleVersion (1) below 0.4.0, IoFailure (5) without a cached result.
        """
        network = network_of(network)
        _validate(container)
        VERBS["CHECK"].require_in(network.cni_version)
        if network.disable_check:
            return
        with self._alone(network, container):
            cached = self._cached(network, container)
            if cached is None or cached.result is None:
                raise IoFailure(
                    f"no cached result of {network.name} {container.container_id} {container.ifname}: "
                    "CHECK needs the result of ADD"
                )
            added = _as_added(container, cached)
            prev = self._prev(network, cached.result)
            for plugin in network.plugins:
                self._delegates(added).check(request_conf(network, plugin, added, prev))

    def gc(self, network: Network, valid: Iterable[tuple[str, str]] | None) -> None:
        """DEL what is cached and not in `valid` ((container ID, ifname) pairs), then (from 1.1.0 on) GC of each plugin.

        None, as in libcni: every cached attachment goes, and the plugins are not told what is valid, so they remove
        nothing beyond that. Goes on after failures and raises all as one. Nothing when the list disables it.
        """
        network = network_of(network)
        if network.disable_gc:
            return
        keep = None if valid is None else set(valid)
        failures = Failures()
        with self.locks.network(network.name):
            with failures:
                for cached in self.cache.of_network(network.name):
                    if (cached.container_id, cached.ifname) not in (keep or ()):
                        with failures:
                            self._delete_cached(network, Container(cached.container_id, "", cached.ifname))
            for plugin in network.plugins if VERBS["GC"].is_in(network.cni_version) else ():
                with failures:
                    self._delegates(None).gc(gc_conf(network, plugin, keep))
        failures.raise_any()

    def status(self, network: Network) -> None:
        """STATUS of each plugin, up to the first that is not ready; nothing below 1.1.0."""
        network = network_of(network)
        if VERBS["STATUS"].is_in(network.cni_version):
            for plugin in network.plugins:
                self._delegates(None).status(request_conf(network, plugin))

    def validate(self, network: Network) -> dict[str, tuple[str, ...]]:
        """Ask every plugin for its VERSION; what each supports, by type.

        Raises all failures as one: plugins that are not found, and those that do not speak the network's version.
        """
        network = network_of(network)
        found: dict[str, tuple[str, ...]] = {}
        failures = Failures()
        for name in dict.fromkeys(Fields(plugin).text("type") for plugin in network.plugins):
            with failures:
                found[name] = self._delegates(None).versions(name)
                if network.cni_version not in found[name]:
                    spoken = shown(", ".join(found[name]))
                    raise IncompatibleVersion(f"plugin {name} does not support {network.cni_version}, only {spoken}")
        failures.raise_any()
        return found

    def _add(self, network: NetworkList, container: Container, results: list[Result]) -> None:
        """Run the chain and remember its result. `results` gets each plugin's, so that a failure can be undone."""
        for plugin in network.plugins:
            prev = render_result(results[-1], network.cni_version) if results else None
            results.append(self._delegates(container).add(request_conf(network, plugin, container, prev), undo=False))
        self.cache.store(
            Cached(
                network.name,
                container.container_id,
                container.ifname,
                container.netns,
                container.args,
                container.capability_args,
                dumps(list_json(network)).encode(),
                render_result(results[-1], network.cni_version),
            )
        )

    def _undo(self, network: NetworkList, container: Container, results: list[Result], error: BaseException) -> None:
        """DEL of the whole chain with the last result there was: some plugins remove only what prevResult shows."""
        last = None
        if results:
            with contextlib.suppress(CniError):  # it may be what cannot be written in this version
                last = render_result(results[-1], network.cni_version)
        try:
            self._delete(network, container, last)
        except CniError as failed:
            if isinstance(error, CniError):
                _remark(error, f"and DEL after it: {failed}")
            else:
                self.log(f"ADD was undone, but not all of it: {failed}")

    def _delete_cached(self, network: NetworkList, container: Container) -> None:
        _validate(container)  # GC has it from a file
        cached, failures = None, Failures()
        with failures:  # without it, the plugins still get what the caller knows
            cached = self._cached(network, container)
        known = None if cached is None else cached.result
        with failures:
            self._delete(network, _as_added(container, cached), known)
        failures.raise_any()
        self.cache.forget(network.name, container.container_id, container.ifname)

    def _delete(self, network: NetworkList, container: Container, known: Mapping[str, JSON] | None) -> None:
        """DEL of every plugin, the last first. Raises all failures as one."""
        failures = Failures()
        prev = self._prev(network, known)
        for plugin in reversed(network.plugins):
            with failures:
                self._delegates(container).delete(request_conf(network, plugin, container, prev))
        failures.raise_any()

    def _cached(self, network: NetworkList, container: Container) -> Cached | None:
        return self.cache.load(network.name, container.container_id, container.ifname)

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
        context = self.trace()
        if context is not None:
            environ.update(context.environ())
        if container is not None:
            environ["CNI_CONTAINERID"] = container.container_id
            environ["CNI_NETNS"] = container.netns
            environ["CNI_IFNAME"] = container.ifname
            environ["CNI_ARGS"] = ";".join(f"{key}={value}" for key, value in container.args)
        return Delegates(self.executor, environ, self.path, self.locate)

    def _alone(self, network: NetworkList, container: Container) -> AbstractContextManager[None]:
        return self.locks.attachment(network.name, container.container_id, container.ifname)


def request_conf(
    network: NetworkList,
    plugin: Mapping[str, JSON],
    container: Container | None = None,
    prev: Mapping[str, JSON] | None = None,
) -> dict[str, JSON]:
    """What one plugin of the list gets on stdin (spec §3, "Deriving execution configuration").

    As in libcni, `capabilities` stays in, and so does a prevResult or runtimeConfig written in the file unless there is
    one to put in its place (a chained plugin can be tried alone that way).
    """
    put: dict[str, JSON] = {}
    if prev is not None:
        put["prevResult"] = dict(prev)
    if container is not None:
        given = {key: container.capability_args[key] for key in declared(plugin) if key in container.capability_args}
        if given:
            put["runtimeConfig"] = given
    head: dict[str, JSON] = {"cniVersion": network.cni_version, "name": network.name}
    return {**head, **without(plugin, *head, *put), **put}


def gc_conf(
    network: NetworkList, plugin: Mapping[str, JSON], keep: Iterable[tuple[str, str]] | None
) -> dict[str, JSON]:
    """What one plugin gets for GC: the valid attachments under both names that the key has had."""
    conf = request_conf(network, plugin)
    if keep is not None:
        listed: list[JSON] = [{"containerID": container_id, "ifname": ifname} for container_id, ifname in sorted(keep)]
        conf.update(dict.fromkeys(VALID_ATTACHMENTS, listed))
    return conf


def list_json(network: NetworkList) -> dict[str, JSON]:
    """The list as a configuration file would have it, plugins from its folder included; for the cache."""
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
        netns=container.netns or cached.netns or _sandbox(cached),
        args=container.args or cached.args,
        capability_args=container.capability_args or cached.capability_args,
    )


def _sandbox(cached: Cached) -> str:
    """Where the result says the interface is; libcni before 1.2 did not keep the namespace beside it."""
    try:
        for interface in Fields(cached.result or {}).objects("interfaces"):
            if interface.text("name") == cached.ifname and interface.text("sandbox"):
                return interface.text("sandbox")
    except CniError:
        pass  # such a result is reported and ignored where it is needed
    return ""


def _validate(container: Container) -> None:
    validate.container_id(container.container_id)
    validate.ifname(container.ifname)
    for key, value in container.args:
        if not key or "=" in key or ";" in f"{key}{value}":
            raise InvalidEnvironment(f"CNI_ARGS cannot hold {shown(key)}={shown(value)}: ';' and '=' divide it")


def _remark(error: CniError, text: str) -> None:
    error.details = "; ".join(filter(None, [error.details, text]))
