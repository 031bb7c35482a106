"""One contract for every Conntrack and Sysctl: in memory, and the kernel's."""

from __future__ import annotations

import itertools
import socket
from typing import TYPE_CHECKING, NamedTuple

import pytest

from cnimeta.errors import IoFailure
from cnimeta.host.conntrack import KernelConntrack
from cnimeta.host.sysctl import ProcSysctl
from cnimeta.testing.netfilter import FakeConntrack, FakeSysctl, Flow

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cnimeta.host.protocols import Conntrack, Sysctl

KINDS = [pytest.param("fake", marks=pytest.mark.unit), pytest.param("kernel", marks=pytest.mark.kernel)]
HERE, THERE = {4: "192.0.2.1", 6: "2001:db8::1"}, {4: "192.0.2.2", 6: "2001:db8::2"}
CONTAINER, OTHER = {4: "10.0.0.2", 6: "fd00::2"}, {4: "10.0.0.3", 6: "fd00::3"}


def packed(address: str) -> bytes:
    return socket.inet_pton(socket.AF_INET6 if ":" in address else socket.AF_INET, address)


class Flows(NamedTuple):
    """A table of flows: how one to an address and port gets there, by whom it is answered if it was translated, and
    (family, port, address) of those that are there.
    """

    conntrack: Conntrack
    add: Callable[[str, int, str], None]
    found: Callable[[], set[tuple[int, int, str]]]


@pytest.fixture(params=KINDS)
def flows(request: pytest.FixtureRequest) -> Iterator[Flows]:
    if request.param == "fake":
        fake = FakeConntrack()
        yield Flows(
            fake,
            lambda to, port, answering: fake.flows.append(Flow(6 if ":" in to else 4, port, to, answering)),
            lambda: {(flow.family, flow.port, flow.to) for flow in fake.flows},
        )
        return
    namespace = request.getfixturevalue("make_netns")("flows")

    numbers = itertools.count(1234)

    def add(address: str, port: int, answering: str) -> None:
        number = next(numbers)
        source = "2001:db8::9" if ":" in address else "192.0.2.9"
        words = f"-I -p udp -s {source} -d {address} --sport {number} --dport {port} -t 100 -u ASSURED"
        if answering:
            words += f" --reply-src {answering} --reply-dst {source} --reply-port-src {port} --reply-port-dst {number}"
        namespace.run("conntrack", *words.split())

    def found() -> set[tuple[int, int, str]]:
        lines = [
            line for f in ("ipv4", "ipv6") for line in namespace.run("conntrack", "-L", "-f", f).stdout.splitlines()
        ]
        # The first of two equal keys is the original direction's.
        parts = [dict(reversed([word.split("=") for word in line.split() if "=" in word])) for line in lines]
        return {(6 if ":" in one["dst"] else 4, int(one["dport"]), one["dst"]) for one in parts}

    with namespace.entered():
        yield Flows(KernelConntrack(), add, found)


@pytest.mark.parametrize("family", [4, 6])
def test_only_flows_to_the_port_and_family_are_forgotten(flows: Flows, family: int) -> None:
    for port in (53, 5353):
        for number in (4, 6):
            flows.add(HERE[number], port, CONTAINER[number])
    flows.conntrack.forget_udp(family, [(5353, 5353, b"")], [packed(CONTAINER[family])])
    other = 10 - family
    assert flows.found() == {(family, 53, HERE[family]), (other, 53, HERE[other]), (other, 5353, HERE[other])}


@pytest.mark.parametrize("family", [4, 6])
def test_only_flows_to_the_address_are_forgotten_when_one_is_named(flows: Flows, family: int) -> None:
    for where in (HERE, THERE):
        flows.add(where[family], 53, CONTAINER[family])
    flows.conntrack.forget_udp(family, [(53, 53, packed(HERE[family]))], [packed(CONTAINER[family])])
    assert flows.found() == {(family, 53, THERE[family])}


@pytest.mark.parametrize("family", [4, 6])
def test_flows_that_others_answer_are_kept_when_they_have_the_same_port(flows: Flows, family: int) -> None:
    """A client behind this host asks another host's port 53, or a port of another container."""
    flows.add(HERE[family], 53, OTHER[family])
    flows.add(THERE[family], 53, "")
    flows.conntrack.forget_udp(family, [(53, 53, b"")], [packed(CONTAINER[family])])
    assert flows.found() == {(family, 53, HERE[family]), (family, 53, THERE[family])}


def test_every_flow_in_a_range_is_forgotten(flows: Flows) -> None:
    for port in (999, 1000, 1005, 1010, 1011, 2000):
        flows.add(HERE[4], port, CONTAINER[4])
    flows.conntrack.forget_udp(4, [(1000, 1010, b""), (2000, 2000, b"")], [packed(CONTAINER[4])])
    assert flows.found() == {(4, 999, HERE[4]), (4, 1011, HERE[4])}


def test_nothing_is_forgotten_when_nothing_is_asked_for_or_there(flows: Flows) -> None:
    flows.conntrack.forget_udp(4, [(53, 53, b"")], [packed(CONTAINER[4])])
    flows.add(HERE[4], 53, CONTAINER[4])
    flows.conntrack.forget_udp(4, [], [packed(CONTAINER[4])])
    flows.conntrack.forget_udp(4, [(53, 53, b"")], [])
    assert flows.found() == {(4, 53, HERE[4])}


class Settings(NamedTuple):
    """Settings, and the value one has by now."""

    sysctl: Sysctl
    value: Callable[[str], str]


@pytest.fixture(params=KINDS)
def settings(request: pytest.FixtureRequest) -> Iterator[Settings]:
    if request.param == "fake":
        fake = FakeSysctl(missing=["net/ipv4/conf/none/route_localnet"])
        yield Settings(fake, lambda name: fake.values[name])
        return
    namespace = request.getfixturevalue("make_netns")("settings")
    with namespace.entered():
        yield Settings(ProcSysctl(), lambda name: namespace.run("cat", f"/proc/sys/{name}").stdout.strip())


def test_setting_has_the_value_however_often_it_is_ensured(settings: Settings) -> None:
    for value in ("1", "1", "0", "1"):
        settings.sysctl.ensure("net/ipv4/conf/lo/route_localnet", value)
        assert settings.value("net/ipv4/conf/lo/route_localnet") == value


def test_list_can_be_emptied(settings: Settings) -> None:
    for value in ("20000-20009", "", "7000", ""):
        settings.sysctl.ensure("net/ipv4/ip_local_reserved_ports", value)
        assert settings.value("net/ipv4/ip_local_reserved_ports") == value


def test_setting_that_is_not_there_is_an_error_that_names_it(settings: Settings) -> None:
    with pytest.raises(IoFailure, match=r"/proc/sys/net/ipv4/conf/none/route_localnet.*No such file") as caught:
        settings.sysctl.ensure("net/ipv4/conf/none/route_localnet", "1")
    assert caught.value.code == 5


def test_long_list_is_read_whole(settings: Settings) -> None:
    """Of some 14 KiB: what is cut would end with another port."""
    name = "net/ipv4/ip_local_reserved_ports"
    ports = ",".join(str(20000 + 2 * number) for number in range(2400))
    settings.sysctl.ensure(name, ports)
    assert settings.sysctl.read(name) == ports
    settings.sysctl.ensure(name, "")
    assert settings.sysctl.read(name) == ""
