"""The store on fakes: reserve, update, release, quarantine, memory, reboot, and recovery from every damage."""

from __future__ import annotations

import errno
import zlib

import pytest
from hostport_state_kit import FOLDER, Node, always, demand, draft, key

from cnimeta.errors import HostPortConflict, StateUnusable, TryAgainLater
from cnimeta_plugins.hostport_alloc.allocate.expose import Explicit
from cnimeta_plugins.hostport_alloc.allocate.picks import Exhausted
from cnimeta_plugins.hostport_alloc.state import index as state
from cnimeta_plugins.hostport_alloc.state.layout import key_of, name_of
from cnimeta_plugins.hostport_alloc.state.record import (
    Annotation,
    DamagedRecord,
    NewerRecord,
    Pod,
    Port,
    Record,
    decode,
    encode,
)
from cnimeta_plugins.hostport_alloc.state.store import Rule, Superseded

pytestmark = pytest.mark.unit


@pytest.fixture
def node() -> Node:
    return Node()


def ports_of(record: Record) -> list[int]:
    return [port.host_port for port in record.ports]


# --- reserve, update, release ----------------------------------------------------------------------------


def test_reserve_writes_a_whole_record_when_ports_are_free(node):
    given = draft(pod="web")._replace(netns="/run/netns/x", undo={"steps": [1]})
    record = node.again().reserve(given, demand("80/tcp", "53/tcp+udp")).record
    assert node.again().load(key()) == record
    assert (record.phase, record.boot_id, record.netns, record.undo) == (
        "reserved",
        node.boot_id,
        "/run/netns/x",
        {"steps": [1]},
    )
    assert [(port.container_port, port.protocol) for port in record.ports] == [(80, "tcp"), (53, "tcp"), (53, "udp")]
    node.assert_whole()


def test_reserve_gives_the_same_ports_when_repeated(node):
    first = node.again().reserve(draft(), demand("80/tcp", "81/udp"))
    second = node.again().reserve(
        draft()._replace(undo=["new"]), demand("80/tcp", "81/udp", blocked={"tcp": -1 % 2**65536})
    )
    assert (first.fresh, second.fresh) == (True, False)
    assert second.record.ports == first.record.ports
    assert node.again().load(key()).undo == ["new"]
    node.assert_whole()


def test_reserve_keeps_what_it_can_when_the_exposures_changed(node):
    first = node.again().reserve(draft(), demand("80/tcp", "81/tcp")).record
    second = node.again().reserve(draft(), demand("80/tcp", "82/tcp")).record
    assert second.ports[0] == first.ports[0]
    assert second.ports[1].container_port == 82
    node.assert_whole()


def test_two_attachments_of_one_container_are_apart_when_networks_differ(node):
    one = node.again().reserve(draft(), demand(ports="20000-20001")).record
    other = node.again().reserve(draft(network="other"), demand(ports="20000-20001")).record
    assert sorted(ports_of(one) + ports_of(other)) == [20000, 20001]
    node.again().release(key())
    assert node.again().load(key(network="other")) == other
    node.assert_whole()


def test_ports_are_not_shared_until_the_range_is_exhausted_and_then_nothing_is_changed(node):
    for number in range(10):
        node.again().reserve(draft(f"c{number}"), demand())
    assert sorted(port for _, port in node.held()) == list(range(20000, 20010))
    before = dict(node.files.content)
    with pytest.raises(Exhausted) as raised:
        node.again().reserve(draft("late"), demand())
    assert (raised.value.used, raised.value.size) == (10, 10)
    assert node.files.content == before


def test_all_or_nothing_when_only_some_of_the_ports_are_free(node):
    for number in range(8):
        node.again().reserve(draft(f"c{number}"), demand())
    with pytest.raises(Exhausted):
        node.again().reserve(draft("three"), demand("1/tcp", "2/tcp", "3/tcp"))
    assert len(node.held()) == 8
    assert node.again().load(key("three")) is None
    node.assert_whole()


def test_probe_is_asked_under_the_lock_and_a_refused_port_is_passed_over(node):
    asked = []

    def probe(protocol, port):
        assert node.lock.is_held
        asked.append(port)
        return port == 20007

    record = node.again().reserve(draft(), demand(probe=probe)).record
    assert ports_of(record) == [20007]
    assert len(asked) == len(set(asked))


def test_exhaustion_counts_ports_refused_by_the_probe_as_blocked(node):
    with pytest.raises(Exhausted) as raised:
        node.again().reserve(draft(), demand(probe=lambda *_: False))
    assert (raised.value.used, raised.value.blocked) == (0, 10)


def test_update_replaces_the_record_when_it_is_still_the_same_reservation(node):
    record = node.again().reserve(draft(), demand()).record
    node.again().update(record._replace(phase="mapped", undo={"a": 1}))
    assert node.again().load(key()) == record._replace(phase="mapped", undo={"a": 1})


def test_update_is_refused_when_the_container_was_deleted_or_added_anew_meanwhile(node):
    record = node.again().reserve(draft(), demand()).record
    node.again().release(key())
    with pytest.raises(Superseded, match="was deleted"):
        node.again().update(record)
    node.again().reserve(draft(), demand())
    with pytest.raises(Superseded, match="was added anew"):
        node.again().update(record)


def test_release_succeeds_when_repeated_and_when_there_never_was_anything(node):
    node.again().reserve(draft(), demand())
    assert node.again().release(key()) is not None
    assert node.again().release(key()) is None
    assert node.again().release(key("never")) is None
    assert node.bits() == []
    node.assert_whole()


def test_release_with_a_token_leaves_a_later_reservation_alone(node):
    old = node.again().reserve(draft(), demand()).record
    node.again().release(key())
    new = node.again().reserve(draft(), demand()).record
    assert node.again().release(key(), token=old.token) is None
    assert node.again().load(key()) == new


def test_lock_timeout_is_reported_and_nothing_is_done_when_the_lock_is_busy(node):
    node.lock.busy = True
    with pytest.raises(TryAgainLater):
        node.again().reserve(draft(), demand())
    assert node.files.content == {}


# --- explicit ports --------------------------------------------------------------------------------------


def explicit(port: int, host_ip: str = "", protocol: str = "tcp") -> tuple[Explicit, ...]:
    return (Explicit(port, 80, protocol, host_ip),)


def test_explicit_port_is_never_picked_at_random_until_it_is_released(node):
    node.again().reserve(draft("fixed", explicit=explicit(20003)), demand()._replace(exposures=()))
    for number in range(9):
        node.again().reserve(draft(f"c{number}"), demand())
    assert len(node.held()) == 10
    with pytest.raises(Exhausted):
        node.again().reserve(draft("late"), demand())
    node.again().release(key("fixed"))
    assert ports_of(node.again().reserve(draft("late"), demand()).record) == [20003]


def test_own_explicit_port_is_not_picked_for_the_same_container(node):
    for _ in range(20):
        record = node.again().reserve(draft(explicit=explicit(20000)), demand(ports="20000-20001")).record
        assert ports_of(record) == [20001]
        node.again().release(key(), quarantine_s=0, sticky_s=0)


@pytest.mark.parametrize(
    ("first", "second", "shared"),
    [
        ("10.0.0.1", "10.0.0.2", True),
        ("10.0.0.1", "10.0.0.1", False),
        ("", "10.0.0.1", False),
        ("0.0.0.0", "10.0.0.1", False),
        ("0.0.0.0", "fd00::1", True),
        ("::", "fd00::1", False),
        ("::", "", False),
    ],
)
def test_explicit_ports_conflict_exactly_when_their_addresses_overlap(node, first, second, shared):
    none = demand()._replace(exposures=())
    node.again().reserve(draft("a", explicit=explicit(8080, first)), none)
    if not shared:
        with pytest.raises(HostPortConflict, match=r'8080/tcp.*"a"'):
            node.again().reserve(draft("b", explicit=explicit(8080, second)), none)
        return
    node.again().reserve(draft("b", explicit=explicit(8080, second)), none)
    node.again().release(key("a"))
    assert node.bits() == [("tcp", 8080)]
    node.again().release(key("b"))
    assert node.bits() == []


def test_explicit_port_is_refused_when_a_random_one_has_it_and_allowed_for_another_protocol(node):
    node.again().reserve(draft("a"), demand(ports="20000"))
    with pytest.raises(HostPortConflict, match="20000/tcp"):
        node.again().reserve(draft("b", explicit=explicit(20000)), demand()._replace(exposures=()))
    node.again().reserve(draft("b", explicit=explicit(20000, protocol="udp")), demand()._replace(exposures=()))
    node.assert_whole()


# --- quarantine and memory -------------------------------------------------------------------------------


def test_released_port_is_avoided_for_the_quarantine_and_no_longer(node):
    node.again().reserve(draft("a"), demand(ports="20000"))
    node.again().release(key("a"), quarantine_s=30)
    for _ in range(10):
        record = node.again().reserve(draft("b"), demand(ports="20000-20001")).record
        assert ports_of(record) == [20001]
        node.again().release(key("b"), quarantine_s=0)
    node.clock.advance(30.1)
    seen = set()
    for _ in range(40):
        seen.add(ports_of(node.again().reserve(draft("b"), demand(ports="20000-20001")).record)[0])
        node.again().release(key("b"), quarantine_s=0)
    assert seen == {20000, 20001}


def test_quarantine_never_fails_an_add_and_oldest_goes_first(node):
    order = []
    for number in range(10):
        order += ports_of(node.again().reserve(draft(f"c{number}"), demand()).record)
    for number in (4, 1, 7):
        node.again().release(key(f"c{number}"), quarantine_s=3600)
        node.clock.advance(1)
    again = [ports_of(node.again().reserve(draft(f"d{number}"), demand()).record)[0] for number in range(3)]
    assert again == [order[4], order[1], order[7]]
    assert node.index().quarantine == ()


def test_same_pod_gets_its_ports_back_when_they_are_free_even_from_quarantine(node):
    first = node.again().reserve(draft("old", pod="db-0"), demand("80/tcp", "81+2/udp")).record
    node.again().release(key("old"))
    second = node.again().reserve(draft("new", pod="db-0"), demand("80/tcp", "81+2/udp")).record
    assert second.ports == first.ports


def test_remembered_port_is_not_given_when_held_by_another_or_out_of_range_or_too_old(node):
    port = ports_of(node.again().reserve(draft("old", pod="db-0"), demand()).record)[0]
    overlapping = node.again().reserve(draft("overlap", pod="db-0"), demand()).record
    assert ports_of(overlapping) != [port]
    node.again().release(key("overlap"), sticky_s=0)
    node.again().release(key("old"), sticky_s=60)
    elsewhere = node.again().reserve(draft("x", pod="db-0"), demand(ports="21000-21010")).record
    assert ports_of(elsewhere)[0] >= 21000
    node.again().release(key("x"), sticky_s=0)
    node.clock.advance(61)
    assert state.recall(node.index(), Pod("ns", "db-0"), node.clock.now()) == {}


def test_memory_is_bounded_and_forgets_the_oldest_first(node):
    index = state.Index()
    port = Port(80, "tcp", 20000, "default")
    for number in range(5000):
        record = Record("net", "c", "eth0", pod=Pod("ns", f"pod-{number}"), ports=(port,))
        index = state.remember(index, record, 10.0)
    assert len(index.sticky) <= state.STICKY_MAX_BYTES
    assert state.recall(index, Pod("ns", "pod-0"), 0.0) == {}
    assert state.recall(index, Pod("ns", "pod-4999"), 0.0) == {(80, "tcp", "default"): 20000}


def test_memory_cannot_be_confused_by_names_with_special_characters():
    port = Port(80, "tcp", 20000, "default")
    odd = Pod('a"],[\n', 'b",1]\n["ns","victim",9e9,[]')
    index = state.remember(state.Index(), Record("net", "c", "eth0", pod=odd, ports=(port,)), 10.0)
    assert state.recall(index, odd, 0.0) == {(80, "tcp", "default"): 20000}
    assert state.recall(index, Pod("ns", "victim"), 0.0) == {}
    assert index.sticky.count(b"\n") == 2


# --- pending annotations ---------------------------------------------------------------------------------


def test_pending_records_are_listed_until_they_are_done_or_released(node):
    records = [node.again().reserve(draft(f"c{number}"), demand()).record for number in range(3)]
    late = [record._replace(annotation=Annotation("pending", {"metadata": {}})) for record in records]
    for record in late:
        node.again().update(record)
    assert [record.container_id for record in node.again().pending()] == ["c0", "c1", "c2"]
    assert len(node.again().pending(limit=2)) == 2
    node.again().update(late[0]._replace(annotation=Annotation("done")))
    node.again().release(key("c1"))
    assert [record.container_id for record in node.again().pending()] == ["c2"]


def test_looking_for_pending_records_reads_no_record_when_there_is_none(node):
    node.again().reserve(draft(), demand())
    node.files.reads.clear()
    assert node.again().pending() == ()
    assert node.files.reads == [f"{FOLDER}/pending/"]


# --- cost ------------------------------------------------------------------------------------------------


def test_add_and_del_read_the_same_few_files_at_any_number_of_records(node):
    def reads_of(container: str) -> list[str]:
        node.files.reads.clear()
        record = node.again().reserve(draft(container), demand(ports="1000-9999")).record
        node.again().update(record._replace(phase="mapped"))
        node.again().release(key(container))
        return [path.replace(container, "X") for path in node.files.reads]

    node.again().reserve(draft("first"), demand(ports="1000-9999"))
    few = reads_of("a")
    for number in range(200):
        node.again().reserve(draft(f"c{number}"), demand(ports="1000-9999"))
    many = reads_of("b")
    assert len(many) == len(few)
    assert not any(path.endswith("/") for path in many)


def test_quarantine_is_bounded_when_ports_are_released_faster_than_it_ends(node):
    index = state.Index()
    record = Record("n", "c", "i", ports=tuple(Port(1, "tcp", port, "r") for port in range(1, 3001)))
    for _ in range(4):
        index = state.quarantine(index, record, 0.0, 1e6)
    assert len(index.quarantine) == state.QUARANTINE_MAX


# --- reboot ----------------------------------------------------------------------------------------------


def test_all_ports_are_free_after_a_reboot_and_old_dels_succeed(node):
    old = [node.again().reserve(draft(f"c{number}", pod=f"p{number}"), demand()).record for number in range(10)]
    node.boot_id = "boot-2"
    node.clock.reboot()
    new = node.again().reserve(draft("n", pod="p3"), demand()).record
    assert new.ports == old[3].ports  # the same Pod, by its record of before
    assert node.again().is_alive(new)
    assert not node.again().is_alive(node.again().load(key("c0")))
    assert node.bits() == [("tcp", ports_of(new)[0])]
    for number in range(10):
        assert node.again().release(key(f"c{number}")) is not None
        assert node.again().release(key(f"c{number}")) is None
    node.assert_whole()
    assert node.bits() == [("tcp", ports_of(new)[0])]


def test_same_key_can_be_added_after_a_reboot_without_a_del(node):
    node.again().reserve(draft(), demand(ports="20000"))
    node.boot_id = "boot-2"
    assert ports_of(node.again().reserve(draft(), demand(ports="20000")).record) == [20000]
    node.assert_whole()


def test_quarantine_of_an_earlier_boot_is_over_after_a_reboot(node):
    node.again().reserve(draft(), demand())
    node.again().release(key(), quarantine_s=3600)
    node.boot_id = "boot-2"
    node.clock.reboot()
    node.again().reserve(draft("n"), demand())
    assert node.index().quarantine == ()


# --- range changes ---------------------------------------------------------------------------------------


def test_live_ports_stay_held_when_the_range_shrinks_and_come_back_when_it_grows(node):
    port = ports_of(node.again().reserve(draft("a"), demand(ports="20009")).record)[0]
    node.again().reserve(draft("b"), demand(ports="20000-20001"))
    assert ("tcp", port) in node.bits()
    with pytest.raises(Exhausted):
        node.again().reserve(draft("c"), demand(ports="20009"))
    node.again().release(key("a"), quarantine_s=0)
    assert ports_of(node.again().reserve(draft("c"), demand(ports="20009")).record) == [20009]


# --- damage ----------------------------------------------------------------------------------------------

DAMAGES = {
    "missing": lambda data: None,
    "empty": lambda data: b"",
    "cut off": lambda data: data[: len(data) // 2],
    "garbage": lambda data: bytes(range(256)) * 40,
    "one bit": lambda data: data[:-40] + bytes([data[-40] ^ 1]) + data[-39:],
    "zeros": lambda data: bytes(len(data)),
}


def populated(node: Node) -> list[Record]:
    records = [node.again().reserve(draft(f"c{number}"), demand("80/tcp", "81/udp")).record for number in range(4)]
    node.again().release(key("c3"), quarantine_s=600)
    return records[:3]


def damage(node: Node, path: str, how: str) -> None:
    data = DAMAGES[how](node.files.content[path])
    if data is None:
        del node.files.content[path]
    else:
        node.files.content[path] = data


@pytest.mark.parametrize("how", DAMAGES)
@pytest.mark.parametrize("which", ["newer", "older", "both"])
def test_index_is_made_anew_from_the_records_when_generations_are_damaged(node, which, how):
    records = populated(node)
    slots = sorted(node.layout.slots, key=lambda path: state.decode(node.files.content[path]).generation)
    for path in {"newer": slots[1:], "older": slots[:1], "both": slots}[which]:
        damage(node, path, how)
    assert node.again().inspect().problems
    record = node.again().reserve(draft("next"), demand("80/tcp", "81/udp")).record
    assert not record.held & {pair for other in records for pair in other.held}
    assert [node.again().load(other.key) for other in records] == records
    node.assert_whole()
    assert node.again().inspect().problems == ()
    assert any("made anew from the records" in line for line in node.log)
    assert node.rules_read == (2 if which == "both" else 1)  # once for the first use of the node
    if which == "older":
        assert node.index().quarantine  # the newest generation had it


@pytest.mark.parametrize("how", [how for how in DAMAGES if how != "missing"])
@pytest.mark.parametrize("kernel", ["knows", "knows nothing"])
def test_damaged_record_keeps_its_ports_until_its_del(node, how, kernel):
    records = populated(node)
    lost = records[1]
    damage(node, node.layout.record(name_of(lost.key)), how)
    if kernel == "knows":
        node.rules = [Rule(*lost.key, port) for record in records for port in record.ports if record is lost]
    for number in range(20):  # others come and go without getting near its ports
        other = node.again().reserve(draft(f"x{number}"), demand("80/tcp", "81/udp")).record
        assert not other.held & lost.held
        node.again().release(other.key, quarantine_s=0)
    found = node.again().load(lost.key)
    assert found.salvaged
    assert found.held == lost.held
    if kernel == "knows":
        assert found.ports == lost.ports
    for number in range(5):
        other = node.again().reserve(draft(f"y{number}"), demand("80/tcp", ports="20000-20099")).record
        assert not other.held & lost.held
        node.again().release(other.key, quarantine_s=0)
    assert node.again().release(lost.key, quarantine_s=0) is not None
    assert node.again().load(lost.key) is None
    assert not set(node.bits()) & lost.held
    node.assert_whole()


def test_records_tell_the_ports_of_a_damaged_one_so_that_gc_can_undo_it(node):
    records = populated(node)
    damage(node, node.layout.record(name_of(records[0].key)), "cut off")
    found = {record.key: record for record in node.again().records()}
    assert found[records[0].key].held == records[0].held
    assert [found[record.key] for record in records[1:]] == records[1:]


def test_damaged_record_is_released_whole_when_nobody_looked_at_it_before(node):
    records = populated(node)
    damage(node, node.layout.record(name_of(records[0].key)), "empty")
    assert node.again().release(records[0].key, quarantine_s=0) is not None
    node.assert_whole()
    assert not set(node.bits()) & records[0].held


def test_two_damaged_records_hold_all_their_ports_until_both_are_released(node):
    records = populated(node)
    for record in records[:2]:
        damage(node, node.layout.record(name_of(record.key)), "empty")
    node.again().release(records[0].key)
    assert records[1].held <= set(node.bits())
    node.again().release(records[1].key)
    assert not set(node.bits()) & (records[0].held | records[1].held)
    node.assert_whole()


def test_everything_comes_back_from_the_kernel_when_all_files_are_lost(node):
    records = populated(node)
    node.rules = [Rule(*record.key, port) for record in records for port in record.ports]
    node.files.content.clear()
    new = node.again().reserve(draft("next"), demand("80/tcp", "81/udp")).record
    for record in records:
        found = node.again().load(record.key)
        assert (found.ports, found.salvaged, found.phase) == (record.ports, True, "mapped")
        assert not new.held & record.held
    node.assert_whole()
    for record in records:
        node.again().release(record.key, quarantine_s=0)
    assert sorted(node.bits()) == sorted(new.held)


def test_rule_of_a_container_deleted_meanwhile_is_not_taken_for_a_lost_record(node):
    records = populated(node)
    store = node.again()

    def racing_rules():
        listed = [Rule(*records[0].key, port) for port in records[0].ports]
        if node.again().load(records[0].key) is not None:
            node.again().release(records[0].key)  # its rules went just after they were listed
            return listed
        return []

    store._rules = racing_rules
    store.rebuild()
    assert node.again().load(records[0].key) is None
    node.assert_whole()


def test_nothing_is_reported_when_the_folder_is_used_for_the_first_time(node):
    node.again().reserve(draft(), demand())
    assert node.log == []
    assert Node().again().inspect().problems == ()


def newer(data: bytes) -> bytes:
    body = data.replace(b"cnimeta-hostports 1\n", b"cnimeta-hostports 2\n")[:-9]
    return body + b"%08x\n" % zlib.crc32(body)


def test_newer_index_is_refused_on_add_and_tolerated_on_del(node):
    records = populated(node)
    for path in node.layout.slots:
        node.files.content[path] = newer(node.files.content[path])
    before = dict(node.files.content)
    with pytest.raises(StateUnusable, match="later version"):
        node.again().reserve(draft("next"), demand())
    assert node.files.content == before
    assert "later version" in node.again().inspect().problems[0]
    assert node.again().release(records[0].key) is not None
    assert node.again().release(records[0].key) is None
    assert node.again().load(records[0].key) is None
    assert all(node.files.content[path] == before[path] for path in node.layout.slots)
    for path in node.layout.slots:  # the later version is back: it sees the mark
        node.files.content[path] = node.files.content[path].replace(b"hostports 2\n", b"hostports 1\n")
    node.again().reserve(draft("next"), demand())
    node.assert_whole()
    assert node.layout.rebuild not in node.files.content


def test_newer_record_is_refused_on_add_and_understood_on_del(node):
    record = populated(node)[0]
    path = node.layout.record(name_of(record.key))
    node.files.content[path] = node.files.content[path].replace(b'{"version":1,', b'{"version":2,"extra":[1],')
    with pytest.raises(StateUnusable, match="later version"):
        node.again().reserve(draft(record.container_id), demand())
    assert node.again().load(record.key) == record
    node.again().release(record.key)
    node.assert_whole()


# --- faults ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS, errno.EDQUOT])
@pytest.mark.parametrize("lasting", [False, True])
def test_reserve_fails_clean_at_every_step_when_files_fail(number, lasting):
    for step in range(1, 30):
        node = Node()
        populated(node)
        before = node.held()
        node.files.fail_at(step, number, lasting=lasting)
        try:
            node.again().reserve(draft("next"), demand("80/tcp", "81/udp"))
        except StateUnusable as error:
            said = error.msg
            node.files.heal()
        else:
            assert step > 8
            break
        assert FOLDER in said
        assert not any("/.tmp-" in path for path in node.files.content)
        node.settle()
        node.assert_whole()
        # A rename that got through before its fsync failed may stand, as a whole record that DEL and GC can see.
        late = node.again().load(key("next"))
        assert node.held() == sorted([*before, *(late.held if late is not None else ())])
    else:
        pytest.fail("never ran out of steps")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EIO, errno.EROFS])
def test_release_is_repeatable_at_every_step_when_files_fail(number):
    for step in range(1, 30):
        node = Node()
        records = populated(node)
        node.files.fail_at(step, number)
        try:
            node.again().release(records[0].key)
            finished = True
        except StateUnusable:
            finished = False
        node.files.heal()
        node.again().release(records[0].key)
        assert node.again().load(records[0].key) is None
        node.settle()
        node.assert_whole()
        if finished and step > 8:
            return
    pytest.fail("never ran out of steps")


def test_release_succeeds_on_a_full_disk_because_only_deleting_makes_space(node):
    records = populated(node)

    def full(path, data):
        raise OSError(errno.ENOSPC, "No space left on device")

    original, node.files.write = node.files.write, full
    assert node.again().release(records[0].key) is not None
    node.files.write = original
    node.settle()
    node.assert_whole()
    assert node.again().load(records[0].key) is None


# --- names and documents ---------------------------------------------------------------------------------


def test_record_names_tell_the_key_and_never_collide():
    assert name_of(("net", "c1", "eth0")) == "c1:eth0:net"
    assert key_of("c1:eth0:net") == ("net", "c1", "eth0")
    long = name_of(("n" * 150, "c" * 150, "eth0"))
    assert len(long) < 100
    assert long != name_of(("n" * 150, "c" * 149 + "d", "eth0"))
    assert key_of(long) is None


def test_long_names_work_like_others_when_damaged(node):
    given = Record("n" * 150, "c" * 150, "eth0")
    record = node.again().reserve(given, demand()).record
    assert node.again().load(given.key) == record
    node.files.content[node.layout.record(name_of(given.key))] = b""
    assert node.again().release(given.key, quarantine_s=0) is not None
    assert node.bits() == []
    node.assert_whole()


def test_record_document_is_refused_when_any_byte_is_changed():
    record = Record("net", "c1", "eth0", ports=(Port(80, "tcp", 20000, "default"),), undo={"a": [1, "x"]})
    data = encode(record)
    assert decode(data) == record
    refused = 0
    for place in range(len(data) - 1):
        changed = data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :]
        try:
            assert decode(changed) == record
        except (DamagedRecord, NewerRecord):
            refused += 1
    assert refused > len(data) * 0.95


def test_probe_of_kept_ports_is_not_repeated(node):
    node.again().reserve(draft(), demand())
    node.again().reserve(draft(), demand(probe=lambda *_: pytest.fail("a kept port was probed")))
    assert always("tcp", 1)
