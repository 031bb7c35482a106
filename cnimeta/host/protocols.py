"""Every way this project touches the host, as Protocols. Adapters lie beside this file, fakes in `cnimeta.testing`.

Imported for type checking only: adapters and fakes match by structure, so nothing here is loaded at run time.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from _sqlite3 import Connection
    from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
    from contextlib import AbstractContextManager
    from typing import TypeVar

    from cnimeta.host.iptables.values import Change
    from cnimeta.host.links.values import Classes, Classifier, Link, Queue
    from cnimeta.host.network.values import Change as NetworkChange
    from cnimeta.host.nftables.values import Change as NftChange
    from cnimeta.host.nftables.values import Element, Rule
    from cnimeta.host.values import Completed
    from cnimeta.spec.jsonio import JSON
    from cnimeta.spec.result import Route

    T = TypeVar("T")


class PluginExec(Protocol):
    """Runs plugin executables."""

    def run(self, path: str, environ: Mapping[str, str], stdin: bytes) -> Completed:
        """Run `path` to its end; DelegateFailed (code 105) when it cannot be started."""


class Clock(Protocol):
    """Time, for everything that expires."""

    def now(self) -> float:
        """Seconds since the epoch."""

    def boottime(self) -> float:
        """Seconds since boot, suspend included; never steps."""

    def sleep(self, seconds: float) -> None:
        """Wait."""


class Files(Protocol):
    """Durable, atomic files; failures are OSError."""

    def read(self, path: str) -> bytes | None:
        """The content, or None when there is no such file."""

    def write(self, path: str, data: bytes) -> None:
        """Replace atomically and durably; makes the folder."""

    def remove(self, path: str) -> None:
        """Remove durably; missing is fine."""

    def names(self, folder: str) -> list[str]:
        """The files of a folder, sorted."""

    def any_name(self, folder: str, suffix: str) -> bool:
        """Whether a folder has a file whose name ends so; looks no further than the first."""


class Database(Protocol):
    """The database of a plugin: see cnimeta.store.database, which the errors are of."""

    @property
    def later(self) -> int:
        """The version of the database when it is later than the code's; else 0. Known after the first use."""

    def exists(self) -> bool:
        """Whether there is one, or what is left of one."""

    def write(self, work: Callable[[Connection], T], *, tolerant: bool = False) -> T:
        """Run `work` in a transaction: all or nothing; it may be run again. `tolerant`: of a later version too."""

    def read(self, work: Callable[[Connection], T], *, tolerant: bool = False) -> T:
        """Run `work` on one snapshot."""

    def problems(self, *, quick: bool = False) -> list[str]:
        """What a check of every page finds, in words; `quick`: of the pages alone, not of the indices."""
        ...


class PodApi(Protocol):
    """The three requests made of a Kubernetes API server; failures are cnimeta.host.values.PodApiError.

    `timeout_s` bounds all of a call, whatever the peers do: credentials, name resolution, sending, reading.
    """

    def sign_in(self, timeout_s: float) -> None:
        """Load the credentials now, if that is yet to be done."""

    def patch_status(self, namespace: str, name: str, patch: Mapping[str, JSON], timeout_s: float) -> dict[str, JSON]:
        """Merge-patch the Pod through its status sub-resource. The Pod after it, its `metadata` at least."""

    def node(self, name: str, timeout_s: float) -> dict[str, JSON]:
        """The Node: its `metadata` (annotations at least), and `addresses`, objects with `type` and `address`."""

    def read(self, namespace: str, name: str, timeout_s: float) -> dict[str, JSON]:
        """The Pod, its `metadata` at least: uid, annotations and labels."""


class Hook(Protocol):
    """Somebody who is told of events."""

    def tell(self, event: bytes, timeout_s: float) -> str:
        """Hand over one event, a line of JSON; empty when it was taken, else why not, in words."""
        ...


class NodeAddresses(Protocol):
    """The addresses under which the node is reached."""

    def primary(self) -> tuple[str, ...]:
        """At most one address per family, IPv4 first."""


class Lock(Protocol):
    """One lock between all processes of the node."""

    def held(self) -> AbstractContextManager[None]:
        """Hold it for a `with` block. TryAgainLater (code 11) when it cannot be acquired in time."""


class Locks(Protocol):
    """One lock per attachment: (network, container ID, ifname)."""

    def of(self, key: tuple[str, str, str]) -> Lock:
        """The lock, waited for."""

    def try_of(self, key: tuple[str, str, str]) -> Lock:
        """The lock, not waited for: TryAgainLater (code 11) at once."""


class Sockets(Protocol):
    """Which ports the node itself uses, in the namespace of this process."""

    def in_use(self) -> Iterable[tuple[str, int]]:
        """(protocol, local port) of every tcp, udp and sctp socket but those in TIME_WAIT."""

    def reserved(self) -> Iterable[tuple[int, int]]:
        """Spans (first, last) of net.ipv4.ip_local_reserved_ports."""

    def ephemeral(self) -> tuple[int, int]:
        """net.ipv4.ip_local_port_range: first and last port the kernel takes by itself."""

    def can_listen(self, protocol: str, port: int) -> bool:
        """Whether the port can be bound and listened on now, IPv4 and IPv6; no connection is ever accepted."""

    def is_unused(self, protocol: str, port: int) -> bool:
        """Whether no socket has the port, not even in TIME_WAIT. Cheap, where `in_use` is not."""


class PortScan(Protocol):
    """Which host ports somebody else's rules already redirect."""

    def redirected(self) -> Iterable[tuple[str, int, int]]:
        """(protocol, first port, last port) of every DNAT or redirect rule but this project's own."""


class Iptables(Protocol):
    """The tables of one iptables variant. `family` is 4 or 6; rules are text as `iptables-save` prints them."""

    variant: str

    def held(self) -> AbstractContextManager[None]:
        """The xtables lock, for what is read to stay so until it is changed. TryAgainLater (code 11)."""

    def used(self, family: int) -> bool:
        """Whether there is a nat table at all; starts nothing."""

    def chain(self, family: int, name: str, mentioning: tuple[str, ...] = ()) -> list[str] | None:
        """The rules of one chain, None when there is no such chain; with `mentioning`, those with any of the words."""

    def has_rules(self, family: int, name: str) -> bool:
        """Whether the chain is there and has a rule; starts nothing where it lists one only."""

    def has_chain(self, family: int, name: str, table: str = "nat") -> bool:
        """Whether the chain is there."""

    def read(self, family: int, table: str = "nat") -> dict[str, list[str]]:
        """Every chain of a table and its rules."""

    def commit(self, family: int, changes: Sequence[Change]) -> None:
        """Apply all changes of a table or none, the raw table's first; under `held()`.

        cnimeta.host.iptables.values.Refused when one does not fit.
        """

    def has_rule(self, family: int, chain: str, rule: str) -> bool:
        """Whether the chain has the rule, however its words are ordered; not under `held()`."""


class Nft(Protocol):
    """One nftables table of the inet family."""

    def available(self) -> bool:
        """Whether nft can be used here."""

    def generation(self) -> int:
        """The number of the ruleset, another one after every transaction that changed anything. IoFailure (code 5)."""

    def apply(self, changes: Sequence[NftChange], since: int = 0) -> None:
        """All changes or none. Raises cnimeta.host.nftables.values.Refusal.

        With `since`, a generation, only if nothing was changed since: the refusal is of the kind "changed" otherwise.
        """

    def dry_run(self, changes: Sequence[NftChange]) -> None:
        """As `apply`, judged but not kept."""

    def has_chain(self, name: str) -> bool:
        """Whether the table has this chain."""

    def chain_uses(self) -> dict[str, int]:
        """How many rules each chain of the table has, plus those and the elements that lead to it."""

    def rule_count(self, chain: str) -> int:
        """How many rules a chain has, none when there is no such chain."""

    def rules(self, chain: str) -> list[Rule]:
        """A chain's rules with their handles, none when there is no such chain. IoFailure (code 5)."""

    def all_rules(self) -> dict[str, list[Rule]]:
        """The rules of every chain with their handles. IoFailure (code 5)."""

    def lookup(self, name: str, keys: Iterable[str]) -> Mapping[Element, str]:
        """The elements of a map that have one of these keys, and their comments. IoFailure (code 5)."""

    def elements(self, name: str, but: Collection[str] = ()) -> Mapping[Element, str]:
        """Every element of a map and its comment, none when there is no such map. IoFailure (code 5).

        Less those whose comment is in `but`, which cost less than the others.
        """


class Conntrack(Protocol):
    """The kernel's table of flows."""

    def forget_udp(
        self, family: int, ports: Iterable[tuple[int, int, bytes]], translated_to: Collection[bytes] | None
    ) -> None:
        """Delete the UDP flows to (first port, last port, packed address or empty for every address), of these the ones
        translated to one of the packed addresses; None: to an address of this host. IoFailure (code 5).
        """


class Namespaces(Protocol):
    """The network namespaces of containers."""

    def identity(self, path: str) -> str:
        """Which namespace `path` leads to, as `device:inode`; empty when it leads to none, or cannot be told."""

    def is_gone(self, path: str, identity: str) -> bool:
        """Whether the namespace that `path` led to is known to be gone. What cannot be told is not gone."""


class Sysctl(Protocol):
    """Kernel settings of this network namespace."""

    def ensure(self, name: str, value: str) -> None:
        """Set `name` (with slashes) unless it is `value` already; IoFailure (code 5)."""

    def read(self, name: str) -> str:
        """The value of `name`, empty when there is no such setting; IoFailure (code 5)."""

    def configured(self, name: str) -> list[str]:
        """The values that the node's configuration files have for `name`; IoFailure (code 5)."""


class Links(Protocol):
    """Network interfaces, their queues and filters. Failures are IoFailure (code 5)."""

    def ticks_per_us(self) -> float:
        """Ticks per microsecond of the kernel's clock for traffic control."""

    def in_container(self, netns: str, ifname: str) -> Link | None:
        """An interface inside a namespace, None when there is none. cnimeta.host.values.NoNamespace without it."""

    def within(self, netns: str) -> AbstractContextManager[Links]:
        """The links of a namespace, for a block that runs there. Raises as `in_container`."""

    def get(self, *, index: int = 0, name: str = "") -> Link | None:
        """An interface here by index or name, None when there is none."""

    def ifbs(self) -> list[Link]:
        """Every ifb here."""

    def add_ifb(self, name: str, mtu: int, alias: str) -> Link:
        """Make an ifb, or take the one of that name; up."""

    def remove(self, name: str) -> None:
        """Remove an interface; missing is fine."""

    def queues(self, index: int) -> list[Queue]:
        """The queueing disciplines of an interface, but the kernel's own."""

    def set_bucket(self, index: int, rate: int, burst: int, limit: int) -> None:
        """A tbf as root (bytes per second, bytes, bytes that may wait); changes in place when there is one."""

    def classes(self, index: int) -> Classes | None:
        """What set_classes made, None when it is not there whole."""

    def set_classes(self, index: int, wanted: Classes) -> None:
        """An htb as root with the bucket for some traffic, chosen by subnet."""

    def change_classes(self, index: int, wanted: Classes) -> None:
        """Other numbers for what set_classes made, without losing packets."""

    def put_back(self, link: Link, root: Queue | None) -> None:
        """Give an interface its former root queueing discipline (less what hung in its classes) and queue length."""

    def clear(self, index: int) -> None:
        """Remove the root queueing discipline; missing is fine."""

    def add_ingress(self, index: int) -> None:
        """An ingress queueing discipline; IoFailure when there is one, or a clsact."""

    def remove_ingress(self, index: int) -> None:
        """Remove it and its filters; missing is fine."""

    def ingress_filters(self, index: int) -> list[Classifier]:
        """The filters for arriving packets."""

    def add_redirect(self, index: int, target: int, priority: int) -> None:
        """Send arriving packets through another interface; needs an ingress or clsact."""

    def remove_filters(self, index: int, priority: int) -> None:
        """Remove the arriving packets' filters of one priority; missing is fine."""


class Network(Protocol):
    """The interfaces, addresses, routes and settings of one namespace. Failures are IoFailure (code 5)."""

    def link(self, name: str = "", *, index: int = 0) -> Link | None:
        """An interface by name or index, None when there is none."""

    def links(self) -> list[Link]:
        """Every interface."""

    def addresses(self, link: str) -> list[str]:
        """The addresses of an interface, `10.0.0.2/24`."""

    def routes(self, link: str) -> list[Route]:
        """The routes through an interface that somebody set; not those that its addresses bring."""

    def sysctl(self, name: str) -> str:
        """A setting under /proc/sys, its name with slashes; empty when there is no such setting."""

    def apply(self, *changes: NetworkChange) -> None:
        """Carry out the changes (cnimeta.host.network.values) in order, up to the first that fails."""


class Networks(Protocol):
    """The network of this namespace, and those of others."""

    def here(self) -> Network:
        """That of the namespace the plugin runs in."""

    def within(self, netns: str) -> AbstractContextManager[Network]:
        """That of the namespace at a path, for a block that runs there. cnimeta.host.values.NoNamespace without it."""
