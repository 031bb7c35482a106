"""Mapping and unmapping an attachment: the order of the steps, which survives a kill. What they do is the backend's.

ADD    record (what is about to be in the kernel) -> rules -> route_localnet -> stale UDP flows
DEL    rules -> stale UDP flows -> record; then what other programs and earlier settings left; route_localnet

An ADD that fails leaves everything as it was before, whichever step refused.
"""

from __future__ import annotations

from cnimeta.errors import CheckFailed, CniError, Failures, HostPortConflict, InvalidNetworkConfig, StateUnusable
from cnimeta.plugin.request import Attachment
from cnimeta.spec.netconf import NetConf
from cnimeta_plugins.portmap.config import DEFAULTS, NodeDefaults, read_data_dir, read_mappings, read_settings
from cnimeta_plugins.portmap.localhost import Localhost
from cnimeta_plugins.portmap.locking import HeldIfPossible
from cnimeta_plugins.portmap.others import Others
from cnimeta_plugins.portmap.plan import Owner, plan_mappings
from cnimeta_plugins.portmap.records import Life, Record, Records
from cnimeta_plugins.portmap.sharing import same_container, served, waiting, without

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable, Sequence

    from cnimeta.host.protocols import Conntrack, Files, Locks, Namespaces, Sysctl
    from cnimeta.spec.ip import Address, Cidr
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
        namespaces: Namespaces,
        locks: Callable[[str], Locks],
        node: Callable[[], NodeDefaults] = NodeDefaults,
    ) -> None:
        """`node` gives the node-wide defaults; `route(address)` the interface towards a container; `locks(dataDir)` a
        lock for each attachment.
        """
        self.backends = backends
        self.conntrack = conntrack
        self.files = files
        self.log = log
        self.life = Life(boot_id, namespaces)
        self.localhost = Localhost(sysctl, route, files, boot_id)
        self.locks = locks
        self.node = node

    def records(self, data_dir: str) -> Records:
        """The records under a folder."""
        return Records(data_dir, self.files, self.log, self.backends.read_payload)

    def settings(self, conf: NetConf) -> Settings:
        """The configuration with the node-wide defaults."""
        return read_settings(conf, self.node(), self.backends.names)

    # --- ADD and CHECK ---------------------------------------------------------------------------------------

    def add(self, attachment: Attachment, conf: NetConf, settings: Settings, result: Result) -> None:
        """Map every port, in place of what the attachment had."""
        with self.locks(settings.data_dir).of(attachment.key).held():
            self._add(attachment, conf, settings, result)

    def add_again(self, owner: Owner, data_dir: str, *, waiting: bool = False) -> bool:
        """ADD from the record; whether it was still there. `waiting`: only if it waits for ports."""
        with self.locks(data_dir).of(owner).held():
            record = self.records(data_dir).find(owner).record
            if record is None or self.life.is_dead(record) or not isinstance(record.conf, dict):
                return False
            if record.waiting or not waiting:
                conf = NetConf(record.conf)
                attachment = Attachment(*owner, record.netns, {})
                self._add(attachment, conf, self.settings(conf), conf.require_prev_result())
            return True

    def _add(self, attachment: Attachment, conf: NetConf, settings: Settings, result: Result) -> None:
        owner = Owner(*attachment.key)
        plan = plan_mappings(owner, settings, result)
        records = self.records(settings.data_dir)
        before = self._record_before(records, owner)
        name = self.backends.usable(settings.backends)
        interface = self.localhost.interface(plan)
        interfaces = dict.fromkeys((interface, *(before.interfaces if before is not None else ())))
        record = self._record(attachment, conf, plan, name)._replace(interfaces=tuple(filter(None, interfaces)))
        try:
            self._require_free(plan, name, records)
            self._map(plan, record, before, records, interface)
        except HostPortConflict:
            self._share(plan, record, before, records, interface)
        self._forget_flows(settings.mappings, [family.family for family in plan.families])

    def _require_free(self, plan: Plan, serving: str, records: Records) -> None:
        """Raise HostPortConflict when rules of another kind than the serving backend's have a port."""
        for backend in self.backends.holding(but=serving):
            backend.require_free(plan, self._others(records, plan.owner))

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
            netns_id=self.life.namespaces.identity(attachment.netns),
        )

    def _map(self, plan: Plan, record: Record, before: Record | None, records: Records, interface: str) -> None:
        """The record first, with old and new until the rules are in."""
        backend, others = self.backends[record.backend], self._others(records, plan.owner)
        there = None
        try:
            same = before if before is not None and before.backend == record.backend else None
            if before is not None and same is None:  # the configuration has changed since
                self.backends[before.backend].remove(before.owner, before.payload)
            old = None if same is None else same.payload
            new: Payload = backend.plan(plan, old, others)
            both = new if old is None else backend.both(old, new)
            records.store(record._replace(payload=both))
            backend.add(plan, new, old, others)
            there = new
            self.localhost.open(interface, plan.settings.data_dir)
            if both != new:
                records.store(record._replace(payload=new))
            if before is not None:
                records.leave(before.owner, before.addresses, but=record.addresses)
        except (CniError, OSError):
            self._undo(record._replace(payload=there), before, records)
            self._leave(records, ())
            raise

    def _share(self, plan: Plan, record: Record, before: Record | None, records: Records, interface: str) -> None:
        """Map what no other attachment of this container has; the rest waits. For ADD's HostPortConflict, re-raised."""
        holders = [one for one in records.every() if same_container(one, record) and not self.life.is_dead(one)]
        held = [part for holder in holders for part in served(holder)]
        left, waits = without(plan, held)
        if not waits:
            raise  # noqa: PLE0704 - it is of somebody else
        for holder in holders:
            records.follow(holder.owner, record.owner)
            self.log(f"portmap: {holder.owner.text} has ports that {record.owner.text} asks for: these go on serving")
        self._map(left, record._replace(waiting=waits), before, records, interface)

    def _take_over(self, gone: Iterable[Record], records: Records) -> None:
        """Map what waited for attachments that are gone. Only logged when it fails: their own DEL was done."""
        for record in records.take_followers({record.owner.container_id for record in gone}):
            try:
                self.add_again(record.owner, records.data_dir, waiting=True)
            except CniError as error:
                self.log(f"portmap: the ports of {record.owner.text} could not be taken over: {error.msg}")

    def _undo(self, record: Record, before: Record | None, records: Records) -> None:
        """As it was before an ADD that failed with the record's payload in place, None for none.

        What cannot be undone is logged; the record keeps telling of it.
        """
        try:
            if record.payload is not None and (before is None or before.backend != record.backend):
                self.backends[record.backend].remove(record.owner, record.payload)
                record = record._replace(payload=None)
            records.leave(record.owner, record.addresses)
            if before is None:
                records.forget(record.owner)
            else:
                self._put_back(before, record.payload, records)
        except (CniError, OSError) as error:
            self.log(f"portmap: not everything is as before for {record.owner.text}: {error}")

    def _put_back(self, before: Record, there: Payload | None, records: Records) -> None:
        """The rules of a record in place of what is there, which changes nothing where they are; then the record."""
        if isinstance(before.conf, dict):
            conf = NetConf(before.conf)
            plan = plan_mappings(before.owner, self.settings(conf), conf.require_prev_result())
            plan = without(plan, waiting(before))[0]
            try:
                self.backends[before.backend].add(plan, before.payload, there, self._others(records, before.owner))
            except CniError as error:
                if there is not None:
                    raise
                self.log(f"portmap: the rules of {before.owner.text} may not be whole: {error.msg}")
        records.store(before)

    def check(self, attachment: Attachment, settings: Settings, result: Result) -> None:
        """Raise CheckFailed (code 101) unless the kernel holds what ADD would put there."""
        owner = Owner(*attachment.key)
        plan = plan_mappings(owner, settings, result)
        records = self.records(settings.data_dir)
        record = records.find(owner).record
        if record is None:
            self.backends[self.backends.usable(settings.backends)].check(plan, None)
        else:
            plan = self._unshared(plan, record, records)
            self.backends[record.backend].check(plan, record.payload)
        self.localhost.check(self.localhost.interface(plan))

    def _unshared(self, plan: Plan, record: Record, records: Records) -> Plan:
        """The plan without what another attachment of the container serves, which has to be there."""
        if not record.waiting:
            return plan
        held = [part for one in records.every() if same_container(one, record) for part in served(one)]
        if without(without(plan, held)[0], waiting(record))[1]:
            raise CheckFailed(f"nobody serves the ports that {record.owner.text} shared: its other attachment is gone")
        return without(plan, waiting(record))[0]

    # --- DEL -------------------------------------------------------------------------------------------------

    def delete(self, attachment: Attachment, conf: NetConf) -> None:
        """Unmap. Every step is tried; the record goes only when the rules are gone."""
        owner = Owner(*attachment.key)
        records = self.records(self._data_dir(conf))
        failures = Failures()
        recorded: list[Record] = []
        with failures, self._lock(owner, records):  # where there is no record, too: an ADD may be about to write it
            recorded = self._delete(owner, attachment, conf, records, failures)
        with failures:
            self._take_over(recorded, records)
        interfaces = [name for record in recorded for name in record.interfaces]
        self._leave(records, interfaces)
        failures.raise_any()

    def _lock(self, owner: Owner, records: Records) -> HeldIfPossible:
        return HeldIfPossible(self.locks(records.data_dir), owner, self.log)

    def _delete(
        self, owner: Owner, attachment: Attachment, conf: NetConf, records: Records, failures: Failures
    ) -> list[Record]:
        """What was unmapped; every step is tried."""
        asked = _mappings_or_none(conf)
        recorded: list[Record] = []
        problem = "it cannot be read"  # then names and configuration tell what there is, and the record stays
        is_read = False
        with failures:
            found = records.find(owner)
            problem = found.problem
            recorded = [found.record] if found.record is not None else []
            if not recorded and not problem:
                damaged: list[str] = []
                recorded = self._renamed(records, attachment, asked, damaged)
                with failures:
                    self._drop_damaged(records, attachment, damaged)
            is_read = True
        for record in recorded:
            with failures:
                self._unmap(record, records)
        with failures:
            suspected = () if recorded else None if problem else asked
            if self.sweep(owner, suspected, records) and not recorded:
                self._forget_flows(asked, (4, 6))
            if is_read and not recorded:
                records.forget(owner)  # a damaged one, or what a killed ADD had begun to write
        return recorded

    def _unmap(self, record: Record, records: Records) -> None:
        self.backends[record.backend].remove(record.owner, record.payload)
        families = [container.address.family for container in record.addresses]
        self._forget_flows(record.mappings, families, record.addresses)
        records.forget(record.owner, record.addresses)

    def _renamed(
        self, records: Records, attachment: Attachment, asked: Sequence[PortMapping], damaged: list[str]
    ) -> list[Record]:
        """The records of the same interface under an earlier name of the network. Damaged ones' files go to `damaged`.

        Told from another network of the container by this: it is dead, or has the very mappings that are asked for.
        """
        return [
            record
            for record in records.of_container(attachment.container_id, damaged)
            if record.owner.ifname == attachment.ifname
            and (self.life.is_dead(record) or (asked and set(asked) == set(record.mappings)))
        ]

    def _drop_damaged(
        self, records: Records, of: Attachment | None, files: Sequence[str], valid: Collection[tuple[str, str]] = ()
    ) -> None:
        """See cnimeta_plugins.portmap.damaged; nearly always there is none."""
        if files:
            from cnimeta_plugins.portmap.damaged import drop

            drop(self, records, of, files, valid)

    def sweep(self, owner: Owner, mappings: Sequence[PortMapping] | None, records: Records) -> bool:
        """What no record tells of; whether there was any."""
        found = []
        failures = Failures()
        for backend in self.backends.holding():
            with failures:
                found.append(backend.sweep(owner, mappings, self._others(records, owner)))
        failures.raise_any()
        return any(found)

    def _leave(self, records: Records, interfaces: Iterable[str]) -> None:
        """After the last mapping: set back what was set, take out what all shared. A failure is logged only."""
        self.localhost.close(records, records.data_dir, self.log, interfaces)
        try:
            for backend in () if records.any() else self.backends.holding():
                backend.tidy()
        except CniError as error:
            self.log(f"portmap: something shared stays: {error.msg}")

    # --- GC and STATUS ---------------------------------------------------------------------------------------

    def collect(self, conf: NetConf, valid: Collection[tuple[str, str]]) -> None:
        """Unmap the network's attachments that are not in `valid`: the recorded, and those only the kernel knows."""
        records = self.records(self._data_dir(conf))
        failures = Failures()
        damaged: list[str] = []
        gone = list(records.of_network(conf.name, valid, failures, damaged))
        for record in gone:
            with failures, self._lock(record.owner, records):
                now = records.find(record.owner).record
                if now is not None:
                    self._unmap(now, records)
        with failures:
            self._take_over(gone, records)
        for backend in self.backends.holding():
            with failures:
                backend.collect(conf.name, valid, self._others(records, None))
        with failures:
            self._drop_damaged(records, None, damaged, valid)
        self._leave(records, ())
        failures.raise_any()

    def ready(self, conf: NetConf) -> None:
        """Raise unless ADD could be served."""
        settings = self.settings(conf)
        self.records(settings.data_dir).usable()
        self.backends[self.backends.usable(settings.backends)].ready()

    # --- parts -----------------------------------------------------------------------------------------------

    def _forget_flows(
        self, mappings: Iterable[PortMapping], families: Iterable[int], containers: Iterable[Cidr] | None = None
    ) -> None:
        """Forget the UDP flows to what is mapped: those of the `containers`; without these, those to this host.

        A failure is logged only: the mapping works, old flows end by themselves.
        """
        udp = [mapping for mapping in mappings if mapping.protocol == "udp"]
        answering = None if containers is None else [container.address.packed for container in containers]
        for family in sorted(set(families) if udp else ()):
            ports = [(one.first, one.last, one.packed_where) for one in udp if one.serves(family)]
            try:
                if ports:
                    self.conntrack().forget_udp(family, ports, answering)
            except CniError as error:
                self.log(f"portmap: stale UDP flows stay (IPv{family}): {error.msg}")

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
