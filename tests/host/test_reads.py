"""Every read of the host has three answers: there, not there, and an error that names what nobody knows."""

from __future__ import annotations

import errno
import os
import struct
from typing import TYPE_CHECKING, Any

import pytest

from cnimeta.errors import IoFailure
from cnimeta.host import netlink
from cnimeta.host.addresses import RouteAddresses
from cnimeta.host.conntrack import KernelConntrack
from cnimeta.host.iptables import netlink as iptables_netlink
from cnimeta.host.iptables.restore import NftIptables
from cnimeta.host.iptables.variant import detect, loaded_tables
from cnimeta.host.kube.api import KubernetesPodApi
from cnimeta.host.links.kernel import RouteLinks
from cnimeta.host.links.rtnetlink import link_seen_in, route_interface
from cnimeta.host.nodeconfig import read_section
from cnimeta.host.portscan import RulesetScan
from cnimeta.host.process import find_program
from cnimeta.host.reading import read_file, retried, told
from cnimeta.host.sockets import NodeSockets
from cnimeta.host.values import Completed, PodApiError
from cnimeta.spec.ip import parse_ip

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

pytestmark = pytest.mark.unit

UNKNOWN = [errno.EIO, errno.ENOMEM, errno.EMFILE, errno.EPERM, errno.ENOBUFS, errno.EINTR, errno.EAGAIN]


def failing(number: int) -> Callable[..., Any]:
    def fail(*_: object) -> Any:
        raise OSError(number, os.strerror(number))

    return fail


def empty(*_: object) -> list[netlink.Message]:
    return []


# --- the rule itself ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.EINTR, errno.EAGAIN, errno.ENOBUFS])
def test_passing_failure_is_tried_again_until_it_passes(number: int) -> None:
    left = [number] * 5

    def attempt() -> str:
        if left:
            raise OSError(left.pop(), "passing")
        return "found"

    assert retried(attempt) == "found"


@pytest.mark.parametrize("number", [errno.EIO, errno.ENOENT, errno.ENOBUFS])
def test_failure_that_stays_is_raised_as_it_is(number: int) -> None:
    tries: list[int] = []

    def attempt() -> None:
        tries.append(1)
        raise OSError(number, "stays")

    with pytest.raises(OSError, match="stays") as caught:
        retried(attempt)
    assert caught.value.errno == number
    assert len(tries) == (8 if number == errno.ENOBUFS else 1)


def test_only_what_says_not_there_is_not_there() -> None:
    assert told("it", lambda: 7) == 7
    assert told("it", failing(errno.ENOENT)) is None
    assert told("it", failing(errno.EINVAL), (errno.EINVAL,)) is None
    for number in UNKNOWN:
        with pytest.raises(IoFailure, match=f"cannot read it: {os.strerror(number)}") as caught:
            told("it", failing(number))
        assert caught.value.code == 5


def test_file_is_content_or_missing_or_an_error_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"words")
    assert read_file(str(tmp_path / "a")) == b"words"
    assert read_file(str(tmp_path / "b")) is None
    with pytest.raises(IoFailure, match=f"{tmp_path}: Is a directory"):
        read_file(str(tmp_path))


# --- netlink ------------------------------------------------------------------------------------------------


class Answers:
    """Sockets whose answers are given: a datagram each, or an errno. `made` counts the sockets."""

    def __init__(self, *sockets: list[bytes | int]) -> None:
        self.sockets = [list(one) for one in sockets]
        self.made = 0

    def __call__(self, *_: int) -> Any:
        self.made += 1
        return self

    def send(self, data: bytes) -> int:
        return len(data)

    def recv(self, *_: int) -> bytes:
        answer = self.sockets[self.made - 1].pop(0)
        if isinstance(answer, int):
            raise OSError(answer, os.strerror(answer))
        return answer

    def setsockopt(self, *_: object) -> None:
        pass

    def close(self) -> None:
        pass


def message(kind: int, body: bytes, flags: int = 2) -> bytes:
    return struct.pack("=IHHII", 16 + len(body), kind, flags, 1, 0) + body


FOUND, DONE, OK = message(99, b"body"), message(3, bytes(4)), message(2, bytes(20))
INTERRUPTED = message(99, b"torn", flags=2 | 0x10)


def refusal(number: int, kind: int = 2) -> bytes:
    return message(kind, struct.pack("=i", -number) + bytes(16))


@pytest.mark.parametrize(
    "first",
    [[errno.ENOBUFS], [INTERRUPTED, DONE], [FOUND, message(3, bytes(4), flags=2 | 0x10)], [refusal(errno.EAGAIN)]],
    ids=["lost", "interrupted", "interrupted at its end", "refused in passing"],
)
def test_listing_is_asked_for_again_when_it_did_not_come_whole(first: list[bytes | int]) -> None:
    answers = Answers(first, [FOUND + FOUND, FOUND, DONE])
    found = netlink.ask(0, 1, netlink.DUMP, b"", answers)
    assert [one.body for one in found] == [b"body"] * 3
    assert answers.made == 2


@pytest.mark.parametrize(
    ("answer", "number"),
    [([refusal(errno.ENODEV)], errno.ENODEV), ([FOUND, refusal(errno.ENOMEM, kind=3)], errno.ENOMEM)],
    ids=["refused", "broke off"],
)
def test_listing_is_an_error_when_the_kernel_says_so(answer: list[bytes | int], number: int) -> None:
    with pytest.raises(OSError, match=os.strerror(number)) as caught:
        netlink.ask(0, 1, netlink.DUMP, b"", Answers(answer))
    assert caught.value.errno == number


def test_listing_that_never_comes_whole_is_an_error() -> None:
    with pytest.raises(InterruptedError, match="changes too fast"):
        netlink.ask(0, 1, netlink.DUMP, b"", Answers(*[[INTERRUPTED, DONE]] * 8))


@pytest.mark.parametrize("number", [errno.ENOBUFS, errno.EINTR, errno.EEXIST])
def test_order_is_given_once_however_it_ends(number: int) -> None:
    answers = Answers([number, OK])
    with pytest.raises(OSError, match=os.strerror(number)):
        netlink.tell(0, [(1, 0, b""), (2, 0, b"")], answers)
    assert answers.made == 1


def test_garbage_ends_the_reading_of_a_datagram() -> None:
    assert list(netlink.split(message(1, b"x") + bytes(100))) == [(1, 2, b"x")]
    assert list(netlink.split(b"\x05")) == []


# --- who asks what ------------------------------------------------------------------------------------------


def scan(ask: Callable[..., Any]) -> object:
    return RulesetScan(ask=ask, proc="/nowhere").redirected()


def primary(ask: Callable[..., Any]) -> object:
    return RouteAddresses(ask=ask, connect=failing(errno.ENETUNREACH)).primary()


ADDRESS = parse_ip("192.0.2.1")
NFT_LACKS = (errno.EINVAL, errno.EAFNOSUPPORT, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT)
READS: dict[str, tuple[Callable[[Any], object], str, dict[int, object]]] = {
    "nft chain": (
        lambda ask: netlink.nft_chain_exists("inet", "t", "c", ask),
        "the nftables chain inet t c",
        dict.fromkeys((errno.ENOENT, *NFT_LACKS), False),
    ),
    "nft table": (
        lambda ask: netlink.nft_table_exists("ip", "t", ask),
        "the nftables table ip t",
        dict.fromkeys((errno.ENOENT, *NFT_LACKS), False),
    ),
    "nft tables": (netlink.nft_tables, "the nftables tables", {key: set() for key in NFT_LACKS}),
    "iptables tables": (iptables_netlink.table_names, "the nftables tables", {key: set() for key in NFT_LACKS}),
    "iptables chain": (
        lambda ask: iptables_netlink.chain_exists(4, "c", ask),
        "the nftables chain ip nat c",
        dict.fromkeys((errno.ENOENT, *NFT_LACKS), False),
    ),
    "iptables rules": (
        lambda ask: iptables_netlink.mentions(6, "c", "CNI-DN-", ask),
        "the nftables chain ip6 nat c",
        dict.fromkeys((errno.ENOENT, *NFT_LACKS), False),
    ),
    "iptables used": (lambda ask: NftIptables(ask=ask).used(4), "the nftables tables", {errno.EINVAL: False}),
    "iptables has_chain": (lambda ask: NftIptables(ask=ask).has_chain(4, "c"), "nat c", {errno.ENOENT: False}),
    "iptables entries": (lambda ask: NftIptables(ask=ask).chain(4, "c"), "nat c", {errno.ENOENT: None}),
    "port scan": (scan, "the nftables tables", {key: [] for key in NFT_LACKS}),
    "link by index": (lambda ask: RouteLinks(ask).get(index=7), 'interface "7"', {errno.ENODEV: None}),
    "link by name": (lambda ask: RouteLinks(ask).get(name="x"), 'interface "x"', {errno.ENODEV: None}),
    "ifbs": (lambda ask: RouteLinks(ask).ifbs(), "the interfaces of kind ifb", {}),
    "queues": (
        lambda ask: RouteLinks(ask).queues(7),
        "the queues of interface 7",
        {key: [] for key in (errno.ENOENT, errno.EINVAL, errno.ENODEV)},
    ),
    "filters": (
        lambda ask: RouteLinks(ask).ingress_filters(7),
        "the filters of interface 7",
        {key: [] for key in (errno.ENOENT, errno.EINVAL, errno.ENODEV)},
    ),
    "classes": (
        lambda ask: RouteLinks(ask).classes(7),
        "the queues of interface 7",
        dict.fromkeys((errno.ENOENT, errno.EINVAL, errno.ENODEV), None),
    ),
    "route": (
        lambda ask: route_interface(ADDRESS, ask),
        "the route to 192.0.2.1",
        dict.fromkeys((errno.ENETUNREACH, errno.EHOSTUNREACH, errno.EACCES, errno.EINVAL), ""),
    ),
    "flows": (
        lambda ask: KernelConntrack(ask, failing(errno.EIO)).forget_udp(4, [(53, 53, b"")], [b"\x0a\0\0\2"]),
        "the flows",
        dict.fromkeys((errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT), None),
    ),
    "addresses": (primary, "the node's addresses", dict.fromkeys((errno.EAFNOSUPPORT, errno.EOPNOTSUPP), ())),
    "sockets": (lambda ask: NodeSockets("/nowhere", ask).in_use(), "the node's tcp sockets", {}),
}


@pytest.mark.parametrize("number", UNKNOWN)
@pytest.mark.parametrize("name", READS)
def test_read_is_an_error_that_names_its_object_when_the_kernel_does_not_tell(name: str, number: int) -> None:
    read, what, _ = READS[name]
    with pytest.raises(IoFailure, match=f"cannot read .*{what}.*: {os.strerror(number)}") as caught:
        read(failing(number))
    assert caught.value.code == 5


@pytest.mark.parametrize(
    ("name", "number"), [(name, number) for name, (_, _, absent) in READS.items() for number in absent]
)
def test_read_says_not_there_when_the_kernel_says_so(name: str, number: int) -> None:
    read, _, absent = READS[name]
    assert read(failing(number)) == absent[number]


@pytest.mark.parametrize("number", UNKNOWN)
def test_rules_are_an_error_when_the_chain_is_there_and_they_cannot_be_listed(number: int) -> None:
    def ask(_protocol: int, kind: int, _flags: int, _body: bytes) -> list[netlink.Message]:
        if kind == (10 << 8) | 7:
            raise OSError(number, os.strerror(number))
        return [netlink.Message(kind, bytes(4))]

    with pytest.raises(IoFailure, match="the rules of chain ip nat c"):
        iptables_netlink.mentions(4, "c", "CNI-DN-", ask)
    with pytest.raises(iptables_netlink.Unreadable):
        iptables_netlink.entry_rules(4, "c", ask=ask)


@pytest.mark.parametrize("number", [errno.EIO, errno.EMFILE, errno.ENOMEM, errno.EPERM])
def test_address_and_probe_are_an_error_when_no_socket_can_be_made(number: int) -> None:
    with pytest.raises(IoFailure, match=r"the route to 240\.0\.0\.1"):
        RouteAddresses(empty, failing(number)).primary()
    with pytest.raises(IoFailure, match="port 80"):
        NodeSockets(connect=failing(number)).can_listen("tcp", 80)


@pytest.mark.parametrize("number", [errno.EAFNOSUPPORT, errno.EPROTONOSUPPORT])
def test_family_that_the_kernel_lacks_has_no_address_and_blocks_no_port(number: int) -> None:
    assert RouteAddresses(empty, failing(number)).primary() == ()
    assert NodeSockets(connect=failing(number)).can_listen("tcp", 80)


def test_netlink_that_a_filter_forbids_is_unknown_and_no_kernel_without_nftables() -> None:
    """As a service's RestrictAddressFamilies does: DEL would leave its rules, and succeed."""
    connect = failing(errno.EAFNOSUPPORT)
    for read in (
        lambda: netlink.nft_table_exists("inet", "t", ask=lambda *args: netlink.ask(*args, connect)),
        lambda: netlink.nft_tables(ask=lambda *args: netlink.ask(*args, connect)),
    ):
        with pytest.raises(IoFailure, match="forbidden"):
            read()


# --- files and programs -------------------------------------------------------------------------------------


def proc(folder: Path, *broken: str) -> str:
    """A /proc whose files are empty, but the broken ones, which cannot be read."""
    for name in ("tcp", "udp", "tcp6", "udp6", "sctp/eps", "ip_tables_names", "ip6_tables_names"):
        path = folder / "thread-self" / "net" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if name in broken:
            path.mkdir()
        else:
            path.write_text("LPORT\n")
    return str(folder)


@pytest.mark.parametrize("name", ["tcp", "udp6", "sctp/eps"])
def test_sockets_are_an_error_when_a_file_of_them_cannot_be_read(tmp_path: Path, name: str) -> None:
    with pytest.raises(IoFailure, match=f"net/{name}: Is a directory"):
        NodeSockets(proc(tmp_path, name), failing(errno.ENOENT)).in_use()


def test_sockets_are_read_from_proc_when_the_kernel_has_no_inet_diag(tmp_path: Path) -> None:
    folder = proc(tmp_path)
    assert NodeSockets(folder, failing(errno.ENOENT)).in_use() == set()
    os.unlink(f"{folder}/thread-self/net/tcp6")
    assert NodeSockets(folder, failing(errno.ENOENT)).in_use() == set()
    os.unlink(f"{folder}/thread-self/net/tcp")
    with pytest.raises(IoFailure, match="net/tcp: is /proc there"):
        NodeSockets(folder, failing(errno.ENOENT)).in_use()


@pytest.mark.parametrize("family", [4, 6])
def test_legacy_tables_are_none_without_the_module_and_an_error_when_unreadable(tmp_path: Path, family: int) -> None:
    net = proc(tmp_path) + "/thread-self/net"
    assert loaded_tables(family, net) == ["LPORT"]
    assert loaded_tables(family, "/nowhere") == []
    name = {4: "ip_tables_names", 6: "ip6_tables_names"}[family]
    os.unlink(f"{net}/{name}")
    os.mkdir(f"{net}/{name}")
    with pytest.raises(IoFailure, match=f"{name}: Is a directory"):
        loaded_tables(family, net)
    with pytest.raises(IoFailure, match=f"{name}: Is a directory"):
        RulesetScan(ask=empty, proc=net).redirected()


@pytest.mark.parametrize("done", [Completed(1, b"", b"Too many open files"), Completed(0, b"{"), Completed(0, b"")])
def test_scan_is_an_error_when_rules_are_there_and_no_program_lists_them(done: Completed) -> None:
    table = netlink.Message(0, bytes((2, 0, 0, 0)) + netlink.attribute(1, b"other\0"))
    with pytest.raises(IoFailure, match="cannot read the"):
        RulesetScan(run=lambda *_: done, proc="/nowhere", ask=lambda *_: [table]).redirected()


@pytest.mark.kernel
@pytest.mark.parametrize("number", [errno.EIO, errno.ENOBUFS])
def test_variant_is_an_error_when_the_tables_cannot_be_listed(make_netns: Any, number: int) -> None:
    node = make_netns("node")
    node.run("iptables-legacy", "-t", "nat", "-L")
    with node.entered(), pytest.raises(IoFailure, match="the nftables tables"):
        detect(ask=failing(number))


def test_program_is_found_or_not_there_or_an_error(tmp_path: Path) -> None:
    for name in ("first", "second"):
        (tmp_path / name).mkdir()
    program = tmp_path / "second" / "tool"
    program.write_text("#!/bin/sh\n")
    path = f"{tmp_path}/first:relative:{tmp_path}/file/below:{tmp_path}/second"
    (tmp_path / "file").write_text("")
    assert find_program("tool", path) is None  # it may not be run
    program.chmod(0o755)
    assert find_program("tool", path) == str(program)
    (tmp_path / "first" / "tool").mkdir()
    assert find_program("tool", path) == str(program)
    assert find_program("no-such-tool", path) is None


def test_configuration_is_empty_when_missing_and_an_error_when_unreadable(tmp_path: Path) -> None:
    assert read_section("portmap", {"CNIMETA_CONFIG": str(tmp_path / "none")}).raw == {}
    with pytest.raises(IoFailure, match=f"{tmp_path}"):
        read_section("portmap", {"CNIMETA_CONFIG": str(tmp_path)})


def test_credentials_are_missing_or_unreadable_but_never_passed_over(tmp_path: Path) -> None:
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    for path, words in ((tmp_path / "none", "does not exist"), (tmp_path, "does not exist"), (loop, "symbolic links")):
        with pytest.raises(PodApiError, match=words) as caught:
            KubernetesPodApi(str(path), {}).read("default", "web", 20)
        assert (caught.value.status, caught.value.reason) == (0, "NoCredentials")


@pytest.mark.parametrize("text", ["", "w x y z", "00000000 00000000 00000000 00000000", "1 2"])
def test_clock_of_traffic_control_is_never_guessed(tmp_path: Path, text: str) -> None:
    path = tmp_path / "psched"
    if text:
        path.write_text(text)
    with pytest.raises(IoFailure, match="psched"):
        RouteLinks(psched=str(path)).ticks_per_us()
    path.write_text("000003e8 00000040 000f4240 3b9aca00\n")
    assert RouteLinks(psched=str(path)).ticks_per_us() == 15.625


# --- an interface seen from outside -------------------------------------------------------------------------


def nsid(number: int) -> netlink.Message:
    return netlink.Message(88, bytes(4) + netlink.attribute(1, struct.pack("=i", number)))


def seen(number: bytes) -> netlink.Message:
    body = struct.pack("=BxHiII", 0, 0, 7, 0, 0) + netlink.attribute(3, b"eth0\0")
    return netlink.Message(16, body + (netlink.attribute(46, number) if number else b""))


@pytest.mark.parametrize(
    ("answers", "index"),
    [
        ([[nsid(5)], [seen(struct.pack("=i", 5))]], 7),
        ([[nsid(5)], [seen(b"")]], 0),
        ([[nsid(5)], [seen(struct.pack("=i", 6))]], 0),
        ([[nsid(-1)]], 0),
        ([[]], 0),
        ([errno.EPERM], 0),
        ([[nsid(5)], errno.ENODEV], 0),
        ([[nsid(5)], errno.EOPNOTSUPP], 0),
    ],
    ids=["seen", "an old kernel's own", "another's", "no number", "nothing", "refused", "no interface", "not known"],
)
def test_an_interface_is_seen_from_outside_or_left_to_be_looked_for(answers: list[Any], index: int) -> None:
    def ask(*_: object) -> Any:
        answer = answers.pop(0)
        if isinstance(answer, int):
            raise OSError(answer, os.strerror(answer))
        return answer

    found = link_seen_in("/proc/self/ns/net", "eth0", ask)
    assert (0 if found is None else found.ifindex) == index
