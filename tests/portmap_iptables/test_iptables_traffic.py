"""Packets through the executable's iptables rules: what upstream's integration suite does, with IPv6, SCTP and ranges."""

import json
import os
import sys
import textwrap

import pytest
import sctp

from cnimeta.cli.install import install

pytestmark = pytest.mark.kernel

SERVER = """
    import socket, sys, threading
    family, protocol, port, name = socket.AF_INET6, sys.argv[1], int(sys.argv[2]), sys.argv[3].encode()
    if protocol == "udp":
        server = socket.socket(family, socket.SOCK_DGRAM)
        server.bind(("::", port))
        print("ready", flush=True)
        while True:
            data, peer = server.recvfrom(64)
            server.sendto(name, peer)
    server = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_SCTP if protocol == "sctp" else 0)
    server.bind(("::", port))
    server.listen()
    print("ready", flush=True)
    while True:
        connection, _ = server.accept()
        connection.sendall(name)
        connection.close()
"""
CLIENT = """
    import socket, sys
    protocol, address, port = sys.argv[1], sys.argv[2], int(sys.argv[3])
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    kind = socket.SOCK_DGRAM if protocol == "udp" else socket.SOCK_STREAM
    client = socket.socket(family, kind, socket.IPPROTO_SCTP if protocol == "sctp" else 0)
    client.settimeout(2)
    client.connect((address, port))
    if protocol == "udp":
        client.send(b"hello")
    print(client.recv(64).decode())
"""
_WITH_SCTP = f"""
    import socket, sys
    sys.path.insert(0, {os.path.dirname(sctp.__file__)!r})
    import sctp
"""
SCTP_SENDER = f"""{_WITH_SCTP}
    address, port = sys.argv[1], int(sys.argv[2])
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    socket.socket(family, socket.SOCK_RAW, sctp.PROTOCOL).sendto(sctp.init_from(5000, port), (address, 0))
"""
SCTP_RECEIVER = f"""{_WITH_SCTP}
    family = socket.AF_INET6 if sys.argv[1] == "6" else socket.AF_INET
    server = socket.socket(family, socket.SOCK_RAW, sctp.PROTOCOL)
    print("ready", flush=True)
    print(*sctp.ports_of(server.recv(2048), family), flush=True)
"""
HOST4, HOST6 = "192.0.2.1", "2001:db8:1::1"


class Node:
    """A host with one variant of iptables, a client outside, and containers behind it."""

    def __init__(self, make_netns, tmp_path, variant):
        self.make_netns, self.tmp_path, self.variant = make_netns, tmp_path, variant
        self.host, self.client = self._namespace("host"), self._namespace("cli")
        self.servers = []
        self.folder = tmp_path / "bin"
        self.folder.mkdir()
        for stem in ("iptables", "ip6tables"):
            for suffix in ("", "-save", "-restore"):
                (self.folder / f"{stem}{suffix}").symlink_to(f"/usr/sbin/{stem}-{variant}{suffix}")
        self.portmap = tmp_path / "portmap"
        install(str(tmp_path), ["portmap"])
        self.host.veth("out", self.client, "eth0")
        self._address(self.host, "out", f"{HOST4}/24", f"{HOST6}/64")
        self._address(self.client, "eth0", "192.0.2.2/24", "2001:db8:1::2/64")
        self.host.run("sysctl", "-qw", "net.ipv4.ip_forward=1", "net.ipv6.conf.all.forwarding=1")

    def _namespace(self, label):
        namespace = self.make_netns(label)
        for name in ("all", "default"):  # addresses usable at once
            namespace.run("sysctl", "-qw", f"net.ipv6.conf.{name}.accept_dad=0")
        return namespace

    @staticmethod
    def _address(namespace, link, *addresses):
        for address in addresses:
            extra = ["nodad"] if ":" in address else []
            namespace.run("ip", "addr", "add", address, "dev", link, *extra)

    def container(self, number):
        namespace = self._namespace(f"c{number}")
        link = f"v{number}"
        self.host.veth(link, namespace, "eth0")
        self._address(self.host, link, f"10.88.{number}.1/24", f"fd00:88:{number}::1/64")
        self._address(namespace, "eth0", f"10.88.{number}.2/24", f"fd00:88:{number}::2/64")
        namespace.run("ip", "route", "add", "default", "via", f"10.88.{number}.1")
        namespace.run("ip", "route", "add", "default", "via", f"fd00:88:{number}::1")
        return namespace

    def serve(self, namespace, protocol, port, name):
        server = namespace.start(sys.executable, "-c", textwrap.dedent(SERVER), protocol, str(port), name)
        self.servers.append(server)
        assert server.stdout.readline() == "ready\n"

    def ask(self, namespace, protocol, address, port):
        done = namespace.run(sys.executable, "-c", textwrap.dedent(CLIENT), protocol, address, str(port), check=False)
        return done.stdout.strip()

    def call(self, verb, number, namespace, mappings):
        conf = {
            "cniVersion": "1.0.0",
            "name": "net",
            "type": "portmap",
            "backend": "iptables",
            "dataDir": str(self.tmp_path / "state"),
            "runtimeConfig": {"portMappings": mappings},
            "prevResult": {
                "cniVersion": "1.0.0",
                "interfaces": [{"name": "eth0", "sandbox": namespace.path}],
                "ips": [
                    {"address": f"10.88.{number}.2/24", "interface": 0},
                    {"address": f"fd00:88:{number}::2/64", "interface": 0},
                ],
            },
        }
        environ = {
            "PATH": f"{self.folder}:/usr/sbin:/usr/bin:/sbin:/bin",
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": f"c{number}",
            "CNI_NETNS": namespace.path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/opt/cni/bin",
        }
        words = [f"{name}={value}" for name, value in environ.items()]
        done = self.host.run("env", "-i", *words, str(self.portmap), stdin=json.dumps(conf), check=False)
        assert done.returncode == 0, done.stdout + done.stderr

    def chains(self):
        save = (f"{stem}-{self.variant}-save" for stem in ("iptables", "ip6tables"))
        return [
            line for name in save for line in self.host.run(name, "-t", "nat").stdout.splitlines() if "CNI-DN" in line
        ]


@pytest.fixture(params=["nft", "legacy"])
def node(request, make_netns, tmp_path):
    made = Node(make_netns, tmp_path, request.param)
    yield made
    for server in made.servers:
        server.kill()
        server.communicate()


@pytest.mark.parametrize("protocol", ["tcp", "udp"])
def test_the_container_answers_on_the_host_port_when_asked_from_anywhere(node, protocol):
    container = node.container(1)
    node.serve(container, protocol, 80, "one")
    mappings = [{"hostPort": 8080, "containerPort": 80, "protocol": protocol}]
    node.call("ADD", 1, container, mappings)
    node.call("CHECK", 1, container, mappings)
    assert len([line for line in node.chains() if line.startswith("-A CNI-HOSTPORT-DNAT")]) == 2
    asked = {
        "outside": node.ask(node.client, protocol, HOST4, 8080),
        "outside, IPv6": node.ask(node.client, protocol, HOST6, 8080),
        "host": node.ask(node.host, protocol, HOST4, 8080),
        "host, IPv6": node.ask(node.host, protocol, HOST6, 8080),
        "localhost": node.ask(node.host, protocol, "127.0.0.1", 8080),
        "hairpin": node.ask(container, protocol, HOST4, 8080),
        "hairpin, IPv6": node.ask(container, protocol, HOST6, 8080),
    }
    assert asked == dict.fromkeys(asked, "one")
    assert node.ask(node.host, protocol, "::1", 8080) == ""  # the kernel never routes ::1: see the documentation
    node.call("DEL", 1, container, mappings)
    assert node.chains() == []
    assert node.ask(node.client, protocol, HOST4, 8080) == ""


@pytest.mark.parametrize(("address", "level"), [(HOST4, 4), (HOST6, 6)])
def test_sctp_packets_reach_the_container_port_when_sent_to_the_host_port(node, address, level):
    """Raw packets on both ends: the kernel under test need not have SCTP sockets."""
    container = node.container(1)
    node.call("ADD", 1, container, [{"hostPort": 8080, "containerPort": 80, "protocol": "sctp"}])
    receiver = container.start(sys.executable, "-c", textwrap.dedent(SCTP_RECEIVER), str(level))
    node.servers.append(receiver)
    assert receiver.stdout.readline() == "ready\n"
    node.client.run(sys.executable, "-c", textwrap.dedent(SCTP_SENDER), address, "8080")
    assert receiver.stdout.readline() == "5000 80\n"


def test_every_port_of_a_range_is_shifted_alike_when_the_container_ports_differ(node):
    container = node.container(1)
    for port in (9000, 9004):
        node.serve(container, "tcp", port, str(port))
    mappings = [{"hostPort": 8000, "endPort": 8004, "containerPort": 9000, "protocol": "tcp"}]
    node.call("ADD", 1, container, mappings)
    assert [node.ask(node.client, "tcp", HOST4, port) for port in (8000, 8004, 8005)] == ["9000", "9004", ""]
    assert [node.ask(node.client, "tcp", HOST6, port) for port in (8000, 8004)] == ["9000", "9004"]


def test_the_second_container_answers_when_the_first_with_the_same_udp_port_is_gone(node):
    mappings = [{"hostPort": 8080, "containerPort": 80, "protocol": "udp"}]
    for number, name in ((1, "one"), (2, "two")):
        container = node.container(number)
        node.serve(container, "udp", 80, name)
        node.call("ADD", number, container, mappings)
        assert node.ask(node.client, "udp", HOST4, 8080) == name
        node.call("DEL", number, container, mappings)


def test_only_the_named_host_address_is_mapped_when_there_is_one(node):
    container = node.container(1)
    node.serve(container, "tcp", 80, "one")
    node.host.run("ip", "addr", "add", "192.0.2.9/24", "dev", "out")
    mappings = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": "192.0.2.9"}]
    node.call("ADD", 1, container, mappings)
    assert node.ask(node.client, "tcp", "192.0.2.9", 8080) == "one"
    assert node.ask(node.client, "tcp", HOST4, 8080) == ""


def test_traffic_to_other_hosts_passes_when_its_port_is_mapped(node):
    container = node.container(1)
    node.serve(container, "tcp", 80, "one")
    node.serve(node.client, "tcp", 8080, "outside")
    node.call("ADD", 1, container, [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp"}])
    node.client.run("ip", "route", "add", "10.88.0.0/16", "via", HOST4)
    assert node.ask(container, "tcp", "192.0.2.2", 8080) == "outside"
