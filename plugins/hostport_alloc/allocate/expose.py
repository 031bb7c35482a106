"""What a container wants reachable: the three sources of exposures, read and merged. Pure.

An exposure is written `[RANGE:]PORT[-PORT][/PROTOCOL[+PROTOCOL]]`, or with `same` for PORT:

    80/tcp              one random host port for TCP 80, from the range `default`
    games:9000/udp      one from the range `games`
    80/tcp+udp          one number, free for both protocols
    9000-9003/udp       four consecutive numbers
    games:same/udp      one from the range `games`, with the same number in the container

The union is taken of the Pod's annotation `cnimeta.io/expose`, the runtime's port mappings with hostPort 0, and the
network configuration's `expose`. Where two of them name the same container port and protocol, the first of that
order wins, so a Pod can move a port to another range. Of `same`, a container has one per range and protocol.
"""

from __future__ import annotations

from cnimeta.errors import InvalidNetworkConfig, shown
from cnimeta.namedtuple import NamedTuple
from cnimeta.spec.ip import parse_ip

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Iterable

    from cnimeta.spec.fields import Fields

EXPOSE_ANNOTATION = "cnimeta.io/expose"
POD_ANNOTATIONS = "io.kubernetes.cri.pod-annotations"
"""The capability under which containerd and CRI-O pass all annotations of the Pod."""

DEFAULT_RANGE = "default"
PROTOCOLS = ("tcp", "udp", "sctp")
SAME = 0
"""Stands for the container port that is whatever the host port will be."""
UNNAMED = ""
"""The range of an exposure that names none, until it is known which range that is for its Pod."""
_PORT_MAX = 65535
_ANNOTATION_MAX = 64 * 1024
_SAME = "same"
_FORM = (
    "[RANGE:]PORT[-PORT][/tcp|udp|sctp], protocols of one number joined by +, such as 80/tcp or games:9000/udp, or"
    " same for PORT"
)


class Exposure(NamedTuple):
    """`length` consecutive container ports from `port`, each for every one of `protocols` (in PROTOCOLS' order).

    With `port` SAME it is one, and the container port is the host port that is chosen.
    `host_ip` is where the runtime's mapping with hostPort 0 asked for it; empty for every address of the node.
    """

    range: str
    port: int
    protocols: tuple[str, ...]
    length: int = 1
    host_ip: str = ""

    @property
    def text(self) -> str:
        """The exposure as it would be written."""
        last = f"-{self.port + self.length - 1}" if self.length > 1 else ""
        return f"{self.range}:{self.port or _SAME}{last}/{'+'.join(self.protocols)}"


class Explicit(NamedTuple):
    """A mapping the runtime asked for with its host port: passed through, and reserved."""

    host_port: int
    container_port: int
    protocol: str
    host_ip: str = ""


class Wanted(NamedTuple):
    """Everything one ADD has to map."""

    exposures: tuple[Exposure, ...] = ()
    explicit: tuple[Explicit, ...] = ()

    def __bool__(self) -> bool:
        return bool(self.exposures or self.explicit)


def parse_exposure(text: str, path: str, ranges: Iterable[str], default: str = DEFAULT_RANGE) -> Exposure:
    """Read one exposure; one that names no range is of `default`.

    Raises InvalidNetworkConfig (code 7) naming `path` and the text.
    """
    name, colon, rest = text.strip().rpartition(":")
    name = name.strip() if colon else default
    ports, slash, protocols = rest.partition("/")
    first, dash, last = ports.strip().partition("-")
    port = SAME if ports.strip().lower() == _SAME else _port(first)
    end = _port(last) if dash else port
    if port is None or end is None or end < port or (colon and not name):
        raise InvalidNetworkConfig(f"{path} must be {_FORM} with ports from 1 to {_PORT_MAX}, got {shown(text)}")
    names = [protocol.strip().lower() for protocol in protocols.split("+")] if slash else [PROTOCOLS[0]]
    if not set(names) <= set(PROTOCOLS) or len(set(names)) != len(names):
        raise InvalidNetworkConfig(f"{path} must be {_FORM}, got {shown(text)}")
    known = tuple(ranges)
    if name not in known and name != UNNAMED:
        raise InvalidNetworkConfig(f"{path} names the range {shown(name)}, $.ranges has {', '.join(known)}")
    return Exposure(name, port, tuple(protocol for protocol in PROTOCOLS if protocol in names), end - port + 1)


def _port(text: str) -> int | None:
    if not (text.isascii() and text.isdigit() and len(text) <= 5):
        return None
    return int(text) if 1 <= int(text) <= _PORT_MAX else None


def parse_annotation(text: str, path: str, ranges: Iterable[str], default: str = DEFAULT_RANGE) -> tuple[Exposure, ...]:
    """Read the annotation's comma-separated list; empty text and empty entries say nothing."""
    if len(text) > _ANNOTATION_MAX:
        raise InvalidNetworkConfig(f"{path} has {len(text)} characters, at most {_ANNOTATION_MAX} are read")
    known = tuple(ranges)
    return tuple(parse_exposure(part, path, known, default) for part in text.split(",") if part.strip())


def pod_annotations(runtime_config: Fields) -> Fields:
    """The Pod's annotations as the runtime passed them; without any, an object with no keys."""
    return runtime_config.object(POD_ANNOTATIONS)


def read_mappings(runtime_config: Fields, ranges: Iterable[str], default: str = DEFAULT_RANGE) -> Wanted:
    """`runtimeConfig.portMappings`: hostPort 0 asks for a random port, any other is explicit.

    Raises InvalidNetworkConfig (code 7) with the JSON path of the value.
    """
    random: list[Exposure] = []
    explicit: list[Explicit] = []
    for entry in runtime_config.objects("portMappings"):
        host_port = entry.integer("hostPort", 0, _PORT_MAX) or 0
        container_port = entry.integer("containerPort", 1, _PORT_MAX)
        if container_port is None:
            raise entry.wrong("containerPort", f"a whole number from 1 to {_PORT_MAX}")
        protocol = entry.text("protocol").lower() or PROTOCOLS[0]
        if protocol not in PROTOCOLS:
            raise entry.wrong("protocol", "one of " + ", ".join(PROTOCOLS))
        host_ip = _host_ip(entry)
        if host_port:
            explicit.append(Explicit(host_port, container_port, protocol, host_ip))
        elif default in ranges:
            random.append(Exposure(default, container_port, (protocol,), 1, host_ip))
        else:
            raise InvalidNetworkConfig(
                f'{entry.at("hostPort")} is 0, which asks for a port of the range "{default}"; $.ranges has none'
            )
    return Wanted(tuple(random), tuple(dict.fromkeys(explicit)))


def _host_ip(entry: Fields) -> str:
    text = entry.text("hostIP")
    if not text:
        return ""
    try:
        return parse_ip(text).text
    except ValueError:
        raise entry.wrong("hostIP", "an IP address") from None


def union(*sources: Iterable[Exposure]) -> tuple[Exposure, ...]:
    """All exposures, each container port and protocol once: what an earlier source names, a later one cannot."""
    taken: set[tuple[int | str, str]] = set()
    merged: list[Exposure] = []
    for source in sources:
        for exposure in source:
            merged.extend(_remaining(exposure, taken))
            for port in range(exposure.port, exposure.port + exposure.length):
                taken.update((port or exposure.range, protocol) for protocol in exposure.protocols)
    return tuple(merged)


def _remaining(exposure: Exposure, taken: set[tuple[int | str, str]]) -> list[Exposure]:
    """What is left of an exposure: consecutive ports with the same protocols left stay one block."""
    left: list[Exposure] = []
    for port in range(exposure.port, exposure.port + exposure.length):
        named = port or exposure.range
        protocols = tuple(protocol for protocol in exposure.protocols if (named, protocol) not in taken)
        if not protocols:
            continue
        before = left[-1] if left else None
        if before is not None and before.protocols == protocols and before.port + before.length == port:
            left[-1] = before._replace(length=before.length + 1)
        else:
            left.append(exposure._replace(port=port, protocols=protocols, length=1))
    return left
