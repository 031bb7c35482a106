"""The node's sockets and redirect rules, in namespaces of the test's own."""

from __future__ import annotations

import json
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from cnimeta.errors import IoFailure
from cnimeta.host.portscan import RulesetScan
from cnimeta.host.process import run_program
from cnimeta.host.sockets import NodeSockets
from cnimeta.host.values import Completed
from cnimeta_plugins.hostport_alloc.allocate.blocked import Probe, blocked_ports
from cnimeta_plugins.hostport_alloc.allocate.ranges import ports_of

pytestmark = pytest.mark.kernel

# In a process of its own, which has pyroute2 loaded as the agent has: there the answer comes from inet_diag.
DIAG = """
import json, pyroute2
from cnimeta.host.sockets import NodeSockets
print(json.dumps(sorted(NodeSockets().in_use())))
"""
PROC = DIAG.replace(", pyroute2", "")


@pytest.fixture
def ns(make_netns):
    namespace = make_netns("sockets")
    with namespace.entered():
        yield namespace


def listener(family: int, address: str, port: int, *, v6only: bool = False, kind: int = socket.SOCK_STREAM):
    sock = socket.socket(family, kind)
    if family == socket.AF_INET6:
        sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(v6only))
    if kind == socket.SOCK_STREAM:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    sock.bind((address, port))
    if kind == socket.SOCK_STREAM:
        sock.listen()
    return sock


CASES = [
    ("tcp", socket.AF_INET, "0.0.0.0", False),
    ("tcp", socket.AF_INET, "127.0.0.1", False),
    ("tcp", socket.AF_INET6, "::", False),
    ("tcp", socket.AF_INET6, "::", True),
    ("tcp", socket.AF_INET6, "::1", True),
    ("udp", socket.AF_INET, "0.0.0.0", False),
    ("udp", socket.AF_INET, "127.0.0.1", False),
    ("udp", socket.AF_INET6, "::", True),
]


@pytest.mark.parametrize(("protocol", "family", "address", "v6only"), CASES)
def test_port_is_seen_and_cannot_be_listened_on_when_a_socket_has_it(ns, protocol, family, address, v6only):
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    other = "udp" if protocol == "tcp" else "tcp"
    sockets = NodeSockets()
    with listener(family, address, 20000, v6only=v6only, kind=kind):
        assert (protocol, 20000) in sockets.in_use()
        assert not sockets.can_listen(protocol, 20000)
        assert not sockets.is_unused(protocol, 20000)
        assert sockets.can_listen(other, 20000)
        assert sockets.is_unused(other, 20000)
        for script in (DIAG, PROC):
            done = ns.run(sys.executable, "-c", script)
            assert [protocol, 20000] in json.loads(done.stdout)
    assert sockets.can_listen(protocol, 20000)


def test_udp_port_is_refused_when_its_owner_allows_reuse(ns):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        sock.bind(("0.0.0.0", 20000))
        assert not NodeSockets().can_listen("udp", 20000)
        assert not NodeSockets().is_unused("udp", 20000)


def test_source_port_of_an_outgoing_connection_is_seen_and_refused(ns):
    with listener(socket.AF_INET, "127.0.0.1", 8080), socket.socket() as out:
        out.bind(("127.0.0.1", 20000))
        out.connect(("127.0.0.1", 8080))
        assert ("tcp", 20000) in NodeSockets().in_use()
        assert not NodeSockets().can_listen("tcp", 20000)
        assert not NodeSockets().is_unused("tcp", 20000)


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
@pytest.mark.parametrize("where", ["bound alone", "its server closed", "shared", "on one address", "to one device"])
def test_unused_port_is_one_that_no_socket_has_in_any_state(ns, protocol, where):
    """Whatever the listing of all sockets has, a bind that shares with nobody meets."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with socket.socket(socket.AF_INET, kind) as sock, socket.socket(socket.AF_INET, kind) as client:
        if where == "shared":
            for option in (socket.SO_REUSEADDR, socket.SO_REUSEPORT):
                sock.setsockopt(socket.SOL_SOCKET, option, 1)
        if where == "to one device":
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_BINDTODEVICE, b"lo")
        sock.bind(("127.0.0.1" if where == "on one address" else "0.0.0.0", 20000))
        if where == "its server closed" and protocol == "tcp":
            sock.listen()
            client.connect(("127.0.0.1", 20000))
            accepted, _ = sock.accept()
            with accepted:
                sock.close()
                assert ("tcp", 20000) in NodeSockets().in_use()
                assert not NodeSockets().is_unused("tcp", 20000)
            return
        assert not NodeSockets().is_unused(protocol, 20000)
        assert NodeSockets().is_unused(protocol, 20001)
    assert NodeSockets().is_unused(protocol, 20000)


def test_time_wait_alone_does_not_block_a_port(ns):
    with listener(socket.AF_INET, "127.0.0.1", 20000) as server:
        client = socket.create_connection(("127.0.0.1", 20000))
        accepted, _ = server.accept()
        accepted.close()  # the closing side keeps TIME_WAIT, here on port 20000
        assert client.recv(1) == b""
        client.close()
    with open("/proc/thread-self/net/tcp", encoding="ascii") as file:
        assert any(":4E20 " in line and " 06 " in line for line in file)
    assert ("tcp", 20000) not in NodeSockets().in_use()
    assert NodeSockets().can_listen("tcp", 20000)
    assert not NodeSockets().is_unused("tcp", 20000)  # and so it is looked at twice
    probe = Probe(NodeSockets())
    assert (probe("tcp", 20000), probe.used()["tcp"] >> 20000 & 1) == (True, 0)
    assert ["tcp", 20000] not in json.loads(ns.run(sys.executable, "-c", DIAG).stdout)


def test_probe_accepts_no_connection(ns):
    """Clients that keep trying while a port is probed again and again never get through."""
    stop, connected, tries = threading.Event(), [], [0]
    home = os.open("/proc/thread-self/ns/net", os.O_RDONLY)

    def knock() -> None:
        import ctypes

        assert ctypes.CDLL(None, use_errno=True).setns(home, 0x40000000) == 0
        while not stop.is_set():
            with socket.socket() as client:
                client.settimeout(0.005)
                try:
                    client.connect(("127.0.0.1", 20000))
                    connected.append(1)
                except OSError:
                    tries[0] += 1

    thread = threading.Thread(target=knock)
    thread.start()
    try:
        sockets, end = NodeSockets(), time.monotonic() + 1
        probes = 0
        while time.monotonic() < end:
            sockets.can_listen("tcp", 20000)
            probes += 1
    finally:
        stop.set()
        thread.join()
        os.close(home)
    assert probes > 50
    assert tries[0] > 10
    assert connected == []


def test_settings_are_read_when_set(ns):
    ns.run(
        "sysctl", "-qw", "net.ipv4.ip_local_reserved_ports=8080,9000-9002", "net.ipv4.ip_local_port_range=40000 50001"
    )
    assert list(NodeSockets().reserved()) == [(8080, 8080), (9000, 9002)]
    assert NodeSockets().ephemeral() == (40000, 50001)
    blocked = blocked_ports(NodeSockets(), RulesetScan())
    for protocol in ("tcp", "udp", "sctp"):
        assert blocked[protocol] == ports_of([(8080, 8080), (9000, 9002)])


def test_settings_have_defaults_when_the_host_hides_them(tmp_path, make_netns):
    sockets = NodeSockets(str(tmp_path))
    assert list(sockets.reserved()) == []
    assert sockets.ephemeral() == (32768, 60999)
    with make_netns("quiet").entered():  # inet_diag, where pyroute2 is loaded, does not read /proc
        assert set(sockets.in_use()) == set()


def test_unreadable_settings_are_an_error_that_names_the_file(tmp_path):
    (tmp_path / "sys/net/ipv4/ip_local_reserved_ports").mkdir(parents=True)
    with pytest.raises(IoFailure, match="ip_local_reserved_ports"):
        NodeSockets(str(tmp_path)).reserved()


FOREIGN = """
table ip other {
  map ports {
    type inet_service : ipv4_addr
    elements = { 6000 : 10.0.0.3, 6001 : 10.0.0.4 }
  }
  map pairs {
    type inet_proto . inet_service : verdict
    elements = { tcp . 6100 : goto away, udp . 6101 : goto away }
  }
  set plain {
    type inet_service
    elements = { 6200, 6201 }
  }
  chain away {
    dnat to 10.0.0.9
  }
  chain prerouting {
    type nat hook prerouting priority dstnat
    tcp dport 8080 dnat to 10.0.0.2:80
    tcp dport { 9000-9005, 9010 } dnat to 10.0.0.2
    meta l4proto { tcp, udp } th dport 77 redirect to :88
    ip daddr 1.2.3.4 udp dport 53 dnat to 10.0.0.3:53
    tcp dport vmap { 5000 : goto away, 5001 : goto away }
    dnat to tcp dport map @ports
    meta l4proto . th dport vmap @pairs
    udp dport @plain dnat to 10.0.0.7
    tcp dport 5100 goto away
    tcp dport 10000-60000 jump away
    tcp dport != 5200 accept
    tcp sport 5300 dnat to 10.0.0.2
    udp dport 5400 accept
  }
}
table inet cnimeta_other {
  map m {
    type inet_service : ipv4_addr . inet_service
    elements = { 20000 : 10.0.0.1 . 80 }
  }
  chain prerouting {
    type nat hook prerouting priority dstnat
    dnat ip to tcp dport map @m
    tcp dport 20001 redirect
  }
}
"""


def test_redirects_of_others_are_found_in_nftables(ns):
    ns.run("nft", "-f", "-", stdin=FOREIGN)
    log: list[str] = []
    spans = set(RulesetScan(log.append).redirected())
    assert spans == {
        ("tcp", 6000, 6000),
        ("tcp", 6001, 6001),
        ("tcp", 6100, 6100),
        ("udp", 6101, 6101),
        ("udp", 6200, 6200),
        ("udp", 6201, 6201),
        ("tcp", 8080, 8080),
        ("tcp", 9000, 9005),
        ("tcp", 9010, 9010),
        ("", 77, 77),
        ("udp", 53, 53),
        ("tcp", 5000, 5000),
        ("tcp", 5001, 5001),
        ("tcp", 5100, 5100),
    }
    assert log == []
    blocked = blocked_ports(NodeSockets(), RulesetScan())
    assert all(blocked[protocol] >> 77 & 1 for protocol in ("tcp", "udp", "sctp"))
    assert not blocked["tcp"] >> 20000 & 3


@pytest.mark.parametrize("variant", ["nft", "legacy"])
@pytest.mark.parametrize("program", ["iptables", "ip6tables"])
def test_redirects_of_others_are_found_in_iptables(ns, variant, program):
    to = "10.0.0.4:80" if program == "iptables" else "[fd00::4]:80"
    rules = [
        "-p tcp --dport 7777 -j DNAT --to-destination " + to,
        "-p udp -m multiport --dports 7000,7001:7005 -j DNAT --to-destination " + to,
        '-p tcp -m comment --comment "see --dport 1234" --dport 7100 -j REDIRECT --to-ports 80',
        "-p tcp ! --dport 7200 -j RETURN",
        "-p tcp --dport 7300 -j ACCEPT",
    ]
    for rule in rules:
        ns.run("sh", "-c", f"{program}-{variant} -w -t nat -A PREROUTING {rule}")
    spans = set(RulesetScan().redirected())
    assert spans == {("tcp", 7777, 7777), ("udp", 7000, 7000), ("udp", 7001, 7005), ("tcp", 7100, 7100)}


def test_scan_costs_little_when_this_projects_maps_are_large(ns):
    numbers = ",".join(f"{port} : 10.0.0.1 . 80" for port in range(20000, 40000))
    ns.run(
        "nft",
        "-f",
        "-",
        stdin=f"table inet cnimeta_big {{\nmap m {{\ntype inet_service : ipv4_addr . inet_service\nelements = {{ {numbers} }}\n}}\n}}\n",
    )
    full = time.monotonic()
    subprocess.run(["nft", "list", "ruleset"], check=True, capture_output=True)
    full = time.monotonic() - full
    start = time.monotonic()
    assert RulesetScan().redirected() == []
    assert time.monotonic() - start < full / 2


def test_scan_fails_when_rules_are_there_and_nft_cannot_list_them(ns):
    ns.run("nft", "-f", "-", stdin="table inet other { }")
    log: list[str] = []
    scan = RulesetScan(log.append, run=lambda *_: Completed(1, b"", b"netlink: Error"), proc="/nowhere")
    with pytest.raises(IoFailure, match="netlink: Error"):
        scan.redirected()
    assert len(log) == 2  # it was tried again


def test_scan_succeeds_when_a_listing_fails_in_passing(ns):
    ns.run("nft", "-f", "-", stdin=FOREIGN)
    answers = [Completed(1, b"", b"No such file or directory")]

    def run(*arguments):
        return answers.pop() if answers else run_program(*arguments)

    assert ("tcp", 8080, 8080) in RulesetScan(run=run).redirected()


@pytest.mark.parametrize("table", [None, "inet cnimeta_other"])
def test_scan_starts_nothing_when_no_table_of_others_is_there(ns, table):
    def run(*arguments):
        pytest.fail(f"started {arguments}")

    if table:
        ns.run("nft", "add", "table", *table.split())
    assert RulesetScan(run=run).redirected() == []


def test_drop_filter_is_one_instruction_that_accepts_nothing():
    from cnimeta.host import sockets

    assert struct.unpack("HBBI", sockets._DROP_ALL) == (0x06, 0, 0, 0)


@pytest.mark.parametrize("text", ["32768", "32768\tsixty", "", "1 2 3"])
def test_setting_that_says_something_else_is_unknown(tmp_path: Path, text: str) -> None:
    folder = tmp_path / "sys/net/ipv4"
    folder.mkdir(parents=True)
    for name in ("ip_local_port_range", "ip_local_reserved_ports"):
        (folder / name).write_text(f"{text}\n", encoding="ascii")
    sockets = NodeSockets(str(tmp_path))
    with pytest.raises(IoFailure, match="ip_local_port_range"):
        sockets.ephemeral()
    if text not in ("32768", ""):
        with pytest.raises(IoFailure, match="ip_local_reserved_ports"):
            list(sockets.reserved())
