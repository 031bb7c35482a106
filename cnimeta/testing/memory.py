"""Run a plugin in memory: environment and configuration in, typed result or CniError out."""

from __future__ import annotations

from typing import TYPE_CHECKING

from cnimeta.plugin.dispatch import serve
from cnimeta.spec.convert import parse_result
from cnimeta.spec.fields import Fields
from cnimeta.spec.jsonio import dumps, loads_object
from cnimeta.spec.version import IMPLIED

if TYPE_CHECKING:
    from collections.abc import Mapping

    from cnimeta.plugin.base import Plugin
    from cnimeta.plugin.host import Host
    from cnimeta.spec.jsonio import JSON
    from cnimeta.spec.result import Result


CNI_PATH = "/opt/cni/bin"


def environment(
    verb: str, container_id: str, ifname: str, netns: str, args: str = "", path: str = CNI_PATH
) -> dict[str, str]:
    """What a runtime tells a plugin by the environment."""
    return {
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": container_id,
        "CNI_IFNAME": ifname,
        "CNI_NETNS": netns,
        "CNI_ARGS": args,
        "CNI_PATH": path,
    }


def call(
    plugin: Plugin,
    verb: str,
    conf: Mapping[str, JSON],
    *,
    container_id: str = "c1",
    ifname: str = "eth0",
    netns: str = "/run/netns/c1",
    args: str = "",
    path: str = CNI_PATH,
    log: list[str] | None = None,
    host: Host | None = None,
) -> Result | None:
    """Serve one verb through the real protocol. Returns ADD's result; raises what the plugin failed with.

    A CniError is the very one that was raised. Anything else becomes what the protocol makes of it (IoFailure for an
    OSError, InternalError for a defect), with the exception as its cause. `host` is the node that the verb is given
    (`cnimeta.testing.host.FakeHost`); the real one when there is none.
    """
    environ = environment(verb, container_id, ifname, netns, args, path)
    lines = log if log is not None else []
    outcome, error = serve(plugin, environ, dumps(conf).encode(), lines.append, host)
    if error is not None:
        raise error
    if verb != "ADD":
        assert outcome.stdout == "", f"{verb} must print nothing, printed {outcome.stdout!r}"
        return None
    return parse_result(loads_object(outcome.stdout), Fields(conf).text("cniVersion") or IMPLIED)
