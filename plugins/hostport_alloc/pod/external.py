"""The address under which a host port is reached from outside of a NAT: what is configured, and what becomes of a port.

An entry of the annotation gets `externalIP` and `externalPort` beside the node's own `hostIP` and `hostPort`. Pure.
"""

from __future__ import annotations

from cnimeta.errors import CniError, InvalidNetworkConfig, shown
from cnimeta.namedtuple import NamedTuple
from cnimeta.spec.fields import Fields
from cnimeta.spec.ip import parse_ip
from cnimeta.spec.jsonio import dumps, kind, loads
from cnimeta_plugins.hostport_alloc.allocate.ranges import PORT_MAX, parse_range
from cnimeta_plugins.hostport_alloc.pod.annotation import PORTS_ANNOTATION

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from cnimeta.spec.jsonio import JSON
    from cnimeta_plugins.hostport_alloc.allocate.ranges import PortRange

OF_NODE = "node"
"""For `external.address`: the addresses of type ExternalIP that the Node object has."""
_EXTERNAL = "ExternalIP"


class External(NamedTuple):
    """`external`. Without an address of any kind it is the one that is advertised anyway."""

    addresses: tuple[str, ...] = ()
    of_node: bool = False
    annotation: str = ""
    """Of the Node; what it says goes before its ExternalIP."""
    node_name: str = ""
    """Of the Node; empty for the name of the host."""
    spans: tuple[tuple[int, int, int], ...] = ()
    """(first, last, what is added to a host port in between)."""

    @property
    def needs_node(self) -> bool:
        """Whether the Node object is read."""
        return self.of_node or bool(self.annotation)

    def port(self, host_port: int) -> int:
        """The port outside; 0 for none."""
        return next((host_port + added for first, last, added in self.spans if first <= host_port <= last), 0)

    def of(self, node: Mapping[str, JSON]) -> tuple[str, ...]:
        """The addresses that a Node object has. Raises CniError for one that says something else."""
        metadata = Fields(node, "Node").object("metadata")
        annotated = str(metadata.object("annotations").raw.get(self.annotation) or "") if self.annotation else ""
        if annotated:
            where = f"the Node's annotation {shown(self.annotation)}"
            return tuple(_address(text.strip(), where) for text in annotated.split(",") if text.strip())
        found = Fields(node, "Node").objects("addresses") if self.of_node else ()
        return tuple(
            _address(entry.text("address"), "an ExternalIP of the Node")
            for entry in found
            if entry.text("type") == _EXTERNAL
        )

    def added(self, entries: Iterable[Mapping[str, JSON]], addresses: Sequence[str]) -> list[dict[str, JSON]]:
        """The entries with what is outside: of each address's family the first external one, or the address itself."""
        fixed = bool(self.addresses) or self.needs_node
        by_family = {parse_ip(text).family: text for text in reversed(addresses)}
        found = []
        for entry in entries:
            inside, host_port = str(entry["hostIP"]), entry["hostPort"]
            outside = by_family.get(parse_ip(inside).family, "") if fixed and inside else inside
            if fixed and not inside and len(by_family) == 1:
                outside = next(iter(by_family.values()))
            port = self.port(host_port) if isinstance(host_port, int) else 0
            told: dict[str, JSON] = {"externalIP": outside, "externalPort": port} if outside and port else {}
            found.append({**{key: entry[key] for key in entry if key not in ("externalIP", "externalPort")}, **told})
        return found

    def amended(self, patch: Mapping[str, JSON], addresses: Sequence[str]) -> dict[str, JSON]:
        """The patch of a Pod with the addresses as they are known now."""
        metadata = Fields(patch).object("metadata")
        annotations = metadata.object("annotations").raw
        entries = loads(str(annotations[PORTS_ANNOTATION]))
        kept = [entry for entry in entries if isinstance(entry, dict)] if isinstance(entries, list) else []
        value = dumps(self.added(kept, addresses))
        return {**patch, "metadata": {**metadata.raw, "annotations": {**annotations, PORTS_ANNOTATION: value}}}


def _address(text: str, where: str) -> str:
    try:
        found = parse_ip(text)
    except ValueError:
        raise CniError(f"{where} is no IP address: {shown(text)}") from None
    return found.text


def read_external(fields: Fields, ranges: Iterable[PortRange]) -> External:
    """`external`. Raises InvalidNetworkConfig (code 7)."""
    value = fields.get("address")
    texts = [] if value in (None, OF_NODE) else [value] if isinstance(value, str) else fields.texts("address")
    wrong = fields.wrong("address", f'"{OF_NODE}", an IP address or an array of IP addresses')
    addresses = []
    for text in texts:
        try:
            found = parse_ip(str(text))
        except ValueError:
            raise wrong from None
        if found.is_unspecified:
            raise wrong
        addresses.append(found.text)
    annotation, name = fields.text("nodeAnnotation"), fields.text("nodeName")
    if addresses and annotation:
        raise InvalidNetworkConfig(f"{fields.at('address')} and {fields.at('nodeAnnotation')} are both set: keep one")
    if name and not set(name) <= _NAME:
        raise fields.wrong("nodeName", "the name of a Node")
    spans = _spans(fields, list(ranges))
    return External(tuple(addresses), value == OF_NODE, annotation, name, spans)


_NAME = frozenset("abcdefghijklmnopqrstuvwxyz0123456789.-")


def _spans(fields: Fields, ranges: list[PortRange]) -> tuple[tuple[int, int, int], ...]:
    given = fields.object("ports")
    offset = fields.integer("portOffset", -PORT_MAX, PORT_MAX)
    if given.raw and offset is not None:
        raise InvalidNetworkConfig(f"{fields.at('ports')} and {fields.at('portOffset')} are both set: keep one")
    spans = []
    for text, first in given.raw.items():
        inside = parse_range(text, text, f"{given.path}: the key")
        if isinstance(first, bool) or not isinstance(first, int) or len(inside.spans) != 1:
            raise InvalidNetworkConfig(
                f'{given.path} must be host ports such as "20000-24999" → the first port outside, got {shown(text)} →'
                f" {kind(first)} {shown(first)}"
            )
        low, high = inside.spans[0]
        spans.append((low, high, first - low))
    if given.raw:
        outside = [(low + added, high + added, given.path) for low, high, added in spans]
    else:
        spans = [(1, PORT_MAX, offset or 0)]
        outside = [
            (low + (offset or 0), high + (offset or 0), fields.at("portOffset"))
            for found in ranges
            for low, high in found.spans
        ]
    for low, high, path in outside:
        if low < 1 or high > PORT_MAX:
            raise InvalidNetworkConfig(f"{path} makes ports {low}-{high} of a range: they must be from 1 to {PORT_MAX}")
    return tuple(spans)
