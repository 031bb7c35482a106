"""What portmap does whatever the backend: one suite over all of them, the in-memory one included."""

from __future__ import annotations

import json
from binascii import crc32
from itertools import permutations
from typing import TYPE_CHECKING, Any

import pytest
from portmap_kit import OBSERVERS, Host, Mapped, conf, tcp

from cnimeta.errors import CniError, IoFailure
from cnimeta.spec.netconf import NetConf
from cnimeta.testing import call
from cnimeta.testing.files import Killed
from cnimeta.testing.netfilter import Flow
from cnimeta_plugins.portmap.backends import BACKENDS
from cnimeta_plugins.portmap.config import PREFERRED, read_settings
from cnimeta_plugins.portmap.notes import digest

if TYPE_CHECKING:
    from collections.abc import Callable

pytestmark = pytest.mark.unit

ADDRESS, ADDRESS6, OTHER = "10.88.0.2", "fd00::2", "10.88.0.3"
BOTH = (f"{ADDRESS}/16", f"{ADDRESS6}/64")
PAIRS = list(permutations(sorted(OBSERVERS), 2))
UDP = {"hostPort": 5353, "containerPort": 53, "protocol": "udp"}


class Node(Host):
    """A host on which one backend is used."""

    def __init__(self, backend: str) -> None:
        super().__init__()
        self.backend = backend

    def call(self, verb: str, body: dict[str, Any], *args: Any, **more: Any) -> Any:
        return super().call(verb, {"backend": self.backend, **body}, *args, **more)

    def add(self, *mappings: dict[str, Any], container_id: str = "c1", **more: Any) -> None:
        self.call("ADD", conf(*mappings, **more), container_id)

    def refused(self, verb: str, body: dict[str, Any], *args: Any) -> CniError:
        with pytest.raises(CniError) as caught:
            self.call(verb, body, *args)
        return caught.value

    def mapped(self) -> set[Mapped]:
        return OBSERVERS[self.backend](self)

    def ports(self) -> dict[int, str]:
        """Where each host port leads, in IPv4."""
        return {one.port: one.container for one in self.mapped() if one.family == 4}

    def records(self) -> list[str]:
        return [path for path in self.files.content if path.endswith(".json")]

    def state(self) -> tuple[set[Mapped], str, str, dict[str, bytes]]:
        """Everything there is."""
        return self.mapped(), self.nft.dump(), self.iptables.dump(), dict(self.files.content)

    def is_clean(self) -> bool:
        return all(observe(self) == set() for observe in OBSERVERS.values()) and self.files.content == {}


@pytest.fixture(params=sorted(OBSERVERS))
def node(request: pytest.FixtureRequest) -> Node:
    return Node(request.param)


def test_every_backend_of_the_registry_is_in_this_suite_when_it_runs() -> None:
    assert {*BACKENDS, "memory"} == set(OBSERVERS)
    assert set(PREFERRED) == set(BACKENDS)


# --- ADD -----------------------------------------------------------------------------------------------------


def test_both_families_are_mapped_when_the_container_has_both(node: Node) -> None:
    node.add(tcp(8080), UDP, tcp(7070, 70, hostIP="192.0.2.1"), tcp(7071, 71, hostIP="2001:db8::1"), ips=BOTH)
    assert node.mapped() == {
        Mapped(4, "tcp", 8080, "", ADDRESS, 80),
        Mapped(6, "tcp", 8080, "", ADDRESS6, 80),
        Mapped(4, "udp", 5353, "", ADDRESS, 53),
        Mapped(6, "udp", 5353, "", ADDRESS6, 53),
        Mapped(4, "tcp", 7070, "192.0.2.1", ADDRESS, 70),
        Mapped(6, "tcp", 7071, "2001:db8::1", ADDRESS6, 71),
    }


def test_only_the_named_family_is_mapped_when_the_address_is_every_one_of_it(node: Node) -> None:
    node.add(tcp(8080, hostIP="0.0.0.0"), tcp(9000, 90), tcp(8081, 81, hostIP="::"), ips=BOTH)
    assert node.mapped() == {
        Mapped(4, "tcp", 8080, "", ADDRESS, 80),
        Mapped(4, "tcp", 9000, "", ADDRESS, 90),
        Mapped(6, "tcp", 9000, "", ADDRESS6, 90),
        Mapped(6, "tcp", 8081, "", ADDRESS6, 81),
    }


def test_every_port_of_a_range_leads_to_its_own_when_it_is_shifted_or_not(node: Node) -> None:
    node.add(tcp(9000, 9000, endPort=9002), tcp(7000, 80, count=2, hostIP="192.0.2.1"), ips=BOTH)
    assert node.mapped() == {
        *(Mapped(4, "tcp", port, "", ADDRESS, port) for port in (9000, 9001, 9002)),
        *(Mapped(6, "tcp", port, "", ADDRESS6, port) for port in (9000, 9001, 9002)),
        Mapped(4, "tcp", 7000, "192.0.2.1", ADDRESS, 80),
        Mapped(4, "tcp", 7001, "192.0.2.1", ADDRESS, 81),
    }


def test_nothing_changes_when_add_is_repeated(node: Node) -> None:
    node.add(tcp(8080), UDP)
    before = node.state()
    node.add(tcp(8080), UDP)
    assert node.state() == before


def test_the_old_mappings_go_when_add_is_repeated_with_others(node: Node) -> None:
    node.add(tcp(8080), tcp(8081))
    node.add(tcp(8081, 90), tcp(8082), ips=(f"{OTHER}/16",))
    assert node.mapped() == {Mapped(4, "tcp", 8081, "", OTHER, 90), Mapped(4, "tcp", 8082, "", OTHER, 80)}
    assert len(node.records()) == 1


def test_an_address_gives_way_to_every_one_when_add_is_repeated_so(node: Node) -> None:
    node.add(tcp(8080, hostIP="192.0.2.1"))
    node.add(tcp(8080))
    assert node.mapped() == {Mapped(4, "tcp", 8080, "", ADDRESS, 80)}
    node.call("CHECK", conf(tcp(8080)))
    node.call("DEL", conf(tcp(8080)))
    assert node.is_clean()


def test_a_dead_containers_address_gives_way_when_every_one_is_mapped(node: Node) -> None:
    node.add(tcp(8080, hostIP="192.0.2.1"))
    node.namespaces.gone.add("/run/netns/c1")
    node.add(tcp(8080), ips=(f"{OTHER}/16",), container_id="c2")
    assert node.mapped() == {Mapped(4, "tcp", 8080, "", OTHER, 80)}


def test_dead_containers_addresses_give_way_when_all_that_have_the_port_are_dead(node: Node) -> None:
    third = "10.88.0.4/16"
    node.add(tcp(8080, hostIP="192.0.2.1"))
    node.add(tcp(8080, hostIP="192.0.2.2"), ips=(f"{OTHER}/16",), container_id="c2")
    node.namespaces.gone.add("/run/netns/c1")
    assert node.refused("ADD", conf(tcp(8080), ips=(third,)), "c3").code == 100
    node.namespaces.gone.add("/run/netns/c2")
    node.add(tcp(8080), ips=(third,), container_id="c3")
    assert node.ports() == {8080: "10.88.0.4"}


def test_another_containers_address_stays_when_every_one_is_asked_for(node: Node) -> None:
    node.add(tcp(8080, hostIP="192.0.2.1"))
    node.add(tcp(8080, hostIP="192.0.2.2"), ips=(f"{OTHER}/16",), container_id="c2")
    before = node.mapped()
    assert node.refused("ADD", conf(tcp(8080))).code == 100
    assert node.mapped() == before


def test_a_family_goes_when_add_is_repeated_without_it(node: Node) -> None:
    node.add(tcp(8080), ips=BOTH)
    node.add(tcp(8080), ips=(f"{ADDRESS6}/64",))
    assert node.mapped() == {Mapped(6, "tcp", 8080, "", ADDRESS6, 80)}
    node.call("CHECK", conf(tcp(8080), ips=(f"{ADDRESS6}/64",)))


LOCALNET = f"net/ipv4/conf/to-{ADDRESS}/route_localnet"


@pytest.mark.parametrize("keys", [{}, {"masqAll": True}])
def test_localhost_works_when_mapped_on_a_fresh_node(node: Node, keys: dict[str, Any]) -> None:
    node.add(tcp(8080), **keys)
    assert node.sysctl.values == {LOCALNET: "1"}


def test_no_setting_is_touched_when_there_is_no_masquerading(node: Node) -> None:
    node.add(tcp(8080), snat=False)
    assert node.sysctl.values == {}


def test_check_fails_when_route_localnet_was_set_back(node: Node) -> None:
    node.add(tcp(8080))
    node.sysctl.values.clear()
    error = node.refused("CHECK", conf(tcp(8080)))
    assert error.code == 101
    assert "route_localnet" in error.msg
    node.add(tcp(8080))
    node.call("CHECK", conf(tcp(8080)))


def test_localhost_counts_as_set_when_it_is_for_all_interfaces(node: Node) -> None:
    node.sysctl.values["net/ipv4/conf/all/route_localnet"] = "1"
    node.sysctl.read_only = True
    node.add(tcp(8080))
    node.call("CHECK", conf(tcp(8080)))


def test_nothing_is_touched_when_there_are_no_mappings(node: Node) -> None:
    before = node.state()
    node.add()
    assert node.state() == before


@pytest.mark.parametrize("at", [0, 1, 2])
def test_a_port_is_refused_naming_its_owner_when_another_container_has_it(node: Node, at: int) -> None:
    node.add(tcp(8080))
    before = node.state()
    wanted = [tcp(8081), tcp(8082)]
    wanted.insert(at, tcp(8080))
    error = node.refused("ADD", conf(*wanted, ips=(f"{OTHER}/16",)), "c2")
    assert error.code == 100
    assert "8080/tcp" in error.msg
    assert "c1" in error.msg
    assert node.state() == before


@pytest.mark.parametrize(("mine", "theirs"), [("", "192.0.2.1"), ("192.0.2.1", ""), ("192.0.2.1", "192.0.2.1")])
def test_a_port_is_refused_when_one_packet_could_be_for_both(node: Node, mine: str, theirs: str) -> None:
    node.add(tcp(8080, hostIP=theirs))
    before = node.state()
    assert node.refused("ADD", conf(tcp(8080, hostIP=mine), ips=(f"{OTHER}/16",)), "c2").code == 100
    assert node.state() == before


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (tcp(8080, hostIP="192.0.2.1"), tcp(8080, hostIP="192.0.2.2")),
        (tcp(8080, protocol="udp"), tcp(8080)),
        (tcp(8081), tcp(8080)),
    ],
)
def test_both_are_mapped_when_no_packet_can_be_for_both(
    node: Node, mine: dict[str, Any], theirs: dict[str, Any]
) -> None:
    node.add(theirs)
    node.add(mine, ips=(f"{OTHER}/16",), container_id="c2")
    assert sorted(one.container for one in node.mapped()) == [ADDRESS, OTHER]


@pytest.mark.parametrize("path", ["hidden", "never a namespace"])
def test_a_port_is_refused_when_nobody_knows_whether_its_owner_lives(node: Node, path: str) -> None:
    if path == "hidden":
        node.add(tcp(8080))
    node.namespaces.hidden.add("/run/netns/c1")
    if path != "hidden":
        node.add(tcp(8080))
    assert node.refused("ADD", conf(tcp(8080), ips=(f"{OTHER}/16",)), "c2").code == 100


@pytest.mark.parametrize("death", ["reboot", "namespace gone", "path used again"])
def test_a_port_is_taken_over_when_its_owner_is_dead(node: Node, death: str) -> None:
    node.add(tcp(8080))
    if death == "reboot":
        node.boot = "boot-2"
    elif death == "path used again":
        node.namespaces.leads_to["/run/netns/c1"] = "4:another"
    else:
        node.namespaces.gone.add("/run/netns/c1")
    node.add(tcp(8080), ips=(f"{OTHER}/16",), container_id="c2")
    assert node.ports() == {8080: OTHER}
    node.call("DEL", conf(tcp(8080)))
    assert node.ports() == {8080: OTHER}
    assert len(node.records()) == 1


def test_an_address_is_refused_naming_its_owner_when_a_live_container_has_it(node: Node) -> None:
    node.add(tcp(8080), ips=BOTH)
    before = node.state()
    for ips in ((f"{ADDRESS}/24",), (f"{OTHER}/16", f"{ADDRESS6}/128")):
        error = node.refused("ADD", conf(tcp(8081), ips=ips), "c2")
        assert error.code == 100
        assert "container c1 interface eth0 network net" in error.msg
        assert "address" in error.msg
        assert node.state() == before
    node.call("DEL", BARE)
    node.add(tcp(8081), container_id="c2")
    assert node.ports() == {8081: ADDRESS}


@pytest.mark.parametrize("death", ["reboot", "namespace gone"])
def test_a_dead_containers_mappings_go_when_its_address_is_anothers_now(node: Node, death: str) -> None:
    node.add(tcp(8080), tcp(9090), ips=BOTH)
    if death == "reboot":
        node.boot = "boot-2"
    else:
        node.namespaces.gone.add("/run/netns/c1")
    node.add(tcp(8081), container_id="c2")
    assert node.ports() == {8081: ADDRESS}
    assert [one for one in node.mapped() if one.family == 6] == []
    node.call("DEL", conf(tcp(8080)))
    assert node.ports() == {8081: ADDRESS}
    node.call("CHECK", conf(tcp(8081)), "c2")
    node.call("DEL", BARE, "c2")
    assert node.is_clean()


def test_an_address_is_free_when_its_container_has_another_or_its_add_failed(node: Node) -> None:
    node.add(tcp(8080))
    node.add(tcp(8080), ips=(f"{OTHER}/16",))
    node.add(tcp(8081), container_id="c2")
    heal = faults(node)
    with pytest.raises(CniError):
        node.add(tcp(8082), ips=("10.88.0.9/16",), container_id="c3")
    heal()
    node.add(tcp(8082), ips=("10.88.0.9/16",), container_id="c4")
    for name in ("c1", "c2", "c4"):
        node.call("DEL", BARE, name)
    assert node.is_clean()


@pytest.mark.parametrize(("first", "second"), [pair for pair in PAIRS if "memory" not in pair])
def test_a_port_or_address_of_another_backends_container_is_refused_as_of_its_own(first: str, second: str) -> None:
    node = Node(first)
    node.add(tcp(8080))
    node.backend = second
    for body in (conf(tcp(8080), ips=(f"{OTHER}/16",)), conf(tcp(8081))):
        assert node.refused("ADD", body, "c2").code == 100
    node.namespaces.gone.add("/run/netns/c1")
    node.add(tcp(8080), tcp(8081), container_id="c2")
    assert node.ports() == {8080: ADDRESS, 8081: ADDRESS}


def faults(node: Node) -> Callable[[], None]:
    """Let the next change of the backend fail; returns how to heal it."""

    def fail() -> None:
        raise IoFailure("made to fail")

    def heal() -> None:
        node.nft.before_apply = node.memory.before_add = lambda: None
        node.iptables.on_commit = None

    node.nft.before_apply = node.memory.before_add = node.iptables.on_commit = fail
    return heal


def test_all_is_as_before_when_the_first_add_fails(node: Node) -> None:
    before = node.state()
    heal = faults(node)
    assert node.refused("ADD", conf(tcp(8080))).code == 5
    heal()
    assert node.state() == before


def test_all_is_as_before_when_a_repeated_add_fails(node: Node) -> None:
    node.add(tcp(8080))
    before = node.state()
    heal = faults(node)
    assert node.refused("ADD", conf(tcp(8081), ips=(f"{OTHER}/16",))).code == 5
    heal()
    assert node.state() == before
    node.call("DEL", conf())
    assert node.is_clean()


@pytest.mark.parametrize("backend_before", ["the same", *sorted(OBSERVERS)])
def test_all_is_as_before_when_a_setting_cannot_be_written(node: Node, backend_before: str) -> None:
    now = node.backend
    node.backend = now if backend_before == "the same" else backend_before
    if backend_before != "the same":
        node.add(tcp(8080), ips=BOTH, snat=False)
    before = OBSERVERS[node.backend](node), dict(node.files.content)
    node.sysctl.read_only = True
    body = {"backend": now, **conf(tcp(8081), ips=BOTH)}
    with pytest.raises(CniError) as caught:
        Host.call(node, "ADD", body)
    assert caught.value.code == 5
    assert (OBSERVERS[node.backend](node), dict(node.files.content)) == before
    assert sum(len(observe(node)) for observe in OBSERVERS.values()) == len(before[0])
    node.add(tcp(8081), container_id="c2", ips=(f"{OTHER}/16",), snat=False)


def test_no_setting_is_touched_when_the_first_add_fails(node: Node) -> None:
    heal = faults(node)
    assert node.refused("ADD", conf(tcp(8080))).code == 5
    heal()
    assert node.sysctl.values == {}
    assert node.files.content == {}


def test_settings_are_set_back_when_the_last_mapping_goes(node: Node) -> None:
    node.add(tcp(8080))
    node.add(tcp(8081), ips=(f"{OTHER}/16",), container_id="c2")
    node.call("DEL", BARE)
    assert node.sysctl.values[LOCALNET] == "1"
    node.call("DEL", BARE, "c2")
    assert set(node.sysctl.values.values()) == {"0"}
    assert node.is_clean()


def test_settings_of_others_stay_when_the_last_mapping_goes(node: Node) -> None:
    node.sysctl.values[LOCALNET] = "1"
    node.add(tcp(8080))
    node.call("DEL", BARE)
    assert node.sysctl.values == {LOCALNET: "1"}


def test_both_families_are_put_back_when_the_second_is_refused() -> None:
    node = Node("iptables")
    node.add(tcp(8080), ips=BOTH)
    before = node.state()
    commits = 0

    def refuse_the_second() -> None:
        nonlocal commits
        commits += 1
        if commits in (2, 3):
            raise IoFailure("made to fail")

    node.iptables.on_commit = refuse_the_second
    assert node.refused("ADD", conf(tcp(8081), ips=BOTH)).code == 5
    node.iptables.on_commit = None
    assert node.state() == before


def test_add_fails_clean_when_the_disk_is_full(node: Node) -> None:
    node.files.fail_at(1, lasting=True)
    assert node.refused("ADD", conf(tcp(8080))).code == 104
    assert node.mapped() == set()


# --- DEL -----------------------------------------------------------------------------------------------------

BARE = {"cniVersion": "1.1.0", "name": "net", "type": "portmap"}


@pytest.mark.parametrize(
    "body",
    [BARE, conf(tcp(8080)), conf(tcp(0)), {**BARE, "dataDir": 7}, {**BARE, "backend": 5}],
    ids=["bare", "with mappings", "invalid mapping", "invalid folder", "invalid backend"],
)
def test_everything_is_gone_when_deleted_any_number_of_times(node: Node, body: dict[str, Any]) -> None:
    node.add(tcp(8080), UDP, tcp(7070, hostIP="192.0.2.1"), tcp(9000, 9000, endPort=9002), ips=BOTH)
    for _ in range(3):
        node.call("DEL", body)
        assert node.is_clean()


def test_nothing_changes_when_what_is_deleted_was_never_mapped(node: Node) -> None:
    node.add(tcp(8080))
    before = node.state()
    node.call("DEL", conf(tcp(8080)), "c2")
    node.call("DEL", {**conf(tcp(9090)), "name": "other"})
    assert node.state() == before


def test_mappings_are_found_when_the_record_is_lost(node: Node) -> None:
    node.add(tcp(8080), tcp(9000, 9000, endPort=9001), tcp(7070, hostIP="192.0.2.1"), ips=BOTH)
    node.files.content.clear()
    node.call("DEL", conf(tcp(8080)))
    assert node.is_clean()


def spoiled(data: bytes, how: str) -> bytes:
    document = json.loads(data)
    if how == "cut":
        return data[:-20]
    if how == "empty":
        return b""
    if how == "not an object":
        return b"[]"
    if how == "a flipped bit":
        place = data.index(b"8080")
        return data[:place] + b"8081" + data[place + 4 :]
    if how == "a flipped version":
        document["version"] = 3
    elif how == "a version before":
        document["version"] = 1
    elif how == "a version of another type":
        document["version"] = "2"
    elif how == "no checksum":
        del document["crc"]
    elif how == "a payload of another type":
        document["record"]["payload"] = []
    elif how == "a record of another type":
        document["record"] = [document["record"]]
    return json.dumps(document, separators=(",", ":")).encode()


@pytest.mark.parametrize(
    "how",
    [
        *("cut", "empty", "not an object", "a flipped bit", "a flipped version", "a version before"),
        *("a version of another type", "no checksum", "a payload of another type", "a record of another type"),
    ],
)
@pytest.mark.parametrize("body", [conf(), conf(tcp(8080))], ids=["bare", "with mappings"])
def test_a_damaged_record_is_reported_and_its_mappings_go_when_deleted(
    node: Node, how: str, body: dict[str, Any]
) -> None:
    node.add(tcp(8080), tcp(7070, hostIP="192.0.2.1"))
    (path,) = node.records()
    node.files.content[path] = spoiled(node.files.content[path], how)
    node.call("DEL", body)
    assert node.is_clean()
    assert any("damaged" in line and path in line for line in node.lines)


def test_mappings_whose_record_is_lost_go_when_their_network_has_another_name(node: Node) -> None:
    node.add(tcp(8080), tcp(7070, 70, hostIP="192.0.2.1"))
    node.files.content.clear()
    node.call("DEL", {**conf(tcp(8080)), "name": "renamed"})
    assert node.is_clean()


def test_mappings_of_another_network_stay_when_their_record_tells_more_than_is_asked_for(node: Node) -> None:
    node.add(tcp(8080), tcp(8081))
    node.call("DEL", {**conf(tcp(8080)), "name": "other"})
    assert node.ports() == {8080: ADDRESS, 8081: ADDRESS}


@pytest.mark.parametrize("reboot", [False, True])
def test_a_port_that_is_anothers_since_is_in_nobodys_way_when_add_is_repeated_without_it(
    node: Node, reboot: bool
) -> None:
    """The record is of before a flush, or of an earlier boot."""
    node.add(tcp(8080), tcp(7070, 70, hostIP="192.0.2.1"), tcp(9000))
    node.flush()
    if reboot:
        node.boot = "boot-2"
    node.add(tcp(8080), tcp(7070, 70, hostIP="192.0.2.1"), ips=(f"{OTHER}/16",), container_id="c2")
    node.add(tcp(8081), tcp(9000))
    assert node.ports() == {8080: OTHER, 7070: OTHER, 8081: ADDRESS, 9000: ADDRESS}
    for container_id in ("c1", "c2"):
        node.call("DEL", conf(), container_id)
    assert node.is_clean()


@pytest.mark.parametrize("flushed", [False, True])
def test_a_damaged_record_goes_with_its_mappings_when_its_network_has_another_name(node: Node, flushed: bool) -> None:
    node.add(tcp(8080))
    (path,) = node.records()
    node.files.content[path] = spoiled(node.files.content[path], "cut")
    if flushed:
        node.flush()
    node.call("DEL", {**conf(tcp(8080)), "name": "renamed"})
    assert node.is_clean()


def test_a_damaged_record_of_another_interface_stays_when_its_mappings_do(node: Node) -> None:
    if node.backend == "iptables":
        node.backend = "nftables"  # upstream's rules name no interface: the container's go with the first DEL
    node.add(tcp(8080))
    (path,) = node.records()
    node.files.content[path] = spoiled(node.files.content[path], "cut")
    node.call("DEL", {**conf(tcp(8081)), "name": "other"}, ifname="eth1")
    assert node.records() == [path]
    assert node.ports() == {8080: ADDRESS}


@pytest.mark.parametrize(("flushed", "valid", "left"), [(True, [], 0), (True, ["c1"], 1), (False, [], 0)])
def test_a_damaged_record_goes_with_gc_when_no_rule_is_left(
    node: Node, flushed: bool, valid: list[str], left: int
) -> None:
    node.add(tcp(8080))
    (path,) = node.records()
    node.files.content[path] = spoiled(node.files.content[path], "cut")
    if flushed:
        node.flush()
    entries = [{"containerID": one, "ifname": "eth0"} for one in valid]
    node.call("GC", {**conf(), "cni.dev/valid-attachments": entries})
    assert node.records() == [path] * left
    assert node.ports() == {}


def test_a_damaged_record_is_reported_and_made_anew_when_added(node: Node) -> None:
    node.add(tcp(8080))
    (path,) = node.records()
    whole = node.files.content[path]
    node.files.content[path] = spoiled(whole, "cut")
    node.add(tcp(8080))
    assert any("damaged" in line for line in node.lines)
    assert node.records() == [path]
    assert node.files.content[path] == whole
    assert node.ports() == {8080: ADDRESS}


def test_a_record_under_anothers_name_is_damage_when_read(node: Node) -> None:
    node.add(tcp(8080))
    node.add(tcp(8081), ips=(f"{OTHER}/16",), container_id="c2")
    first, second = node.records()
    node.files.content[first] = node.files.content[second]
    for container_id in ("c1", "c2"):
        node.call("DEL", conf(), container_id)
    assert node.is_clean()
    assert any("another attachment" in line for line in node.lines)


@pytest.mark.parametrize("backend", ["nftables", "ebpf"])
def test_a_record_of_a_later_version_refuses_add_and_is_tolerated_when_deleted(node: Node, backend: str) -> None:
    node.add(tcp(8080))
    (path,) = node.records()
    record = json.loads(node.files.content[path])["record"]
    record["news"] = {"of": "a later version"}
    if backend == "ebpf":
        record |= {"backend": backend, "payload": {"programs": [1, 2]}}
    body = json.dumps(record, separators=(",", ":"))
    crc = crc32(f"[3,{body}]".encode())
    node.files.content[path] = f'{{"version":3,"crc":{crc},"record":{body}}}\n'.encode()
    before = node.state()
    error = node.refused("ADD", conf(tcp(8080)))
    assert error.code == 104
    assert "later version" in error.msg
    assert node.state() == before
    node.call("DEL", conf())
    assert node.is_clean()


def test_everything_is_gone_when_the_namespace_has_become_the_nodes_own(node: Node) -> None:
    node.add(tcp(8080), ips=BOTH)
    call(node.plugin(), "DEL", conf(tcp(8080)), netns="/proc/self/ns/net")
    assert node.is_clean()


def test_other_networks_stay_when_one_is_deleted(node: Node) -> None:
    node.add(tcp(8080))
    other = {**conf(tcp(9090), ips=("10.99.0.2/16",)), "name": "other"}
    node.call("ADD", other)
    for _ in range(2):
        node.call("DEL", other)
        assert node.ports() == {8080: ADDRESS}


@pytest.mark.parametrize("first", ["eth0", "eth1"])
def test_two_interfaces_are_kept_apart_when_either_is_deleted_first(node: Node, first: str) -> None:
    bodies = {"eth0": conf(tcp(8080)), "eth1": conf(tcp(8081), ips=("10.88.0.7/16",))}
    bodies["eth1"]["prevResult"]["interfaces"][1]["name"] = "eth1"
    for ifname, body in bodies.items():
        node.call("ADD", body, "c1", ifname)
    node.call("DEL", BARE, "c1", first)
    (left,) = {"eth0", "eth1"} - {first}
    assert node.ports() == ({8080: ADDRESS} if left == "eth0" else {8081: "10.88.0.7"})
    node.call("CHECK", bodies[left], "c1", left)
    node.call("DEL", BARE, "c1", first)
    node.call("CHECK", bodies[left], "c1", left)
    node.call("DEL", BARE, "c1", left)
    assert node.is_clean()


SECOND = {**conf(tcp(8080, 90), UDP, ips=("10.99.0.2/24",)), "name": "second"}
SECOND["prevResult"]["interfaces"][1]["name"] = "eth1"


@pytest.mark.parametrize("container_id", ["c1", "another ID in the same namespace"])
def test_the_first_mapping_serves_and_the_second_takes_over_when_a_container_is_on_two_networks(
    node: Node, container_id: str
) -> None:
    container_id = container_id.replace(" ", "-")
    node.namespaces.leads_to[f"/run/netns/{container_id}"] = node.namespaces.identity("/run/netns/c1")
    node.add(tcp(8080))
    for _ in range(2):
        node.call("ADD", SECOND, container_id, "eth1")
        assert node.ports() == {8080: ADDRESS, 5353: "10.99.0.2"}
        node.call("CHECK", conf(tcp(8080)))
        node.call("CHECK", SECOND, container_id, "eth1")
    node.call("DEL", BARE)
    assert node.ports() == {8080: "10.99.0.2", 5353: "10.99.0.2"}
    node.call("CHECK", SECOND, container_id, "eth1")
    node.call("DEL", {**BARE, "name": "second"}, container_id, "eth1")
    assert node.is_clean()


def test_the_first_mapping_stays_when_the_second_network_of_the_container_goes(node: Node) -> None:
    node.add(tcp(8080))
    node.call("ADD", SECOND, "c1", "eth1")
    node.call("DEL", {**BARE, "name": "second"}, "c1", "eth1")
    assert node.ports() == {8080: ADDRESS}
    node.call("CHECK", conf(tcp(8080)))
    assert node.refused("ADD", {**SECOND, "name": "third"}, "c2", "eth1").code == 100
    node.call("DEL", BARE)
    assert node.is_clean()


def test_the_free_part_of_a_range_is_mapped_when_the_container_has_the_rest(node: Node) -> None:
    node.add(tcp(8002, 22))
    second = {**SECOND, "runtimeConfig": {"portMappings": [tcp(8000, 80, endPort=8004)]}}
    node.call("ADD", second, "c1", "eth1")
    assert {one.port: one.container_port for one in node.mapped()} == {8000: 80, 8001: 81, 8002: 22, 8003: 83, 8004: 84}
    node.call("CHECK", second, "c1", "eth1")
    node.call("GC", gc())
    assert {one.port: one.container_port for one in node.mapped()} == {8000 + n: 80 + n for n in range(5)}
    node.call("CHECK", second, "c1", "eth1")


def test_nothing_is_taken_over_when_the_follower_is_deleted_meanwhile(node: Node) -> None:
    node.add(tcp(8080))
    node.call("ADD", SECOND, "c1", "eth1")

    def deleted_while_waiting(key: tuple[str, str, str]) -> None:
        if key[2] == "eth1":
            node.locks.before = lambda _: None
            node.call("DEL", {**BARE, "name": "second"}, "c1", "eth1")

    node.locks.before = deleted_while_waiting
    node.call("DEL", BARE)
    assert node.is_clean()


def test_a_follower_is_left_alone_when_another_command_works_on_it(node: Node) -> None:
    node.add(tcp(8080))
    node.call("ADD", SECOND, "c1", "eth1")
    node.locks.busy.add(("second", "c1", "eth1"))
    node.call("DEL", BARE)
    assert node.ports() == {5353: "10.99.0.2"}
    assert any("could not be taken over" in line for line in node.lines)


def test_add_waits_and_delete_goes_on_when_no_lock_can_be_made(node: Node) -> None:
    node.add(tcp(8080))
    node.locks.usable = False
    assert node.refused("ADD", conf(tcp(8080))).code == 104
    node.call("DEL", BARE)
    assert node.is_clean()
    node.locks.usable = True
    node.add(tcp(8080))
    node.locks.busy.add(("net", "c1", "eth0"))
    for verb in ("ADD", "DEL"):
        assert node.refused(verb, conf(tcp(8080))).code == 11
    node.call("DEL", {**BARE, "name": "never"}, "c9")
    assert node.locks.held == []


def test_delete_waits_for_an_add_that_has_written_no_record_yet(node: Node) -> None:
    key = ("net", "c1", "eth0")
    node.locks.busy.add(key)
    assert node.refused("DEL", conf(tcp(8080))).code == 11
    node.locks.busy.remove(key)
    node.locks.before = lambda _: setattr(node.locks, "before", lambda _: None) or node.add(tcp(8080))
    node.call("DEL", conf(tcp(8080)))
    assert node.is_clean()


def test_check_fails_when_nobody_serves_what_a_container_shared(node: Node) -> None:
    node.add(tcp(8080))
    node.call("ADD", SECOND, "c1", "eth1")
    path = next(path for path in node.records() if b'"network":"net"' in node.files.content[path])
    del node.files.content[path]
    assert node.refused("CHECK", SECOND, "c1", "eth1").code == 101


def test_a_renamed_network_is_found_when_deleted_under_its_new_name(node: Node) -> None:
    node.add(tcp(8080))
    node.call("DEL", {**conf(tcp(8080)), "name": "renamed"})
    assert node.is_clean()


FLOW, MASQUERADED = Flow(4, 5353), Flow(4, 5353, to="198.51.100.9", answering="198.51.100.9")
UNTOUCHED = [MASQUERADED, Flow(6, 5353), Flow(4, 53)]


def test_flows_to_this_host_are_forgotten_when_its_port_is_mapped(node: Node) -> None:
    node.conntrack.flows = [FLOW, Flow(4, 5353, answering=OTHER), *UNTOUCHED]
    node.add(UDP)
    assert node.conntrack.flows == UNTOUCHED


def test_flows_of_the_container_are_forgotten_when_it_is_deleted(node: Node) -> None:
    node.add(UDP)
    others = [FLOW, Flow(4, 5353, answering=OTHER), *UNTOUCHED]
    node.conntrack.flows = [Flow(4, 5353, answering=ADDRESS), *others]
    node.call("DEL", BARE)
    assert node.conntrack.flows == others


def test_flows_are_forgotten_when_the_record_is_lost(node: Node) -> None:
    node.add(UDP)
    node.files.content.clear()
    node.conntrack.flows = [FLOW, *UNTOUCHED[:1]]
    node.call("DEL", conf(UDP))
    assert node.conntrack.flows == UNTOUCHED[:1]
    node.conntrack.flows = [FLOW]
    node.call("DEL", conf(UDP))
    assert node.conntrack.flows == [FLOW]  # by now they may be another's


# --- CHECK, GC, STATUS -----------------------------------------------------------------------------------------


def test_check_passes_when_all_is_there(node: Node) -> None:
    node.add(tcp(8080), UDP, ips=BOTH)
    node.call("CHECK", conf(tcp(8080), UDP, ips=BOTH))


def test_check_goes_by_the_record_when_the_configuration_names_another_backend(node: Node) -> None:
    node.add(tcp(8080))
    for backend in OBSERVERS:
        node.call("CHECK", conf(tcp(8080), backend=backend))


def test_check_fails_when_the_rules_were_flushed(node: Node) -> None:
    node.add(tcp(8080))
    node.flush()
    assert node.refused("CHECK", conf(tcp(8080))).code == 101
    node.add(tcp(8080))
    node.call("CHECK", conf(tcp(8080)))
    node.flush()
    node.call("DEL", conf())
    assert node.is_clean()


@pytest.mark.parametrize("wanted", [[tcp(8081)], [tcp(8080), tcp(8081)], [tcp(8080, 81)]])
def test_check_fails_when_something_else_is_wanted(node: Node, wanted: list[dict[str, Any]]) -> None:
    node.add(tcp(8080))
    assert node.refused("CHECK", conf(*wanted)).code == 101


def test_check_fails_when_nothing_was_ever_mapped(node: Node) -> None:
    assert node.refused("CHECK", conf(tcp(8080))).code == 101


def gc(*valid: str) -> dict[str, Any]:
    return {**BARE, "cni.dev/valid-attachments": [{"containerID": name, "ifname": "eth0"} for name in valid]}


@pytest.mark.parametrize("lost", [False, True], ids=["recorded", "records lost"])
def test_gc_removes_what_is_not_listed_when_it_is_of_this_network(node: Node, lost: bool) -> None:
    node.add(tcp(8081))
    node.add(tcp(8082), ips=(f"{OTHER}/16",), container_id="c2")
    node.call("ADD", {**conf(tcp(8083), ips=("10.99.0.3/16",)), "name": "other"}, "c3")
    if lost:
        node.files.content.clear()
    node.call("GC", gc("c2"))
    assert node.ports() == {8082: OTHER, 8083: "10.99.0.3"}
    assert len(node.records()) == (0 if lost else 2)


def test_gc_reads_no_record_that_it_keeps(node: Node) -> None:
    """Neither those that are listed nor other networks': their names tell."""
    node.add(tcp(8081))
    node.add(tcp(8082), ips=(f"{OTHER}/16",), container_id="c2")
    node.call("ADD", {**conf(tcp(8083), ips=("10.99.0.3/16",)), "name": "other"}, "c3")
    for name in node.files.content:
        if name.endswith(".json") and digest("c1") not in name:
            node.files.content[name] = b"damaged"
    node.call("GC", gc("c2"))
    assert node.ports() == {8082: OTHER, 8083: "10.99.0.3"}
    assert not any("damaged" in line for line in node.lines)


def test_gc_removes_nothing_when_there_is_no_list(node: Node) -> None:
    node.add(tcp(8081))
    before = node.state()
    node.call("GC", BARE)
    assert node.state() == before


def test_status_is_well_when_the_backend_can_be_used(node: Node) -> None:
    node.call("STATUS", BARE)
    assert node.is_clean()


def test_status_is_50_when_records_cannot_be_written(node: Node) -> None:
    node.files.fail_at(1, lasting=True)
    assert node.refused("STATUS", BARE).code == 50


def test_status_is_50_when_the_backend_cannot_be_used(node: Node) -> None:
    node.disable(node.backend)
    assert node.refused("STATUS", BARE).code == 50


# --- kills, and several backends ---------------------------------------------------------------------------------


@pytest.mark.parametrize("then", ["DEL", "ADD"])
@pytest.mark.parametrize("verb", ["ADD", "changed ADD", "DEL"])
def test_nothing_is_left_when_killed_at_any_write(node: Node, verb: str, then: str) -> None:
    changed = conf(tcp(8081), ips=(f"{OTHER}/16",))
    for step in range(1, 20):
        if verb != "ADD":
            node.add(tcp(8080))
        node.files.kill_at(step)
        try:
            node.call(verb.rsplit(maxsplit=1)[-1], changed if verb == "changed ADD" else conf(tcp(8080)))
        except Killed:
            pass
        else:
            assert step > 1
            return
        finally:
            node.files.heal()
        assert not node.mapped() or node.records(), "rule => record"
        if then == "ADD":
            node.add(tcp(8080))
            assert node.ports() == {8080: ADDRESS}
        node.call("DEL", BARE)
        assert node.is_clean(), step
    pytest.fail("it was killed at every step")


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_the_other_backends_mappings_go_when_the_backend_is_changed(first: str, second: str) -> None:
    node = Node(first)
    node.add(tcp(8080), UDP, ips=BOTH)
    node.backend = second
    node.add(tcp(8080), UDP, ips=BOTH)
    assert len(node.mapped()) == 4
    assert OBSERVERS[first](node) == set()
    assert len(node.records()) == 1
    node.call("CHECK", conf(tcp(8080), UDP, ips=BOTH))
    node.backend = first
    node.call("DEL", conf(tcp(8080)))
    assert node.is_clean()


@pytest.mark.parametrize(("first", "second"), PAIRS)
@pytest.mark.parametrize("record", ["there", "lost", "damaged"])
def test_the_first_backends_mappings_go_when_deleted_under_another(first: str, second: str, record: str) -> None:
    node = Node(first)
    node.add(tcp(8080), ips=BOTH)
    (path,) = node.records()
    if record == "lost":
        del node.files.content[path]
    elif record == "damaged":
        node.files.content[path] = spoiled(node.files.content[path], "cut")
    node.backend = second
    node.call("DEL", conf(tcp(8080)))
    assert node.is_clean()


@pytest.mark.parametrize(("first", "second"), PAIRS)
def test_every_backends_mappings_go_when_collected(first: str, second: str) -> None:
    node = Node(first)
    node.add(tcp(8080))
    node.backend = second
    node.add(tcp(8081), ips=(f"{OTHER}/16",), container_id="c2")
    node.call("GC", gc())
    assert node.is_clean()


def test_auto_takes_iptables_when_nft_cannot_be_used() -> None:
    node = Node("iptables")
    node.disable("nftables")
    node.call("STATUS", {**BARE, "backend": "auto"})
    node.call("ADD", conf(tcp(8080), backend="auto"))
    assert node.ports() == {8080: ADDRESS}
    node.disable("iptables")
    assert node.refused("STATUS", {**BARE, "backend": "auto"}).code == 50


def test_auto_takes_iptables_when_the_kernel_refuses_nft() -> None:
    node = Node("iptables")
    node.nft.refusing = True
    node.call("STATUS", {**BARE, "backend": "auto"})
    node.call("ADD", conf(tcp(8080), backend="auto"))
    assert node.ports() == {8080: ADDRESS}
    node.call("CHECK", conf(tcp(8080), backend="auto"))
    node.call("DEL", conf(tcp(8080), backend="auto"))
    assert node.is_clean()
    assert node.refused("STATUS", {**BARE, "backend": "nftables"}).code == 50
    node.disable("iptables")
    assert node.refused("STATUS", {**BARE, "backend": "auto"}).code == 50


def test_auto_takes_nftables_when_both_can_be_used() -> None:
    node = Node("nftables")
    node.call("ADD", conf(tcp(8080), backend="auto"))
    assert node.ports() == {8080: ADDRESS}


def test_auto_takes_iptables_when_a_key_needs_it() -> None:
    node = Node("iptables")
    node.call("ADD", conf(tcp(8080), backend="auto", markMasqBit=5))
    assert node.ports() == {8080: ADDRESS}


def test_a_backend_is_refused_when_this_host_does_not_offer_it() -> None:
    with pytest.raises(CniError, match=r"\$\.backend must be one of auto, nftables, iptables, got"):
        read_settings(NetConf(conf(tcp(80), backend="memory")))
