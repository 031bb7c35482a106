"""Calling the delegates and portmap: what each gets, in which order, and how it is undone.

The calls of one ADD are planned as data (`Step`), kept in the attachment's record before the first of them runs, and
undone from there, so DEL needs neither the configuration nor the runtime's arguments. As libcni does for a list, each
plugin gets the list's name and version, the result so far, and of `runtimeConfig` what its own `capabilities`
name. One step has `maps` set: it alone gets port mappings, the explicit and the random ones in one call.
"""

from __future__ import annotations

from cnimeta.errors import CniError
from cnimeta.namedtuple import NamedTuple
from cnimeta.spec.convert import parse_result, render_result
from cnimeta.spec.fields import Fields, without
from cnimeta.spec.netconf import VALID_ATTACHMENTS
from cnimeta.spec.version import IMPLIED, at_least
from cnimeta_plugins.hostport_alloc.config import PLUGIN_TYPE

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from cnimeta.delegate.call import Delegates
    from cnimeta.spec.jsonio import JSON
    from cnimeta.spec.netconf import NetConf
    from cnimeta.spec.result import Result
    from cnimeta_plugins.hostport_alloc.config import Chain
    from cnimeta_plugins.hostport_alloc.state.record import Record

MANAGED_BY = "managedBy"

_PREV_RESULT_ON_DEL_SINCE = "0.4.0"
_CHECK_SINCE = "0.4.0"
_GC_AND_STATUS_SINCE = "1.1.0"

_REFUSED_CONFIGURATION = (2, 6, 7, 999)
"""Codes with which a portmap refuses keys; the reference has 999 for all."""
_BACKENDS = ("auto", "nftables", "iptables")


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


def plan(conf: NetConf, chain: Chain, portmap: Mapping[str, JSON], data_dir: str) -> tuple[Step, ...]:
    """The calls of an ADD, in order. portmap is the last of them unless a delegate maps ports itself."""
    given = conf.runtime_config
    steps = []
    for index, raw in enumerate(chain.plugins):
        runtime_config = _for_capabilities(given, Fields(raw).object("capabilities"))
        maps = index == chain.mapper
        marked = _marked(raw) if maps and Fields(raw).text("type") == "portmap" else raw
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
        conf["runtimeConfig"] = {**(given if isinstance(given, dict) else {}), "portMappings": mappings}
    return conf


def undo(
    delegates: Delegates, steps: Iterable[Step], mappings: Sequence[JSON], prev: Result | None
) -> tuple[list[CniError], bool]:
    """DEL in reverse order, every step whatever the others do.

    Returns what failed, and whether the port mappings are gone, so that their ports may be given out again.
    """
    errors: list[CniError] = []
    unmapped = True
    for step in reversed(tuple(steps)):
        known = prev if at_least(step.version, _PREV_RESULT_ON_DEL_SINCE) else None
        try:
            delegates.delete(call_conf(step, mappings, known))
        except CniError as error:
            if step.maps and _unmapped_without_options(delegates, step, error, mappings, known):
                continue
            errors.append(error)
            unmapped = unmapped and not step.maps
    return errors, unmapped


def _unmapped_without_options(
    delegates: Delegates, step: Step, error: CniError, mappings: Sequence[JSON], prev: Result | None
) -> bool:
    """Whether a portmap that refuses its own configuration, on DEL as on ADD, can unmap without the refused options.

    Otherwise a wrong key would keep the ports of every ADD it makes fail. What is removed does not depend on options,
    the backend apart, which is kept unless it is what is wrong.
    """
    if step.type != "portmap" or error.code not in _REFUSED_CONFIGURATION:
        return False
    kept = {key: value for key, value in step.conf.items() if key in ("cniVersion", "name", "type", "runtimeConfig")}
    fields = Fields(step.conf)
    for key, allowed in (("backend", _BACKENDS), ("dataDir", None)):
        value = fields.get(key)
        if isinstance(value, str) and (allowed is None or value in allowed):
            kept[key] = value
    try:
        delegates.delete(call_conf(step._replace(conf=kept), mappings, prev))
    except CniError:
        return False
    return True


def check(delegates: Delegates, steps: Iterable[Step], mappings: Sequence[JSON], prev: Result | None) -> None:
    """CHECK in the order of ADD; steps of a version without CHECK are left out. Raises the first failure."""
    for step in steps:
        if at_least(step.version, _CHECK_SINCE) and (mappings or not step.own):
            delegates.check(call_conf(step, mappings, prev))


def collect(calls: Iterable[Callable[[], None]]) -> list[CniError]:
    """Make every call; return the failures."""
    errors: list[CniError] = []
    for call in calls:
        try:
            call()
        except CniError as error:
            errors.append(error)
    return errors


def gc(delegates: Delegates, steps: Iterable[Step], conf: NetConf) -> list[CniError]:
    """Forward GC with the runtime's list of valid attachments, to plugins of a version that has GC."""
    listed = {key: conf.fields.get(key) for key in VALID_ATTACHMENTS if conf.fields.has(key)}

    def forward(step: Step) -> Callable[[], None]:
        return lambda: delegates.gc({**step.conf, **listed})

    return collect(forward(step) for step in steps if at_least(step.version, _GC_AND_STATUS_SINCE))


def status(delegates: Delegates, steps: Iterable[Step]) -> None:
    """Forward STATUS; raises the first failure, as libcni stops there."""
    for step in steps:
        if at_least(step.version, _GC_AND_STATUS_SINCE):
            delegates.status(step.conf)


class Undo(NamedTuple):
    """What a record keeps for DEL: the steps as planned, ADD's result once there is one, and CNI_ARGS."""

    steps: tuple[Step, ...]
    result: Result | None = None
    version: str = IMPLIED
    args: str = ""
    """CNI_ARGS of the ADD: some delegates find their own state by the Pod's name, also on GC."""
    path: str = ""
    """CNI_PATH of the ADD, for repair."""
    quarantine_s: float = 30
    sticky_s: float = 3600


def encode_undo(undo: Undo) -> JSON:
    """The JSON form."""
    return {
        "steps": [{"conf": step.conf, "maps": step.maps, "own": step.own} for step in undo.steps],
        "version": undo.version,
        "result": None if undo.result is None else render_result(undo.result, undo.version),
        "args": undo.args,
        "path": undo.path,
        "quarantineSeconds": undo.quarantine_s,
        "stickySeconds": undo.sticky_s,
    }


def decode_undo(value: JSON) -> Undo | None:
    """Read the JSON form; None when there is none (a record rebuilt from the kernel's rules has none)."""
    if not isinstance(value, dict):
        return None
    try:
        fields = Fields(value)
        version = fields.text("version") or IMPLIED
        steps = tuple(
            Step(dict(entry.object("conf").raw), entry.boolean("maps"), entry.boolean("own"))
            for entry in fields.objects("steps")
        )
        raw = fields.get("result")
        result = parse_result(raw, version) if isinstance(raw, dict) else None
        quarantine_s, sticky_s = _number(fields, "quarantineSeconds"), _number(fields, "stickySeconds")
        return Undo(steps, result, version, fields.text("args"), fields.text("path"), quarantine_s, sticky_s)
    except CniError:
        return None


def _number(fields: Fields, key: str) -> float:
    value = fields.get(key)
    return float(value) if isinstance(value, int | float) else 0.0
