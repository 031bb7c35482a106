"""The store: hold, settle, release, explicit ports, quarantine, memory, pending annotations, reboot."""

from __future__ import annotations

import os
import re

import pytest
from hostport_state_kit import Node, always, demand, draft, key

from cnimeta.errors import HostPortConflict, InvalidEnvironment, TryAgainLater
from cnimeta_plugins.hostport_alloc.allocate.expose import Explicit
from cnimeta_plugins.hostport_alloc.allocate.picks import Exhausted, Port
from cnimeta_plugins.hostport_alloc.state import rows
from cnimeta_plugins.hostport_alloc.state.record import Annotation, Pod, Record
from cnimeta_plugins.hostport_alloc.state.store import Superseded

pytestmark = pytest.mark.unit


def ports_of(record: Record) -> list[int]:
    return [port.host_port for port in record.ports]


# --- hold, settle, release -------------------------------------------------------------------------------


def test_hold_writes_a_whole_record_when_ports_are_free(node):
    given = draft(pod="web")._replace(netns="/run/netns/x", netns_id="4:7", undo={"steps": [1]})
    record = node.again().hold(given, demand("80/tcp", "53/tcp+udp")).record
    assert node.again().load(key()) == record
    assert (record.phase, record.boot_id, record.netns, record.netns_id, record.undo) == (
        "reserved",
        node.boot_id,
        "/run/netns/x",
        "4:7",
        {"steps": [1]},
    )
    assert [(port.container_port, port.protocol) for port in record.ports] == [(80, "tcp"), (53, "tcp"), (53, "udp")]
    node.assert_whole()


def test_hold_gives_the_same_ports_when_repeated(node):
    first = node.again().hold(draft(), demand("80/tcp", "81/udp"))
    second = node.again().hold(
        draft()._replace(undo=["new"]), demand("80/tcp", "81/udp", blocked={"tcp": -1 % 2**65536})
    )
    assert (first.fresh, second.fresh) == (True, False)
    assert second.record.ports == first.record.ports
    assert node.again().load(key()).undo == ["new"]
    node.assert_whole()


def test_hold_keeps_what_it_can_when_the_exposures_changed(node):
    first = node.again().hold(draft(), demand("80/tcp", "81/tcp")).record
    second = node.again().hold(draft(), demand("80/tcp", "82/tcp")).record
    assert second.ports[0] == first.ports[0]
    assert second.ports[1].container_port == 82
    node.assert_whole()


def test_two_attachments_of_one_container_are_apart_when_networks_differ(node):
    one = node.again().hold(draft(), demand(ports="20000-20001")).record
    other = node.again().hold(draft(network="other"), demand(ports="20000-20001")).record
    assert sorted(ports_of(one) + ports_of(other)) == [20000, 20001]
    node.again().release(key())
    assert node.again().load(key(network="other")) == other
    node.assert_whole()


def test_ports_are_not_shared_until_the_range_is_exhausted_and_then_nothing_is_changed(node):
    for number in range(10):
        node.again().hold(draft(f"c{number}"), demand())
    assert sorted(port for _, port in node.held()) == list(range(20000, 20010))
    before = node.contents()
    with pytest.raises(Exhausted) as raised:
        node.again().hold(draft("late"), demand())
    assert (raised.value.used, raised.value.size) == (10, 10)
    assert node.contents() == before


def test_all_or_nothing_when_only_some_of_the_ports_are_free(node):
    for number in range(8):
        node.again().hold(draft(f"c{number}"), demand())
    with pytest.raises(Exhausted):
        node.again().hold(draft("three"), demand("1/tcp", "2/tcp", "3/tcp"))
    assert len(node.held()) == 8
    assert node.again().load(key("three")) is None
    node.assert_whole()


def test_probe_is_asked_outside_of_transactions_and_a_refused_port_is_passed_over(node):
    asked = []

    def probe(protocol, port):
        assert not node.databases.in_transaction
        asked.append(port)
        return port == 20007

    record = node.again().hold(draft(), demand(probe=probe)).record
    assert ports_of(record) == [20007]
    assert len(asked) == len(set(asked))


def test_port_taken_by_another_command_during_the_probe_is_not_given_twice(node):
    """The pick is made from a snapshot; the transaction looks again."""
    others = []

    def probe(_protocol, _port):
        if len(others) < 9:  # each time, another command takes a port of the ten
            number = len(others)
            others.append(node.again().hold(draft(f"other{number}"), demand()).record)
        return True

    record = node.again().hold(draft(), demand(probe=probe)).record
    assert record.held not in [other.held for other in others]
    node.assert_whole()


def test_exhaustion_counts_ports_refused_by_the_probe_as_blocked(node):
    with pytest.raises(Exhausted) as raised:
        node.again().hold(draft(), demand(probe=lambda *_: False))
    assert (raised.value.used, raised.value.blocked) == (0, 10)


def test_probe_of_kept_ports_is_not_repeated(node):
    node.again().hold(draft(), demand())
    node.again().hold(draft(), demand(probe=lambda *_: pytest.fail("a kept port was probed")))
    assert always("tcp", 1)


def test_settle_replaces_the_record_when_it_is_still_the_same_reservation(node):
    record = node.again().hold(draft(), demand()).record
    node.again().settle(record._replace(phase="mapped", undo={"a": 1}))
    assert node.again().load(key()) == record._replace(phase="mapped", undo={"a": 1})


def test_settle_is_refused_when_the_container_was_deleted_or_added_anew_meanwhile(node):
    record = node.again().hold(draft(), demand()).record
    node.again().release(key())
    with pytest.raises(Superseded, match="was deleted") as raised:
        node.again().settle(record)
    assert raised.value.code == 11
    node.again().hold(draft(), demand())
    with pytest.raises(Superseded, match="was added anew"):
        node.again().settle(record)


def test_settle_is_refused_when_it_would_change_the_ports(node):
    record = node.again().hold(draft(), demand()).record
    with pytest.raises(Superseded):
        node.again().settle(record._replace(ports=(record.ports[0]._replace(host_port=9),)))
    assert node.again().load(key()) == record


def test_release_succeeds_when_repeated_and_when_there_never_was_anything(node):
    node.again().hold(draft(), demand())
    assert node.again().release(key()) is not None
    assert node.again().release(key()) is None
    assert node.again().release(key("never")) is None
    assert node.bits() == []
    node.assert_whole()


def test_release_with_a_token_leaves_a_later_reservation_alone(node):
    old = node.again().hold(draft(), demand()).record
    node.again().release(key())
    new = node.again().hold(draft(), demand()).record
    assert node.again().release(key(), token=old.token) is None
    assert node.again().load(key()) == new


def test_attachment_is_found_when_its_network_was_renamed(node):
    record = node.again().hold(draft(), demand()).record
    assert node.again().renamed(key(network="new")) == record
    assert node.again().renamed(key()) is None
    node.again().hold(draft(network="third"), demand())
    assert node.again().renamed(key(network="new")) is None  # which of the two it was cannot be told


def test_unlisted_records_are_those_of_the_network_that_the_runtime_does_not_name(node):
    records = [node.again().hold(draft(f"c{number}"), demand()).record for number in range(4)]
    node.again().hold(draft("c9", network="other"), demand())
    assert node.again().unlisted("net", {("c1", "eth0"), ("c3", "eth0")}) == [records[0], records[2]]
    assert node.again().unlisted("net", {("c1", "eth1")}) == records


# --- explicit ports --------------------------------------------------------------------------------------


def explicit(port: int, host_ip: str = "", protocol: str = "tcp") -> tuple[Explicit, ...]:
    return (Explicit(port, 80, protocol, host_ip),)


def test_explicit_port_is_never_picked_at_random_until_it_is_released(node):
    node.again().hold(draft("fixed", explicit=explicit(20003)), demand()._replace(exposures=()))
    for number in range(9):
        node.again().hold(draft(f"c{number}"), demand())
    assert len(node.held()) == 10
    with pytest.raises(Exhausted):
        node.again().hold(draft("late"), demand())
    node.again().release(key("fixed"))
    assert ports_of(node.again().hold(draft("late"), demand()).record) == [20003]


def test_own_explicit_port_is_not_picked_for_the_same_container(node):
    for _ in range(20):
        record = node.again().hold(draft(explicit=explicit(20000)), demand(ports="20000-20001")).record
        assert ports_of(record) == [20001]
        node.again().release(key(), quarantine_s=0, sticky_s=0)


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ("10.0.0.1", "10.0.0.2", True),
        ("10.0.0.1", "10.0.0.1", False),
        ("", "10.0.0.1", False),
        ("0.0.0.0", "10.0.0.1", False),
        ("10.0.0.1", "0.0.0.0", False),
        ("0.0.0.0", "fd00::1", True),
        ("::", "fd00::1", False),
        ("::", "", False),
        ("fd00::1", "fd00::2", True),
    ],
)
def test_explicit_ports_conflict_exactly_when_their_addresses_overlap(node, first, second, shared):
    none = demand()._replace(exposures=())
    node.again().hold(draft("a", explicit=explicit(8080, first)), none)
    if not shared:
        with pytest.raises(HostPortConflict, match=r'8080/tcp.*"a"'):
            node.again().hold(draft("b", explicit=explicit(8080, second)), none)
        return
    node.again().hold(draft("b", explicit=explicit(8080, second)), none)
    node.again().release(key("a"))
    assert node.bits() == [("tcp", 8080)]
    node.again().release(key("b"))
    assert node.bits() == []


@pytest.mark.parametrize("same", ["container", "namespace"])
def test_explicit_port_is_shared_by_the_attachments_of_one_container(node, same):
    none = demand()._replace(exposures=())
    first = draft("a", explicit=explicit(8080))._replace(netns_id="4:9")
    other = first._replace(network="other") if same == "container" else first._replace(container_id="b")
    node.again().hold(first, none)
    node.again().hold(other, none)
    with pytest.raises(HostPortConflict):
        node.again().hold(draft("c", explicit=explicit(8080))._replace(netns_id="4:8"), none)
    node.again().release(first.key)
    assert node.bits() == [("tcp", 8080)]  # the other one has it still
    with pytest.raises(HostPortConflict):
        node.again().hold(draft("c", explicit=explicit(8080)), none)
    node.again().release(other.key)
    assert node.bits() == []


def test_explicit_port_is_refused_when_a_random_one_has_it_and_allowed_for_another_protocol(node):
    node.again().hold(draft("a"), demand(ports="20000"))
    with pytest.raises(HostPortConflict, match="20000/tcp"):
        node.again().hold(draft("b", explicit=explicit(20000)), demand()._replace(exposures=()))
    node.again().hold(draft("b", explicit=explicit(20000, protocol="udp")), demand()._replace(exposures=()))
    node.assert_whole()


# --- quarantine and memory -------------------------------------------------------------------------------


def test_released_port_is_avoided_for_the_quarantine_and_no_longer(node):
    node.again().hold(draft("a"), demand(ports="20000"))
    node.again().release(key("a"), quarantine_s=30)
    for _ in range(10):
        record = node.again().hold(draft("b"), demand(ports="20000-20001")).record
        assert ports_of(record) == [20001]
        node.again().release(key("b"), quarantine_s=0)
    node.clock.advance(30.1)
    seen = set()
    for _ in range(40):
        seen.add(ports_of(node.again().hold(draft("b"), demand(ports="20000-20001")).record)[0])
        node.again().release(key("b"), quarantine_s=0)
    assert seen == {20000, 20001}


def test_quarantine_never_fails_an_add_and_oldest_goes_first(node):
    order = []
    for number in range(10):
        order += ports_of(node.again().hold(draft(f"c{number}"), demand()).record)
    for number in (4, 1, 7):
        node.again().release(key(f"c{number}"), quarantine_s=3600)
        node.clock.advance(1)
    again = [ports_of(node.again().hold(draft(f"d{number}"), demand()).record)[0] for number in range(3)]
    assert again == [order[4], order[1], order[7]]
    assert node.again().occupancy().quarantined == ()


def test_quarantine_holds_no_more_than_the_ports_there_are_and_forgets_what_is_over(node):
    for round_number in range(3):
        for number in range(10):
            node.again().hold(draft(f"c{number}"), demand())
        for number in range(10):
            node.again().release(key(f"c{number}"), quarantine_s=10)
        assert len(node.sql("SELECT * FROM quarantine")) == 10, round_number
    node.clock.advance(11)
    node.again().hold(draft(), demand())
    node.again().release(key(), quarantine_s=10)
    assert len(node.sql("SELECT * FROM quarantine")) == 1


def test_same_pod_gets_its_ports_back_when_they_are_free_even_from_quarantine(node):
    first = node.again().hold(draft("old", pod="db-0"), demand("80/tcp", "81+2/udp")).record
    node.again().release(key("old"))
    second = node.again().hold(draft("new", pod="db-0"), demand("80/tcp", "81+2/udp")).record
    assert second.ports == first.ports


def test_remembered_port_is_not_given_when_held_by_another_or_out_of_range_or_too_old(node):
    port = ports_of(node.again().hold(draft("old", pod="db-0"), demand()).record)[0]
    overlapping = node.again().hold(draft("overlap", pod="db-0"), demand()).record
    assert ports_of(overlapping) != [port]
    node.again().release(key("overlap"), sticky_s=0)
    node.again().release(key("old"), sticky_s=60)
    elsewhere = node.again().hold(draft("x", pod="db-0"), demand(ports="21000-21010")).record
    assert ports_of(elsewhere)[0] >= 21000
    node.again().release(key("x"), sticky_s=0)
    node.clock.advance(61)
    seen = set()
    for _ in range(60):
        seen.update(ports_of(node.again().hold(draft("y", pod="db-0"), demand()).record))
        node.again().release(key("y"), sticky_s=0, quarantine_s=0)
    assert len(seen) > 1  # chance again


def test_memory_is_bounded_and_forgets_the_oldest_first(node):
    store = node.again()
    store.try_writing()
    connection = store._database._opened() if node.is_real else node.databases.connections[node.folder]
    port = Port(80, "tcp", 20000, "default")
    connection.execute("BEGIN")
    for number in range(5000):
        record = Record("net", "c", "eth0", pod=Pod("ns", f"pod-{number}"), ports=(port,))
        rows.remember(connection, record, 10.0 + number, 0.0)
    connection.execute("COMMIT")
    assert connection.execute("SELECT count(*) FROM remembered").fetchone() == (rows.REMEMBERED_MAX,)
    assert rows.recall(connection, Pod("ns", "pod-0"), "", 0.0) == {}
    assert rows.recall(connection, Pod("ns", "pod-4999"), "", 0.0) == {(80, "tcp", "default"): 20000}


def test_memory_cannot_be_confused_by_names_with_special_characters(node):
    odd = draft("odd")._replace(pod=Pod('a"],[\n\0', "b'; DROP TABLE ports; --\U0001f600"))
    first = node.again().hold(odd, demand()).record
    node.again().release(odd.key)
    assert node.again().hold(odd, demand()).record.ports == first.ports
    node.again().hold(draft("victim", pod="victim"), demand())
    node.assert_whole()


# --- pending annotations ---------------------------------------------------------------------------------


def test_pending_records_are_listed_until_they_are_done_or_released(node):
    records = [node.again().hold(draft(f"c{number}"), demand()).record for number in range(3)]
    late = [record._replace(annotation=Annotation("pending", {"metadata": {}})) for record in records]
    for record in late:
        node.again().settle(record)
    assert [record.container_id for record in node.again().pending()] == ["c0", "c1", "c2"]
    assert len(node.again().pending(limit=2)) == 2
    node.again().settle(late[0]._replace(annotation=Annotation("done")))
    node.again().release(key("c1"))
    assert [record.container_id for record in node.again().pending()] == ["c2"]


def test_pending_records_of_an_earlier_boot_are_not_listed(node):
    record = node.again().hold(draft(), demand()).record
    node.again().settle(record._replace(annotation=Annotation("pending", {})))
    node.boot_id = "boot-2"
    assert node.again().pending() == ()


def test_looking_for_pending_records_makes_no_database_when_there_is_none(node):
    assert node.again().pending() == ()
    assert node.again().release(key()) is None
    assert not node.again()._database.exists()


# --- cost ------------------------------------------------------------------------------------------------


def test_no_statement_of_the_hot_path_reads_a_whole_table():
    node = Node()
    demands = demand("80/tcp", "53/udp")
    node.again().hold(draft("earlier", pod="web"), demands)
    node.boot_id = "boot-2"
    given = draft("c1", pod="web", explicit=explicit(9000))
    store = node.again()
    store.try_writing()
    node.databases.statements.clear()
    store.settle(store.hold(given, demands).record._replace(annotation=Annotation("pending", {})))
    store.pending()
    store.load(key())
    store.renamed(key())
    store.unlisted("other", set())
    store.release(key())
    store.hold(given, demands)
    plans = {}
    for line in tuple(node.databases.statements):
        if line.startswith(("SELECT", "UPDATE", "DELETE")):
            bound = _with_parameters(line)
            explained = node.sql(f"EXPLAIN QUERY PLAN {bound}", *[""] * bound.count("?"))
            plans[bound] = [row[3] for row in explained]
    whole = [(line, plan) for line, plan in plans.items() if any("SCAN" in step for step in plan)]
    whole = [(line, plan) for line, plan in whole if "attachments_pending" not in plan[0]]
    small = ("sqlite_master", "bitmaps", "quarantine", "count(*) FROM remembered", "DELETE FROM ports")
    assert [(line, plan) for line, plan in whole if not any(name in line for name in small)] == []
    assert len(plans) > 12


def _with_parameters(statement: str) -> str:
    """The statement as it was written: its texts and numbers as parameters again, as they decide what SQLite can use."""
    ours = ("'pending'", "''", "'stale'", "'boot'", "'seal'", "'sequence'")
    text = re.sub(r"'(?:[^']|'')*'", lambda found: found[0] if found[0] in ours else "?", statement)
    return re.sub(r"(?<=[=>])-?\d[\d.e+]*|(?<=[=>] )-?\d[\d.e+]*", "?", text)


def test_add_and_del_run_the_same_few_statements_at_any_number_of_records():
    node = Node()

    def statements_of(container: str) -> list[str]:
        node.databases.statements.clear()
        record = node.again().hold(draft(container), demand(ports="1000-9999")).record
        node.again().settle(record._replace(phase="mapped"))
        node.again().release(key(container))
        return [" ".join(line.split()[:3]) for line in node.databases.statements]

    node.again().hold(draft("first"), demand(ports="1000-9999"))
    few = statements_of("a")
    for number in range(200):
        node.again().hold(draft(f"c{number}"), demand(ports="1000-9999"))
    assert statements_of("b") == few


# --- reboot ----------------------------------------------------------------------------------------------


def test_all_ports_are_free_after_a_reboot_and_old_dels_succeed(node):
    old = [node.again().hold(draft(f"c{number}", pod=f"p{number}"), demand()).record for number in range(10)]
    node.boot_id = "boot-2"
    node.clock.reboot()
    new = node.again().hold(draft("n", pod="p3"), demand()).record
    assert new.ports == old[3].ports  # the same Pod, by its record of before
    assert node.again().is_alive(new)
    assert not node.again().is_alive(node.again().load(key("c0")))
    assert node.bits() == [("tcp", ports_of(new)[0])]
    for number in range(10):
        assert node.again().release(key(f"c{number}")) == old[number]
        assert node.again().release(key(f"c{number}")) is None
    node.assert_whole()
    assert node.bits() == [("tcp", ports_of(new)[0])]


def test_same_key_can_be_added_after_a_reboot_without_a_del(node):
    node.again().hold(draft(), demand(ports="20000"))
    node.boot_id = "boot-2"
    assert ports_of(node.again().hold(draft(), demand(ports="20000")).record) == [20000]
    node.assert_whole()


def test_quarantine_of_an_earlier_boot_is_over_after_a_reboot(node):
    node.again().hold(draft(), demand())
    node.again().release(key(), quarantine_s=3600)
    node.boot_id = "boot-2"
    node.clock.reboot()
    node.again().hold(draft("n"), demand())
    assert node.again().occupancy().quarantined == ()


# --- range changes ---------------------------------------------------------------------------------------


def test_live_ports_stay_held_when_the_range_shrinks_and_come_back_when_it_grows(node):
    port = ports_of(node.again().hold(draft("a"), demand(ports="20009")).record)[0]
    node.again().hold(draft("b"), demand(ports="20000-20001"))
    assert ("tcp", port) in node.bits()
    with pytest.raises(Exhausted):
        node.again().hold(draft("c"), demand(ports="20009"))
    node.again().release(key("a"), quarantine_s=0)
    assert ports_of(node.again().hold(draft("c"), demand(ports="20009")).record) == [20009]


def test_repeated_hold_gets_other_ports_when_the_range_was_moved_away(node):
    node.again().hold(draft(), demand(ports="20009"))
    assert ports_of(node.again().hold(draft(), demand(ports="21000-21001")).record)[0] >= 21000
    node.assert_whole()


# --- names -----------------------------------------------------------------------------------------------

NAMES = ["n" * 4000, "a\0b", "\U0001f600", "a'b\"c", "../..", "%s", "\x7f"]


@pytest.mark.parametrize("name", NAMES)
def test_any_name_works_like_others(node, name):
    given = Record(name, f"{name}c", f"{name}i", pod=Pod(name, name))
    record = node.again().hold(given, demand()).record
    assert node.again().load(given.key) == record
    assert node.again().renamed(("other", *given.key[1:])) == record
    assert node.again().unlisted(name, set()) == [record]
    assert node.again().unlisted(name, {given.key[1:]}) == []
    node.assert_whole()
    assert node.again().release(given.key) == record
    assert node.bits() == []


@pytest.mark.parametrize("field", ["network", "container_id", "ifname", "netns", "undo"])
def test_bytes_that_are_no_text_are_refused_and_leave_nothing(node, field):
    odd = os.fsdecode(b"x\xff")
    given = draft()._replace(**{field: odd if field != "undo" else {"args": odd}})
    node.again().try_writing()
    before = node.contents()
    with pytest.raises(InvalidEnvironment) as raised:
        node.again().hold(given, demand())
    assert raised.value.code == 4
    assert node.contents() == before


def test_lock_timeout_is_reported_and_nothing_is_done_when_the_database_is_busy(node):
    store = node.again()
    store.try_writing()
    if node.is_real:
        other = store._database._opened()
        other.execute("BEGIN IMMEDIATE")
        node.timeout_s = 0.2
    else:
        node.databases.busy = True
    with pytest.raises(TryAgainLater, match="was not free within") as raised:
        node.again().hold(draft(), demand())
    assert raised.value.code == 11
    if node.is_real:
        other.execute("ROLLBACK")
    node.databases.busy = False
    assert node.bits() == []
