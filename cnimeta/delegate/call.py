"""The verbs, called on another plugin (spec §4, "Plugin delegation").

A delegate gets a complete network configuration on stdin and the caller's environment with only CNI_COMMAND (and, for
a runtime, the attachment) changed. The configuration is passed on as received: keys unknown here reach the delegate.

Errors: what the delegate reported keeps its code, message and details, with the delegate named in front; a delegate
that cannot be found, started or finished is a DelegateFailed (105); an answer that is not what the spec says is a
DecodingFailure (6). All are CniErrors, so a plugin may simply let them pass.
"""

from __future__ import annotations

from cnimeta.delegate.find import find
from cnimeta.errors import CniError, DecodingFailure, DelegateFailed, InvalidNetworkConfig, counted, shown
from cnimeta.observe import notes
from cnimeta.spec.convert import parse_result, render_conf
from cnimeta.spec.fields import Fields
from cnimeta.spec.jsonio import dumps, kind, loads_all
from cnimeta.spec.version import CURRENT, IMPLIED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence
    from typing import TypeAlias

    from cnimeta.host.protocols import PluginExec
    from cnimeta.host.values import Completed
    from cnimeta.plugin.request import Request
    from cnimeta.spec.jsonio import JSON
    from cnimeta.spec.result import Result

    Conf: TypeAlias = Mapping[str, JSON | Result]
    """A delegate's configuration. A Result in it, its prevResult as a rule, is written in the shape of its version."""
else:
    Conf = dict


class Delegates:
    """Plugins that can be called. `environ` is what they see, CNI_COMMAND apart; `folders` is CNI_PATH split."""

    def __init__(
        self,
        executor: PluginExec,
        environ: Mapping[str, str],
        folders: Sequence[str],
        locate: Callable[[str, Sequence[str]], str] | None = None,
    ) -> None:
        self.executor = executor
        self.environ = environ
        self.folders = folders
        own: Callable[[str, Sequence[str]], str] = getattr(executor, "locate", find)
        self.locate = locate or own

    @classmethod
    def of(cls, request: Request, executor: PluginExec | None = None) -> Delegates:
        """The delegates of one invocation: same environment, same CNI_PATH, its log for what runs in this process.

        `executor`: that of the request's host unless given. One that has a `locate`, as `cnimeta.testing` has, finds
        its plugins itself.
        """
        executor = executor or request.host.executor
        if executor is None:
            from cnimeta.delegate.inprocess import InProcessExec
            from cnimeta.delegate.spawn import ProcessExec

            executor = InProcessExec(ProcessExec(), request.log)
        return cls(executor, request.environ, request.cni_path)

    def add(self, conf: Conf, *, undo: bool = True, plugin: str = "") -> Result:
        """ADD. With `undo`, a failure is followed by DEL with the same configuration before it is raised (spec §4).

        A delegate that is not there at all has done nothing, and gets no DEL. `plugin` is the executable where it is
        not the configuration's own type: an IPAM plugin is given the configuration of the plugin that calls it.
        """
        written = render_conf(conf)
        self.locate(plugin or Fields(written).text("type"), self.folders)
        try:
            return _result(self._call("ADD", conf, plugin), written, plugin)
        except CniError as error:
            if not undo:
                raise
            try:
                self.delete(conf, plugin=plugin)
            except CniError as cleanup:
                error.details = "; ".join(filter(None, [error.details, f"and DEL after it: {cleanup}"]))
            raise

    def delete(self, conf: Conf, *, plugin: str = "") -> None:
        """DEL."""
        self._call("DEL", conf, plugin)

    def check(self, conf: Conf, *, plugin: str = "") -> None:
        """CHECK."""
        self._call("CHECK", conf, plugin)

    def gc(self, conf: Conf, *, plugin: str = "") -> None:
        """GC."""
        self._call("GC", conf, plugin)

    def status(self, conf: Conf, *, plugin: str = "") -> None:
        """STATUS."""
        self._call("STATUS", conf, plugin)

    def versions(self, plugin_type: str) -> tuple[str, ...]:
        """VERSION: the spec versions a plugin supports. A plugin from before that verb supports 0.1.0."""
        try:
            answer = self._call("VERSION", {"cniVersion": CURRENT, "type": plugin_type}, "")
            found = tuple(Fields(answer).texts("supportedVersions"))
        except InvalidNetworkConfig as error:
            raise DecodingFailure(f"the answer of plugin {shown(plugin_type)} to VERSION: {error.msg}") from None
        except CniError as error:
            if error.msg.endswith("unknown CNI_COMMAND: VERSION"):
                return (IMPLIED,)
            raise
        if not found:
            raise DecodingFailure(f"plugin {shown(plugin_type)} answered VERSION without supportedVersions")
        return found

    def _call(self, verb: str, conf: Conf, plugin: str) -> dict[str, JSON]:
        """Run one verb; its stdout as an object, empty when there is none. Raises what the delegate reported."""
        written = render_conf(conf)
        name = plugin or Fields(written).text("type")
        path = self.locate(name, self.folders)
        began = notes.moment()
        try:
            done = self.executor.run(path, {**self.environ, "CNI_COMMAND": verb}, dumps(written).encode())
            failure = _reported(name, verb, done) if done.status != 0 else None
        except CniError as error:
            failure = error
        notes.called(name, verb, failure.code if failure is not None else 0, began)
        if failure is not None:
            raise failure
        if verb not in ("ADD", "VERSION"):
            return {}  # these verbs have no answer; what a plugin prints all the same is not an error
        return _only_object(done.stdout, f"the answer of plugin {shown(name)} to {verb}")


def _reported(name: str, verb: str, done: Completed) -> CniError:
    """The delegate's own error, its code kept, or a DelegateFailed when it printed none that can be read.

    As in libcni, what it wrote to stderr is told when there is nothing on stdout.
    """
    status, stdout = done.status, done.stdout
    try:
        # The reference prints a result and then an error with code 8: the last document is what it means.
        last = loads_all(stdout)[-1:]
        fields = Fields(last[0] if last and isinstance(last[0], dict) else {})
        code = fields.integer("code", 1, 2**32 - 1)
        if code is not None:
            return CniError(f"plugin {name} failed {verb}: {fields.text('msg')}", fields.text("details"), code=code)
    except CniError:  # then: it is told as it was said
        pass
    said = shown(stdout.decode("utf-8", "replace").strip()) if stdout.strip() else "nothing"
    failure = f"plugin {shown(name)} failed {verb} with exit status {status} and {said} on stdout"
    return DelegateFailed(f"{failure}; stderr: {done.complaint}" if done.stderr and not stdout.strip() else failure)


def _only_object(stdout: bytes, what: str) -> dict[str, JSON]:
    found = loads_all(stdout, what)
    if len(found) == 1 and isinstance(found[0], dict):
        return found[0]
    said = "nothing" if not found else counted(len(found), "document") if len(found) > 1 else kind(found[0])
    raise DecodingFailure(f"{what} must be one JSON object, got {said}")


def _result(answer: Mapping[str, JSON], conf: Mapping[str, JSON], plugin: str) -> Result:
    """ADD's answer. Without a cniVersion of its own it is taken to be in the configuration's."""
    try:
        version = Fields(answer).text("cniVersion") or Fields(conf).text("cniVersion") or IMPLIED
        return parse_result(answer, version)
    except CniError as error:
        name = shown(plugin or Fields(conf).text("type"))
        raise DecodingFailure(f"the result of plugin {name} cannot be read: {error.msg}") from None
