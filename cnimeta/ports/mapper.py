"""A port mapper as other plugins see it: what they need of it beside the CNI verbs.

A plugin that maps ports gives one from `Plugin.port_mapper()`; others find it by the plugin's name in
`cnimeta.plugin.registry`. ADD, DEL and CHECK go through the CNI protocol like any delegate's, so a foreign portmap that
registers nothing works too, less recovery and repair.
"""

from __future__ import annotations

from cnimeta.namedtuple import NamedTuple

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Mapping, Sequence
    from typing import Protocol

    from cnimeta.errors import CniError
    from cnimeta.spec.jsonio import JSON

    class PortMapper(Protocol):
        """What a plugin that maps host ports registers."""

        refusals: frozenset[int]
        """The error codes with which it refuses a configuration it does not understand or support."""

        def essential(self, conf: Mapping[str, JSON]) -> dict[str, JSON]:
            """The part of a configuration that DEL needs and no refusal concerns."""
            ...

        def mappings(self, data_dir: str, log: Callable[[str], None]) -> Sequence[MappedPort]:
            """Every port mapped since boot: those recorded under `data_dir`, and those that only the kernel knows.

            The latter have no record under `data_dir` nor where the mapper keeps records by itself. CniError when a
            record folder or the kernel cannot be read; a single damaged record is logged.
            """
            ...

        def compare(self, data_dir: str, log: Callable[[str], None], expected: Sequence[Expected]) -> Compared:
            """Hold the host, read once, against what is expected, and against the mapper's own records of others."""
            ...

        def repair(self, data_dir: str, log: Callable[[str], None], skip: Collection[str]) -> Sequence[Repaired]:
            """Put back what is missing of every live attachment, but those of the containers in `skip`."""
            ...


DATA_DIR = "/var/lib/cni/cnimeta"
"""Where plugins keep what they have to remember, when `dataDir` says nothing else. Never change: nodes have it."""

MANAGED_BY = "managedBy"
"""The key of a mapper's configuration that tells on whose behalf it maps: the type of a plugin."""


class MappedPort(NamedTuple):
    """One host port of one attachment. `host_ip` is empty for every address of the node.

    `ifname` is empty where only the kernel knows of it and its rules do not name the interface: such rules may be those
    of a foreign plugin as well.
    """

    network: str
    container_id: str
    ifname: str
    protocol: str
    host_port: int
    container_port: int
    host_ip: str = ""
    recorded: bool = True
    """False: only the kernel knows of it."""
    managed_by: str | None = ""
    """The type of the plugin on whose behalf it was made, as MANAGED_BY said; empty for none, None for not known."""


class Expected(NamedTuple):
    """One attachment whose mappings should be in place: what its CHECK would be called with."""

    network: str
    container_id: str
    ifname: str
    netns: str
    conf: Mapping[str, JSON]
    """Complete, with the port mappings and prevResult."""


class Compared(NamedTuple):
    """What was found."""

    errors: Sequence[CniError | None]
    """Of each that was expected, in order: with what its CHECK would fail; None when all is in place."""
    others: Sequence[Repaired]
    """The live attachments of other containers that the mapper has on record under this folder."""
    mappings: Sequence[MappedPort]
    """As `PortMapper.mappings`."""


class Repaired(NamedTuple):
    """One attachment that was looked at, and why it could not be put right; empty when it is."""

    container_id: str
    ifname: str
    network: str
    error: str = ""
