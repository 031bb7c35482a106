"""portmap against a fake netfilter: what each verb puts in, refuses and takes out."""

from __future__ import annotations

import errno
from typing import TYPE_CHECKING

import pytest
from portmap_kit import Host, conf, tcp

from cnimeta.errors import CniError
from cnimeta.host.nftables.values import Element
from cnimeta.testing.files import Killed
from cnimeta.testing.netfilter import FakeNft, Flow
from cnimeta_plugins.portmap.nftables.rules import SHARED, owner_id

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from cnimeta.host.nftables.values import Change

pytestmark = pytest.mark.unit


def refusal(host: Host, verb: str, body: dict[str, object], **more: str) -> CniError:
    with pytest.raises(CniError) as caught:
        host.call(verb, body, **more)
    return caught.value


def test_mapping_is_one_element_and_its_claims_when_added() -> None:
    host = Host()
    host.call("ADD", conf(tcp(8080)))
    owner = owner_id("net", "c1", "eth0")
    assert host.dump() == [
        f"addresses4 {{ 10.88.0.2 : {owner} }}",
        "any4 { tcp . 8080 : 10.88.0.2 . 80 }",
        f"claims4 {{ tcp . 8080 : {owner} }}",
        "snat4 { 10.88.0.2 : goto masq-10.88.0.0/16 }",
    ]
    assert host.sysctl.values == {"net/ipv4/conf/to-10.88.0.2/route_localnet": "1"}


def test_both_families_are_mapped_when_the_container_has_both() -> None:
    host = Host()
    host.call("ADD", conf(tcp(8080), ips=("10.88.0.2/16", "fd00::2/64")))
    assert "any6 { tcp . 8080 : fd00::2 . 80 }" in host.dump()


def test_range_is_one_interval_when_the_ports_are_the_same_inside() -> None:
    host = Host()
    host.call("ADD", conf(tcp(9000, 9000, endPort=9002)))
    assert [line for line in host.dump() if line.startswith(("any", "range"))] == [
        "range4 { tcp . 9000-9002 : 10.88.0.2 }"
    ]
    assert sum(line.startswith("claims4") for line in host.dump()) == 3


def test_range_is_an_element_a_port_when_the_ports_are_shifted() -> None:
    host = Host()
    host.call("ADD", conf(tcp(9000, 80, count=2)))
    assert [line for line in host.dump() if line.startswith("any4")] == [
        "any4 { tcp . 9000 : 10.88.0.2 . 80 }",
        "any4 { tcp . 9001 : 10.88.0.2 . 81 }",
    ]


def test_nothing_is_touched_when_there_are_no_mappings() -> None:
    host = Host()
    host.call("ADD", conf())
    assert host.nft.transactions == []
    assert host.files.content == {}


def test_result_is_prev_result_when_added() -> None:
    body = conf(tcp(8080), ips=("10.88.0.2/16",))
    result = Host().call("ADD", body)
    assert [ip.address for ip in result.ips] == ["10.88.0.2/16"]
    assert [interface.name for interface in result.interfaces] == ["veth1", "eth0"]


@pytest.mark.parametrize("keys", [{"snat": False}, {"masqAll": True}])
def test_masquerading_follows_the_keys_when_they_are_set(keys: dict[str, bool]) -> None:
    host = Host()
    host.call("ADD", conf(tcp(8080), **keys))
    verdicts = [line for line in host.dump() if line.startswith("snat4")]
    assert verdicts == (["snat4 { 10.88.0.2 : goto masq-all }"] if "masqAll" in keys else [])


def test_add_changes_nothing_when_repeated() -> None:
    host = Host()
    host.call("ADD", conf(tcp(8080)))
    before = host.nft.dump()
    host.call("ADD", conf(tcp(8080)))
    assert host.nft.dump() == before
    assert all(change.verb != "delete" for change in host.nft.transactions[-1])


def test_mapping_is_replaced_when_the_address_has_changed() -> None:
    host = Host()
    host.call("ADD", conf(tcp(8080)))
    host.call("ADD", conf(tcp(8080), ips=("10.88.0.9/16",)))
    assert "any4 { tcp . 8080 : 10.88.0.9 . 80 }" in host.dump()
    assert "10.88.0.2" not in host.nft.dump()


def test_mapping_is_replaced_when_the_record_was_lost() -> None:
    host = Host()
    host.call("ADD", conf(tcp(8080)))
    host.files.content.clear()
    host.call("ADD", conf(tcp(8080), ips=("10.88.0.9/16",)))
    assert "any4 { tcp . 8080 : 10.88.0.9 . 80 }" in host.dump()
    assert "any4 { tcp . 8080 : 10.88.0.2 . 80 }" not in host.dump()


def test_port_is_refused_naming_its_owner_when_another_container_has_it() -> None:
    host = Host()
    host.call("ADD", conf(tcp(8080)))
    before, records = host.nft.dump(), dict(host.files.content)
    error = refusal(host, "ADD", conf(tcp(8081), tcp(8080), ips=("10.88.0.3/16",)), container_id="c2")
    assert error.code == 100
    assert "8080/tcp" in error.msg
    assert "c1" in error.msg
    assert host.nft.dump() == before
    assert host.files.content == records


@pytest.mark.parametrize("death", ["reboot", "namespace gone"])
def test_port_is_taken_over_when_its_owner_is_dead(death: str) -> None:
    host = Host()
    host.call("ADD", conf(tcp(8080)))
    if death == "reboot":
        host.boot = "boot-2"
    else:
        host.namespaces.gone.add("/run/netns/c1")
    host.call("ADD", conf(tcp(8080), ips=("10.88.0.3/16",)), container_id="c2")
    assert "any4 { tcp . 8080 : 10.88.0.3 . 80 }" in host.dump()
    host.call("DEL", conf(tcp(8080)))
    assert "any4 { tcp . 8080 : 10.88.0.3 . 80 }" in host.dump()


@pytest.mark.parametrize("first", ["", "192.0.2.1"])
def test_one_address_and_every_address_conflict_when_two_containers_ask(first: str) -> None:
    host = Host()
    second = "" if first else "192.0.2.1"
    host.call("ADD", conf(tcp(8080, hostIP=first)))
    error = refusal(host, "ADD", conf(tcp(8080, hostIP=second), ips=("10.88.0.3/16",)), container_id="c2")
    assert error.code == 100


def test_an_address_is_refused_naming_its_owner_when_a_live_container_has_it() -> None:
    host = Host()
    host.call("ADD", conf(tcp(8080)))
    before = host.nft.dump()
    error = refusal(host, "ADD", conf(tcp(8081)), container_id="c2")
    assert error.code == 100
    assert "the container's address 10.88.0.2 is that of container c1" in error.msg
    assert "host port" not in error.msg
    assert host.nft.dump() == before
    host.call("CHECK", conf(tcp(8080)))


@pytest.mark.parametrize("death", ["gone", "renamed"])
def test_an_address_is_taken_over_when_its_owner_is_dead_or_the_same_interface(death: str) -> None:
    host = Host()
    host.call("ADD", conf(tcp(8080)))
    if death == "gone":
        host.namespaces.gone.add("/run/netns/c1")
        host.call("ADD", conf(tcp(8081)), container_id="c2")
    else:
        host.call("ADD", {**conf(tcp(8081)), "name": "renamed"})
    assert "any4 { tcp . 8081 : 10.88.0.2 . 80 }" in host.dump()
    assert sum(line.startswith("addresses4") for line in host.dump()) == 1


def test_two_addresses_do_not_conflict_when_the_port_is_the_same() -> None:
    host = Host()
    host.call("ADD", conf(tcp(8080, hostIP="192.0.2.1")))
    host.call("ADD", conf(tcp(8080, hostIP="192.0.2.2"), ips=("10.88.0.3/16",)), container_id="c2")
    host.call("DEL", conf(), container_id="c1")
    assert "claims4 { tcp . 8080 : :: }" in host.dump()
    host.call("DEL", conf(), container_id="c2")
    assert host.dump() == []


@pytest.mark.parametrize(
    "body",
    [
        {"cniVersion": "1.1.0", "name": "net", "type": "portmap"},
        conf(tcp(8080)),
        conf(tcp(0)),
        {"cniVersion": "1.1.0", "name": "net", "type": "portmap", "backend": 5, "dataDir": 7},
    ],
    ids=["bare", "with mappings", "invalid mapping", "invalid keys"],
)
def test_everything_is_gone_when_deleted(body: dict[str, object]) -> None:
    host = Host()
    host.call("ADD", conf(tcp(8080), tcp(53, 53, protocol="udp"), tcp(7070, hostIP="192.0.2.1")))
    for _ in range(3):
        host.call("DEL", body)
    assert host.dump() == []
    assert host.files.content == {}


def test_mappings_are_found_by_their_claims_when_the_record_is_lost() -> None:
    host = Host()
    host.call("ADD", conf(tcp(8080), tcp(9000, 9000, endPort=9001)))
    host.files.content.clear()
    host.call("DEL", conf(tcp(8080)))
    assert host.dump() == []


def test_damaged_record_is_reported_and_mappings_go_when_deleted() -> None:
    host = Host()
    host.call("ADD", conf(tcp(8080)))
    (path,) = (name for name in host.files.content if name.endswith(".json"))
    host.files.content[path] = b'{"version":1,'
    host.call("DEL", conf())
    assert host.dump() == []
    assert host.files.content == {}
    assert any("damaged" in line for line in host.lines)


def test_other_networks_stay_when_one_is_deleted() -> None:
    host = Host()
    host.call("ADD", conf(tcp(8080)))
    host.call("ADD", {**conf(tcp(9090), ips=("10.99.0.2/16",)), "name": "other"})
    host.call("DEL", {**conf(tcp(9090)), "name": "other"})
    host.call("DEL", {**conf(tcp(9090)), "name": "other"})
    assert "any4 { tcp . 8080 : 10.88.0.2 . 80 }" in host.dump()
    assert "any4 { tcp . 9090 : 10.99.0.2 . 80 }" not in host.dump()


def test_two_interfaces_are_kept_apart_when_one_is_deleted() -> None:
    host = Host()
    body = conf(tcp(8080))
    host.call("ADD", body)
    second = conf(tcp(8081), ips=("10.88.0.7/16",))
    second["prevResult"]["interfaces"][1]["name"] = "eth1"
    host.call("ADD", second, ifname="eth1")
    host.call("DEL", body)
    assert [line for line in host.dump() if line.startswith("any4")] == ["any4 { tcp . 8081 : 10.88.0.7 . 80 }"]


def test_renamed_network_is_found_when_deleted_under_its_new_name() -> None:
    host = Host()
    host.call("ADD", conf(tcp(8080)))
    host.call("DEL", {**conf(tcp(8080)), "name": "renamed"})
    assert host.dump() == []


def test_udp_flows_are_forgotten_when_added_and_when_deleted() -> None:
    host = Host()
    host.conntrack.flows = [Flow(4, 5353), Flow(4, 53)]
    body = conf({"hostPort": 5353, "containerPort": 53, "protocol": "udp"})
    host.call("ADD", body)
    assert host.conntrack.flows == [Flow(4, 53)]
    host.conntrack.flows = [Flow(4, 5353, answering="10.88.0.2"), Flow(4, 53, answering="10.88.0.2")]
    host.call("DEL", {"cniVersion": "1.1.0", "name": "net"})
    assert host.conntrack.flows == [Flow(4, 53, answering="10.88.0.2")]


def test_check_passes_when_all_is_there() -> None:
    host = Host()
    host.call("ADD", conf(tcp(8080)))
    host.call("CHECK", conf(tcp(8080)))


@pytest.mark.parametrize("table", ["any4", "claims4", "snat4", "addresses4"])
def test_check_fails_when_an_element_is_missing(table: str) -> None:
    host = Host()
    host.call("ADD", conf(tcp(8080)))
    host.nft.empty(table)
    error = refusal(host, "CHECK", conf(tcp(8080)))
    assert error.code == 101
    assert table in error.msg


def test_check_fails_when_an_element_leads_elsewhere() -> None:
    host = Host()
    host.call("ADD", conf(tcp(8080)))
    host.nft.put(Element("any4", "tcp . 8080", "10.88.0.66 . 80"))
    assert refusal(host, "CHECK", conf(tcp(8080))).code == 101


def test_base_is_built_anew_when_another_tool_flushed_the_rules() -> None:
    host = Host()
    host.call("ADD", conf(tcp(8080)))
    host.nft.flush_ruleset()
    assert refusal(host, "CHECK", conf(tcp(8080))).code == 101
    host.call("ADD", conf(tcp(8080)))
    host.call("CHECK", conf(tcp(8080)))
    host.nft.flush_ruleset()
    host.call("DEL", conf(tcp(8080)))
    assert host.files.content == {}


def gc(*valid: str, **keys: object) -> dict[str, object]:
    listed = [{"containerID": container_id, "ifname": "eth0"} for container_id in valid]
    return {"cniVersion": "1.1.0", "name": "net", "type": "portmap", "cni.dev/valid-attachments": listed, **keys}


def test_gc_removes_what_is_not_listed_when_it_is_of_this_network() -> None:
    host = Host()
    host.call("ADD", conf(tcp(8081)), container_id="c1")
    host.call("ADD", conf(tcp(8082), ips=("10.88.0.3/16",)), container_id="c2")
    host.call("ADD", {**conf(tcp(8083), ips=("10.99.0.3/16",)), "name": "other"}, container_id="c3")
    host.call("GC", gc("c2"))
    assert [line.split()[4] for line in host.dump() if line.startswith("any4")] == ["8082", "8083"]


def test_gc_removes_unrecorded_mappings_when_they_are_tagged() -> None:
    host = Host()
    host.call("ADD", conf(tcp(8081)))
    host.files.content.clear()
    host.call("GC", gc("c2"))
    assert host.dump() == []


def test_gc_removes_nothing_when_there_is_no_list() -> None:
    host = Host()
    host.call("ADD", conf(tcp(8081)))
    body = gc()
    del body["cni.dev/valid-attachments"]
    host.call("GC", body)
    assert "any4 { tcp . 8081 : 10.88.0.2 . 80 }" in host.dump()


def test_status_is_50_when_records_cannot_be_written() -> None:
    host = Host()
    host.files.fail_at(1, lasting=True)
    assert refusal(host, "STATUS", {"cniVersion": "1.1.0", "name": "net"}).code == 50


def test_status_is_well_when_another_status_removed_what_it_tried_to_write() -> None:
    host = Host()
    host.files.fail_at(3, number=errno.ENOENT)
    host.call("STATUS", {"cniVersion": "1.1.0", "name": "net"})


@pytest.mark.parametrize("step", range(1, 6))
def test_delete_leaves_nothing_when_add_was_killed(step: int) -> None:
    host = Host()
    host.files.kill_at(step)
    try:
        host.call("ADD", conf(tcp(8080)))
    except Killed:
        pass
    host.files.heal()
    host.call("DEL", conf(tcp(8080)))
    assert host.dump() == []
    assert host.files.content == {}


def test_add_fails_clean_when_the_disk_is_full() -> None:
    host = Host()
    host.files.fail_at(1, lasting=True)
    assert refusal(host, "ADD", conf(tcp(8080))).code == 104
    assert host.nft.dump() == ""


class Meanwhile(FakeNft):
    """Lets another command run between a look and the first transaction that deletes a shared claim."""

    def __init__(self) -> None:
        super().__init__()
        self.others: list[Callable[[], object]] = []

    def apply(self, changes: Sequence[Change], since: int = 0) -> None:
        if self.others and _deletes_share(changes):
            self.others.pop()()
        super().apply(changes, since)


def _deletes_share(changes: Sequence[Change]) -> bool:
    return any(one.verb == "delete" and getattr(one.item, "value", "") == SHARED for one in changes)


@pytest.mark.parametrize("last", ["DEL", "ADD with another address", "ADD after a dead one"])
def test_a_claim_stays_when_another_begins_to_share_it_meanwhile(last: str) -> None:
    nft = Meanwhile()
    host = Host(nft)
    host.call("ADD", conf(tcp(8080, hostIP="192.0.2.1")))
    other = conf(tcp(8080, hostIP="192.0.2.2"), ips=("10.88.0.3/16",))
    nft.others.append(lambda: host.call("ADD", other, container_id="c2"))
    whole = conf(tcp(8080), ips=("10.88.0.4/16",))
    if last == "DEL":
        host.call("DEL", conf())
    elif last == "ADD after a dead one":
        host.namespaces.gone.add("/run/netns/c1")
        assert refusal(host, "ADD", whole, container_id="c3").code == 100
    else:
        assert refusal(host, "ADD", conf(tcp(8080))).code == 100
    assert not nft.others
    host.call("CHECK", other, container_id="c2")
    assert refusal(host, "ADD", whole, container_id="c3").code == 100
    host.call("DEL", other, container_id="c2")
    host.call("DEL", conf())
    host.call("ADD", whole, container_id="c3")


def test_conditions_have_a_chain_of_their_own_when_given() -> None:
    host = Host()
    host.call("ADD", conf(tcp(8080), conditionsV4=["ip saddr 192.0.2.0/24"]))
    host.call("ADD", conf(tcp(8080), conditionsV4=["ip saddr 192.0.2.0/24"]))
    host.call("CHECK", conf(tcp(8080), conditionsV4=["ip saddr 192.0.2.0/24"]))
    entries = [rule.text for rule in host.nft.rules("conditional")]
    assert len(entries) == 1
    assert entries[0].startswith("meta nfproto ipv4 ip saddr 192.0.2.0/24 jump if4-")
    host.call("DEL", conf())
    assert host.nft.rules("conditional") == []
    assert "dnat ip to 10.88.0.2:80" not in host.nft.dump()
