"""A node as a value, and one call: `run(plugin, verb, node, conf)` gives the node as the verb leaves it.

    before = Node.of("/run/netns/c1", "eth0")
    after = run(Mine(), "ADD", before, conf)
    assert run(Mine(), "DEL", after.node, conf).node == before

A node never changes; nodes are equal when all that is on them is. The plugin reaches its host through `request.host`.
What no runtime would bring about is refused (`cnimeta.testing.possible`), so that no test proves what cannot happen.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

from cnimeta.namedtuple import NamedTuple
from cnimeta.plugin.dispatch import serve
from cnimeta.spec.convert import render_conf
from cnimeta.spec.fields import Fields
from cnimeta.spec.jsonio import dumps, loads_object
from cnimeta.spec.result import Result
from cnimeta.spec.version import IMPLIED
from cnimeta.testing.host import FakeHost
from cnimeta.testing.memory import environment
from cnimeta.testing.network import HOST, LOOPBACK, LinkState
from cnimeta.testing.possible import require_possible

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from cnimeta.errors import CniError
    from cnimeta.host.nftables.values import Change
    from cnimeta.plugin.base import Plugin
    from cnimeta.spec.jsonio import JSON
    from cnimeta.store.locks import Key
    from cnimeta.testing.delegates import Call
    from cnimeta.testing.netfilter import FakeNft

    Settings = Mapping[str, str]
    Conf = Mapping[str, JSON | Result]
else:
    Settings = Conf = dict


class Table:
    """The rules and elements of an nftables table; equal when `text` is."""

    def __init__(self, nft: FakeNft) -> None:
        self.nft = copy.deepcopy(nft)

    @property
    def text(self) -> str:
        """A line for each rule and element, sorted."""
        return self.nft.dump()

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Table) and self.text == other.text

    def __hash__(self) -> int:
        return hash(self.text)

    def __repr__(self) -> str:
        return f"Table({self.text!r})"


class Pod(NamedTuple):
    """What a Kubernetes API server has of a Pod, as far as plugins go."""

    uid: str
    annotations: Mapping[str, str] = {}


class Node(NamedTuple):
    """All that a plugin can find on a node."""

    links: Mapping[str, Mapping[str, LinkState]] = {HOST: {"lo": LOOPBACK}}
    """By namespace's path (empty: the plugin's own) and name: every interface with what hangs on it."""
    settings: Mapping[str, Settings] = {}
    """By namespace's path: the changed settings under /proc/sys that belong to no interface."""
    records: Mapping[str, Mapping[Key, Mapping[str, JSON]]] = {}
    """By folder and attachment: what is kept with `request.host.records`."""
    files: Mapping[str, bytes] = {}
    tables: Mapping[str, Table] = {}
    """By name: the nftables tables of the family inet."""
    sockets: frozenset[tuple[str, int]] = frozenset()
    """(protocol, port) that the node itself uses."""
    pods: Mapping[tuple[str, str], Pod] = {}
    """By namespace and name: what `request.host.pods()` finds."""

    @classmethod
    def of(cls, netns: str = "/run/netns/c1", ifname: str = "eth0", host_name: str = "veth0") -> Node:
        """A node with one container, as an interface plugin leaves it."""
        return cls().with_container(netns, ifname, host_name)

    def with_container(self, netns: str, ifname: str = "eth0", host_name: str = "veth0") -> Node:
        """One container more: its namespace, and a veth pair between it and the node."""
        host = self.host()
        host.networks.veth(netns, ifname, host_name)
        return _node_of(host)

    def with_changes(self, netns: str, *changes: object) -> Node:
        """After changes of `cnimeta.host.network.values`, in the namespace at a path (made unless it is there)."""
        host = self.host()
        host.networks.namespace(netns).apply(*changes)  # type: ignore[arg-type]
        return _node_of(host)

    def with_record(self, folder: str, key: Key, body: Mapping[str, JSON]) -> Node:
        """With a record in the place of what there was."""
        return self._replace(records={**self.records, folder: {**self.records.get(folder, {}), key: body}})

    def with_pod(self, namespace: str, name: str, uid: str, annotations: Mapping[str, str] | None = None) -> Node:
        """With a Pod in the place of what there was of that name."""
        return self._replace(pods={**self.pods, (namespace, name): Pod(uid, dict(annotations or {}))})

    def with_rules(self, table: str, *changes: Change) -> Node:
        """After changes of `cnimeta.host.nftables.values`."""
        host = self.host()
        host.nft(table).apply(changes)
        return _node_of(host)

    def without(self, netns: str) -> Node:
        """After the container of this namespace is gone, with its veth pair."""
        peers = {one.link.peer for one in self.links.get(netns, {}).values()} - {0}
        left = {
            path: {name: one for name, one in links.items() if path != HOST or one.link.ifindex not in peers}
            for path, links in self.links.items()
            if path != netns
        }
        return self._replace(links=left)

    def host(self, *delegates: Plugin) -> FakeHost:
        """The fakes with all this in them, for who needs more than `run`: faults, say."""
        host = FakeHost(*delegates)
        host.networks.restore(self.links, self.settings)
        for folder, records in self.records.items():
            store = host.records(folder, log=lambda _: None)
            for key, body in records.items():
                store.put(key, body)
        host.files.content.update(self.files)
        host.tables.update({name: copy.deepcopy(table.nft) for name, table in self.tables.items()})
        host.sockets.busy |= self.sockets
        for (namespace, name), pod in self.pods.items():
            host.pods().create(namespace, name, pod.uid, pod.annotations or None)
        return host


class After(NamedTuple):
    """What a verb left."""

    node: Node
    result: Result | None
    """ADD's."""
    error: CniError | None
    log: tuple[str, ...]
    """The lines written to stderr."""
    calls: tuple[Call, ...]
    """The delegates that ran."""


def run(plugin: Plugin, verb: str, node: Node, conf: Conf, **where: object) -> After:
    """Run a verb on a node; raises what it fails with. Arguments as `attempt`."""
    after = attempt(plugin, verb, node, conf, **where)  # type: ignore[arg-type]
    if after.error is not None:
        raise after.error
    return after


def attempt(
    plugin: Plugin,
    verb: str,
    node: Node,
    conf: Conf,
    *,
    container_id: str = "c1",
    ifname: str = "eth0",
    netns: str = "/run/netns/c1",
    args: str = "",
    delegates: Sequence[Plugin] = (),
    host: FakeHost | None = None,
    possible: bool = True,
) -> After:
    """Run a verb on a node through the real protocol; a failure is in `error`, and the node as it is after it.

    conf: a Result in it (`{**conf, "prevResult": result}`) is written in the shape of its cniVersion. delegates: the
    plugins in CNI_PATH. host: the fakes to use, from `node.host()`, when some are to fail. possible=False: also what no
    runtime produces; else Impossible is raised for it.
    """
    written = render_conf(conf)
    if possible:
        require_possible(node.links, plugin.name, verb, written, (container_id, ifname, netns), node.pods, args)
    host = host or node.host(*delegates)
    environ = environment(verb, container_id, ifname, netns, args)
    log: list[str] = []
    outcome, error = serve(plugin, environ, dumps(written).encode(), log.append, host)
    result = None
    if error is None and outcome.stdout:
        result = Result.from_json(loads_object(outcome.stdout), Fields(written).text("cniVersion") or IMPLIED)
    after = _node_of(host)
    return After(after, result, error, tuple(log), tuple(host.executor.calls))


def _node_of(host: FakeHost) -> Node:
    """The value of what is in the fakes. Folders without a record, and empty tables, are as if they were not there."""
    records: dict[str, Mapping[Key, Mapping[str, JSON]]] = {}
    for folder in sorted(host.folders):
        found = host.records(folder, log=lambda _: None).every()
        kept = {one.key: dict(one.body.raw) for one in found if one.body is not None}
        if kept:
            records[folder] = kept
    tables = {name: Table(nft) for name, nft in host.tables.items()}
    settings = {path: dict(one.settings) for path, one in host.networks.namespaces.items() if one.settings}
    return Node(
        host.networks.dump(),
        settings,
        records,
        dict(host.files.content),
        {name: table for name, table in tables.items() if table.text.strip()},
        frozenset(host.sockets.busy),
        _pods_of(host),
    )


def _pods_of(host: FakeHost) -> dict[tuple[str, str], Pod]:
    if host.pod_api is None:
        return {}
    return {
        key: Pod(found["metadata"].get("uid", ""), host.pod_api.annotations(*key))
        for key, found in host.pod_api.objects.items()
    }
