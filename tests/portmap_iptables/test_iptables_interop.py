"""Side by side with the Go portmap (Debian's containernetworking-plugins): the same rules, each removes the other's.

Two faults of others shape these tests. ip6tables-legacy 1.8.9 takes rules that differ only in a match's values for equal
(`-C`, `-D`), so the Go portmap, which asks before it adds, leaves out all but the first port of a protocol there: on
that variant IPv6 is compared with one port per protocol. And the Go portmap 1.1.1 checks either family's rules in
both: its CHECK is shown one family at a time.
"""

import json

import pytest
from iptables_kit import Driver, Known, Part, Target, mapping, plan_of, settings_with

from cnimeta.errors import CheckFailed, HostPortConflict
from cnimeta.host.iptables.adapters import open_variant
from cnimeta.host.iptables.lock import XtablesLock
from cnimeta_plugins.portmap.config import Settings
from cnimeta_plugins.portmap.iptables.rules import LEFT_ALONE

pytestmark = pytest.mark.kernel

GO_PORTMAP = "/usr/lib/cni/portmap"
ADDRESSES = ["10.0.0.2/24", "2001:db8::2/64"]
MARK_CHAIN = "SOMEBODYS-MARK"
PORTS = [
    {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
    {"hostPort": 8081, "containerPort": 80, "protocol": "tcp"},
    {"hostPort": 8080, "containerPort": 81, "protocol": "udp"},
    {"hostPort": 8090, "containerPort": 90, "protocol": "sctp"},
    {"hostPort": 8083, "containerPort": 83, "protocol": "tcp", "hostIP": "192.168.0.2"},
    {"hostPort": 8084, "containerPort": 84, "protocol": "tcp", "hostIP": "0.0.0.0"},
    {"hostPort": 8085, "containerPort": 85, "protocol": "tcp", "hostIP": "2001:db8:a::1"},
    {"hostPort": 8086, "containerPort": 86, "protocol": "tcp", "hostIP": "::"},
]
MANY = [{"hostPort": 9000 + number, "containerPort": number + 1, "protocol": "tcp"} for number in range(31)]
ONE_EACH = [
    {"hostPort": 8080, "containerPort": 80, "protocol": "tcp"},
    {"hostPort": 8080, "containerPort": 81, "protocol": "udp"},
    {"hostPort": 8090, "containerPort": 90, "protocol": "sctp"},
]
CASES = {
    "one-each": (ONE_EACH, {}),
    "plain": (PORTS, {}),
    "many": (MANY, {}),
    "no-snat": (PORTS, {"snat": False}),
    "mark-bit": (PORTS, {"markMasqBit": 31}),
    "external": (PORTS, {"externalSetMarkChain": MARK_CHAIN}),
    "conditions": (
        PORTS,
        {
            "conditionsV4": ["!", "-s", "10.9.0.0/16", "-m", "conntrack", "--ctstate", "NEW,RELATED"],
            "conditionsV6": ["-d", "2001:db8:1::/48", "-m", "comment", "--comment", 'it\'s "mine"'],
        },
    ),
}


def settings_of(keys: dict, family: int) -> Settings:
    return settings_with(
        snat=keys.get("snat", True),
        mark_bit=keys.get("markMasqBit", 13),
        external_set_mark_chain=keys.get("externalSetMarkChain", ""),
        conditions=tuple(keys.get("conditionsV4" if family == 4 else "conditionsV6", ())),
    )


def parts_of(ports: list[dict], keys: dict, addresses: list[str]) -> list[Part]:
    mappings = tuple(
        mapping(port["protocol"], port["hostPort"], port["hostPort"], port["containerPort"], port.get("hostIP", ""))
        for port in ports
    )
    return [Part(address, mappings, settings_of(keys, 4 if "." in address else 6)) for address in addresses]


class Host:
    """A namespace whose iptables is of one variant, with both implementations at hand."""

    def __init__(self, make_netns, tmp_path, variant: str) -> None:
        self.variant = variant
        self.namespace = make_netns("host")
        self.container = make_netns("ctr")
        self.addresses = ADDRESSES
        self.folders = {}
        for address, stem in zip(ADDRESSES, ("iptables", "ip6tables"), strict=True):
            self.folders[address] = tmp_path / f"{self.namespace.name}-{stem}"
            self.folders[address].mkdir()
            for suffix in ("", "-save", "-restore"):
                (self.folders[address] / f"{stem}{suffix}").symlink_to(f"/usr/sbin/{stem}-{variant}{suffix}")
        self.backend = Driver(open_variant(variant))
        self.backend.tables._lock = XtablesLock(str(tmp_path / "lock"))
        for stem in ("iptables", "ip6tables"):
            self.namespace.run(f"{stem}-{variant}", "-t", "nat", "-N", MARK_CHAIN)

    def go(self, verb, ports, keys, addresses, container_id="c1", network="net"):
        conf = {
            "cniVersion": "1.0.0",
            "name": network,
            "type": "portmap",
            "runtimeConfig": {"portMappings": ports},
            "prevResult": {"cniVersion": "1.0.0", "ips": [{"address": address} for address in addresses]},
            **keys,
        }
        environ = {
            "PATH": ":".join(str(self.folders[address]) for address in addresses),
            "CNI_COMMAND": verb,
            "CNI_CONTAINERID": container_id,
            "CNI_NETNS": self.container.path,
            "CNI_IFNAME": "eth0",
            "CNI_PATH": "/usr/lib/cni",
        }
        words = [f"{name}={value}" for name, value in environ.items()]
        done = self.namespace.run("env", "-i", *words, GO_PORTMAP, stdin=json.dumps(conf), check=False)
        assert done.returncode == 0, done.stdout

    def go_ok(self, verb, ports, keys, **who) -> None:
        for addresses in ([address] for address in self.addresses) if verb == "CHECK" else [self.addresses]:
            self.go(verb, ports, keys, addresses, **who)

    def add(self, ports, keys, container_id="c1", network="net") -> None:
        with self.namespace.entered():
            self.backend.add(Target(network, container_id, "eth0"), parts_of(ports, keys, self.addresses))

    def check(self, ports, keys, container_id="c1") -> None:
        """As of a mapping that there is no record of: without what only we make."""
        target = Target("net", container_id, "eth0")
        with self.namespace.entered():
            self.backend.backend.check(plan_of(target, parts_of(ports, keys, self.addresses)), None)

    def delete(self, container_id="c1") -> None:
        with self.namespace.entered():
            self.backend.delete(Target("net", container_id, "eth0"))

    def saved(self) -> str:
        text = ""
        for stem in ("iptables", "ip6tables"):
            text += self.namespace.run(f"{stem}-{self.variant}-save", "-t", "nat").stdout
        own = [f"-A CNI-HOSTPORT-DNAT {rule}" for rule in LEFT_ALONE]  # which the reference plugin does not have
        return "\n".join(line for line in text.splitlines() if not line.startswith("#") and line not in own)


@pytest.fixture(params=["nft", "legacy"])
def make_host(request, make_netns, tmp_path):
    def make(case: str = "one-each") -> Host:
        host = Host(make_netns, tmp_path, request.param)
        if request.param == "legacy" and case != "one-each":
            host.addresses = ADDRESSES[:1]
        return host

    return make


@pytest.mark.parametrize("case", CASES)
def test_saved_text_is_equal_and_each_checks_and_deletes_the_others_when_both_add_the_same(make_host, case):
    ports, keys = CASES[case]
    theirs, ours = make_host(case), make_host(case)
    theirs.go_ok("ADD", ports, keys)
    ours.add(ports, keys)
    assert ours.saved() == theirs.saved()
    theirs.check(ports, keys)
    ours.go_ok("CHECK", ports, keys)
    theirs.delete()
    ours.go_ok("DEL", ports, keys)
    assert "CNI-DN-" not in ours.saved()
    assert ours.saved() == theirs.saved()


def test_saved_text_is_equal_when_the_comment_is_too_long(make_host):
    theirs, ours = make_host(), make_host()
    container_id = "c" * 240
    theirs.go_ok("ADD", PORTS[:1], {}, container_id=container_id)
    ours.add(PORTS[:1], {}, container_id=container_id)
    assert ours.saved() == theirs.saved()
    ours.go_ok("DEL", PORTS[:1], {}, container_id=container_id)
    theirs.delete(container_id)
    assert ours.saved() == theirs.saved()


def test_saved_text_is_equal_when_several_containers_are_mapped_by_turns(make_host):
    theirs, ours = make_host("turns"), make_host("turns")
    for number in range(4):
        ports = [{"hostPort": 7000 + number, "containerPort": 80, "protocol": "tcp"}]
        theirs.go_ok("ADD", ports, {}, container_id=f"c{number}")
        if number % 2:
            ours.go_ok("ADD", ports, {}, container_id=f"c{number}")
        else:
            ours.add(ports, {}, container_id=f"c{number}")
    assert ours.saved() == theirs.saved()


@pytest.mark.parametrize("case", ["plain", "conditions"])
def test_theirs_is_replaced_when_ours_adds_the_same_container_again(make_host, case):
    ports, keys = CASES[case]
    host = make_host(case)
    host.go_ok("ADD", ports, keys)
    before = host.saved()
    host.add(ports, keys)
    assert host.saved() == before


@pytest.mark.parametrize("case", ["plain", "conditions"])
def test_ours_stays_when_theirs_adds_the_same_container_again(make_host, case):
    ports, keys = CASES[case]
    host = make_host(case)
    host.add(ports, keys)
    before = host.saved()
    host.go_ok("ADD", ports, keys)
    assert host.saved() == before


def test_add_is_refused_when_theirs_has_the_port(make_host):
    host = make_host()
    host.go_ok("ADD", PORTS, {}, container_id="go-made")
    with pytest.raises(HostPortConflict, match=r'"go-made" of network "net"'):
        host.add(PORTS[:1], {}, container_id="c2")


def test_theirs_is_collected_when_it_is_not_listed(make_host):
    host = make_host("many")
    host.go_ok("ADD", PORTS, {}, container_id="kept")
    kept = host.saved()
    host.go_ok("ADD", MANY, {}, container_id="stale")
    with host.namespace.entered():
        host.backend.gc("net", {("kept", "eth0")})
    assert host.saved() == kept


def test_check_tells_when_theirs_lost_a_rule(make_host):
    host = make_host()
    host.go_ok("ADD", ONE_EACH, {})
    host.check(ONE_EACH, {})
    host.namespace.run(f"ip6tables-{host.variant}", "-t", "nat", "-D", "CNI-HOSTPORT-DNAT", "1")
    with pytest.raises(CheckFailed, match="IPv6 iptables chain CNI-HOSTPORT-DNAT"):
        host.check(ONE_EACH, {})


def test_theirs_and_an_earlier_network_name_go_when_the_backend_is_another_now(make_host):
    host, empty = make_host("many"), make_host("many")
    empty.go_ok("ADD", MANY, {}, container_id="c2")
    host.go_ok("ADD", MANY, {}, container_id="c2")
    host.go_ok("ADD", PORTS[:2], {})
    host.go_ok("ADD", PORTS[3:4], {}, network="before")
    with host.namespace.entered():
        assert Driver(None).sweep(Target("net", "c1", "eth0"))
    assert host.saved() == empty.saved()


def test_another_interface_keeps_its_chain_when_one_of_the_container_is_cleaned_up(make_host):
    host = make_host("many")
    host.add(PORTS[:1], {})
    before = host.saved()
    with host.namespace.entered():
        Driver(None).sweep(Target("net", "c1", "eth1"), Known((Target("net", "c1", "eth0"), False)))
    assert host.saved() == before
