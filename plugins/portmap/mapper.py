"""Mapping and unmapping an attachment: the order of the steps, which survives a kill. What they do is the backend's.

ADD    record (what is about to be in the kernel) -> rules -> route_localnet -> stale UDP flows
DEL    rules -> stale UDP flows -> record; then what other programs and earlier settings left
"""

from __future__ import annotations

import os

from cnimeta.errors import CniError, Failures, InvalidNetworkConfig, StateUnusable
from cnimeta_plugins.portmap.config import DEFAULTS, NodeDefaults, read_data_dir, read_mappings, read_settings
from cnimeta_plugins.portmap.plan import Owner, plan_mappings
from cnimeta_plugins.portmap.records import Life, Others, Record, Records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from cnimeta.host.protocols import Conntrack, Files, Sysctl
    from cnimeta.plugin.request import Attachment
    from cnimeta.spec.ip import Address, Cidr
    from cnimeta.spec.netconf import NetConf
    from cnimeta.spec.result import Result
    from cnimeta_plugins.portmap.backends import Backends
    from cnimeta_plugins.portmap.config import PortMapping, Settings
    from cnimeta_plugins.portmap.plan import Plan
    from cnimeta_plugins.portmap.records import Payload


class Mapper:
    """The work of every verb on the given host access."""

    def __init__(
        self,
        backends: Backends,
        conntrack: Callable[[], Conntrack],
        sysctl: Callable[[], Sysctl],
        files: Files,
        log: Callable[[str], None],
        *,
        boot_id: Callable[[], str],
        route: Callable[[Address], str],
        node: Callable[[], NodeDefaults] = NodeDefaults,
        netns_exists: Callable[[str], bool] = os.path.exists,
    ) -> None:
        """`node` gives the node-wide defaults; `route(address)` the interface towards a container."""
        self.backends = backends
        self.conntrack = conntrack
        self.sysctl = sysctl
        self.files = files
        self.log = log
        self.life = Life(boot_id, netns_exists)
        self.route = route
        self.node = node

    def settings(self, conf: NetConf) -> Settings:
        """The configuration with the node-wide defaults."""
        return read_settings(conf, self.node(), self.backends.names)

    # --- ADD and CHECK ---------------------------------------------------------------------------------------

    def add(self, attachment: Attachment, conf: NetConf, settings: Settings, result: Result) -> None:
        """Map every port, in place of what the attachment had."""
        owner = Owner(*attachment.key)
        plan = plan_mappings(owner, settings, result)
        records = self._records(settings.data_dir)
        before = self._record_before(records, owner)
        name = self.backends.usable(settings.backends)
        if before is not None and before.backend != name:  # the configuration has changed since
            self.backends[before.backend].remove(owner, before.payload)
            before = None
        self._map(plan, self._record(attachment, conf, plan, name), before, records)
        if settings.snat and not settings.masq_all:
            self._route_localnet(plan)
        self._forget_flows([family.container for family in plan.families], settings.mappings)

    def _record_before(self, records: Records, owner: Owner) -> Record | None:
        found = records.find(owner)
        if found.newer:
            raise StateUnusable(
                f"the record of {owner.text} under {records.folder} is of a later version ({found.problem}): install"
                " that version, or delete the attachment first"
            )
        return found.record

    def _record(self, attachment: Attachment, conf: NetConf, plan: Plan, backend: str) -> Record:
        return Record(
            plan.owner,
            attachment.netns,
            self.life.boot_id(),
            tuple(family.container for family in plan.families),
            plan.settings.mappings,
            backend,
            payload=None,
            conf=dict(conf.raw),
        )

    def _map(self, plan: Plan, record: Record, before: Record | None, records: Records) -> None:
        """The record first, with old and new until the rules are in; as it was when they are refused."""
        backend, others = self.backends[record.backend], self._others(records, plan.owner)
        old = None if before is None else before.payload
        new: Payload = backend.plan(plan, old, others)
        both = new if old is None else backend.both(old, new)
        records.store(record._replace(payload=both))
        try:
            backend.add(plan, new, old, others)
        except CniError:
            if before is None:
                records.forget(record.owner)
            else:
                records.store(before)
            raise
        if both != new:
            records.store(record._replace(payload=new))

    def check(self, attachment: Attachment, settings: Settings, result: Result) -> None:
        """Raise CheckFailed (code 101) unless the kernel holds what ADD would put there."""
        owner = Owner(*attachment.key)
        plan = plan_mappings(owner, settings, result)
        record = self._records(settings.data_dir).find(owner).record
        if record is None:
            self.backends[self.backends.usable(settings.backends)].check(plan, None)
        else:
            self.backends[record.backend].check(plan, record.payload)

    # --- DEL -------------------------------------------------------------------------------------------------

    def delete(self, attachment: Attachment, conf: NetConf) -> None:
        """Unmap. Every step is tried; the record goes only when the rules are gone."""
        owner = Owner(*attachment.key)
        records = self._records(self._data_dir(conf))
        found = records.find(owner)
        asked = _mappings_or_none(conf)
        recorded = [found.record] if found.record is not None else []
        if not recorded and not found.problem:
            recorded = self._renamed(records, attachment, asked)
        failures = Failures()
        for record in recorded:
            with failures:
                self._unmap(record, records)
        with failures:
            suspected = () if recorded else None if found.problem else asked
            if self._sweep(owner, suspected, records) and not recorded:
                self._forget_flows(None, asked)
            if not recorded:
                records.forget(owner)  # a damaged one, or what a killed ADD had begun to write
        failures.raise_any()

    def _unmap(self, record: Record, records: Records) -> None:
        self.backends[record.backend].remove(record.owner, record.payload)
        self._forget_flows(record.addresses, record.mappings)
        records.forget(record.owner)

    def _renamed(self, records: Records, attachment: Attachment, asked: Sequence[PortMapping]) -> list[Record]:
        """The records of the same interface under an earlier name of the network.

        Told from another network of the container by this: it is dead, or has the very mappings that are asked for.
        """
        return [
            record
            for record in records.of_container(attachment.container_id)
            if record.owner.ifname == attachment.ifname
            and (self.life.is_dead(record) or (asked and set(asked) == set(record.mappings)))
        ]

    def _sweep(self, owner: Owner, mappings: Sequence[PortMapping] | None, records: Records) -> bool:
        """What no record tells of; whether there was any."""
        found = []
        failures = Failures()
        for backend in self.backends.holding():
            with failures:
                found.append(backend.sweep(owner, mappings, self._others(records, owner)))
        failures.raise_any()
        return any(found)

    # --- GC and STATUS ---------------------------------------------------------------------------------------

    def collect(self, conf: NetConf, valid: Collection[tuple[str, str]]) -> None:
        """Unmap the network's attachments that are not in `valid`: the recorded, and those only the kernel knows."""
        records = self._records(self._data_dir(conf))
        failures = Failures()
        for record in list(records.every()):
            owner = record.owner
            if owner.network == conf.name and (owner.container_id, owner.ifname) not in valid:
                with failures:
                    self._unmap(record, records)
        for backend in self.backends.holding():
            with failures:
                backend.collect(conf.name, valid, self._others(records, None))
        failures.raise_any()

    def ready(self, conf: NetConf) -> None:
        """Raise unless ADD could be served."""
        settings = self.settings(conf)
        self._records(settings.data_dir).usable()
        self.backends[self.backends.usable(settings.backends)].ready()

    # --- parts -----------------------------------------------------------------------------------------------

    def _route_localnet(self, plan: Plan) -> None:
        """Let packets with a 127.0.0.0/8 address leave towards the container, for `localhost:hostPort`."""
        for family in plan.families:
            if family.family == 4:
                interface = self.route(family.container.address)
                if interface:
                    self.sysctl().ensure(f"net/ipv4/conf/{interface}/route_localnet", "1")

    def _forget_flows(self, containers: Iterable[Cidr] | None, mappings: Iterable[PortMapping]) -> None:
        """Forget the UDP flows to what is mapped; of both families when the container's addresses are not known.

        A failure is logged only: the mapping works, old flows end by themselves.
        """
        udp = [mapping for mapping in mappings if mapping.protocol == "udp"]
        families = {4, 6} if containers is None else {container.address.family for container in containers}
        for family in sorted(families if udp else ()):
            ports = [(one.first, one.last, one.packed_where) for one in udp if one.serves(family)]
            try:
                if ports:
                    self.conntrack().forget_udp(family, ports)
            except OSError as error:
                self.log(f"portmap: cannot remove stale UDP flows (IPv{family}): {error.strerror or error}")

    def _records(self, data_dir: str) -> Records:
        return Records(data_dir, self.files, self.log, self.backends.read_payload)

    def _others(self, records: Records, owner: Owner | None) -> Others:
        return Others(records, self.life, owner)

    def _data_dir(self, conf: NetConf) -> str:
        """DEL must not fail for a key that has become invalid."""
        node = NodeDefaults()
        try:
            node = self.node()
        except CniError as error:
            self.log(f"portmap: {error.msg}: the default is used")
        try:
            return read_data_dir(conf.fields, node)
        except CniError as error:
            self.log(f"portmap: {error.msg}: the default is used")
            return node.data_dir or DEFAULTS.data_dir


def _mappings_or_none(conf: NetConf) -> tuple[PortMapping, ...]:
    try:
        return read_mappings(conf)
    except InvalidNetworkConfig:
        return ()
