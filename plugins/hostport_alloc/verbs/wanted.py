"""What one ADD has to map: the union of what the Pod, the runtime and the configuration ask for."""

from __future__ import annotations

from cnimeta.errors import InvalidNetworkConfig
from cnimeta_plugins.hostport_alloc.allocate.expose import (
    EXPOSE_ANNOTATION,
    UNNAMED,
    parse_annotation,
    read_mappings,
    union,
)
from cnimeta_plugins.hostport_alloc.state.record import Pod

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from cnimeta.plugin.request import Request
    from cnimeta.spec.fields import Fields
    from cnimeta.spec.jsonio import JSON
    from cnimeta_plugins.hostport_alloc.allocate.expose import Exposure, Wanted
    from cnimeta_plugins.hostport_alloc.config import Settings
    from cnimeta_plugins.hostport_alloc.state.record import Record


def pod_of(request: Request) -> Pod | None:
    """The Pod as CNI_ARGS name it; None outside Kubernetes."""
    args = request.attachment.args
    namespace, name = args.get("K8S_POD_NAMESPACE", ""), args.get("K8S_POD_NAME", "")
    return Pod(namespace, name, args.get("K8S_POD_UID", "")) if namespace and name else None


def wanted_by(
    request: Request, settings: Settings, annotations: Fields, labels: Mapping[str, JSON] | None = None
) -> Wanted:
    """The union. `labels`: the Pod's, where they are known. Raises InvalidNetworkConfig (code 7)."""
    names = tuple(found.name for found in settings.ranges)
    pod = pod_of(request)
    default = settings.default_range(pod, labels or {})
    given = read_mappings(request.conf.runtime_config, names, default)
    asked = annotations.text(EXPOSE_ANNOTATION)
    path = f'the Pod\'s annotation "{EXPOSE_ANNOTATION}"'
    configured = tuple(one if one.range != UNNAMED else one._replace(range=default) for one in settings.expose)
    sources = parse_annotation(asked, path, names, default), given.exposures, configured
    for source in sources:  # before they are taken apart: a short text can ask for very many
        _refuse_too_many(source, settings)
    exposures = union(*sources)
    _refuse_too_many(exposures, settings)
    for name in dict.fromkeys(exposure.range for exposure in exposures):
        found = settings.range(name)
        if found.namespaces:
            from cnimeta_plugins.hostport_alloc.range_config import refuse_foreign

            refuse_foreign(found, pod)
    return given._replace(exposures=exposures)


def _refuse_too_many(exposures: Iterable[Exposure], settings: Settings) -> None:
    count = sum(exposure.length * len(exposure.protocols) for exposure in exposures)
    if count > settings.max_ports:
        raise InvalidNetworkConfig(
            f"{count} host ports are asked for, $.maxPortsPerPod allows {settings.max_ports}: expose fewer or raise it"
        )


def asked_by(wanted: Wanted) -> tuple[frozenset[object], frozenset[object]]:
    """What is asked for, to be compared with what a record has."""
    ports = frozenset(
        (exposure.port + offset, protocol, exposure.range, exposure.host_ip)
        for exposure in wanted.exposures
        for offset in range(exposure.length)
        for protocol in exposure.protocols
    )
    return ports, frozenset(wanted.explicit)


def given_to(record: Record) -> tuple[frozenset[object], frozenset[object]]:
    """What a record has, to be compared with what is asked for."""
    ports = frozenset((port.asked, port.protocol, port.range, port.host_ip) for port in record.ports)
    return ports, frozenset(record.explicit)
