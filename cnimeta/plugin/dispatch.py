"""The protocol between a runtime and a plugin: environment and stdin in, one JSON document and a status out.

`run` is the whole of it as a function of its arguments (host access: one stat of CNI_NETNS); `main` and `start` bind
it to the process. The order of the checks: environment, document, version, verb, name, namespace; nothing acts before
all of them have passed. Spec: https://www.cni.dev/docs/spec/#section-2-execution-protocol
"""

from __future__ import annotations

import os
import sys

from cnimeta.errors import (
    CniError,
    DecodingFailure,
    InternalError,
    InvalidEnvironment,
    InvalidNetns,
    InvalidNetworkConfig,
    legible,
    shown,
)
from cnimeta.host import afterwards
from cnimeta.namedtuple import NamedTuple
from cnimeta.observe import notes
from cnimeta.plugin.base import VERBS
from cnimeta.plugin.host import Host
from cnimeta.plugin.request import Attachment, Request
from cnimeta.spec import cniargs, validate, version
from cnimeta.spec.fields import Fields
from cnimeta.spec.jsonio import dumps, loads_object
from cnimeta.spec.netconf import MAX_BYTES, NetConf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from typing import NoReturn

    from cnimeta.plugin.base import Plugin, Verb
    from cnimeta.spec.jsonio import JSON

_OWN_NETNS = "/proc/self/ns/net"
_STDIN, _STDOUT, _STDERR = 0, 1, 2
_INTERRUPTED = 130  # what a shell reports for SIGINT
_LINE_MAX = 8192
"""Characters of a line that a plugin logs."""
_PATHS = ("CNI_ARGS", "CNI_PATH", "CNI_NETNS")
DEBUG = "CNIMETA_DEBUG"
"""The variable that makes a failure write its traceback to stderr; unset, empty and 0 mean no."""


class Outcome(NamedTuple):
    """What a plugin process leaves: its exit status and its stdout (one JSON document, or nothing)."""

    status: int
    stdout: str


def run(plugin: Plugin, environ: Mapping[str, str], stdin: bytes, log: Callable[[str], None]) -> Outcome:
    """Serve one invocation. Never raises an Exception: errors become the spec's JSON object."""
    return serve(plugin, environ, stdin, log)[0]


def serve(
    plugin: Plugin, environ: Mapping[str, str], stdin: bytes, log: Callable[[str], None], host: Host | None = None
) -> tuple[Outcome, CniError | None]:
    """As `run`, with what it failed with, for who is in the same process; what was no CniError is its cause.

    `host` is the node that the verb is given; the real one unless told otherwise.
    """
    name = environ.get("CNI_COMMAND", "")
    if not name:
        log(_about(plugin))
        return Outcome(0, ""), None
    spoken = version.CURRENT
    failure: CniError
    try:
        if name == "VERSION":
            return Outcome(0, dumps(_version_info(plugin, stdin)) + "\n"), None
        verb = VERBS.get(name)
        if verb is None:
            raise InvalidEnvironment(f"unknown CNI_COMMAND: {shown(name)}")
        _require_environment(verb, environ)
        conf = NetConf.decode(stdin)
        version.reconcile(conf.cni_version, plugin.versions)
        spoken = conf.cni_version
        verb.require_in(conf.cni_version)
        notes.about(plugin.name, conf.name)
        return Outcome(0, _answer(plugin, verb, _request(verb, conf, environ, log, host))), None
    except CniError as error:
        failure = error
    except (Exception, SystemExit) as error:  # noqa: BLE001 - the protocol has no room for a traceback
        failure = _unexpected(f"{plugin.name} {name}", error)
    trace(failure, environ, log)
    return _failed(failure, spoken), failure


def main(plugin: Plugin) -> None:
    """Serve this process's invocation and exit."""
    start(lambda: plugin)


def start(make: Callable[[], Plugin]) -> None:
    """As `main`, of a plugin that is yet to be made; a CniError of `make` is the answer.

    With `answered`, the only code that touches the process's environment and streams.
    """
    answer_fd = _claim_stdout()
    afterwards.begin()
    notes.begin()
    try:
        outcome = answered(make, _STDIN)
    except KeyboardInterrupt:
        _end(_INTERRUPTED, answer_fd)
    try:
        _write_all(answer_fd, outcome.stdout.encode())
    except OSError:  # refused: nobody reads, the status still tells
        _end(outcome.status or 1, answer_fd)
    _report()
    _end(outcome.status, answer_fd)


def answered(make: Callable[[], Plugin], stdin: int) -> Outcome:
    """What this process's environment asks of a plugin that is yet to be made. `stdin` is read to its end."""
    try:
        plugin = make()
        notes.about(plugin.name)
        conf = _read_all(stdin) if os.environ.get("CNI_COMMAND") else b""
        outcome, failure = serve(plugin, os.environ, conf, to_stderr)
        notes.failed(failure)
        return outcome
    except CniError as error:
        failure = error
    except Exception as error:  # noqa: BLE001 - as in `serve`
        failure = _unexpected("reading the network configuration on stdin", error)
    trace(failure, os.environ, to_stderr)
    notes.failed(failure)
    return _failed(failure)


def _report() -> None:
    """The answer is out: tell what was noted on the way, where somebody wants to know."""
    noted = notes.end()
    folder = os.environ.get(notes.VARIABLE) or notes.FOLDER
    if noted is not None and os.path.isdir(folder):  # unknown: as if nobody wants to know
        from cnimeta.plugin import report

        way = report.FALLBACK if "cnimeta.agent.client" in sys.modules else report.ALONE
        report.leave(noted, os.environ, folder, way)


def _end(status: int, answer_fd: int) -> NoReturn:
    """End without taking the interpreter down piece by piece: the answer is out, and the kernel closes the rest.

    It saves 2 ms, and the wait for the disk with which SQLite closes a database.
    """
    if "atexit" in sys.modules:
        sys.modules["atexit"]._run_exitfuncs()  # noqa: SLF001 - there is no public name
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except (AttributeError, OSError, ValueError):  # refused: nobody reads
            pass
    afterwards.leave(_STDIN, _STDOUT, _STDERR, answer_fd)
    os._exit(status)


def _claim_stdout() -> int:
    """Where the answer goes. The rest of the process, and what it starts, gets stderr as its stdout from here on.

    So a stray print, or the chatter of a program started on the way, cannot spoil the one JSON document. Descriptors
    that are closed are opened on /dev/null first: a state file that got number 1 would receive the answer.
    """
    if None in (sys.stdin, sys.stdout, sys.stderr):
        while os.open("/dev/null", os.O_RDWR) < _STDERR:
            pass
        for fd in (_STDIN, _STDOUT, _STDERR):
            os.set_inheritable(fd, True)
    answer_fd = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)
    return answer_fd


def _read_all(fd: int) -> bytes:
    """What the runtime wrote. Of more than is ever read, not much more: NetConf refuses it."""
    chunks, size = [], 0
    while size <= MAX_BYTES and (chunk := os.read(fd, 65536)):
        chunks.append(chunk)
        size += len(chunk)
    return b"".join(chunks)


def _write_all(fd: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:
        try:
            rest = rest[os.write(fd, rest) :]
        except BlockingIOError:  # a pipe that the reader made non-blocking
            import select

            select.select((), (fd,), ())


def _unexpected(what: str, error: BaseException) -> CniError:
    from cnimeta.plugin.unexpected import failure_of

    failure = failure_of(what, error)
    failure.__cause__ = error
    return failure


def _failed(error: CniError, cni_version: str = version.CURRENT) -> Outcome:
    return Outcome(1, dumps(error.as_json(cni_version)) + "\n")


def _answer(plugin: Plugin, verb: Verb, request: Request) -> str:
    answer = getattr(plugin, verb.method)(request)
    if not verb.answers:
        return ""
    from cnimeta.spec.convert import render_result
    from cnimeta.spec.result import Result

    if not isinstance(answer, Result):
        raise InternalError(
            f"{plugin.name}: {verb.method}() returned {type(answer).__name__}, not a Result: "
            "a chained plugin returns the prevResult, changed or not"
        )
    return dumps(render_result(answer, request.conf.cni_version)) + "\n"


def _require_environment(verb: Verb, environ: Mapping[str, str]) -> None:
    missing = [name for name in verb.needs if not environ.get(name)]
    if missing:
        raise InvalidEnvironment(f"required env variables [{','.join(missing)}] missing")
    if verb.of_attachment:
        validate.container_id(environ["CNI_CONTAINERID"])
        validate.ifname(environ["CNI_IFNAME"])
    if verb.name != "DEL":  # which must go on with whatever it is given
        for name in _PATHS:
            validate.utf8(name, environ.get(name, ""))


def _request(
    verb: Verb, conf: NetConf, environ: Mapping[str, str], log: Callable[[str], None], host: Host | None
) -> Request:
    conf.require_name()
    target = None
    if verb.of_attachment:
        netns = environ.get("CNI_NETNS", "")
        if _is_own_netns(netns, environ):
            if verb.name != "DEL":
                raise InvalidNetns(f"CNI_NETNS {shown(netns)} is the plugin's own network namespace")
            # The container's path leads here since its PID was used again: it is gone, and DEL goes on without it.
            log(f"{verb.name} goes on without CNI_NETNS {shown(netns)}: it is the plugin's own network namespace")
            netns, environ = "", {**environ, "CNI_NETNS": ""}
        args = cniargs.parse(environ.get("CNI_ARGS", ""), strict=verb.name != "DEL")
        target = Attachment(conf.name, environ["CNI_CONTAINERID"], environ["CNI_IFNAME"], netns, args)
    return Request(verb.name, conf, target, dict(environ), _legibly(log), host or Host())


def _legibly(log: Callable[[str], None]) -> Callable[[str], None]:
    """Lines of a plugin may have anybody's words in them."""
    return lambda line: log(legible(line, _LINE_MAX))


def _is_own_netns(netns: str, environ: Mapping[str, str]) -> bool:
    """The reference makes this check after ADD has acted, and then prints a second document; here it comes first."""
    if not netns or environ.get("CNI_NETNS_OVERRIDE", "").lower() in ("1", "true"):
        return False
    try:
        given, own = os.stat(netns), os.stat(_OWN_NETNS)
    except (OSError, ValueError):  # unknown: the plugin judges; on DEL it may be gone
        return False  # a namespace that cannot be reached is for the plugin to judge; on DEL it may just be gone
    return (given.st_dev, given.st_ino) == (own.st_dev, own.st_ino)


def _version_info(plugin: Plugin, stdin: bytes) -> dict[str, JSON]:
    """The answer to VERSION. It echoes the version of the query; without one on stdin it speaks the current."""
    spoken = version.CURRENT
    if stdin.strip():
        what = "the version query on stdin"
        try:
            spoken = Fields(loads_object(stdin, what)).text("cniVersion") or version.IMPLIED
        except InvalidNetworkConfig as error:
            raise DecodingFailure(f"{what}: {error.msg}") from None
    return {"cniVersion": spoken, "supportedVersions": list(plugin.versions)}


def _about(plugin: Plugin) -> str:
    return f"CNI plugin {plugin.name}: {plugin.about}\nCNI protocol versions supported: {', '.join(plugin.versions)}"


def trace(error: BaseException, environ: Mapping[str, str], log: Callable[[str], None]) -> None:
    """Where DEBUG is set, write the traceback, and those of what led to the error."""
    if environ.get(DEBUG, "") in ("", "0"):
        return
    from traceback import format_exception  # costs 15 ms, and somebody is looking

    log("".join(format_exception(error)).rstrip())


def to_stderr(line: str) -> None:
    """Log a line; without anybody to read it, it is lost."""
    try:
        os.write(_STDERR, (line + "\n").encode("utf-8", "backslashreplace"))
    except OSError:  # refused: nobody reads
        pass
