"""What portmap registers as a port mapper: its mappings, and putting them back, for other plugins and operators.

It stands beside the way of a command: nothing here is loaded by ADD, DEL or CHECK.
"""

from __future__ import annotations

import os

from cnimeta.errors import CniError, Failures
from cnimeta.host.clock import boot_id
from cnimeta.host.files import PosixFiles
from cnimeta.plugin.request import Attachment
from cnimeta.ports.mapper import Compared, MappedPort, Repaired
from cnimeta.spec.fields import Fields
from cnimeta.spec.netconf import NetConf
from cnimeta_plugins.portmap.backends import BACKENDS, Backends
from cnimeta_plugins.portmap.config import AUTO, DEFAULTS, read_managed_by
from cnimeta_plugins.portmap.frozen import FrozenMapper
from cnimeta_plugins.portmap.plan import Owner
from cnimeta_plugins.portmap.records import Records
from cnimeta_plugins.portmap.wiring import host_mapper, node_defaults

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

    from cnimeta.ports.mapper import Expected
    from cnimeta.spec.jsonio import JSON
    from cnimeta_plugins.portmap.mapper import Mapper
    from cnimeta_plugins.portmap.records import Record

_ESSENTIAL = frozenset({"cniversion", "name", "type", "runtimeconfig"})


class PortmapPorts:
    """The port mapper. Tests give the sources of the backends and of the mapper."""

    refusals = frozenset({2, 6, 7, 999})
    """999 is what the reference plugin, which may be installed under the name portmap, says to any wrong key."""

    def __init__(
        self,
        backends: Callable[[str], Backends] = Backends,
        mapper: Callable[[Mapping[str, str], Callable[[str], None]], Mapper] = host_mapper,
    ) -> None:
        self._backends = backends
        self._mapper = mapper

    def essential(self, conf: Mapping[str, JSON]) -> dict[str, JSON]:
        """What tells where the rules and the records are, as far as it is valid."""
        kept = {key: value for key, value in conf.items() if key.lower() in _ESSENTIAL}
        fields = Fields(conf)
        backend, data_dir = fields.get("backend"), fields.get("dataDir")
        if backend in (AUTO, *BACKENDS):
            kept["backend"] = backend
        if isinstance(data_dir, str):
            kept["dataDir"] = data_dir
        return kept

    def mappings(self, data_dir: str, log: Callable[[str], None]) -> list[MappedPort]:
        """Recorded under `data_dir`, or only in the kernel."""
        return self._mappings(data_dir, log, lambda folder: Records(folder, PosixFiles(), log))

    def _mappings(
        self, data_dir: str, log: Callable[[str], None], records: Callable[[str], Records]
    ) -> list[MappedPort]:
        backends = self._backends(os.environ.get("PATH", ""))
        found: list[MappedPort] = []
        recorded = set()
        failures = Failures()
        for folder in {data_dir, DEFAULTS.data_dir, node_defaults(os.environ, backends.names).data_dir} - {""}:
            for record in records(folder).readable(failures):
                owner = record.owner
                recorded |= {tuple(owner), *((*owner[:2], *port[3:5]) for port in _ports_of(record))}
                if folder == data_dir and record.boot_id == boot_id():
                    found += _ports_of(record)
        for failure in failures.found:  # the kernel tells what is mapped; after a reboot nothing is
            log(f"portmap: {failure.msg}")
        for backend in backends.holding():
            for port in sorted(set(backend.listed())):
                names = port[:3] if port.ifname else (*port[:2], *port[3:5])
                found += [port] * (names not in recorded)
        return found

    def compare(self, data_dir: str, log: Callable[[str], None], expected: Sequence[Expected] = ()) -> Compared:
        """CHECK of each on one reading of kernel and records."""
        mapper = FrozenMapper(self._mapper(os.environ, log))
        errors: list[CniError | None] = []
        for one in expected:
            try:
                self._check(mapper, Attachment(*one[:3], one.netns, {}), NetConf(dict(one.conf)))
                errors.append(None)
            except CniError as error:
                errors.append(error)
        others = self._each(mapper, data_dir, {one.container_id for one in expected}, self._check)
        return Compared(errors, others, self._mappings(data_dir, log, mapper.records))

    def repair(self, data_dir: str, log: Callable[[str], None], skip: Collection[str] = ()) -> list[Repaired]:
        """ADD again from the record, of what is not in place; then CHECK."""
        backends, failures = self._backends(os.environ.get("PATH", "")), Failures()
        for backend in backends.holding():
            with failures:
                backend.heal()

        mapper = self._mapper(os.environ, log)

        def add_again(frozen: Mapper, attachment: Attachment, conf: NetConf) -> None:
            try:
                self._check(frozen, attachment, conf)
            except CniError:  # then: it is not in place, whatever the reason, and CHECK judges again
                if mapper.add_again(Owner(*attachment.key), data_dir):  # else it went meanwhile
                    self._check(mapper, attachment, conf)

        found = self._each(FrozenMapper(mapper), data_dir, skip, add_again)
        for backend in backends.holding():
            with failures:
                backend.tidy()
        for failure in failures.found:
            log(f"portmap: {failure.msg}")
        return found

    def _each(
        self,
        mapper: Mapper,
        data_dir: str,
        skip: Collection[str],
        work: Callable[[Mapper, Attachment, NetConf], None],
    ) -> list[Repaired]:
        """Do `work` for every record; those of an earlier boot, or whose namespace is gone, are left for DEL and GC."""
        found, failures = [], Failures()
        for record in list(mapper.records(data_dir).readable(failures)):
            network, container_id, ifname = record.owner
            if container_id not in skip and not mapper.life.is_dead(record) and isinstance(record.conf, dict):
                error = ""
                try:
                    work(mapper, Attachment(*record.owner, record.netns, {}), NetConf(dict(record.conf)))
                except CniError as failure:
                    error = str(failure)
                found.append(Repaired(container_id, ifname, network, error))
        return found + [Repaired("", "", "", failure.msg) for failure in failures.found]

    def _check(self, mapper: Mapper, attachment: Attachment, conf: NetConf) -> None:
        mapper.check(attachment, mapper.settings(conf), conf.require_prev_result())


def _ports_of(record: Record) -> Iterator[MappedPort]:
    conf = Fields(record.conf if isinstance(record.conf, dict) else {})
    managed_by = read_managed_by(conf)
    for mapping in record.mappings:
        for port in mapping.host_ports:
            yield MappedPort(
                *record.owner,
                mapping.protocol,
                port,
                mapping.target(port),
                mapping.where,
                managed_by=managed_by,
            )
