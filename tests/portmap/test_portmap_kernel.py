"""portmap on the real kernel: nftables takes what the fake takes, and packets go where they should."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from portmap_kit import Host, conf, tcp

from cnimeta.cli.install import install
from cnimeta.errors import CniError
from cnimeta.host.nftables.kernel import KernelNft
from cnimeta.host.nftables.values import Chain, Change, Element
from cnimeta.spec.jsonio import dumps
from cnimeta.testing import call
from cnimeta_plugins.portmap.main import Portmap
from cnimeta_plugins.portmap.nftables.rules import TABLE
from cnimeta_plugins.portmap.wiring import host_mapper

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cnimeta.testing.netns import Namespace

pytestmark = pytest.mark.kernel

NODE, NODE6, CLIENT, CLIENT6, BEYOND = "192.0.2.1", "2001:db8::1", "192.0.2.9", "2001:db8::9", "198.51.100.7"


# --- one suite on the fake and on the kernel -------------------------------------------------------------


@pytest.fixture(params=["fake", "kernel"])
def host(request: pytest.FixtureRequest, make_netns: Callable[[str], Namespace]) -> Iterator[Host]:
    if request.param == "fake":
        yield Host()
        return
    with make_netns("nft").entered():
        yield Host(KernelNft(TABLE))


def elements(host: Host) -> set[tuple[str, str, str]]:
    names = ("any4", "host4", "range4", "snat4", "claims4", "hostclaims4", "addresses4", "any6", "claims6", "snat6")
    return {(name, one.key, one.value) for name in names for one in host.nft.elements(name)}


def test_life_of_an_attachment_leaves_nothing_when_it_ends(host: Host) -> None:
    mappings = [tcp(8080), tcp(9000, 9000, endPort=9010), tcp(7070, hostIP=NODE), tcp(53, 53, protocol="udp")]
    body = conf(*mappings, ips=("10.88.0.2/16", "fd00::2/64"))
    host.call("ADD", body)
    first = elements(host)
    assert ("any4", "tcp . 8080", "10.88.0.2 . 80") in first
    assert ("range4", "tcp . 9000-9010", "10.88.0.2") in first
    host.call("ADD", body)
    assert elements(host) == first
    host.call("CHECK", body)
    host.call("ADD", conf(*mappings, ips=("10.88.0.5/16", "fd00::2/64")))
    assert ("any4", "tcp . 8080", "10.88.0.5 . 80") in elements(host)
    host.call("DEL", body)
    host.call("DEL", body)
    assert elements(host) == set()


def test_conflict_changes_nothing_when_it_is_the_last_of_many(host: Host) -> None:
    host.call("ADD", conf(tcp(8080)))
    before = elements(host)
    with pytest.raises(CniError, match="8080/tcp is already mapped for container c1"):
        host.call("ADD", conf(tcp(8081), tcp(8082), tcp(8080), ips=("10.88.0.3/16",)), container_id="c2")
    assert elements(host) == before


def test_dead_owners_go_when_their_ports_are_asked_for(host: Host) -> None:
    for number in range(6):
        ips = (f"10.88.1.{number + 1}/16",)
        host.call("ADD", conf(tcp(8000 + number), ips=ips), container_id=f"old{number}")
    host.boot = "boot-2"
    host.call("ADD", conf(*[tcp(8000 + number) for number in range(6)]), container_id="new")
    assert {key for name, key, _ in elements(host) if name == "addresses4"} == {"10.88.0.2"}


def test_auto_takes_iptables_when_nft_is_there_and_the_kernel_refuses_it(
    make_netns: Callable[[str], Namespace], tmp_path: Path
) -> None:
    (tmp_path / "bin").mkdir()
    nft = tmp_path / "bin" / "nft"
    nft.write_text("#!/bin/sh\necho '/dev/stdin:1:1-9: Error: Operation not supported' >&2\nexit 1\n")
    nft.chmod(0o755)
    body = conf(tcp(8080), dataDir=str(tmp_path / "state"))
    with make_netns("auto").entered():
        path = f"{tmp_path}/bin:/usr/sbin:/usr/bin:/sbin:/bin"
        for verb in ("STATUS", "ADD", "CHECK", "DEL"):
            call(Portmap(lambda request: host_mapper({"PATH": path}, request.log)), verb, body)


def test_conditions_come_and_go_when_the_container_does(host: Host) -> None:
    body = conf(tcp(8080), conditionsV4=["ip saddr 192.0.2.0/24"])
    host.call("ADD", body)
    host.call("ADD", body)
    host.call("CHECK", body)
    assert len(host.nft.rules("conditional")) == 1
    host.call("DEL", body)
    assert host.nft.rules("conditional") == []
    assert elements(host) == set()


@pytest.mark.parametrize(
    "chain", ["prerouting", "output", "hostports", "postrouting", "masquerading", "guard", "masq-10.88.0.0/16"]
)
def test_the_next_add_heals_when_a_chain_was_flushed(host: Host, chain: str) -> None:
    host.call("ADD", conf(tcp(8080)))
    host.call("ADD", conf(tcp(8082), ips=("10.88.0.4/16",), conditionsV4=["ip saddr 192.0.2.0/24"]), container_id="c3")
    before = [rule._replace(handle="") for rule in host.nft.rules(chain)]
    host.nft.apply([Change("flush", Chain(chain))])
    with pytest.raises(CniError) as caught:
        host.call("CHECK", conf(tcp(8080)))
    assert caught.value.code == 101
    host.call("ADD", conf(tcp(8081), ips=("10.88.0.3/16",)), container_id="c2")
    assert [rule._replace(handle="") for rule in host.nft.rules(chain)] == before
    host.call("CHECK", conf(tcp(8080)))
    host.call(
        "CHECK", conf(tcp(8082), ips=("10.88.0.4/16",), conditionsV4=["ip saddr 192.0.2.0/24"]), container_id="c3"
    )


STRANGE = {
    "a rule too many": ["insert rule inet cnimeta_hostports hostports tcp dport 8080 accept"],
    "a rule twice": ["add rule inet cnimeta_hostports postrouting ct status dnat jump masquerading"],
    "too many in the subnet's chain": ["insert rule inet cnimeta_hostports masq-10.88.0.0/16 return"],
    "out of order": [
        "flush chain inet cnimeta_hostports masquerading",
        "add rule inet cnimeta_hostports masquerading ip6 daddr vmap @snat6",
        "add rule inet cnimeta_hostports masquerading ip daddr vmap @snat4",
    ],
    "another in its place": [
        "flush chain inet cnimeta_hostports postrouting",
        "add rule inet cnimeta_hostports postrouting ct status snat jump masquerading",
    ],
    "somebody else's among the conditions": ["insert rule inet cnimeta_hostports conditional tcp dport 1-9999 accept"],
}


@pytest.mark.parametrize("name", STRANGE)
def test_the_whole_base_is_checked_and_repaired_when_somebody_changed_it(net: Net, name: str) -> None:
    condition = {"conditionsV4": ["ip saddr 192.0.2.0/24"]}
    net.call("ADD", tcp(8080))
    net.call("ADD", tcp(8081), number=3, **condition)
    before = net.node.run("nft", "-s", "list", "ruleset").stdout
    net.node.run("nft", "-f", "-", stdin="\n".join(STRANGE[name]))
    with pytest.raises(CniError) as caught:
        net.call("CHECK", tcp(8080))
    assert caught.value.code == 101
    with net.node.entered():
        mapper = Portmap().port_mapper()
        assert any(one.error for one in mapper.compare(str(net.folder), print, ()).others)
        assert [one.error for one in mapper.repair(str(net.folder), print)] == ["", ""]
    net.call("CHECK", tcp(8080))
    net.call("CHECK", tcp(8081), number=3, **condition)
    assert net.node.run("nft", "-s", "list", "ruleset").stdout == before


@pytest.mark.parametrize("name", ["a rule too many", "a rule twice", "too many in the subnet's chain"])
def test_the_next_add_heals_when_the_kernel_counts_a_rule_too_many(net: Net, name: str) -> None:
    net.call("ADD", tcp(8080))
    net.node.run("nft", "-f", "-", stdin="\n".join(STRANGE[name]))
    net.call("ADD", tcp(8081), number=3)
    net.call("CHECK", tcp(8080))


def test_nothing_is_left_when_claims_were_flushed_and_another_took_the_port(host: Host) -> None:
    first = conf(tcp(8080), tcp(9000, 9000, endPort=9003), tcp(7000, 1, endPort=7002))
    host.call("ADD", first)
    before = list(host.nft.elements("any4"))
    for one in host.nft.elements("claims4"):
        host.nft.apply([Change("delete", one)])
    other = conf(*first["runtimeConfig"]["portMappings"], ips=("10.88.0.3/16",), conditionsV4=["ip saddr 192.0.2.9"])
    host.call("ADD", other, container_id="c2")
    host.call("DEL", first)
    assert before != []
    assert [one for name in ("any4", "range4", "snat4") for one in host.nft.elements(name) if "0.2" in one.value] == []
    host.call("CHECK", other, container_id="c2")
    host.call("DEL", other, container_id="c2")
    assert elements(host) == set()


def test_a_shared_claim_goes_when_its_last_owner_asks_for_something_else_or_gives_way(host: Host) -> None:
    host.call("ADD", conf(tcp(8080, hostIP=NODE)))
    host.call("ADD", conf(tcp(8081)))
    assert [one.key for one in host.nft.elements("claims4")] == ["tcp . 8081"]
    host.call("ADD", conf(tcp(8080, hostIP=NODE), tcp(8082, hostIP=NODE)))
    host.namespaces.gone.add("/run/netns/c1")
    host.call("ADD", conf(tcp(8082, hostIP=NODE), ips=("10.88.0.3/16",)), container_id="c2")
    assert [one.key for one in host.nft.elements("claims4")] == ["tcp . 8082"]


def test_a_subnets_chain_goes_when_its_last_container_does(host: Host) -> None:
    chain = "masq-10.88.0.0/16"
    host.call("ADD", conf(tcp(8080)))
    host.call("ADD", conf(tcp(8081), ips=("10.88.0.3/16", "fd00::3/128")), container_id="c2")
    base = set(host.nft.chain_uses())
    host.call("DEL", conf(), container_id="c1")
    assert set(host.nft.chain_uses()) == base
    host.call("ADD", conf(tcp(8081), ips=("10.99.0.3/24", "fd00::3/128")), container_id="c2")
    assert chain not in host.nft.chain_uses()
    for number in range(5):
        host.call("ADD", conf(tcp(8081), ips=(f"10.99.0.{number}/32",)), container_id="c2")
    host.call("DEL", conf(), container_id="c2")
    assert {name for name in host.nft.chain_uses() if name.startswith("masq-")} == set()


def test_old_subnets_chains_go_when_collected(host: Host) -> None:
    host.call("ADD", conf(tcp(8080)))
    host.nft.apply([Change("add", Chain("masq-10.1.0.0/16")), Change("add", Chain("masq-all"))])
    host.call("GC", {**conf(), "cni.dev/valid-attachments": [{"containerID": "c1", "ifname": "eth0"}]})
    assert {name for name in host.nft.chain_uses() if name.startswith("masq-")} == {"masq-10.88.0.0/16"}


def test_check_tells_what_is_missing_when_an_element_was_taken(host: Host) -> None:
    host.call("ADD", conf(tcp(8080)))
    host.nft.apply([Change("delete", Element("any4", "tcp . 8080", ""))])
    with pytest.raises(CniError, match="any4") as caught:
        host.call("CHECK", conf(tcp(8080)))
    assert caught.value.code == 101


# --- traffic ---------------------------------------------------------------------------------------------


class Net:
    """A node with a bridge, two containers on it, and a client with a second network behind the node."""

    def __init__(self, make: Callable[[str], Namespace], folder: Path) -> None:
        self.node, self.client = make("node"), make("client")
        self.c1, self.c2 = make("c1"), make("c2")
        self.folder = folder
        node, client = self.node, self.client
        for namespace in (node, client, self.c1, self.c2):  # addresses are usable at once
            namespace.run("sysctl", "-qw", "net.ipv6.conf.default.accept_dad=0", "net.ipv6.conf.all.accept_dad=0")
        node.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")
        node.veth("up0", client, "eth0")
        node.run("ip", "addr", "add", f"{NODE}/24", "dev", "up0")
        node.run("ip", "addr", "add", f"{NODE6}/64", "dev", "up0", "nodad")
        client.run("ip", "addr", "add", f"{CLIENT}/24", "dev", "eth0")
        client.run("ip", "addr", "add", f"{CLIENT6}/64", "dev", "eth0", "nodad")
        client.run("ip", "addr", "add", f"{BEYOND}/32", "dev", "lo")
        client.run("ip", "route", "add", "10.88.0.0/16", "via", NODE)
        node.run("ip", "route", "add", f"{BEYOND}/32", "via", CLIENT)
        node.run("ip", "link", "add", "br0", "type", "bridge")
        node.run("ip", "addr", "add", "10.88.0.1/16", "dev", "br0")
        node.run("ip", "addr", "add", "fd00::1/64", "dev", "br0", "nodad")
        node.run("ip", "link", "set", "br0", "up")
        for index, container in ((2, self.c1), (3, self.c2)):
            node.veth(f"v{index}", container, "eth0")
            node.run("ip", "link", "set", f"v{index}", "master", "br0")
            node.run("bridge", "link", "set", "dev", f"v{index}", "hairpin", "on")
            container.run("ip", "addr", "add", f"10.88.0.{index}/16", "dev", "eth0")
            container.run("ip", "addr", "add", f"fd00::{index}/64", "dev", "eth0", "nodad")
            container.run("ip", "route", "add", "default", "via", "10.88.0.1")
            container.run("ip", "-6", "route", "add", "default", "via", "fd00::1")

    def call(self, verb: str, *mappings: dict[str, Any], number: int = 2, **keys: Any) -> Any:
        body = conf(*mappings, ips=(f"10.88.0.{number}/16", f"fd00::{number}/64"), dataDir=str(self.folder), **keys)
        netns = {2: self.c1, 3: self.c2}[number].path
        with self.node.entered():
            return call(Portmap(), verb, body, container_id=f"c{number}", netns=netns)


@pytest.fixture
def net(make_netns: Callable[[str], Namespace], tmp_path: Path) -> Net:
    return Net(make_netns, tmp_path)


@contextlib.contextmanager
def serving(where: Namespace, port: int, protocol: str = "tcp") -> Iterator[None]:
    """Answer with the caller's address, IPv4 and IPv6."""
    kind = socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM
    with where.entered():
        listener = socket.socket(socket.AF_INET6, kind)
        listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        listener.bind(("::", port))
    if protocol == "tcp":
        listener.listen(64)

    def serve() -> None:
        with contextlib.suppress(OSError):
            while True:
                if protocol == "tcp":
                    connection, peer = listener.accept()
                    with connection:
                        connection.sendall(peer[0].encode())
                else:
                    data, peer = listener.recvfrom(100)
                    if not data:
                        return
                    listener.sendto(peer[0].encode(), peer)

    thread = threading.Thread(target=serve, daemon=True)
    thread.start()
    yield
    with contextlib.suppress(OSError):
        listener.shutdown(socket.SHUT_RDWR)
    listener.close()
    thread.join(5)


def ask(source: Namespace, address: str, port: int, protocol: str = "tcp", timeout: float = 2) -> str:
    """The address that the other side saw; "refused" or "silence" when there is no answer."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with source.entered():
        channel = socket.socket(family, socket.SOCK_STREAM if protocol == "tcp" else socket.SOCK_DGRAM)
    with channel:
        channel.settimeout(timeout)
        try:
            channel.connect((address, port))
            if protocol == "udp":
                channel.send(b"?")
            return channel.recv(100).decode().removeprefix("::ffff:")
        except ConnectionRefusedError:
            return "refused"
        except OSError:
            return "silence"


def test_container_answers_when_asked_from_anywhere(net: Net) -> None:
    net.call("ADD", tcp(8080))
    with serving(net.c1, 80):
        assert ask(net.client, NODE, 8080) == CLIENT
        assert ask(net.client, NODE6, 8080) == CLIENT6
        assert ask(net.node, NODE, 8080) == NODE
        assert ask(net.node, "127.0.0.1", 8080) == "10.88.0.1"
        assert ask(net.node, NODE6, 8080) == NODE6
        assert ask(net.node, "::1", 8080) == "refused"
        assert ask(net.c1, NODE, 8080) == "10.88.0.1"
        assert ask(net.c1, NODE6, 8080) != "silence"
        assert ask(net.c2, NODE, 8080) == "10.88.0.1"
        net.call("DEL")
        assert ask(net.client, NODE, 8080) == "refused"


def test_udp_answers_when_mapped(net: Net) -> None:
    net.call("ADD", {"hostPort": 5353, "containerPort": 53, "protocol": "udp"})
    with serving(net.c1, 53, "udp"):
        assert ask(net.client, NODE, 5353, "udp") == CLIENT
        assert ask(net.client, NODE6, 5353, "udp") == CLIENT6


def test_udp_client_reaches_the_new_container_when_it_keeps_sending(net: Net) -> None:
    mapping = {"hostPort": 5353, "containerPort": 53, "protocol": "udp"}
    with net.client.entered():
        channel = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    channel.settimeout(2)
    channel.connect((NODE, 5353))
    with channel, serving(net.c1, 53, "udp"), serving(net.c2, 53, "udp"):
        net.call("ADD", mapping)
        channel.send(b"?")
        assert channel.recv(100)
        net.call("DEL", mapping)
        net.call("ADD", mapping, number=3)
        channel.send(b"?")
        assert channel.recv(100)
        flows = net.node.run("conntrack", "-L", "-p", "udp").stdout
    assert "src=10.88.0.3" in flows
    assert "src=10.88.0.2" not in flows


def flow(net: Net, source: str, target: str) -> None:
    """A masqueraded client's flow to another host's port, which was never translated here."""
    tuples = ("-s", source, "-d", target, "--reply-src", target, "--reply-dst", NODE)
    ports = ("--sport", "4000", "--dport", "5353", "--reply-port-src", "5353", "--reply-port-dst", "4000")
    net.node.run("conntrack", "-I", "-p", "udp", "-t", "300", *tuples, *ports)


def test_another_hosts_flows_stay_when_the_same_port_comes_and_goes(net: Net) -> None:
    mapping = {"hostPort": 5353, "containerPort": 53, "protocol": "udp"}
    flow(net, "10.88.0.3", BEYOND)
    for verb in ("ADD", "ADD", "DEL"):
        net.call(verb, mapping)
        assert f"dst={BEYOND}" in net.node.run("conntrack", "-L", "-p", "udp").stdout, verb


def test_localhost_answers_when_everything_is_masqueraded_on_a_fresh_node(net: Net) -> None:
    net.call("ADD", tcp(8080), masqAll=True)
    with serving(net.c1, 80):
        assert ask(net.node, "127.0.0.1", 8080) == "10.88.0.1"


def test_other_hosts_traffic_passes_when_its_port_is_mapped(net: Net) -> None:
    net.call("ADD", tcp(8080))
    with serving(net.c1, 80), serving(net.client, 8080):
        assert ask(net.c2, BEYOND, 8080) == "10.88.0.3"
        assert ask(net.node, BEYOND, 8080) == NODE


def test_one_address_is_mapped_when_the_mapping_names_it(net: Net) -> None:
    net.node.run("ip", "addr", "add", "192.0.2.2/24", "dev", "up0")
    net.call("ADD", tcp(8080, hostIP="192.0.2.2"), tcp(8081))
    with serving(net.c1, 80):
        assert ask(net.client, "192.0.2.2", 8080) == CLIENT
        assert ask(net.client, NODE, 8080) == "refused"
        assert ask(net.client, "192.0.2.2", 8081) == CLIENT


@pytest.mark.parametrize("container_port", [9000, 80])
def test_range_answers_at_both_ends_when_mapped(net: Net, container_port: int) -> None:
    net.call("ADD", tcp(9000, container_port, endPort=9003))
    with serving(net.c1, container_port), serving(net.c1, container_port + 3):
        assert ask(net.client, NODE, 9000) == CLIENT
        assert ask(net.client, NODE, 9003) == CLIENT
        assert ask(net.client, NODE, 9004) == "refused"


def test_conditions_are_the_containers_own_when_two_are_mapped(net: Net) -> None:
    net.call("ADD", tcp(8080), conditionsV4=["ip saddr 203.0.113.0/24"])
    net.call("ADD", tcp(8081), number=3, conditionsV4=[f"ip saddr {CLIENT}"])
    with serving(net.c1, 80), serving(net.c2, 80):
        assert ask(net.client, NODE, 8080) == "refused"
        assert ask(net.client, NODE, 8081) == CLIENT


@pytest.mark.parametrize("snat", [True, False])
def test_no_mark_is_on_any_packet_and_others_marks_mean_nothing(net: Net, snat: bool) -> None:
    net.call("ADD", tcp(8080), snat=snat)
    counted = "table inet probe { chain f { type filter hook forward priority 0; meta mark != 0 counter; }; }"
    marking = "table inet other { chain p { type filter hook prerouting priority -300; ip saddr 10.88.0.3 meta mark set"
    net.node.run("nft", counted)
    with serving(net.c1, 80), serving(net.client, 9090):
        assert ask(net.client, NODE, 8080) == CLIENT
        assert ask(net.c2, NODE, 8080, timeout=0.5) in (("10.88.0.1",) if snat else ("silence", "10.88.0.3"))
        assert "packets 0" in net.node.run("nft", "list", "table", "inet", "probe").stdout
        net.node.run("nft", f"{marking} 0x1000; }}; }}")
        assert ask(net.c2, BEYOND, 9090) == "10.88.0.3"


@pytest.mark.parametrize("backend", ["nftables"])
def test_loopback_services_stay_the_hosts_own_when_localhost_is_mapped(net: Net, backend: str) -> None:
    net.call("ADD", tcp(8080), tcp(7070, hostIP="127.0.0.1"), backend=backend)
    net.c2.run("sysctl", "-qw", "net.ipv4.conf.eth0.route_localnet=1")
    net.c2.run("ip", "route", "del", "local", "127.0.0.0/8", "table", "local")
    net.c2.run("ip", "route", "del", "local", "127.0.0.1", "table", "local")
    net.c2.run("ip", "route", "add", "127.0.0.1", "via", "10.88.0.1", "src", "10.88.0.3")
    with serving(net.node, 5000), serving(net.c1, 80):
        assert ask(net.node, "127.0.0.1", 5000) == "127.0.0.1"
        assert ask(net.node, "127.0.0.1", 8080) == "10.88.0.1"
        assert ask(net.node, "127.0.0.1", 7070) == "10.88.0.1"
        for port in (5000, 8080, 7070):
            assert ask(net.c2, "127.0.0.1", port, timeout=0.5) == "silence"


def test_source_is_hidden_when_everything_is_masqueraded(net: Net) -> None:
    net.call("ADD", tcp(8080), masqAll=True)
    with serving(net.c1, 80):
        assert ask(net.client, NODE, 8080) == "10.88.0.1"


def test_source_is_kept_when_nothing_is_masqueraded(net: Net) -> None:
    net.call("ADD", tcp(8080), snat=False)
    with serving(net.c1, 80):
        assert ask(net.client, NODE, 8080) == CLIENT
        assert ask(net.node, "127.0.0.1", 8080, timeout=0.5) in ("refused", "silence")


def test_mappings_come_back_when_the_rules_were_flushed(net: Net) -> None:
    net.call("ADD", tcp(8080))
    net.node.run("nft", "flush", "ruleset")
    net.call("ADD", tcp(8080))
    net.call("CHECK", tcp(8080))
    with serving(net.c1, 80):
        assert ask(net.client, NODE, 8080) == CLIENT


def test_one_backend_maps_when_it_is_changed_between_adds(net: Net) -> None:
    def mapped() -> tuple[int, int]:
        with net.node.entered():
            elements = KernelNft(TABLE).elements("any4")
        return len(elements), net.node.run("iptables-save", "-t", "nat").stdout.count("-j DNAT")

    with serving(net.c1, 80):
        for backend, seen in (("nftables", (1, 0)), ("iptables", (0, 1)), ("nftables", (1, 0))):
            net.call("ADD", tcp(8080), backend=backend)
            net.call("CHECK", tcp(8080), backend=backend)
            assert mapped() == seen
            assert ask(net.client, NODE, 8080) == CLIENT
    net.call("DEL", backend="iptables")
    assert mapped() == (0, 0)


# --- processes -------------------------------------------------------------------------------------------


@pytest.fixture
def portmap(tmp_path: Path) -> str:
    install(str(tmp_path), ["portmap"])
    return str(tmp_path / "portmap")


def start(net: Net, program: str, verb: str, container_id: str, body: dict[str, Any]) -> subprocess.Popen[str]:
    environ = {
        "PATH": "/usr/sbin:/usr/bin:/sbin:/bin",
        "CNI_COMMAND": verb,
        "CNI_CONTAINERID": container_id,
        "CNI_NETNS": f"/run/netns/of-{container_id}",  # a namespace of its own: those of one share its ports
        "CNI_IFNAME": "eth0",
        "CNI_PATH": "/opt/cni/bin",
    }
    process = subprocess.Popen(
        ["ip", "netns", "exec", net.node.name, program],
        env=environ,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stdin is not None
    process.stdin.write(dumps(body))
    process.stdin.close()
    process.stdin = None
    return process


def test_nothing_is_lost_when_a_hundred_commands_run_at_once(net: Net, portmap: str, tmp_path: Path) -> None:
    bodies = {
        f"c{number}": conf(
            tcp(10000 + number),
            ips=(f"10.88.{2 + number // 200}.{number % 200 + 1}/16",),
            dataDir=str(tmp_path / "state"),
        )
        for number in range(100)
    }
    for verb, left in (("ADD", 100), ("DEL", 0)):
        running = {name: start(net, portmap, verb, name, body) for name, body in bodies.items()}
        answers = {name: (process.communicate(timeout=90), process.returncode) for name, process in running.items()}
        assert {name: out for name, (out, code) in answers.items() if code != 0} == {}
        with net.node.entered():
            assert len(KernelNft(TABLE).elements("any4")) == left
    assert list((tmp_path / "state" / "portmap").iterdir()) == []


def test_one_wins_when_many_ask_for_the_same_port_at_once(net: Net, portmap: str, tmp_path: Path) -> None:
    running = [
        start(
            net, portmap, "ADD", f"c{n}", conf(tcp(8080), ips=(f"10.88.3.{n + 1}/16",), dataDir=str(tmp_path / "state"))
        )
        for n in range(12)
    ]
    answers = [process.communicate(timeout=60)[0] for process in running]
    codes = [process.returncode for process in running]
    assert codes.count(0) == 1
    assert sum('"code":100' in answer for answer in answers) == 11
    assert len(list((tmp_path / "state" / "portmap").iterdir())) == 1


def test_reference_plugins_rules_go_when_ours_deletes(net: Net, portmap: str, tmp_path: Path) -> None:
    body = conf(tcp(8080), version="1.0.0", dataDir=str(tmp_path / "state"))
    theirs = start(net, "/usr/lib/cni/portmap", "ADD", "c1", body)
    out, err = theirs.communicate(timeout=30)
    assert theirs.returncode == 0, out + err
    assert "CNI-DN-" in net.node.run("iptables-save", "-t", "nat").stdout
    ours = start(net, portmap, "DEL", "c1", {"cniVersion": "1.0.0", "name": "net", "type": "portmap"})
    assert ours.wait(30) == 0
    assert "CNI-DN-" not in net.node.run("iptables-save", "-t", "nat").stdout


@pytest.mark.parametrize("backend", ["nftables", "iptables"])
def test_a_port_of_the_reference_plugins_is_refused_naming_its_owner(
    net: Net, portmap: str, tmp_path: Path, backend: str
) -> None:
    keys = {"version": "1.0.0", "dataDir": str(tmp_path / "state")}
    theirs = start(net, "/usr/lib/cni/portmap", "ADD", "c1", conf(tcp(8080), **keys))
    assert theirs.wait(30) == 0
    for number, codes in ((8080, (1, '"code":100')), (8081, (0, '"ips"'))):
        body = conf(tcp(number), ips=("10.88.0.3/16",), backend=backend, **keys)
        ours = start(net, portmap, "ADD", "c2", body)
        out, _ = ours.communicate(timeout=30)
        assert (ours.returncode, codes[1] in out) == (codes[0], True), out
        assert number == 8081 or "c1" in out


def test_a_port_of_the_reference_plugins_nftables_rules_is_refused(net: Net) -> None:
    rule = 'tcp dport 8080 dnat to 10.88.0.3:80 comment "theirs"'
    net.node.run("nft", f"table ip cni_hostport {{ chain hostports {{ {rule}; }}; chain hostip_hostports {{ }}; }}")
    for mapping in (tcp(8080), tcp(8080, hostIP=NODE), tcp(8000, 8000, endPort=8100)):
        with pytest.raises(CniError, match="8080/tcp is already mapped for container theirs") as caught:
            net.call("ADD", mapping)
        assert caught.value.code == 100
    net.call("ADD", tcp(8081), tcp(8080, hostIP=NODE6))


def test_no_process_is_started_on_the_way_of_a_verb(net: Net, portmap: str, tmp_path: Path) -> None:
    """Nor by the first ADD on a node, which builds the base; the launcher itself is the only program."""
    trace = tmp_path / "trace"
    wrapper = tmp_path / "traced"
    wrapper.write_text(f"#!/bin/sh\nexec strace -f -e trace=execve -o {trace} {portmap}\n")
    wrapper.chmod(0o755)
    udp = {"hostPort": 53, "containerPort": 53, "protocol": "udp"}
    body = conf(tcp(8080), udp, tcp(9000, 9000, endPort=9010), dataDir=str(tmp_path / "state"))
    for verb in ("ADD", "ADD", "CHECK", "STATUS", "DEL", "DEL", "ADD", "GC"):
        process = start(net, str(wrapper), verb, "c1", body | {"cni.dev/valid-attachments": []})
        out, _ = process.communicate(timeout=30)
        assert process.returncode == 0, out
        started = [line for line in trace.read_text().splitlines() if "execve(" in line and " = 0" in line]
        assert len(started) == 1, (verb, started)


@pytest.mark.parametrize(("backend", "other"), [("nftables", "iptables"), ("iptables", "nftables")])
def test_no_other_backend_is_loaded_when_a_port_is_mapped(
    net: Net, portmap: str, tmp_path: Path, backend: str, other: str
) -> None:
    text = Path(portmap).read_text()
    told = "import atexit\natexit.register(lambda: sys.stderr.write(' '.join(sys.modules)))\n"
    Path(portmap).write_text(text.replace("import sys\n", "import sys\n" + told, 1))
    body = conf(tcp(8080), dataDir=str(tmp_path / "state"), backend=backend)
    process = start(net, portmap, "ADD", "c1", body)
    out, loaded = process.communicate(timeout=30)
    assert process.returncode == 0, out
    modules = [name for name in loaded.split() if name.startswith("cnimeta_plugins.portmap.")]
    assert f"cnimeta_plugins.portmap.{backend}.backend" in modules
    assert [name for name in modules if f".{other}." in name and not name.endswith(".names")] == []  # names: cheap
    assert "cnimeta_plugins.portmap.port_mapper" not in modules


def test_all_mappings_are_back_when_repaired_after_a_flush(net: Net) -> None:
    net.call("ADD", tcp(8080))
    net.call("ADD", tcp(8081), number=3)
    with net.node.entered():
        before = {name: KernelNft(TABLE).elements(name) for name in ("any4", "any6", "claims4", "snat4")}
        net.node.run("nft", "flush", "ruleset")
        results = Portmap().port_mapper().repair(str(net.folder), print, ())
        after = {name: KernelNft(TABLE).elements(name) for name in before}
    assert sorted((found.container_id, found.error) for found in results) == [("c2", ""), ("c3", "")]
    assert after == before
    net.call("CHECK", tcp(8080))
