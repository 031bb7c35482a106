"""Results in and out, in the JSON shape of every spec version.

| versions      | shape                                                                               |
|---------------|-------------------------------------------------------------------------------------|
| 0.1.0, 0.2.0  | ip4 / ip6 {ip, gateway, routes}, dns; no interfaces; the first address of each family |
| 0.3.0 - 0.4.0 | interfaces, ips with "version", routes, dns always present                            |
| 1.0.0, 1.1.0  | ips without "version"; empty dns left out; interface mtu/socketPath/pciID and route   |
|               | mtu/advmss/priority/table/scope: new in 1.1.0, passed through under 1.0.0 as in Go    |
"""

from __future__ import annotations

from cnimeta.errors import DecodingFailure, IncompatibleVersion, InvalidNetworkConfig, shown
from cnimeta.spec.fields import Fields
from cnimeta.spec.ip import parse_cidr, parse_ip
from cnimeta.spec.result import DNS, Interface, IPConfig, Result, Route
from cnimeta.spec.version import IMPLIED

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cnimeta.spec.jsonio import JSON

_FAMILIES = (
    frozenset({"0.1.0", "0.2.0"}),
    frozenset({"0.3.0", "0.3.1", "0.4.0"}),
    frozenset({"1.0.0", "1.1.0"}),
)
_INT32 = 2**31 - 1
_UINT32 = 2**32 - 1


def same_family(version: str, other: str) -> bool:
    """Whether two spec versions share one result shape."""
    return any(version in family and other in family for family in _FAMILIES)


# --- reading ---------------------------------------------------------------------------------------------


def parse_result(raw: Mapping[str, JSON], version: str, path: str = "$") -> Result:
    """Read a result of the given spec version. Raises DecodingFailure (code 6), naming the JSON path."""
    try:
        fields = Fields(raw, path)
        if version in _FAMILIES[0]:
            return _parse_020(fields)
        if version in _FAMILIES[1] or version in _FAMILIES[2]:
            return _parse_current(fields, extended=version in _FAMILIES[2])
    except InvalidNetworkConfig as error:
        raise DecodingFailure(error.msg) from None
    raise IncompatibleVersion(f"{path}.cniVersion: unsupported result version {shown(version)}")


def parse_prev_result(raw: Mapping[str, JSON], config_version: str) -> Result:
    """Read prevResult: it inherits the configuration's version and may not come from another shape's family."""
    path = "$.prevResult"
    try:
        version = Fields(raw, path).text("cniVersion") or config_version
    except InvalidNetworkConfig as error:
        raise DecodingFailure(error.msg) from None
    if not same_family(version, config_version):
        raise DecodingFailure(
            f"{path}.cniVersion is {shown(version)}, which a {config_version} configuration cannot carry"
        )
    return parse_result(raw, version, path)


def _address(fields: Fields, key: str) -> str:
    text = fields.text(key)
    try:
        return parse_cidr(text).text
    except ValueError:
        raise fields.wrong(key, "an IP address with prefix length") from None


def _ip(fields: Fields, key: str) -> str:
    text = fields.text(key)
    if not text:
        return ""
    try:
        return parse_ip(text).text
    except ValueError:
        raise fields.wrong(key, "an IP address") from None


def _route(fields: Fields, extended: bool) -> Route:
    route = Route(dst=_address(fields, "dst"), gw=_ip(fields, "gw"))
    if not extended:
        return route
    return route._replace(
        mtu=fields.integer("mtu", 0, _INT32) or 0,
        advmss=fields.integer("advmss", 0, _INT32) or 0,
        priority=fields.integer("priority", 0, _UINT32) or 0,
        table=fields.integer("table", 0, _UINT32),
        scope=fields.integer("scope", 0, 255),
    )


def _dns(fields: Fields) -> DNS:
    return DNS(
        tuple(fields.texts("nameservers")),
        fields.text("domain"),
        tuple(fields.texts("search")),
        tuple(fields.texts("options")),
    )


def _parse_020(fields: Fields) -> Result:
    ips: list[IPConfig] = []
    routes: list[Route] = []
    for key in ("ip4", "ip6"):
        if not fields.has(key):
            continue
        block = fields.object(key)
        ips.append(IPConfig(_address(block, "ip"), _ip(block, "gateway")))
        routes += [_route(route, extended=False) for route in block.objects("routes")]
    return Result((), tuple(ips), tuple(routes), _dns(fields.object("dns")))


def _parse_current(fields: Fields, extended: bool) -> Result:
    interfaces = tuple(_interface(entry, extended) for entry in fields.objects("interfaces"))
    ips = tuple(
        IPConfig(_address(entry, "address"), _ip(entry, "gateway"), entry.integer("interface", -_INT32, _INT32))
        for entry in fields.objects("ips")
    )
    routes = tuple(_route(entry, extended) for entry in fields.objects("routes"))
    return Result(interfaces, ips, routes, _dns(fields.object("dns")))


def _interface(entry: Fields, extended: bool) -> Interface:
    interface = Interface(entry.text("name"), entry.text("mac"), sandbox=entry.text("sandbox"))
    if not extended:
        return interface
    return interface._replace(
        mtu=entry.integer("mtu", 0, _INT32) or 0, socket_path=entry.text("socketPath"), pci_id=entry.text("pciID")
    )


# --- writing ---------------------------------------------------------------------------------------------


def render_result(result: Result, version: str) -> dict[str, JSON]:
    """Write `result` in the shape of spec `version`; what an older shape cannot say is left out."""
    if version in _FAMILIES[0]:
        return _render_020(result, version)
    if version in _FAMILIES[1] or version in _FAMILIES[2]:
        return _render_current(result, version)
    raise IncompatibleVersion(f"unsupported result version {shown(version)}")


def render_conf(conf: Mapping[str, JSON | Result]) -> dict[str, JSON]:
    """A plugin's configuration with every Result in it, its prevResult as a rule, in the shape of its cniVersion."""
    version = conf.get("cniVersion")
    spoken = version if isinstance(version, str) and version else IMPLIED
    return {key: render_result(value, spoken) if isinstance(value, Result) else value for key, value in conf.items()}


def _render_020(result: Result, version: str) -> dict[str, JSON]:
    body: dict[str, JSON] = {"cniVersion": version}
    for config in result.ips:
        family = parse_cidr(config.address).address.family
        key = f"ip{family}"
        if key in body:
            continue
        block: dict[str, JSON] = {"ip": config.address, **_some("gateway", config.gateway)}
        routes = [
            {"dst": route.dst, **_some("gw", route.gw)}
            for route in result.routes
            if parse_cidr(route.dst).address.family == family
        ]
        body[key] = {**block, **_some("routes", routes)}
    if len(body) == 1:
        raise IncompatibleVersion(f"cannot convert the result to version {version}: no valid IP addresses")
    return {**body, "dns": _render_dns(result.dns)}


def _render_current(result: Result, version: str) -> dict[str, JSON]:
    with_family = version in _FAMILIES[1]
    extended = not with_family
    dns = _render_dns(result.dns)
    body: dict[str, JSON] = {"cniVersion": version}
    body.update(_some("interfaces", [_render_interface(interface, extended) for interface in result.interfaces]))
    body.update(_some("ips", [_render_ip(config, with_family) for config in result.ips]))
    body.update(_some("routes", [_render_route(route, extended) for route in result.routes]))
    return {**body, "dns": dns} if with_family or dns else body


def _render_interface(interface: Interface, extended: bool) -> dict[str, JSON]:
    extra: dict[str, JSON] = {}
    if extended:
        extra = {
            **_some("mtu", interface.mtu),
            **_some("socketPath", interface.socket_path),
            **_some("pciID", interface.pci_id),
        }
    return {"name": interface.name, **_some("mac", interface.mac), **_some("sandbox", interface.sandbox), **extra}


def _render_ip(config: IPConfig, with_family: bool) -> dict[str, JSON]:
    body: dict[str, JSON] = {}
    if with_family:
        body["version"] = str(parse_cidr(config.address).address.family)
    if config.interface is not None:
        body["interface"] = config.interface
    return {**body, "address": config.address, **_some("gateway", config.gateway)}


def _render_route(route: Route, extended: bool) -> dict[str, JSON]:
    body: dict[str, JSON] = {"dst": route.dst, **_some("gw", route.gw)}
    if extended:
        body.update({**_some("mtu", route.mtu), **_some("advmss", route.advmss), **_some("priority", route.priority)})
        body.update(
            {key: value for key, value in (("table", route.table), ("scope", route.scope)) if value is not None}
        )
    return body


def _render_dns(dns: DNS) -> dict[str, JSON]:
    return {
        **_some("nameservers", list(dns.nameservers)),
        **_some("domain", dns.domain),
        **_some("search", list(dns.search)),
        **_some("options", list(dns.options)),
    }


def _some(key: str, value: JSON) -> dict[str, JSON]:
    """Go's `omitempty`: the pair, unless the value is its type's zero."""
    return {key: value} if value else {}
