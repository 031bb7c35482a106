"""Which worlds a runtime can produce: a test in any other proves nothing, however green it is.

The rules are those of the specification (section 3 and 4) and of what kernels hold together. Each `check_…` gives a
line for everything that is not so; `require_possible` raises them all at once.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cnimeta.errors import CniError
from cnimeta.plugin.base import VERBS
from cnimeta.spec import cniargs
from cnimeta.spec.netconf import NetConf
from cnimeta.spec.version import at_least

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

    from cnimeta.spec.jsonio import JSON
    from cnimeta.testing.network import LinkState
    from cnimeta.testing.node import Pod

    Links = Mapping[str, Mapping[str, LinkState]]
    Pods = Mapping[tuple[str, str], Pod]
else:
    Links = Pods = dict

_HOST = ""
_RESULTS_SINCE = "0.4.0"


class Impossible(AssertionError):
    """No runtime and no kernel brings this about; the text says why."""


def require_possible(
    links: Links,
    plugin: str,
    verb: str,
    conf: Mapping[str, JSON],
    attachment: tuple[str, str, str],
    pods: Pods | None = None,
    args: str = "",
) -> None:
    """Raise Impossible for what cannot be. `attachment`: container ID, ifname, namespace. `args`: CNI_ARGS."""
    found = [
        *check_links(links),
        *check_conf(plugin, verb, conf),
        *check_namespace(links, verb, attachment[2]),
        *check_prev_result(links, verb, conf, attachment[2]),
        *check_pods(pods or {}),
        *check_args(pods or {}, args),
    ]
    if found:
        raise Impossible("; ".join(found) + " (possible=False runs it all the same)")


def check_links(links: Links) -> Iterator[str]:
    """What the kernel holds together: indices in a namespace, and the two ends of a veth."""
    ends = {one.link.ifindex: one.link.peer for there in links.values() for one in there.values() if one.link.peer}
    for path, there in links.items():
        where = path or "the node"
        indices = [one.link.ifindex for one in there.values()]
        if len(set(indices)) < len(indices):
            yield f"two interfaces of {where} have one ifindex"
        for name, one in there.items():
            if one.link.name != name:
                yield f"interface {name} of {where} is called {one.link.name}"
            if one.link.kind == "veth" and ends.get(one.link.peer) != one.link.ifindex:
                yield f"the other end of {name} in {where} does not lead back to it"
            if one.routes and not one.link.up:
                yield f"{name} of {where} has routes and is down"


def check_conf(plugin: str, verb: str, conf: Mapping[str, JSON]) -> Iterator[str]:
    """What a runtime puts into the configuration of a verb."""
    try:
        parsed = NetConf(dict(conf))
        spoken = parsed.cni_version
    except CniError:
        return  # a broken configuration is something that people write
    if parsed.type != plugin:
        yield f"a runtime finds the plugin {plugin} by its type, and $.type is {parsed.type!r}"
    has_result = parsed.fields.has("prevResult")
    if verb in ("GC", "STATUS") and has_result:
        yield f"no runtime gives {verb} a prevResult"
    if verb == "CHECK" and not has_result and at_least(spoken, _RESULTS_SINCE):
        yield "a runtime gives CHECK the prevResult of ADD"
    if verb != "GC" and (parsed.fields.has("cni.dev/valid-attachments") or parsed.fields.has("cni.dev/attachments")):
        yield f"no runtime gives {verb} a list of valid attachments"


def check_namespace(links: Links, verb: str, netns: str) -> Iterator[str]:
    """A runtime makes the namespace before ADD; on DEL it may be gone."""
    if verb in ("ADD", "CHECK") and netns not in links:
        yield f"a runtime makes the namespace {netns!r} before {verb}"
    if verb in VERBS and VERBS[verb].of_attachment and netns == _HOST and verb != "DEL":
        yield f"{verb} has a namespace"


def check_prev_result(links: Links, verb: str, conf: Mapping[str, JSON], netns: str) -> Iterator[str]:
    """What prevResult says was made by the plugins before, and is there on ADD and CHECK."""
    if verb not in ("ADD", "CHECK"):
        return
    try:
        result = NetConf(dict(conf)).prev_result
    except CniError:
        return
    if result is None or netns not in links:
        return
    for interface in result.interfaces:
        if interface.sandbox in links and interface.name not in links[interface.sandbox]:
            where = interface.sandbox or "the node"
            yield f"$.prevResult has the interface {interface.name}, which {where} does not have"
    for ip in result.ips:
        if ip.interface is not None and not 0 <= ip.interface < len(result.interfaces):
            yield f"$.prevResult: {ip.address} is of interface {ip.interface}, of {len(result.interfaces)}"


def check_pods(pods: Pods) -> Iterator[str]:
    """What an API server holds together: each Pod has a UID that no other has, and annotations are text."""
    owners: dict[str, str] = {}
    for (namespace, name), pod in pods.items():
        if not pod.uid:
            yield f"Pod {namespace}/{name} has no uid"
        elif owners.setdefault(pod.uid, f"{namespace}/{name}") != f"{namespace}/{name}":
            yield f"Pods {owners[pod.uid]} and {namespace}/{name} have one uid"
        annotations: Mapping[str, object] = pod.annotations  # what a patch has put there may be anything
        for key, value in annotations.items():
            if not isinstance(value, str):
                yield f"annotation {key} of Pod {namespace}/{name} is no text"


def check_args(pods: Pods, args: str) -> Iterator[str]:
    """The Pod that CNI_ARGS name has no other Pod's UID.

    A Pod of that name with another UID can be: a static Pod's mirror, or one that took its place while the verb ran.
    """
    try:
        given = cniargs.parse(args)
    except CniError:
        return  # the plugin is to refuse it
    named, uid = (given.get("K8S_POD_NAMESPACE", ""), given.get("K8S_POD_NAME", "")), given.get("K8S_POD_UID", "")
    for key, pod in pods.items():
        if uid and pod.uid == uid and key != named and all(named):
            yield f"CNI_ARGS name the Pod {'/'.join(named)} with uid {uid}, which is {'/'.join(key)}'s"
