r"""Plugins that a plugin or a runtime calls, without processes: an executor that records, and delegates that remember.

`FakeExec` is a PluginExec: hand it to `Delegates` (with its `locate`) or to the runtime. It serves plugin objects
through the real protocol, JSON text in and out, so what passes here passes between processes. Any verb can be scripted
to answer something else: a broken document, an exit status, a program that cannot be started.

    bridge = FakeDelegate("bridge", result=address_result("10.1.0.2/24"))
    plugins = FakeExec(bridge, FakeDelegate("portmap"))
    delegates = Delegates(plugins, {"CNI_CONTAINERID": "c1", ...}, ["/opt/cni/bin"], plugins.locate)
    ...
    assert plugins.dump() == "ADD bridge c1 eth0\nADD portmap c1 eth0\n"
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, cast

from cnimeta.errors import CheckFailed, CniError, DelegateFailed, shown
from cnimeta.host.values import Completed
from cnimeta.namedtuple import NamedTuple
from cnimeta.plugin.base import Plugin
from cnimeta.plugin.dispatch import run
from cnimeta.spec.jsonio import dumps, loads_object
from cnimeta.spec.result import Interface, IPConfig, Result
from cnimeta.spec.validate import plugin_type
from cnimeta.spec.version import ALL

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from cnimeta.plugin.request import Request
    from cnimeta.spec.jsonio import JSON

    Answer = Completed | CniError | Mapping[str, JSON]
else:
    Answer = object

FOLDER = "/opt/cni/bin"
"""Where `FakeExec.locate` says its plugins lie when CNI_PATH is empty."""


class Call(NamedTuple):
    """One run of a plugin: what it was given and how it ended."""

    plugin: str
    verb: str
    environ: Mapping[str, str]
    stdin: bytes
    status: int
    stdout: bytes

    @property
    def conf(self) -> dict[str, JSON]:
        """The configuration on stdin."""
        return loads_object(self.stdin)

    @property
    def container_id(self) -> str:
        """CNI_CONTAINERID, or the empty string."""
        return self.environ.get("CNI_CONTAINERID", "")

    @property
    def ifname(self) -> str:
        """CNI_IFNAME, or the empty string."""
        return self.environ.get("CNI_IFNAME", "")


class FakeExec:
    """A PluginExec over plugin objects. `calls` are the runs so far, `log` the lines the plugins wrote to stderr."""

    def __init__(self, *plugins: Plugin) -> None:
        self.plugins = {plugin.name: plugin for plugin in plugins}
        self.calls: list[Call] = []
        self.log: list[str] = []
        self.hook: Callable[[str, Mapping[str, str], bytes], None] | None = None
        """Called with (plugin name, environment, stdin) before every run; may raise to simulate a fault."""
        self._answers: dict[tuple[str, str], list[Answer]] = {}

    def script(self, plugin: str, verb: str, *answers: Answer) -> None:
        """Answer the next runs of a verb with these, one each, without asking the plugin; after that it answers itself.

        A `Completed` is exit status and stdout as they are; a mapping is printed with status 0; a DelegateFailed is
        raised, as for a program that cannot be started; any other CniError is printed the way a plugin does.
        """
        self._answers.setdefault((plugin, verb), []).extend(answers)

    def locate(self, name: str, folders: Sequence[str]) -> str:
        """As `cnimeta.delegate.find.find`: every known plugin lies in the first folder."""
        plugin_type(name)
        if name not in self.plugins and not any(plugin == name for plugin, _ in self._answers):
            raise DelegateFailed(f"failed to find plugin {shown(name)} in CNI_PATH {shown(':'.join(folders))}")
        return os.path.join(folders[0] if folders else FOLDER, name)

    def run(self, path: str, environ: Mapping[str, str], stdin: bytes) -> Completed:
        """Serve one run of the plugin that `path` names."""
        name, verb = os.path.basename(path), environ.get("CNI_COMMAND", "")
        if self.hook is not None:
            self.hook(name, environ, stdin)
        done = self._answer(name, verb, environ, stdin)
        self.calls.append(Call(name, verb, dict(environ), stdin, done.status, done.stdout))
        return done

    def sent(self, verb: str | None = None, plugin: str | None = None) -> list[Call]:
        """The calls so far, of one verb or to one plugin if given."""
        return [call for call in self.calls if verb in (None, call.verb) and plugin in (None, call.plugin)]

    def dump(self) -> str:
        """The calls as text, one line each: `VERB plugin container-id ifname`, and the status unless 0."""
        lines = []
        for call in self.calls:
            words = [call.verb, call.plugin]
            if call.verb in ("ADD", "CHECK", "DEL"):
                words += [call.container_id, call.ifname]
            if call.status:
                words.append(f"-> {call.status}")
            lines.append(" ".join(words) + "\n")
        return "".join(lines)

    def _answer(self, name: str, verb: str, environ: Mapping[str, str], stdin: bytes) -> Completed:
        queue = self._answers.get((name, verb))
        if queue:
            answer = queue.pop(0)
            if isinstance(answer, DelegateFailed):
                raise answer
            if isinstance(answer, Completed):
                return answer
            if isinstance(answer, CniError):
                return Completed(1, dumps(answer.as_json("1.1.0")).encode() + b"\n")
            return Completed(0, dumps(answer).encode() + b"\n")
        if name not in self.plugins:
            raise DelegateFailed(f"failed to run plugin {shown(name)}: No such file or directory")
        outcome = run(self.plugins[name], environ, stdin, self.log.append)
        return Completed(outcome.status, outcome.stdout.encode())


class FakeDelegate(Plugin):
    """A plugin that keeps its attachments in memory and behaves by the book, until told to fail.

    ADD remembers the attachment and answers `result` (an interface plugin), or prevResult with one interface of its
    own appended (a chained plugin). CHECK fails unless it is remembered, DEL forgets it, GC forgets all that is not
    listed, STATUS succeeds. `errors[verb]` is raised instead, before anything is done; `late_errors[verb]` after.
    """

    def __init__(self, name: str, result: Result | None = None, versions: tuple[str, ...] = ALL) -> None:
        self.name = name
        self.about = "a delegate for tests"
        self.result = result
        self.versions = versions
        self.attachments: dict[tuple[str, str, str], Result] = {}
        """What it holds: (network, container ID, ifname) -> the result it answered."""
        self.requests: list[Request] = []
        self.errors: dict[str, CniError] = {}
        self.late_errors: dict[str, CniError] = {}

    def add(self, request: Request) -> Result:
        self._begin(request)
        result = self.result
        if result is None:
            prev = request.conf.require_prev_result()
            result = prev.with_interface(Interface(f"{self.name[:8]}0", mac="02:00:00:00:00:01"))
        self.attachments[request.attachment.key] = result
        self._end(request)
        return result

    def delete(self, request: Request) -> None:
        self._begin(request)
        self.attachments.pop(request.attachment.key, None)
        self._end(request)

    def check(self, request: Request) -> None:
        self._begin(request)
        if request.attachment.key not in self.attachments:
            raise CheckFailed(f"{self.name} does not know {request.attachment.container_id}")
        self._end(request)

    def gc(self, request: Request) -> None:
        self._begin(request)
        keep = request.conf.valid_attachments()
        if keep is not None:
            for key in [key for key in self.attachments if key[0] == request.conf.name and key[1:] not in keep]:
                del self.attachments[key]
        self._end(request)

    def status(self, request: Request) -> None:
        self._begin(request)
        self._end(request)

    def _begin(self, request: Request) -> None:
        self.requests.append(request)
        if request.verb in self.errors:
            raise self.errors[request.verb]

    def _end(self, request: Request) -> None:
        if request.verb in self.late_errors:
            raise self.late_errors[request.verb]


def address_result(*addresses: str, ifname: str = "eth0", netns: str = "/run/netns/c1") -> Result:
    """The result an interface plugin gives: one interface in the container and its addresses ("10.1.0.2/24")."""
    interface = Interface(ifname, mac="02:00:00:00:00:02", sandbox=netns)
    return Result((interface,), tuple(IPConfig(address, interface=0) for address in addresses))


def completed(document: Mapping[str, JSON] | str, status: int = 0) -> Completed:
    """A scripted answer from a document or from raw text."""
    text = document if isinstance(document, str) else dumps(cast("JSON", document))
    return Completed(status, text.encode())
