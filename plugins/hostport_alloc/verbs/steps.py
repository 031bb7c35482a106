"""Calling the delegates and portmap: what each gets, and in which order.

The calls of one ADD are planned as data (`Step`), kept in the attachment's record before the first of them runs, and
undone from there (undo.py), so DEL needs neither the configuration nor the runtime's arguments. As libcni does for a
list, each plugin gets the list's name and version, the result so far, and of `runtimeConfig` what its own
`capabilities` name. One step has `maps` set: it alone gets port mappings, explicit and random ones in one call.
"""

from __future__ import annotations

from cnimeta.errors import Failures
from cnimeta.namedtuple import NamedTuple
from cnimeta.ports.mapper import MANAGED_BY
from cnimeta.spec.convert import render_result
from cnimeta.spec.fields import Fields, without
from cnimeta.spec.netconf import VALID_ATTACHMENTS
from cnimeta.spec.version import IMPLIED, at_least
from cnimeta_plugins.hostport_alloc.config import PLUGIN_TYPE, PORTMAP_TYPE, read_chain, read_data_dir, read_portmap

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cnimeta.delegate.call import Delegates
    from cnimeta.errors import CniError
    from cnimeta.plugin.request import Request
    from cnimeta.spec.jsonio import JSON
    from cnimeta.spec.netconf import NetConf
    from cnimeta.spec.result import Result
    from cnimeta_plugins.hostport_alloc.config import Chain
    from cnimeta_plugins.hostport_alloc.state.record import Record

CHECK_SINCE = "0.4.0"
_GC_AND_STATUS_SINCE = "1.1.0"


class Step(NamedTuple):
    """One plugin's complete configuration, less prevResult and the mappings, which are added for each call."""

    conf: dict[str, JSON]
    maps: bool = False
    own: bool = False
    """The portmap that hostport_alloc itself adds, as opposed to a delegate."""

    @property
    def version(self) -> str:
        """The spec version the plugin is spoken to in."""
        return Fields(self.conf).text("cniVersion") or IMPLIED

    @property
    def type(self) -> str:
        """The plugin's executable."""
        return Fields(self.conf).text("type")


def planned(request: Request) -> tuple[Step, ...]:
    """The calls that the configuration as it is now would make."""
    fields = request.conf.fields
    return plan(request.conf, read_chain(request.conf), read_portmap(fields), read_data_dir(fields))


def plan(conf: NetConf, chain: Chain, portmap: Mapping[str, JSON], data_dir: str) -> tuple[Step, ...]:
    """The calls of an ADD, in order. portmap is the last of them unless a delegate maps ports itself."""
    given = conf.runtime_config
    steps = []
    for index, raw in enumerate(chain.plugins):
        runtime_config = _for_capabilities(given, Fields(raw).object("capabilities"))
        maps = index == chain.mapper
        marked = _marked(raw) if maps and Fields(raw).text("type") == PORTMAP_TYPE else raw
        steps.append(Step(_complete(marked, chain.name, chain.cni_version, runtime_config), maps))
    if chain.mapper < 0:
        own = _marked(portmap)
        if not Fields(own).has("dataDir"):
            own["dataDir"] = data_dir  # its records lie beside ours; other makes of portmap ignore the key
        steps.append(Step(_complete(own, conf.name, conf.cni_version, {}), maps=True, own=True))
    return tuple(steps)


def _marked(portmap: Mapping[str, JSON]) -> dict[str, JSON]:
    """Marked as ours: portmap keeps its configuration, so its records tell these mappings from those it made alone."""
    return {**portmap, MANAGED_BY: PLUGIN_TYPE}


def _for_capabilities(given: Fields, capabilities: Fields) -> dict[str, JSON]:
    """As libcni: a capability's arguments reach the plugins that declare it true. Mappings are added per call."""
    return {
        key: value
        for key, value in given.raw.items()
        if capabilities.get(key) is True and key.lower() != "portmappings"
    }


def _complete(raw: Mapping[str, JSON], name: str, version: str, runtime_config: dict[str, JSON]) -> dict[str, JSON]:
    conf = {"cniVersion": version, "name": name, **without(raw, "cniVersion", "name", "prevResult", "runtimeConfig")}
    if runtime_config:
        conf["runtimeConfig"] = runtime_config
    return conf


def mappings_of(record: Record) -> list[JSON]:
    """`runtimeConfig.portMappings` for everything the record holds, explicit ones first."""
    held = [(port.host_port, port.container_port, port.protocol, port.host_ip) for port in record.explicit]
    held += [(port.host_port, port.container_port, port.protocol, port.host_ip) for port in record.ports]
    return [
        {"hostPort": host_port, "containerPort": port, "protocol": protocol, **({"hostIP": address} if address else {})}
        for host_port, port, protocol, address in held
    ]


def call_conf(step: Step, mappings: Sequence[JSON], prev: Result | None) -> dict[str, JSON]:
    """The configuration of one call."""
    conf = dict(step.conf)
    if prev is not None:
        conf["prevResult"] = render_result(prev, step.version)
    if step.maps and mappings:
        given = conf.get("runtimeConfig")
        conf["runtimeConfig"] = {**(given if isinstance(given, dict) else {}), "portMappings": list(mappings)}
    return conf


def with_check(step: Step) -> Step:
    """The step in a version that has CHECK, for who checks without a runtime: flannel's networks are of 0.3.1."""
    if at_least(step.version, CHECK_SINCE):
        return step
    return step._replace(conf={**step.conf, "cniVersion": CHECK_SINCE})


def check(delegates: Delegates, steps: Iterable[Step], mappings: Sequence[JSON], prev: Result | None) -> None:
    """CHECK in the order of ADD; steps of a version without CHECK are left out. Raises the first failure."""
    for step in steps:
        if at_least(step.version, CHECK_SINCE) and (mappings or not step.own):
            delegates.check(call_conf(step, mappings, prev))


def gc(delegates: Delegates, steps: Iterable[Step], conf: NetConf) -> list[CniError]:
    """Forward GC with the runtime's list of valid attachments, to plugins of a version that has GC."""
    listed = {key: conf.fields.get(key) for key in VALID_ATTACHMENTS if conf.fields.has(key)}

    failures = Failures()
    for step in steps:
        if at_least(step.version, _GC_AND_STATUS_SINCE):
            with failures:
                delegates.gc({**step.conf, **listed})
    return failures.found


def status(delegates: Delegates, steps: Iterable[Step]) -> None:
    """Forward STATUS; raises the first failure, as libcni stops there."""
    for step in steps:
        if at_least(step.version, _GC_AND_STATUS_SINCE):
            delegates.status(step.conf)
