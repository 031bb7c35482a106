"""Ranges that are more than numbers, `defaultRange`, and what a node's own file says. Pure; loaded where there are any.

Who may have ports of a range, and which range is whose, the configuration alone decides; the file of a node
(`rangesFile`) only says which numbers a range of the configuration has there.
"""

from __future__ import annotations

from cnimeta.errors import CniError, InvalidNetworkConfig, shown
from cnimeta.namedtuple import NamedTuple
from cnimeta.spec import validate
from cnimeta.spec.jsonio import kind
from cnimeta_plugins.hostport_alloc.allocate.ranges import parse_range, refuse_overlaps

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Mapping

    from cnimeta.spec.fields import Fields
    from cnimeta.spec.jsonio import JSON
    from cnimeta_plugins.hostport_alloc.allocate.ranges import PortRange
    from cnimeta_plugins.hostport_alloc.state.record import Pod

FILE_MAX_BYTES = 64 * 1024


class RangeRule(NamedTuple):
    """The range of exposures that name none, for some Pods. Empty conditions are met by every container."""

    range: str
    namespaces: tuple[str, ...] = ()
    labels: tuple[tuple[str, str], ...] = ()

    def is_for(self, pod: Pod | None, labels: Mapping[str, JSON]) -> bool:
        """Whether it is about this Pod."""
        if self.namespaces and (pod is None or not _matches(pod.namespace, self.namespaces)):
            return False
        return all(labels.get(key) == value for key, value in self.labels)


def read_range(name: str, fields: Fields) -> PortRange:
    """A range of `ranges` that is an object."""
    if not fields.has("ports"):
        raise InvalidNetworkConfig(f'{fields.at("ports")} is missing: write the range\'s ports, such as "7000-7999"')
    found = parse_range(name, fields.text("ports"), fields.at("ports"))
    by_ordinal = fields.choice("by", ("random", "ordinal"), "random") == "ordinal"
    refuses = fields.choice("otherwise", ("refuse", "random"), "refuse") == "refuse"
    if fields.has("namespaces") and not fields.items("namespaces"):
        raise fields.wrong("namespaces", "an array with at least one namespace")
    return found._replace(namespaces=_namespaces(fields), by_ordinal=by_ordinal, refuses=by_ordinal and refuses)


def read_rules(fields: Fields, ranges: tuple[PortRange, ...]) -> tuple[RangeRule, ...]:
    """`defaultRange`: the name of a range, or rules of which the first that is met counts."""
    value = fields.get("defaultRange")
    if value is None:
        return ()
    if isinstance(value, str):
        return (RangeRule(_known(value, "$.defaultRange", ranges)),)
    if not isinstance(value, list):
        raise fields.wrong("defaultRange", "the name of a range, or an array of rules")
    found = []
    for entry in fields.objects("defaultRange"):
        name = _known(entry.text("range"), entry.at("range"), ranges)
        found.append(RangeRule(name, _namespaces(entry), _labels(entry.object("labels"))))
    return tuple(found)


def _labels(fields: Fields) -> tuple[tuple[str, str], ...]:
    found = []
    for key, value in fields.raw.items():  # as they are: capitals matter in a label
        if not isinstance(value, str):
            raise InvalidNetworkConfig(f"{fields.path}: label {shown(key)} must be a string, got {kind(value)}")
        found.append((key, value))
    return tuple(found)


def _known(name: str, path: str, ranges: tuple[PortRange, ...]) -> str:
    names = [found.name for found in ranges]
    if name not in names:
        raise InvalidNetworkConfig(f"{path} names the range {shown(name)}, $.ranges has {', '.join(names)}")
    return name


def _namespaces(fields: Fields) -> tuple[str, ...]:
    texts = fields.texts("namespaces")
    if not texts:
        return ()
    from cnimeta_plugins.hostport_alloc.allocate.patterns import check_pattern

    return tuple(check_pattern(text, f"{fields.at('namespaces')}[{index}]") for index, text in enumerate(texts))


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    from cnimeta_plugins.hostport_alloc.allocate.patterns import matches

    return matches(name, patterns)


def refuse_foreign(found: PortRange, pod: Pod | None) -> None:
    """Raise InvalidNetworkConfig (code 7) when the range is kept for Pods of other namespaces."""
    if found.namespaces and (pod is None or not _matches(pod.namespace, found.namespaces)):
        who = f"this Pod is of {shown(pod.namespace)}" if pod is not None else "this container is of no Pod"
        raise InvalidNetworkConfig(
            f"range {shown(found.name)} is for Pods of the namespaces {', '.join(found.namespaces)}"
            f" ($.ranges.{found.name}.namespaces), and {who}: name another range"
        )


def on_node(ranges: tuple[PortRange, ...], path: str, text: bytes) -> tuple[PortRange, ...]:
    """The ranges with the numbers that the node's file has for them. Raises InvalidNetworkConfig (code 7)."""
    from cnimeta.spec.jsonio import loads_object

    where = f"$.rangesFile {shown(path)}"
    if len(text) > FILE_MAX_BYTES:
        raise InvalidNetworkConfig(f"{where} has {len(text)} bytes, at most {FILE_MAX_BYTES} are read")
    try:
        given = loads_object(text)
    except CniError as error:
        raise InvalidNetworkConfig(f"{where} cannot be used: {error.msg}") from None
    numbers: dict[str, PortRange] = {}
    for name, value in given.items():
        at = f"{where}: $.{legible_name(name)}"
        if not isinstance(value, str):
            raise InvalidNetworkConfig(f'{at} must be text such as "20000-24999", got {kind(value)}: {shown(value)}')
        if name not in (found.name for found in ranges):
            raise InvalidNetworkConfig(f"{at} is no range of the configuration, which decides who may have ports of it")
        numbers[name] = parse_range(name, value, at)
    found = [one._replace(spans=numbers[one.name].spans) if one.name in numbers else one for one in ranges]
    refuse_overlaps(found, f"{where}: $.")
    return tuple(found)


def legible_name(name: str) -> str:
    """A key of the file in a path."""
    return name if validate.is_identifier(name) else shown(name)
