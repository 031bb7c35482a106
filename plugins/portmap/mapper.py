"""Mapping and unmapping an attachment: record, rules, and what goes with them, in an order that survives a kill.

ADD    record (what is about to be in the kernel) -> rules -> route_localnet -> stale UDP flows
DEL    rules -> stale UDP flows -> record; then what other implementations and earlier settings left
"""

from __future__ import annotations

import os

from cnimeta.errors import CniError, InvalidNetworkConfig, IoFailure, joined
from cnimeta.spec.ip import parse_ip
from cnimeta_plugins.portmap.config import DATA_DIR, read_data_dir, read_mappings, read_settings
from cnimeta_plugins.portmap.forward import plan_forward
from cnimeta_plugins.portmap.nft_backend import NftBackend, unknown_owner
from cnimeta_plugins.portmap.nft_rules import Plan, owner_id, plan_rules
from cnimeta_plugins.portmap.records import Record, Records

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Iterable

    from cnimeta.host.nftables.values import Change
    from cnimeta.host.protocols import Conntrack, Files, Nft, Sysctl
    from cnimeta.plugin.request import Attachment
    from cnimeta.spec.netconf import NetConf
    from cnimeta.spec.result import Result
    from cnimeta_plugins.portmap.config import PortMapping, Settings
    from cnimeta_plugins.portmap.forward import Forward
    from cnimeta_plugins.portmap.iptables_backend import IptablesBackend, Part, Target
    from cnimeta_plugins.portmap.iptables_plan import Owner


class Mapper:
    """The work of every verb on the given host access."""

    def __init__(
        self,
        nft: Nft,
        conntrack: Conntrack,
        sysctl: Sysctl,
        files: Files,
        log: Callable[[str], None],
        *,
        boot_id: str,
        route: Callable[..., str],
        node: Callable[[], tuple[str, str]] = lambda: ("", ""),
        iptables: Callable[[], IptablesBackend] | None = None,
        remove_foreign: Callable[[str, str, Callable[[], Collection[str]]], None] | None = None,
        netns_exists: Callable[[str], bool] = os.path.exists,
    ) -> None:
        """`node` gives the node-wide (backend, dataDir); `route(address)` the interface towards a container."""
        self.nft = NftBackend(nft)
        self.conntrack = conntrack
        self.sysctl = sysctl
        self.files = files
        self.log = log
        self.boot_id = boot_id
        self.route = route
        self.node = node
        self._iptables = iptables
        self._remove_foreign = remove_foreign
        self.netns_exists = netns_exists

    def settings(self, conf: NetConf) -> Settings:
        """The configuration with the node-wide defaults."""
        return read_settings(conf, *self.node())

    # --- ADD and CHECK ---------------------------------------------------------------------------------------

    def add(self, attachment: Attachment, conf: NetConf, settings: Settings, result: Result) -> None:
        """Map every port, in place of what the attachment had."""
        forward = plan_forward(attachment, settings, result)
        records = self._records(settings.data_dir)
        before = records.load(*attachment.key)
        if self.backend_of(settings) == "nftables":
            self._add_nft(forward, conf, records, before)
        else:
            self._add_iptables(forward, conf, records, before)
        if settings.snat and not settings.masq_all:
            self._route_localnet(forward)
        self._forget_flows(_udp(forward))

    def _add_nft(self, forward: Forward, conf: NetConf, records: Records, before: Record | None) -> None:
        plan = plan_rules(forward)
        if before is not None and before.backend == "iptables":
            self._backend_iptables().delete(_target(before))
            before = None
        record = self._record(forward, conf, "nftables", plan)
        merged = (
            record
            if before is None
            else record._replace(
                groups=tuple(dict.fromkeys((*record.groups, *before.groups))),
                conditions=tuple(dict.fromkeys((*record.conditions, *before.conditions))),
            )
        )
        records.store(merged)  # old and new, until the transaction has decided
        try:
            self.nft.add(plan, before, lambda change: _holder(records, change, forward), self.is_dead)
        except CniError:
            if before is None:
                records.forget(record.key)
            else:
                records.store(before)
            raise
        if merged != record:
            records.store(record)

    def _add_iptables(self, forward: Forward, conf: NetConf, records: Records, before: Record | None) -> None:
        others = [other for other in records.of_container(forward.container_id) if other.network == forward.network]
        second = any(other.ifname != forward.ifname and other.backend == "iptables" for other in others)
        record = self._record(forward, conf, "iptables", None)._replace(second=before.second if before else second)
        if before is not None and before.backend == "nftables":
            self.nft.remove(before.groups, before.conditions)
        records.store(record)
        try:
            self._backend_iptables().add(_target(record), _parts(forward), lambda owner: self._is_gone(records, owner))
        except CniError:
            if before is None:
                records.forget(record.key)
            raise

    def check(self, attachment: Attachment, settings: Settings, result: Result) -> None:
        """Raise CheckFailed (code 101) unless the kernel holds what ADD would put there."""
        forward = plan_forward(attachment, settings, result)
        record = self._records(settings.data_dir).load(*attachment.key)
        backend = self.backend_of(settings) if record is None else record.backend
        if backend == "nftables":
            self.nft.check(plan_rules(forward))
        else:
            target = _target(record or self._record(forward, None, "iptables", None))
            self._backend_iptables().check(target, _parts(forward))

    def backend_of(self, settings: Settings) -> str:
        """The backend for `settings`: what they name, or nftables unless a key needs iptables or nft is not there."""
        if settings.backend != "auto":
            return settings.backend
        if settings.needs_iptables:
            return "iptables"
        return "nftables" if self.nft.nft.available() else "iptables"

    # --- DEL -------------------------------------------------------------------------------------------------

    def delete(self, attachment: Attachment, conf: NetConf) -> None:
        """Unmap. Every step is tried; the record goes only when the rules are gone."""
        records = self._records(self._data_dir(conf))
        errors: list[CniError] = []
        record = records.load(*attachment.key)
        found = [record] if record is not None else self._unrecorded(records, attachment, conf)
        for one in found:
            _collect(errors, lambda one=one: self._unmap(one, records))  # type: ignore[misc]
        if not found:
            records.forget(attachment.key)  # what a killed ADD may have begun to write
        _collect(errors, lambda: self._clean_foreign(attachment, records))
        failure = joined(errors)
        if failure is not None:
            raise failure

    def _unmap(self, record: Record, records: Records) -> None:
        if record.backend == "iptables":
            self._backend_iptables().delete(_target(record))
        else:
            self.nft.remove(record.groups, record.conditions)
        self._forget_flows(record.udp)
        records.forget(record.key)

    def _unrecorded(self, records: Records, attachment: Attachment, conf: NetConf) -> list[Record]:
        """What there may be although the attachment has no record.

        The record of the same interface under an earlier name of the network; or, when the configuration still has
        mappings, what they would have made: taken out element by element, and only where the claim is ours.
        """
        owner = owner_id(*attachment.key)
        mappings = _mappings_or_none(conf)
        if records.exists(*attachment.key):  # damaged: the kernel's own tags tell what there is
            return [self._as_held(attachment, owner, mappings)]
        renamed = []
        for other in records.of_container(attachment.container_id):
            if other.ifname != attachment.ifname:
                continue
            same_ports = {group.claim.key for group in other.groups if group.claim.map.startswith("claims")}
            wanted = {f"{m.protocol} . {port}" for m in mappings for port in range(m.first, m.last + 1)}
            gone = bool(other.netns) and other.netns != attachment.netns and not self.netns_exists(other.netns)
            if self.is_dead(other) or gone or (wanted and wanted == same_ports):
                renamed.append(other)
        if renamed or not mappings:
            return renamed
        if not self.nft.holds(owner, mappings):
            return []
        return [self._as_held(attachment, owner, mappings)]

    def _as_held(self, attachment: Attachment, owner: str, mappings: Iterable[PortMapping]) -> Record:
        """A record of what the kernel holds for an attachment; flows are forgotten for the mappings known."""
        udp = tuple(
            (family, mapping.first, mapping.last, mapping.where)
            for mapping in mappings
            if mapping.protocol == "udp"
            for family in (4, 6)
            if mapping.serves(family)
        )
        groups = tuple(self.nft.held_by(owner))
        return Record(*attachment.key, attachment.netns, self.boot_id, "nftables", groups=groups, udp=udp)

    def _clean_foreign(self, attachment: Attachment, records: Records) -> None:
        """What other implementations, or this one on another backend, left for the container."""
        if self._remove_foreign is None:
            return

        def other_networks() -> set[str]:
            return {other.network for other in records.of_container(attachment.container_id)}

        self._remove_foreign(attachment.network, attachment.container_id, other_networks)

    # --- GC and STATUS ---------------------------------------------------------------------------------------

    def collect(self, conf: NetConf, valid: Collection[tuple[str, str]]) -> None:
        """Unmap the network's attachments that are not in `valid`: the recorded, and those only the kernel knows."""
        network = conf.name
        errors: list[CniError] = []
        records = self._records(self._data_dir(conf))
        known = set()
        for record in list(records.every()):
            known.add(owner_id(*record.key))
            if record.network == network and (record.container_id, record.ifname) not in valid:
                _collect(errors, lambda record=record: self._unmap(record, records))  # type: ignore[misc]
        for owner, comment in self.nft.owners().items():
            if owner not in known and unknown_owner(comment, network, valid):
                _collect(errors, lambda owner=owner: self.nft.remove(self.nft.held_by(owner)))  # type: ignore[misc]
        if self._iptables is not None:
            _collect(errors, lambda: self._backend_iptables().gc(network, valid))
        failure = joined(errors)
        if failure is not None:
            raise failure

    def ready(self, conf: NetConf) -> None:
        """Raise unless ADD could be served."""
        settings = self.settings(conf)
        self._records(settings.data_dir).usable()
        if self.backend_of(settings) == "iptables":
            self._backend_iptables().tables.has_chain(4, "PREROUTING")
        elif not self.nft.nft.available():
            raise IoFailure("nftables cannot be used: nft is not installed, or the kernel has no nf_tables")

    # --- parts -----------------------------------------------------------------------------------------------

    def is_dead(self, record: Record) -> bool:
        """Whether a record's container cannot be alive: another boot, or its namespace is gone."""
        if record.boot_id != self.boot_id:
            return True
        return bool(record.netns) and not self.netns_exists(record.netns)

    def _is_gone(self, records: Records, owner: Owner) -> bool:
        """Whether the owner of an iptables chain is known, and dead in every attachment."""
        found = [one for one in records.of_container(owner.container_id) if one.network == owner.network]
        return owner.whole and bool(found) and all(self.is_dead(one) for one in found)

    def _record(self, forward: Forward, conf: NetConf | None, backend: str, plan: Plan | None) -> Record:
        return Record(
            forward.network,
            forward.container_id,
            forward.ifname,
            forward.netns,
            self.boot_id,
            backend,
            groups=() if plan is None else plan.groups,
            conditions=() if plan is None else tuple(condition.chain for condition in plan.conditions),
            udp=_udp(forward),
            conf=None if conf is None else dict(conf.raw),
        )

    def _route_localnet(self, forward: Forward) -> None:
        """Let packets with a 127.0.0.0/8 address leave towards the container, for `localhost:hostPort`."""
        for half in forward.halves:
            if half.family == 4:
                interface = self.route(half.container.address)
                if interface:
                    self.sysctl.ensure(f"net/ipv4/conf/{interface}/route_localnet", "1")

    def _forget_flows(self, udp: Iterable[tuple[int, int, int, str]]) -> None:
        """A failure is logged only: the mapping works, old flows end by themselves."""
        rows = list(udp)
        for family in sorted({row[0] for row in rows}):
            ports = [
                (first, last, parse_ip(where).packed if where else b"") for f, first, last, where in rows if f == family
            ]
            try:
                self.conntrack.forget_udp(family, ports)
            except CniError as error:
                self.log(f"portmap: stale UDP flows stay (IPv{family}): {error.msg}")

    def _backend_iptables(self) -> IptablesBackend:
        if self._iptables is None:
            raise IoFailure("the iptables backend is not available here")
        return self._iptables()

    def _records(self, data_dir: str) -> Records:
        return Records(data_dir, self.files, self.log)

    def _data_dir(self, conf: NetConf) -> str:
        """DEL must not fail for a key that has become invalid."""
        try:
            return read_data_dir(conf.fields, self._node_data_dir())
        except CniError as error:
            self.log(f"portmap: {error.msg}: the default is used")
            return self._node_data_dir()

    def _node_data_dir(self) -> str:
        try:
            return self.node()[1] or DATA_DIR
        except CniError as error:
            self.log(f"portmap: {error.msg}: the default is used")
            return DATA_DIR


def _holder(records: Records, change: Change, forward: Forward) -> Record | None:
    """The record of another attachment that has the element `change` asked for."""
    own = (forward.network, forward.container_id, forward.ifname)
    for record in records.every():
        if record.key != own and any(
            (element.map, element.key) == (change.name, change.key) for group in record.groups for element in group.all
        ):
            return record
    return None


def _mappings_or_none(conf: NetConf) -> tuple[PortMapping, ...]:
    try:
        return read_mappings(conf)
    except InvalidNetworkConfig:
        return ()


def _udp(forward: Forward) -> tuple[tuple[int, int, int, str], ...]:
    return tuple(
        (half.family, m.first, m.last, m.where) for half in forward.halves for m in half.mappings if m.protocol == "udp"
    )


def _target(record: Record) -> Target:
    from cnimeta_plugins.portmap.iptables_backend import Target

    return Target(record.network, record.container_id, record.ifname, record.second)


def _parts(forward: Forward) -> list[Part]:
    from cnimeta_plugins.portmap.iptables_backend import Part
    from cnimeta_plugins.portmap.iptables_rules import Mapping, Settings

    return [
        Part(
            half.container.text,
            tuple(
                Mapping(m.protocol, m.first, m.last, m.container_port, m.where) for m in half.listed or half.mappings
            ),
            Settings(
                forward.snat, forward.masq_all, forward.mark_bit, forward.external_set_mark_chain, half.conditions
            ),
        )
        for half in forward.halves
    ]


def _collect(errors: list[CniError], call: Callable[[], None]) -> None:
    try:
        call()
    except CniError as error:
        errors.append(error)
