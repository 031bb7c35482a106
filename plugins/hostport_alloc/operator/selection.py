"""Which host ports `cnimeta ports list` is about: the filters, as options and as a value. Pure."""

from __future__ import annotations

from cnimeta.errors import InvalidEnvironment, InvalidNetworkConfig
from cnimeta.namedtuple import NamedTuple
from cnimeta_plugins.hostport_alloc.allocate.ranges import parse_range

TYPE_CHECKING = False
if TYPE_CHECKING:
    import argparse

    from cnimeta_plugins.hostport_alloc.allocate.ranges import PortSet
    from cnimeta_plugins.hostport_alloc.operator.listing import Entry

OPTIONS = {
    "--namespace": "namespace",
    "--pod": "pod",
    "--range": "ranges",
    "--container": "container_id",
    "--network": "network",
    "--pending": "pending",
}
"""The options of a Selection, and where argparse leaves them."""


class Selection(NamedTuple):
    """What an entry must have; empty values ask for nothing. Several ranges: one of them."""

    namespace: str = ""
    pod: str = ""
    """NAME, or NAMESPACE/NAME."""
    ranges: tuple[str, ...] = ()
    ports: PortSet = 0
    """Ranges that were written out, together."""
    container: str = ""
    """The ID or how it begins."""
    network: str = ""
    pending: bool = False

    def of(self, entries: list[Entry]) -> list[Entry]:
        """Those of the entries that have it."""
        return entries if self == Selection() else [entry for entry in entries if self.has(entry)]

    def has(self, entry: Entry) -> bool:
        """Whether the entry is among them."""
        pod = str(entry["pod"])
        namespace, _, name = pod.partition("/")
        return (
            (not self.namespace or namespace == self.namespace)
            and (not self.pod or self.pod in (pod, name))
            and (not (self.ranges or self.ports) or self._in_ranges(entry))
            and str(entry["containerID"]).startswith(self.container)
            and (not self.network or entry["network"] == self.network)
            and (not self.pending or entry["annotation"] == "pending")
        )

    def _in_ranges(self, entry: Entry) -> bool:
        return entry["range"] in self.ranges or bool(self.ports >> int(entry["hostPort"]) & 1)


def add_options(parser: argparse.ArgumentParser) -> None:
    """The options of a Selection. They can stand before `list` too, so what is not given sets nothing."""
    import argparse

    group, quiet = parser.add_argument_group("which host ports (list)"), argparse.SUPPRESS
    group.add_argument("-n", "--namespace", default=quiet, metavar="NAMESPACE", help="of Pods of this namespace")
    group.add_argument("--pod", default=quiet, metavar="[NAMESPACE/]NAME", help="of this Pod")
    group.add_argument(
        "--range",
        action="append",
        dest="ranges",
        default=quiet,
        metavar="RANGE",
        help="of this range: its name, `explicit`, or ports such as 20000-24999; repeatable",
    )
    group.add_argument(
        "--container", dest="container_id", default=quiet, metavar="ID", help="of the container whose ID begins so"
    )
    group.add_argument("--network", default=quiet, metavar="NAME", help="of this network")
    group.add_argument(
        "--pending", action="store_true", default=quiet, help="only those whose Pod is not annotated yet"
    )


def selection_of(args: argparse.Namespace) -> Selection:
    """The Selection that was asked for. Raises InvalidEnvironment (code 4), wrong usage, for what is no range."""
    names, ports = [], 0
    for text in getattr(args, "ranges", None) or ():
        if text[:1].isdigit():
            try:
                ports |= parse_range(text, text, "--range").ports
            except InvalidNetworkConfig as error:
                raise InvalidEnvironment(error.msg) from None
        else:
            names.append(text)
    return Selection(
        getattr(args, "namespace", ""),
        getattr(args, "pod", ""),
        tuple(names),
        ports,
        getattr(args, "container_id", ""),
        getattr(args, "network", ""),
        bool(getattr(args, "pending", False)),
    )
