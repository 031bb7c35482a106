"""One contract for every Iptables: the fake, iptables over nf_tables, the legacy iptables."""

import contextlib

import pytest
from iptables_kit import Driver, Known, Part, Target, mapping, rules_of, settings_with

from cnimeta.errors import CheckFailed, HostPortConflict, IoFailure
from cnimeta.host.iptables.legacy import LegacyIptables
from cnimeta.host.iptables.lock import XtablesLock
from cnimeta.host.iptables.restore import NftIptables
from cnimeta.host.iptables.values import Change, Refused
from cnimeta.testing.iptables import FakeIptables
from cnimeta_plugins.portmap.config import PortMapping, Settings
from cnimeta_plugins.portmap.iptables.rules import chain_name, old_snat_chain_name

DNAT = "CNI-HOSTPORT-DNAT"
C1, C2 = Target("net", "c1", "eth0"), Target("net", "c2", "eth0")
CONDITIONS = settings_with(conditions=("!", "-s", "10.9.0.0/16", "-m", "conntrack", "--ctstate", "NEW"))


def single(host: int, to: int = 80, host_ip: str = "", protocol: str = "tcp") -> PortMapping:
    return mapping(protocol, host, host, to, host_ip)


def part(*mappings: PortMapping, address: str = "10.0.0.2/24", settings: Settings | None = None) -> Part:
    return Part(address, mappings, settings or Settings())


class OnlyPythonIptables(LegacyIptables):
    """Without the program it falls back on: everything here is within python-iptables' means."""

    def _restore(self, family, changes):
        raise AssertionError(f"python-iptables could not do {changes}")


@pytest.fixture(
    params=[
        pytest.param("fake", marks=pytest.mark.unit),
        pytest.param("nft", marks=pytest.mark.kernel),
        pytest.param("legacy", marks=pytest.mark.kernel),
    ]
)
def tables(request, tmp_path):
    if request.param == "fake":
        yield FakeIptables()
        return
    namespace = request.getfixturevalue("make_netns")("ipt")
    adapter = NftIptables if request.param == "nft" else OnlyPythonIptables
    with namespace.entered():
        yield adapter(lock=XtablesLock(str(tmp_path / "lock")))


@pytest.fixture
def backend(tables):
    return Driver(tables)


def state(tables) -> dict[int, dict[str, list[str]]]:
    """What is there beside empty built-in chains."""
    return {
        family: {name: rules for name, rules in tables.read(family).items() if rules or name.startswith("CNI")}
        for family in (4, 6)
    }


def entries(tables, family: int = 4) -> list[str]:
    """The rules that lead to containers' chains."""
    return [rule for rule in tables.chain(family, DNAT) if "CNI-DN-" in rule]


@contextlib.contextmanager
def unchanged(tables):
    before = state(tables)
    yield
    assert state(tables) == before


# --- the protocol -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", [4, 6])
def test_a_batch_is_applied_in_order_when_every_step_fits(tables, family):
    with tables.held():
        tables.commit(
            family,
            [
                Change("new", "A"),
                Change("append", "A", "-p tcp -m tcp --dport 2 -j RETURN"),
                Change("insert", "A", "-p tcp -m tcp --dport 1 -j RETURN"),
                Change("append", "OUTPUT", "-j A"),
            ],
        )
        tables.commit(
            family,
            [
                Change("require", "OUTPUT", "-j A"),
                Change("delete", "A", "-p tcp -m tcp --dport 1 -j RETURN"),
                Change("append", "A", "-j RETURN"),
            ],
        )
    assert tables.chain(family, "A") == ["-p tcp -m tcp --dport 2 -j RETURN", "-j RETURN"]
    assert tables.has_rule(family, "OUTPUT", "-j A")
    with tables.held():
        tables.commit(family, [Change("delete", "OUTPUT", "-j A"), Change("flush", "A"), Change("remove", "A")])
    assert tables.chain(family, "A") is None
    assert not tables.has_chain(family, "A")


@pytest.mark.parametrize(
    "bad",
    [
        Change("new", "A"),
        Change("flush", "B"),
        Change("remove", "B"),
        Change("append", "B", "-j RETURN"),
        Change("delete", "A", "-j ACCEPT"),
        Change("require", "OUTPUT", "-j ACCEPT"),
    ],
    ids=lambda change: f"{change.action}-{change.chain}",
)
def test_nothing_is_applied_when_one_step_does_not_fit(tables, bad):
    with tables.held():
        tables.commit(4, [Change("new", "A"), Change("append", "A", "-j RETURN")])
    with unchanged(tables), pytest.raises(Refused), tables.held():
        tables.commit(4, [Change("append", "OUTPUT", "-j A"), bad, Change("flush", "A")])


def test_chains_are_absent_when_nothing_was_ever_written(tables):
    assert tables.chain(4, DNAT) is None
    assert not tables.has_chain(6, DNAT)
    assert all(not rules for rules in tables.read(4).values())


def test_only_rules_with_one_of_the_words_are_read_when_words_are_given(tables, backend):
    for number, target in enumerate((C1, C2)):
        backend.add(target, [part(single(8080 + number))])
    assert tables.used(4)
    assert [rule.rpartition(" ")[2] for rule in tables.chain(4, DNAT, (C2.chain, "no-such"))] == [C2.chain]
    assert tables.chain(4, DNAT, ("no-such",)) == []
    assert len(tables.chain(4, DNAT)) == 2


# --- the backend --------------------------------------------------------------------------------------------


def test_add_writes_both_families_when_the_container_has_both(backend, tables):
    mappings = [single(8080), single(8080, 81, protocol="udp"), single(8081, protocol="sctp"), mapping("tcp", 1, 9, 11)]
    parts = [part(*mappings), part(*mappings, address="2001:db8::2/64")]
    backend.add(C1, parts)
    for family, made in zip((4, 6), parts, strict=True):
        wanted = rules_of("net", "c1", made.address, made.mappings, made.settings)
        assert tables.chain(family, wanted.chain) == list(wanted.rules)
        assert entries(tables, family) == list(wanted.entries)
    backend.check(C1, parts)


def test_delete_leaves_only_the_shared_chains_when_both_families_were_mapped(backend, tables):
    backend.add(C1, [part(single(8080)), part(single(8080), address="2001:db8::2/64")])
    backend.delete(C1)
    for family in (4, 6):
        assert sorted(name for name in tables.read(family) if name.startswith("CNI")) == [
            DNAT,
            "CNI-HOSTPORT-MASQ",
            "CNI-HOSTPORT-SETMARK",
        ]
        assert entries(tables, family) == []


def test_delete_changes_nothing_when_repeated_or_never_mapped(backend, tables):
    backend.delete(C1)
    backend.add(C2, [part(single(8080))])
    with unchanged(tables):
        backend.delete(C1)
        backend.delete(C1)


def test_nothing_changes_when_add_is_repeated(backend, tables):
    parts = [part(single(8080), single(8081), settings=CONDITIONS)]
    backend.add(C1, parts)
    with unchanged(tables):
        backend.add(C1, parts)


def test_only_the_new_address_is_mapped_when_add_is_repeated_with_another(backend, tables):
    backend.add(C1, [part(single(8080), single(8081))])
    backend.add(C1, [part(single(8080), address="10.0.0.7/24")])
    wanted = rules_of("net", "c1", "10.0.0.7/24", [single(8080)], Settings())
    assert tables.chain(4, wanted.chain) == list(wanted.rules)
    assert tables.chain(4, DNAT) == list(wanted.entries)


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (single(8080), single(8080, 99)),
        (single(8085), mapping("tcp", 8080, 8090, 8080)),
        (mapping("tcp", 8000, 8080, 1), single(8080)),
        (single(8080, host_ip="192.0.2.1"), single(8080, host_ip="192.0.2.1")),
        (single(8080, host_ip="0.0.0.0"), single(8080)),
        (single(8080), single(8080, host_ip="192.0.2.1")),
        (single(8080, host_ip="192.0.2.1"), single(8080)),
    ],
)
def test_add_is_refused_naming_the_owner_when_another_container_has_the_port(backend, tables, mine, theirs):
    backend.add(C1, [part(theirs)])
    with unchanged(tables), pytest.raises(HostPortConflict, match=r'taken by container "c1" of network "net"'):
        backend.add(C2, [part(mine, address="10.0.0.3/24")])


@pytest.mark.parametrize(
    ("mine", "theirs"),
    [
        (single(8080, protocol="udp"), single(8080)),
        (single(8081), single(8080)),
        (single(8080, host_ip="192.0.2.1"), single(8080, host_ip="192.0.2.2")),
        (single(8080), single(8080, host_ip="2001:db8::1")),
        (mapping("tcp", 8081, 8090, 1), single(8080)),
    ],
)
def test_both_are_mapped_when_no_packet_can_be_for_both(backend, tables, mine, theirs):
    backend.add(C1, [part(theirs)])
    backend.add(C2, [part(mine, address="10.0.0.3/24")])
    assert len(tables.chain(4, DNAT)) == 2


def test_neither_family_is_written_when_the_port_is_taken_in_one(backend, tables):
    backend.add(C1, [part(single(8080), address="2001:db8::2/64")])
    with unchanged(tables), pytest.raises(HostPortConflict):
        backend.add(C2, [part(single(8080)), part(single(8080), address="2001:db8::3/64")])


def test_the_port_is_taken_over_when_its_owner_is_gone(backend, tables):
    known = Known((C1, True))
    backend.add(C1, [part(single(8080), single(8081))])
    backend.add(C2, [part(single(8081), address="10.0.0.3/24")], known)
    assert not tables.has_chain(4, C1.chain)
    assert [rule.rpartition(" ")[2] for rule in tables.chain(4, DNAT)] == [C2.chain]
    assert known.asked == ["c1"]


def test_two_interfaces_are_kept_apart_when_the_second_is_marked_so(backend, tables):
    second = Target("net", "c1", "eth1", second=True)
    backend.add(C1, [part(single(8080))])
    backend.add(second, [part(single(8081), address="10.1.0.2/24")])
    backend.check(C1, [part(single(8080))])
    backend.delete(second)
    backend.check(C1, [part(single(8080))])
    assert not tables.has_chain(4, second.chain)
    backend.add(second, [part(single(8081), address="10.1.0.2/24")])
    backend.delete(C1)
    backend.check(second, [part(single(8081), address="10.1.0.2/24")])


def test_what_an_earlier_network_name_left_is_removed_when_other_networks_are_named(backend, tables):
    backend.add(Target("before", "c1", "eth0"), [part(single(8080))])
    backend.add(Target("other", "c1", "eth1"), [part(single(8081))])
    backend.add(Target("before", "c2", "eth0"), [part(single(8082))])
    backend.delete(C1)
    assert len(tables.chain(4, DNAT)) == 3
    backend.sweep(C1, Known((Target("other", "c1", "eth1"), False)))
    left = {chain_name("other", "c1"), chain_name("before", "c2")}
    assert {rule.rpartition(" ")[2] for rule in tables.chain(4, DNAT)} == left
    assert not tables.has_chain(4, chain_name("before", "c1"))


def test_old_snat_chains_go_when_the_container_is_deleted(backend, tables):
    old = old_snat_chain_name("net", "c1")
    with tables.held():
        tables.commit(
            4,
            [
                Change("new", "CNI-HOSTPORT-SNAT"),
                Change("new", old),
                Change("append", old, "-p tcp -m tcp --dport 80 -j MASQUERADE"),
                Change("append", "POSTROUTING", "-j CNI-HOSTPORT-SNAT"),
                Change("append", "CNI-HOSTPORT-SNAT", f"-p tcp -m multiport --dports 80 -j {old}"),
            ],
        )
    backend.delete(C1)
    assert not tables.has_chain(4, old)
    assert tables.chain(4, "CNI-HOSTPORT-SNAT") == []


@pytest.mark.parametrize("settings", [Settings(), CONDITIONS], ids=["plain", "conditions"])
def test_a_chain_without_entry_and_an_entry_twice_go_when_left_by_a_killed_process(backend, tables, settings):
    backend.add(C1, [part(single(8080), settings=settings)])
    entry = tables.chain(4, DNAT)[0]
    with tables.held():
        tables.commit(4, [Change("delete", DNAT, entry)])
    backend.add(C1, [part(single(8080), settings=settings)])
    with tables.held():
        tables.commit(4, [Change("append", DNAT, entry)])
    backend.add(C1, [part(single(8080), settings=settings)])
    assert tables.chain(4, DNAT) == [entry]
    with tables.held():
        tables.commit(4, [Change("delete", DNAT, entry)])
    backend.delete(C1)
    assert not tables.has_chain(4, C1.chain)


@pytest.mark.parametrize("lost", ["PREROUTING", "OUTPUT", "POSTROUTING", "CNI-HOSTPORT-SETMARK", "CNI-HOSTPORT-MASQ"])
def test_shared_rules_are_made_again_when_something_flushed_them(backend, tables, lost):
    backend.add(C1, [part(single(8080))])
    before = state(tables)
    with tables.held():
        tables.commit(4, [Change("flush", lost)])
    with pytest.raises(CheckFailed, match=lost):
        backend.check(C1, [part(single(8080))])
    backend.add(C1, [part(single(8080))])
    assert state(tables) == before


def test_foreign_rules_keep_their_place_when_mappings_come_and_go(backend, tables):
    foreign = "-s 10.0.0.0/24 -j MASQUERADE"
    with tables.held():
        tables.commit(4, [Change("append", "POSTROUTING", foreign)])
    backend.add(C1, [part(single(8080))])
    assert tables.read(4)["POSTROUTING"][1] == foreign  # masquerading marked traffic comes first
    backend.delete(C1)
    assert tables.read(4)["POSTROUTING"][1] == foreign


def test_a_second_mark_is_added_when_another_network_uses_another_bit(backend, tables):
    backend.add(C1, [part(single(8080))])
    backend.add(C2, [part(single(8081), settings=Settings(mark_bit=5))])
    assert [rule[-13:] for rule in tables.read(4)["CNI-HOSTPORT-SETMARK"]] == ["0x2000/0x2000", "ark 0x20/0x20"]


def test_the_message_names_the_key_when_the_external_chain_is_missing(backend):
    with pytest.raises(IoFailure, match=r"externalSetMarkChain: there is no chain .*NO-SUCH"):
        backend.add(C1, [part(single(8080), settings=Settings(external_set_mark_chain="NO-SUCH"))])


def test_mappings_are_marked_elsewhere_when_the_external_chain_is_there(backend, tables):
    with tables.held():
        tables.commit(4, [Change("new", "SOMEBODYS")])
    parts = [part(single(8080), settings=Settings(external_set_mark_chain="SOMEBODYS"))]
    backend.add(C1, parts)
    backend.check(C1, parts)
    assert not tables.has_chain(4, "CNI-HOSTPORT-SETMARK")


# --- what is not upstream's ---------------------------------------------------------------------------------

GUARD = "CNIMETA-LOCALNET"
GUARDED = f"-d 127.0.0.0/8 ! -i lo -j {GUARD}"
TWO = [part(single(8080)), part(single(8080), address="2001:db8::2/64")]


def test_packets_for_loopback_addresses_are_dropped_as_long_as_anything_is_mapped(backend, tables):
    with tables.held():
        tables.commit(4, [Change("append", "PREROUTING", "-p tcp -m tcp --dport 7 -j ACCEPT", "raw")])
    before = tables.read(4, "raw")
    backend.add(C1, TWO)
    backend.add(C2, [part(single(8081), address="10.0.0.3/24")])
    guarded = tables.read(4, "raw")
    assert guarded["PREROUTING"] == [GUARDED, *before["PREROUTING"]]
    assert guarded[GUARD] == ["-j DROP"]
    assert tables.read(6, "raw").get("PREROUTING", []) == []
    backend.delete(C1)
    backend.tidy()
    assert tables.read(4, "raw") == guarded
    backend.delete(C2)
    backend.tidy()
    backend.tidy()
    assert tables.read(4, "raw") == before


@pytest.mark.parametrize(
    "harm",
    [
        [Change("delete", "PREROUTING", GUARDED, "raw")],
        [Change("flush", GUARD, table="raw")],
        [
            Change("delete", "PREROUTING", GUARDED, "raw"),
            Change("flush", GUARD, table="raw"),
            Change("remove", GUARD, table="raw"),
        ],
    ],
    ids=["jump", "rule", "chain"],
)
def test_the_guard_is_missed_by_check_and_made_by_add_when_somebody_took_it(backend, tables, harm):
    backend.add(C1, TWO)
    before = tables.read(4, "raw")
    damaged(tables, *harm)
    with pytest.raises(CheckFailed, match=GUARD):
        backend.check(C1, TWO)
    backend.add(C2, [part(single(8081), address="10.0.0.3/24")])
    assert tables.read(4, "raw") == before
    backend.check(C1, TWO)


def test_addresses_of_one_host_or_link_are_left_alone_before_anything_is_looked_up(backend, tables):
    backend.add(C1, TWO)
    alone = ["-d ::1/128 -j RETURN", "-d fe80::/10 -j RETURN", "-s fe80::/10 -j RETURN"]
    assert tables.chain(6, DNAT)[:3] == alone
    assert tables.chain(4, DNAT) == entries(tables)
    backend.check(C1, TWO)
    with tables.held():
        tables.commit(6, [Change("delete", DNAT, alone[1]), Change("append", DNAT, alone[1])])
    with pytest.raises(CheckFailed, match="too late"):
        backend.check(C1, TWO)
    backend.backend.heal()
    assert tables.chain(6, DNAT)[0] == alone[1]
    backend.check(C1, TWO)
    with tables.held():
        tables.commit(6, [Change("delete", DNAT, alone[1])])
    with pytest.raises(CheckFailed, match="fe80::/10"):
        backend.check(C1, TWO)
    backend.add(C1, TWO)
    backend.check(C1, TWO)


# --- CHECK --------------------------------------------------------------------------------------------------


def damaged(tables, *changes: Change) -> None:
    with tables.held():
        tables.commit(4, changes)


def test_check_fails_when_anything_of_the_container_is_not_as_it_was(backend, tables):
    parts = [part(single(8080), single(8081))]
    wanted = rules_of("net", "c1", "10.0.0.2/24", parts[0].mappings, Settings())
    chain, last = wanted.chain, wanted.rules[-1]
    swapped = last.replace("10.0.0.2", "10.0.0.9")
    for harm in (
        [Change("delete", chain, last)],
        [Change("delete", chain, last), Change("append", chain, swapped)],
        [Change("append", chain, last)],
        [Change("delete", chain, last), Change("insert", chain, last)],
        [Change("delete", DNAT, wanted.entries[0])],
        [Change("append", DNAT, wanted.entries[0])],
        [Change("flush", chain)],
    ):
        backend.add(C1, parts)
        backend.check(C1, parts)
        damaged(tables, *harm)
        with pytest.raises(CheckFailed, match=r"CNI-(DN|HOSTPORT)"):
            backend.check(C1, parts)


def test_check_fails_when_nothing_was_ever_mapped(backend):
    with pytest.raises(CheckFailed, match="has no rule"):
        backend.check(C1, [part(single(8080))])


# --- GC -----------------------------------------------------------------------------------------------------


def test_gc_keeps_the_listed_and_other_networks_when_it_removes_the_rest(backend, tables):
    second = Target("net", "c1", "eth1", second=True)
    stale = Target("net", "c2", "eth1", second=True)
    long_id = "x" * 300
    for number, target in enumerate((C1, C2, second, stale, Target("other", "c2", "eth0"), Target("net", long_id, ""))):
        backend.add(target, [part(single(8000 + number)), part(single(8000 + number), address="2001:db8::2/64")])
    backend.gc("net", {("c1", "eth0"), ("c1", "eth1")})
    left = {C1.chain, second.chain, chain_name("other", "c2")}
    for family in (4, 6):
        assert {rule.rpartition(" ")[2] for rule in entries(tables, family)} == left
        assert {name for name in tables.read(family) if name.startswith("CNI-DN-")} == left
    backend.gc("net", set())
    assert {rule.rpartition(" ")[2] for rule in entries(tables)} == {chain_name("other", "c2")}
