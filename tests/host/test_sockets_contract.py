"""One contract for every Sockets and PortScan: sets to fill in, and what is in a namespace."""

from __future__ import annotations

import contextlib
import socket
from typing import TYPE_CHECKING, NamedTuple

import pytest

from cnimeta.host.portscan import RulesetScan
from cnimeta.host.sockets import NodeSockets
from cnimeta.testing.sockets import FakePortScan, FakeSockets

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from cnimeta.host.protocols import PortScan, Sockets

KINDS = [pytest.param("fake", marks=pytest.mark.unit), pytest.param("kernel", marks=pytest.mark.kernel)]
TYPES = {"tcp": socket.SOCK_STREAM, "udp": socket.SOCK_DGRAM}


class Node(NamedTuple):
    """The sockets of a node, and how a port is taken and its settings are made."""

    sockets: Sockets
    taken: Callable[[str, int], AbstractContextManager[None]]
    settle: Callable[[str, str], None]


@pytest.fixture(params=KINDS)
def node(request: pytest.FixtureRequest) -> Iterator[Node]:
    if request.param == "fake":
        fake = FakeSockets()

        @contextlib.contextmanager
        def busy(protocol: str, port: int) -> Iterator[None]:
            fake.busy.add((protocol, port))
            yield
            fake.busy.discard((protocol, port))

        def told(reserved: str, ephemeral: str) -> None:
            ends = [part.partition("-") for part in reserved.split(",")]
            fake.reserved_spans = [(int(first), int(last or first)) for first, _, last in ends]
            first, last = ephemeral.split()
            fake.ephemeral_range = int(first), int(last)

        yield Node(fake, busy, told)
        return
    namespace = request.getfixturevalue("make_netns")("sockets")

    @contextlib.contextmanager
    def listening(protocol: str, port: int) -> Iterator[None]:
        with socket.socket(socket.AF_INET, TYPES[protocol]) as sock:
            sock.bind(("127.0.0.1", port))
            if protocol == "tcp":
                sock.listen()
            yield

    def settled(reserved: str, ephemeral: str) -> None:
        namespace.run("sysctl", "-qw", f"net.ipv4.ip_local_reserved_ports={reserved}")
        namespace.run("sysctl", "-qw", f"net.ipv4.ip_local_port_range={ephemeral}")

    with namespace.entered():
        yield Node(NodeSockets(), listening, settled)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_port_is_in_use_and_cannot_be_listened_on_while_it_is_taken(node: Node, protocol: str) -> None:
    assert set(node.sockets.in_use()) == set()
    with node.taken(protocol, 20000):
        assert set(node.sockets.in_use()) == {(protocol, 20000)}
        assert not node.sockets.can_listen(protocol, 20000)
        assert not node.sockets.is_unused(protocol, 20000)
        assert node.sockets.is_unused(protocol, 20001)
        assert node.sockets.can_listen("udp" if protocol == "tcp" else "tcp", 20000)
        assert node.sockets.can_listen(protocol, 20001)
    assert set(node.sockets.in_use()) == set()
    assert node.sockets.can_listen(protocol, 20000)
    assert node.sockets.is_unused(protocol, 20000)


def test_probing_takes_nothing(node: Node) -> None:
    for _ in range(3):
        assert all(node.sockets.can_listen(protocol, 20000) for protocol in ("tcp", "udp", "sctp"))
        assert all(node.sockets.is_unused(protocol, 20000) for protocol in ("tcp", "udp", "sctp"))
    assert set(node.sockets.in_use()) == set()


def test_settings_are_what_they_were_set_to(node: Node) -> None:
    assert list(node.sockets.reserved()) == []
    first, last = node.sockets.ephemeral()
    assert 1024 <= first < last <= 65535
    node.settle("8080,9000-9002", "40000 50001")
    assert list(node.sockets.reserved()) == [(8080, 8080), (9000, 9002)]
    assert node.sockets.ephemeral() == (40000, 50001)


class Rules(NamedTuple):
    """A scan, and how somebody redirects ports."""

    scan: PortScan
    redirect: Callable[[str, int, int], None]


@pytest.fixture(params=["fake", "nft", "iptables-nft", "iptables-legacy"])
def rules(request: pytest.FixtureRequest) -> Iterator[Rules]:
    if request.param == "fake":
        fake = FakePortScan()
        yield Rules(fake, lambda *span: fake.spans.append(span))
        return
    namespace = request.getfixturevalue("make_netns")("rules")

    def nft(protocol: str, first: int, last: int) -> None:
        rule = f"{protocol} dport {first if first == last else f'{first}-{last}'} redirect to :99"
        chain = "chain prerouting { type nat hook prerouting priority dstnat; " + rule + "; }"
        namespace.run("nft", "-f", "-", stdin="table ip other {\n" + chain + "\n}\n")

    def iptables(protocol: str, first: int, last: int) -> None:
        words = f"-w -t nat -A PREROUTING -p {protocol} --dport {first}:{last} -j REDIRECT --to-ports 99"
        namespace.run(request.param, *words.split())

    with namespace.entered():
        yield Rules(RulesetScan(), nft if request.param == "nft" else iptables)


@pytest.mark.kernel
def test_ports_are_redirected_when_somebody_has_a_rule_for_them(rules: Rules) -> None:
    assert list(rules.scan.redirected()) == []
    rules.redirect("tcp", 8080, 8080)
    rules.redirect("udp", 9000, 9005)
    assert set(rules.scan.redirected()) == {("tcp", 8080, 8080), ("udp", 9000, 9005)}
