"""The verbs, called on another plugin (spec §4, "Plugin delegation").

A delegate gets a complete network configuration on stdin and the caller's environment with only CNI_COMMAND (and, for
a runtime, the attachment) changed. The configuration is passed on as received: keys unknown here reach the delegate.
"""

from __future__ import annotations

from cnimeta.delegate.find import find
from cnimeta.errors import CniError, DecodingFailure, DelegateFailed, shown
from cnimeta.spec.convert import parse_result
from cnimeta.spec.fields import Fields
from cnimeta.spec.jsonio import dumps, loads_object
from cnimeta.spec.version import IMPLIED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cnimeta.host.protocols import PluginExec
    from cnimeta.spec.jsonio import JSON
    from cnimeta.spec.result import Result


class Delegates:
    """Plugins that can be called. `environ` is what they see, CNI_COMMAND apart; `folders` is CNI_PATH split."""

    def __init__(
        self,
        executor: PluginExec,
        environ: Mapping[str, str],
        folders: Sequence[str],
        locate: Callable[[str, Sequence[str]], str] = find,
    ) -> None:
        self.executor = executor
        self.environ = environ
        self.folders = folders
        self.locate = locate

    def add(self, conf: Mapping[str, JSON]) -> Result:
        """ADD. A failure is followed by DEL with the same configuration before the failure is raised."""
        try:
            answer = self._call("ADD", conf)
            fields = Fields(answer, "$")
            version = fields.text("cniVersion") or Fields(conf).text("cniVersion") or IMPLIED
            return parse_result(answer, version)
        except CniError as error:
            try:
                self.delete(conf)
            except CniError as cleanup:
                error.details = "; ".join(filter(None, [error.details, f"and DEL after it: {cleanup}"]))
            raise

    def delete(self, conf: Mapping[str, JSON]) -> None:
        """DEL."""
        self._call("DEL", conf)

    def check(self, conf: Mapping[str, JSON]) -> None:
        """CHECK."""
        self._call("CHECK", conf)

    def gc(self, conf: Mapping[str, JSON]) -> None:
        """GC."""
        self._call("GC", conf)

    def status(self, conf: Mapping[str, JSON]) -> None:
        """STATUS."""
        self._call("STATUS", conf)

    def versions(self, plugin_type: str) -> tuple[str, ...]:
        """VERSION: the spec versions a plugin supports."""
        answer = self._call("VERSION", {"cniVersion": "1.0.0", "type": plugin_type})
        return tuple(Fields(answer, "$").texts("supportedVersions"))

    def _call(self, verb: str, conf: Mapping[str, JSON]) -> dict[str, JSON]:
        """Run one verb; its stdout as an object, empty when there is none. Raises what the delegate reported."""
        name = Fields(conf).text("type")
        path = self.locate(name, self.folders)
        done = self.executor.run(path, {**self.environ, "CNI_COMMAND": verb}, dumps(conf).encode())
        if done.status != 0:
            raise _reported(name, verb, done.status, done.stdout)
        if not done.stdout.strip():
            if verb in ("ADD", "VERSION"):
                raise DelegateFailed(f"plugin {shown(name)} answered {verb} with nothing on stdout")
            return {}
        try:
            return loads_object(done.stdout, f"the answer of plugin {shown(name)} to {verb}")
        except DecodingFailure:
            if verb in ("ADD", "VERSION"):
                raise
            return {}  # these verbs have no answer; what a plugin prints all the same is not an error


def _reported(name: str, verb: str, status: int, stdout: bytes) -> CniError:
    """The delegate's own error, its code kept, or a DelegateFailed when it printed none that can be read."""
    try:
        fields = Fields(loads_object(_first_document(stdout), "error"), "$")
        code = fields.integer("code", 1, 2**32 - 1)
        if code is not None:
            return CniError(f"plugin {name} failed {verb}: {fields.text('msg')}", fields.text("details"), code=code)
    except CniError:
        pass
    said = shown(stdout.decode("utf-8", "replace").strip()) if stdout.strip() else "nothing"
    return DelegateFailed(f"plugin {shown(name)} failed {verb} with exit status {status} and {said} on stdout")


def _first_document(stdout: bytes) -> bytes:
    """The reference prints two documents with code 8: the last line is the error."""
    lines = stdout.strip().splitlines()
    if len(lines) > 1 and lines[-1].lstrip().startswith(b"{") and lines[-1].rstrip().endswith(b"}"):
        return lines[-1]
    return stdout
