"""The rules against upstream's own expectations (portmap_iptables_test.go), in `iptables-save` form."""

import pytest
from iptables_kit import mapping, rules_of, settings_with

from cnimeta.host.iptables.values import Change, Refused, Table, quote, render, split, target
from cnimeta_plugins.portmap.config import PortMapping, Settings
from cnimeta_plugins.portmap.iptables import plan
from cnimeta_plugins.portmap.iptables.rules import (
    JUMP_IN,
    JUMP_OUT,
    chain_name,
    comment,
    masquerade_rule,
    old_snat_chain_name,
    port_lists,
    second_chain_name,
    set_mark_rule,
)
from cnimeta_plugins.portmap.plan import Owner

pytestmark = pytest.mark.unit

CONTAINER_ID = "icee6giejonei6sohng6ahngee7laquohquee9shiGo7fohferakah3Feiyoolu2pei7ciPhoh7shaoX6vai3vuf0ahfaeng8yohb9ceu0daez5hashee8ooYai5wa3y"


def single(protocol: str, host: int, container: int, host_ip: str = "") -> PortMapping:
    return mapping(protocol, host, host, container, host_ip)


MAPPINGS = (
    single("tcp", 8080, 80),
    single("tcp", 8081, 80),
    single("udp", 8080, 81),
    single("udp", 8082, 82),
    single("tcp", 8083, 83, "192.168.0.2"),
    single("tcp", 8084, 84, "0.0.0.0"),
    single("tcp", 8085, 85, "2001:db8:a::1"),
    single("tcp", 8086, 86, "::"),
)


@pytest.mark.parametrize(
    ("network", "name"),
    [("testNetName", "CNI-DN-bfd599665540dd91d5d28"), ("test", "CNI-DN-67e92b96e692a494b6b85")],
)
def test_chain_name_is_upstreams_when_network_and_container_are_its_test_vectors(network, name):
    assert chain_name(network, CONTAINER_ID) == name


def test_second_chain_name_differs_when_any_of_its_three_parts_does():
    names = {
        chain_name("net", "c1"),
        second_chain_name(Owner("net", "c1", "eth0")),
        second_chain_name(Owner("net", "c1", "eth1")),
        second_chain_name(Owner("net", "c2", "eth0")),
        second_chain_name(Owner("net2", "c1", "eth0")),
        old_snat_chain_name("net", "c1"),
    }
    assert len(names) == 6
    assert all(len(name) == 28 for name in names)


def test_entry_rules_list_every_port_when_some_mappings_are_for_the_other_family():
    wanted = rules_of("test", CONTAINER_ID, "10.0.0.2/24", MAPPINGS, settings_with(conditions=("-a", "b")))
    said = f'-m comment --comment "dnat name: \\"test\\" id: \\"{CONTAINER_ID}\\""'
    assert wanted.entries == (
        f"-p tcp {said} -m multiport --dports 8080,8081,8083,8084,8085,8086 -a b -j CNI-DN-67e92b96e692a494b6b85",
        f"-p udp {said} -m multiport --dports 8080,8082 -a b -j CNI-DN-67e92b96e692a494b6b85",
    )


def test_container_rules_are_upstreams_when_ipv4_with_snat():
    wanted = rules_of("test", CONTAINER_ID, "10.0.0.2/24", MAPPINGS, Settings())
    expected = []
    for protocol, host, to, host_ip in [
        ("tcp", 8080, 80, ""),
        ("tcp", 8081, 80, ""),
        ("udp", 8080, 81, ""),
        ("udp", 8082, 82, ""),
        ("tcp", 8083, 83, "-d 192.168.0.2/32 "),
        ("tcp", 8084, 84, ""),
    ]:
        port = f"{host_ip}-p {protocol} -m {protocol} --dport {host} -j"
        expected += [
            f"-s 10.0.0.0/24 {port} CNI-HOSTPORT-SETMARK",
            f"-s 127.0.0.1/32 {port} CNI-HOSTPORT-SETMARK",
            f"{port} DNAT --to-destination 10.0.0.2:{to}",
        ]
    assert list(wanted.rules) == expected


def test_container_rules_are_upstreams_when_ipv6_with_snat():
    wanted = rules_of("test", CONTAINER_ID, "2001:db8::2/64", MAPPINGS, Settings())
    expected = []
    for protocol, host, to, host_ip in [
        ("tcp", 8080, 80, ""),
        ("tcp", 8081, 80, ""),
        ("udp", 8080, 81, ""),
        ("udp", 8082, 82, ""),
        ("tcp", 8085, 85, "-d 2001:db8:a::1/128 "),
        ("tcp", 8086, 86, ""),
    ]:
        port = f"{host_ip}-p {protocol} -m {protocol} --dport {host} -j"
        expected += [
            f"-s 2001:db8::/64 {port} CNI-HOSTPORT-SETMARK",
            f"{port} DNAT --to-destination [2001:db8::2]:{to}",
        ]
    assert list(wanted.rules) == expected


def test_only_translations_are_left_when_snat_is_off():
    wanted = rules_of("test", "c", "10.0.0.2/24", MAPPINGS, Settings(snat=False))
    assert all("-j DNAT" in rule for rule in wanted.rules)
    assert len(wanted.rules) == 6
    assert [one.chain for one in plan.upstream_base(Settings(snat=False))] == ["PREROUTING", "OUTPUT"]


@pytest.mark.parametrize("address", ["10.0.0.2/24", "2001:db8::2/64"])
def test_everything_is_marked_once_when_masq_all_is_set(address):
    wanted = rules_of("test", "c", address, MAPPINGS[:1], Settings(masq_all=True))
    assert wanted.rules[0] == "-p tcp -m tcp --dport 8080 -j CNI-HOSTPORT-SETMARK"
    assert len(wanted.rules) == 2


def test_the_external_chain_marks_when_one_is_named():
    settings = Settings(external_set_mark_chain="PLZ-SET-MARK")
    wanted = rules_of("test", "c", "10.0.0.2/24", MAPPINGS[:1], settings)
    assert [target(rule) for rule in wanted.rules] == ["PLZ-SET-MARK", "PLZ-SET-MARK", "DNAT"]
    assert [one.chain for one in plan.upstream_base(settings)] == ["PREROUTING", "OUTPUT"]


def test_mark_rules_are_upstreams_when_the_mark_bit_is_5():
    assert set_mark_rule(5) == '-m comment --comment "CNI portfwd masquerade mark" -j MARK --set-xmark 0x20/0x20'
    assert masquerade_rule(5) == "-m mark --mark 0x20/0x20 -j MASQUERADE"


def test_ports_are_split_in_lists_of_15_when_there_are_more():
    mappings = [single("tcp", port, port) for port in range(1, 32)]
    assert [text.count(",") + 1 for text in port_lists(mappings)] == [15, 15, 1]
    assert port_lists([]) == []


def test_a_range_takes_two_places_when_lists_are_split():
    mappings = [single("tcp", port, port) for port in range(1, 15)] + [mapping("tcp", 100, 200, 100)]
    assert port_lists(mappings) == [",".join(str(port) for port in range(1, 15)), "100:200"]


@pytest.mark.parametrize(
    ("container_port", "address", "destination"),
    [
        (8000, "10.0.0.2/24", "10.0.0.2"),
        (9000, "10.0.0.2/24", "10.0.0.2:9000-9010/8000"),
        (8000, "2001:db8::2/64", "2001:db8::2"),
        (9000, "2001:db8::2/64", "[2001:db8::2]:9000-9010/8000"),
    ],
)
def test_a_range_is_one_rule_when_it_is_shifted_or_not(container_port, address, destination):
    wanted = rules_of("n", "c", address, [mapping("tcp", 8000, 8010, container_port)], Settings(snat=False))
    assert wanted.rules == (f"-p tcp -m tcp --dport 8000:8010 -j DNAT --to-destination {destination}",)


def test_one_address_goes_before_every_address_when_both_have_a_port():
    both = [mapping("tcp", 8080, 8080, 80), mapping("tcp", 8080, 8080, 90, "192.0.2.1")]
    rules = rules_of("n", "c", "10.0.0.2/24", both, Settings(snat=False)).rules
    assert [rule.rpartition(":")[2] for rule in rules] == ["90", "80"]
    apart = [both[0]._replace(first=1, last=1), both[1]]
    rules = rules_of("n", "c", "10.0.0.2/24", apart, Settings(snat=False)).rules
    assert [rule.rpartition(":")[2] for rule in rules] == ["80", "90"]


@pytest.mark.parametrize(("extra", "end"), [(0, 'cc"'), (1, "c..")])
def test_comment_is_what_the_kernel_keeps_of_upstreams_when_it_is_longer_than_255(extra, end):
    container_id = "c" * (255 - len('dnat name: "n" id: ""') + extra)
    text = comment("n", container_id)
    assert len(text) == 255
    assert text.endswith(end)


@pytest.mark.parametrize("word", ["plain", "", "two words", 'say "x"', "back\\slash", "it's", "-m", "1,2:3"])
def test_words_come_back_when_quoted_and_split(word):
    assert split(f"-a {quote(word)} -b") == ["-a", word, "-b"]


@pytest.mark.parametrize("word", ["a\nCOMMIT", "a\0", "\t"])
def test_quote_refuses_when_a_word_has_control_characters(word):
    with pytest.raises(Refused, match="control characters"):
        quote(word)


def test_batch_text_is_what_iptables_restore_reads_when_rendered():
    changes = [
        Change("require", "OUTPUT", JUMP_IN),
        Change("new", "X"),
        Change("append", "X", "-j RETURN"),
        Change("insert", "POSTROUTING", JUMP_OUT),
        Change("delete", "Y", "-j X"),
        Change("flush", "Y"),
        Change("remove", "Y"),
    ]
    assert render(changes) == (
        f"*nat\n-C OUTPUT {JUMP_IN}\n-N X\n-A X -j RETURN\n-I POSTROUTING 1 {JUMP_OUT}\n-D Y -j X\n-F Y\n-X Y\nCOMMIT\n"
    )


def test_entry_is_read_back_when_it_was_planned():
    wanted = rules_of("n", "c", "10.0.0.2/24", [*MAPPINGS, mapping("tcp", 1, 9, 1)], Settings())
    entry = plan.read_entry(wanted.entries[0])
    assert entry.chain == wanted.chain
    assert plan.Span("tcp", 1, 9) in entry.spans
    assert plan.read_owner(entry) == plan.Named(wanted.chain, "n", "c", whole=True)


def test_owner_is_known_in_part_when_the_comment_was_cut():
    wanted = rules_of("n", "c" * 300, "10.0.0.2/24", MAPPINGS[:1], Settings())
    owner = plan.read_owner(plan.read_entry(wanted.entries[0]))
    assert (owner.network, owner.whole) == ("n", False)
    assert set(owner.container_id) == {"c"}


@pytest.mark.parametrize(
    "rule",
    [
        "-j CNI-DN-x",
        "-p tcp -m comment --comment -j CNI-DN-x",
        '-p tcp -m comment --comment "hello" -m multiport --dports 80 -j CNI-DN-x',
        "-m multiport --dports x,y -j CNI-DN-x",
    ],
)
def test_owner_is_nobody_when_the_rule_is_not_upstreams(rule):
    entry = plan.read_entry(rule)
    owner = plan.read_owner(entry)
    assert (entry.chain, owner.network, owner.container_id) == ("CNI-DN-x", "", "")


def test_saved_text_is_read_when_it_comes_from_save_or_list():
    saved = "# x\n*nat\n:OUTPUT ACCEPT [0:0]\n:A - [1:2]\n-A OUTPUT -j A\nCOMMIT\n"
    listed = "-P OUTPUT ACCEPT\n-N A\n-A OUTPUT -j A\n"
    assert Table.parse(saved).chains == Table.parse(listed).chains == {"OUTPUT": ["-j A"], "A": []}


@pytest.mark.parametrize(
    "change",
    [
        Change("new", "A"),
        Change("flush", "B"),
        Change("remove", "A"),
        Change("delete", "A", "-j RETURN"),
        Change("require", "A", "-j RETURN"),
        Change("append", "B", "-j A"),
    ],
)
def test_table_refuses_when_a_change_does_not_fit(change):
    table = Table({"OUTPUT": ["-j A"], "A": []})
    with pytest.raises(Refused, match=change.chain):
        table.apply(change)
    assert table.chains == {"OUTPUT": ["-j A"], "A": []}
