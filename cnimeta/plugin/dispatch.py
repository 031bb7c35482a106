"""The protocol between a runtime and a plugin: environment and stdin in, one JSON document and a status out.

`run` is the whole of it as a function of its arguments (host access: one stat of CNI_NETNS); `main` binds it to
the process. Spec: https://www.cni.dev/docs/spec/#section-2-execution-protocol
"""

from __future__ import annotations

import os
import sys

from cnimeta._record import NamedTuple
from cnimeta.errors import CniError, InternalError, InvalidEnvironment, InvalidNetns, IoFailure, shown
from cnimeta.plugin.request import Attachment, Request
from cnimeta.spec import cniargs, validate, version
from cnimeta.spec.convert import render_result
from cnimeta.spec.jsonio import dumps, loads_object
from cnimeta.spec.netconf import NetConf

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from cnimeta.plugin.base import Plugin
    from cnimeta.spec.jsonio import JSON

REQUIRED = {
    "ADD": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "CHECK": ("CNI_CONTAINERID", "CNI_NETNS", "CNI_IFNAME"),
    "DEL": ("CNI_CONTAINERID", "CNI_IFNAME"),
    "GC": ("CNI_PATH",),
    "STATUS": (),
}
_OWN_NETNS = "/proc/self/ns/net"


class Outcome(NamedTuple):
    """What a plugin process leaves: its exit status and its stdout (one JSON document, or nothing)."""

    status: int
    stdout: str


def run(plugin: Plugin, environ: Mapping[str, str], stdin: bytes, log: Callable[[str], None]) -> Outcome:
    """Serve one invocation. Never raises an Exception: errors become the spec's JSON object."""
    verb = environ.get("CNI_COMMAND", "")
    if not verb:
        log(_about(plugin))
        return Outcome(0, "")
    spoken = version.CURRENT
    try:
        if verb == "VERSION":
            return Outcome(0, dumps(_version_info(plugin, stdin)) + "\n")
        if verb not in REQUIRED:
            raise InvalidEnvironment(f"unknown CNI_COMMAND: {shown(verb)}")
        _require_environment(verb, environ)
        conf = NetConf.decode(stdin)
        version.reconcile(conf.cni_version, plugin.versions)
        spoken = conf.cni_version
        return Outcome(0, _serve(plugin, _request(verb, conf, environ, log)))
    except CniError as error:
        failure = error
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        failure = IoFailure(f"{verb} failed: {where}{error.strerror or error}")
    except Exception as error:  # noqa: BLE001 - the protocol has no room for a traceback
        failure = InternalError(
            f"internal error in {plugin.name} {verb}: {type(error).__name__}: {error}", _origin(error)
        )
    return Outcome(1, dumps(failure.as_json(spoken)) + "\n")


def main(plugin: Plugin) -> None:
    """Serve this process's invocation and exit. The only code that touches the process's environment and streams."""
    stdin = b"" if not os.environ.get("CNI_COMMAND") else sys.stdin.buffer.read()
    outcome = run(plugin, os.environ, stdin, _to_stderr)
    try:
        sys.stdout.write(outcome.stdout)
        sys.stdout.flush()
    except OSError:  # nobody reads: the status still tells
        os._exit(outcome.status or 1)
    sys.exit(outcome.status)


def _serve(plugin: Plugin, request: Request) -> str:
    verb = request.verb
    if verb == "ADD":
        return dumps(render_result(plugin.add(request), request.conf.cni_version)) + "\n"
    if verb == "DEL":
        plugin.delete(request)
    elif verb == "CHECK":
        plugin.check(request)
    elif verb == "GC":
        plugin.gc(request)
    else:
        plugin.status(request)
    return ""


def _require_environment(verb: str, environ: Mapping[str, str]) -> None:
    missing = [name for name in REQUIRED[verb] if not environ.get(name)]
    if missing:
        raise InvalidEnvironment(f"required env variables [{','.join(missing)}] missing")
    if "CNI_CONTAINERID" in REQUIRED[verb]:
        validate.container_id(environ["CNI_CONTAINERID"])
        validate.ifname(environ["CNI_IFNAME"])


def _request(verb: str, conf: NetConf, environ: Mapping[str, str], log: Callable[[str], None]) -> Request:
    version.require_verb(verb, conf.cni_version)
    conf.require_name()
    target = None
    if "CNI_CONTAINERID" in REQUIRED[verb]:
        netns = environ.get("CNI_NETNS", "")
        _refuse_own_netns(netns, environ)
        args = cniargs.parse(environ.get("CNI_ARGS", ""))
        target = Attachment(conf.name, environ["CNI_CONTAINERID"], environ["CNI_IFNAME"], netns, args)
    kept = {name: value for name, value in environ.items() if name.startswith("CNI_") or name == "PATH"}
    return Request(verb, conf, target, kept, log)


def _refuse_own_netns(netns: str, environ: Mapping[str, str]) -> None:
    """The reference makes this check after ADD has acted, and then prints a second document; here it comes first."""
    if not netns or environ.get("CNI_NETNS_OVERRIDE", "").lower() in ("1", "true"):
        return
    try:
        given, own = os.stat(netns), os.stat(_OWN_NETNS)
    except (OSError, ValueError):
        return  # a namespace that cannot be reached is for the plugin to judge; on DEL it may just be gone
    if (given.st_dev, given.st_ino) == (own.st_dev, own.st_ino):
        raise InvalidNetns(f"CNI_NETNS {shown(netns)} is the plugin's own network namespace")


def _version_info(plugin: Plugin, stdin: bytes) -> dict[str, JSON]:
    spoken = version.CURRENT
    if stdin.strip():
        spoken = NetConf(loads_object(stdin, "the version query on stdin")).cni_version
    return {"cniVersion": spoken, "supportedVersions": list(plugin.versions)}


def _about(plugin: Plugin) -> str:
    return f"CNI plugin {plugin.name}: {plugin.about}\nCNI protocol versions supported: {', '.join(plugin.versions)}"


def _origin(error: BaseException) -> str:
    """Where an unexpected error arose: the innermost `module:line`, enough for a report, no traceback."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    if trace is None:
        return ""
    return f"{os.path.basename(trace.tb_frame.f_code.co_filename)}:{trace.tb_lineno}"


def _to_stderr(line: str) -> None:
    try:
        sys.stderr.write(line + "\n")
    except OSError:
        pass
