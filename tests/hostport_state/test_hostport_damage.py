"""What is damaged or lost is never read as empty: it is made anew from records, tables and rules, and said so."""

from __future__ import annotations

import pytest
from hostport_state_kit import Node, demand, draft, key, mappings_of

from cnimeta.errors import CniError, StateUnusable
from cnimeta.store import document
from cnimeta.store.database import Database
from cnimeta_plugins.hostport_alloc.allocate.expose import Explicit
from cnimeta_plugins.hostport_alloc.allocate.picks import Port
from cnimeta_plugins.hostport_alloc.state.record import Record, encode
from cnimeta_plugins.hostport_alloc.state.store import Superseded

pytestmark = pytest.mark.unit


def populated(node: Node) -> list[Record]:
    """Three mapped containers with a port of each protocol, and one that was released."""
    records = []
    for number in range(4):
        record = node.again().hold(draft(f"c{number}", pod=f"p{number}"), demand("80/tcp", "81/udp")).record
        record = record._replace(phase="mapped", undo={"number": number})
        node.again().settle(record)
        records.append(record)
    node.again().release(key("c3"), quarantine_s=600)
    return records[:3]


DOCUMENTS = {
    "empty": lambda text: "",
    "cut off": lambda text: text[: len(text) // 2],
    "garbage": lambda text: bytes(range(256)),
    "no text": lambda text: b"\xff" + text.encode()[1:],
    "one bit": lambda text: text[:-40] + chr(ord(text[-40]) ^ 1) + text[-39:],
    "another version": lambda text: text.replace('{"version":1', '{"version":7'),
    "another's": lambda text: encode(Record("net", "other", "eth0", token="x")),
    "a number": lambda text: 7,
}


@pytest.mark.parametrize("how", DOCUMENTS)
@pytest.mark.parametrize("kernel", ["knows", "knows nothing"])
def test_damaged_record_keeps_its_ports_until_its_del(node, how, kernel):
    records = populated(node)
    lost = records[1]
    (text,) = node.sql("SELECT document FROM attachments WHERE container_id='c1'")[0]
    node.damage_document("c1", DOCUMENTS[how](text))
    if kernel == "knows":
        node.rules = mappings_of(lost)
    for number in range(20):  # others come and go without getting near its ports
        other = node.again().hold(draft(f"x{number}"), demand("80/tcp", "81/udp")).record
        assert not other.held & lost.held
        node.again().release(other.key, quarantine_s=0)
    found = node.again().load(lost.key)
    assert found.salvaged
    assert found.held == lost.held
    if kernel == "knows":
        assert {port[:3] for port in found.ports} == {port[:3] for port in lost.ports}
    assert [node.again().load(record.key) for record in (records[0], records[2])] == [records[0], records[2]]
    assert any("is damaged" in line for line in node.log)
    assert any("c1" in line for line in node.log)
    node.assert_whole()
    assert node.again().release(lost.key, quarantine_s=0) is not None
    assert node.again().load(lost.key) is None
    assert not set(node.bits()) & lost.held
    node.assert_whole()


def test_records_tell_the_ports_of_a_damaged_one_so_that_gc_can_undo_it(node):
    records = populated(node)
    node.damage_document("c0", "x")
    found = {record.key: record for record in node.again().records()}
    assert found[records[0].key].held == records[0].held
    assert [found[record.key] for record in records[1:]] == records[1:]
    assert [record.key for record in node.again().unlisted("net", {("c1", "eth0")})] == [key("c0"), key("c2")]


def test_damaged_record_is_released_whole_when_nobody_looked_at_it_before(node):
    records = populated(node)
    node.damage_document("c0", "")
    assert node.again().release(records[0].key, quarantine_s=0) is not None
    node.assert_whole()
    assert not set(node.bits()) & records[0].held


def test_two_damaged_records_hold_all_their_ports_until_both_are_released(node):
    records = populated(node)
    for container in ("c0", "c1"):
        node.damage_document(container, "")
    node.again().release(records[0].key)
    assert records[1].held <= set(node.bits())
    node.again().release(records[1].key)
    assert not set(node.bits()) & (records[0].held | records[1].held)
    node.assert_whole()


def test_repeated_add_heals_a_damaged_record(node):
    records = populated(node)
    node.damage_document("c0", "x")
    record = node.again().hold(draft("c0"), demand("80/tcp", "81/udp")).record
    assert node.again().load(records[0].key) == record
    assert not record.salvaged
    node.assert_whole()


BROKEN_TABLES = {
    "bitmap of zeros": "UPDATE bitmaps SET bits=zeroblob(8192)",
    "bitmap of ones": "UPDATE bitmaps SET bits=(SELECT replace(hex(zeroblob(4096)), '00', 'ff'))",
    "bitmap missing": "DELETE FROM bitmaps WHERE protocol='udp'",
    "bitmap of another protocol": "UPDATE bitmaps SET protocol='xyz' WHERE protocol='tcp'",
    "port moved": "UPDATE OR REPLACE ports SET port=port+100 WHERE attachment=1",
    "port gone": "DELETE FROM ports WHERE attachment=1",
    "port negative": "UPDATE ports SET port=-5 WHERE attachment=1 AND protocol='tcp'",
    "port huge": "UPDATE ports SET port=1e9 WHERE attachment=1 AND protocol='tcp'",
    "port of another": "UPDATE ports SET attachment=2, container_id='c1' WHERE attachment=1",
    "protocol unknown": "UPDATE ports SET protocol='abc' WHERE attachment=1 AND protocol='tcp'",
    "address no text": "UPDATE ports SET host_ip=x'ff00' WHERE attachment=1",
    "quarantine of no port": "UPDATE OR REPLACE quarantine SET port=4000000000",
    "quarantine of no protocol": "UPDATE OR REPLACE quarantine SET protocol=x'ff'",
    "key changed": "UPDATE attachments SET container_id='cx' WHERE id=1",
    "token changed": "UPDATE attachments SET token='cx' WHERE id=1",
    "boot of a record changed": "UPDATE attachments SET boot_id='other' WHERE id=1",
    "key no text": "UPDATE attachments SET container_id=x'ff41' WHERE id=1",
    "boot changed": "UPDATE meta SET value='other' WHERE key='boot'",
    "transactions no number": "UPDATE meta SET value='x' WHERE key='sequence'",
    "transactions forgotten": "UPDATE meta SET value=1 WHERE key='sequence'",
    "seal missing": "DELETE FROM meta WHERE key='seal'",
    "meta missing": "DROP TABLE meta",
    "trigger missing": "DROP TRIGGER ports_one_holder",
    "table missing": "DROP TABLE ports",
    "another version": "PRAGMA user_version=1000",
    "no version": "PRAGMA user_version=0",
}


@pytest.mark.parametrize("kernel", ["knows", "knows nothing"])
@pytest.mark.parametrize("how", BROKEN_TABLES)
def test_no_port_is_given_twice_and_every_del_works_when_tables_are_damaged(tmp_path, how, kernel):
    node = Node(str(tmp_path / "state"))
    records = populated(node)
    node.sql(BROKEN_TABLES[how])
    if kernel == "knows":
        node.rules = mappings_of(*records)
    live = {pair for record in records for pair in record.held}
    for number in range(10):
        other = node.again().hold(draft(f"x{number}"), demand("80/tcp", "81/udp", ports="20000-20199")).record
        assert not other.held & live, number
    node.again().rebuild()
    assert [line for line in node.log if "is damaged" in line]
    node.assert_whole()
    for record in records:
        assert node.again().release(record.key, quarantine_s=0) == record, how
    node.assert_whole()
    assert not set(node.bits()) & live


def test_everything_comes_back_from_the_kernel_when_all_is_lost(node):
    records = populated(node)
    node.rules = mappings_of(*records)
    node.lose()
    new = node.again().hold(draft("next"), demand("80/tcp", "81/udp")).record
    for record in records:
        found = node.again().load(record.key)
        assert [port[:3] for port in found.ports] == [port[:3] for port in record.ports]
        assert (found.salvaged, found.phase) == (True, "mapped")
        assert not new.held & record.held
        assert any("made anew from its port mappings" in line and record.container_id in line for line in node.log)
    node.assert_whole()
    for record in records:
        node.again().release(record.key, quarantine_s=0)
    assert sorted(node.bits()) == sorted(new.held)


@pytest.mark.parametrize("first", ["load", "records", "release", "occupancy", "unlisted", "renamed", "problems"])
def test_whatever_looks_first_finds_what_the_kernel_knows_when_all_is_lost(node, first):
    records = populated(node)
    node.rules = mappings_of(*records)
    node.lose()
    found = {
        "load": lambda store: [store.load(key("c0"))],
        "records": lambda store: list(store.records()),
        "release": lambda store: [store.load(key("c0"))],
        "occupancy": lambda store: [store.occupancy()],
        "unlisted": lambda store: store.unlisted("net", ()),
        "renamed": lambda store: [store.renamed(key("c0", network="new"))],
        "problems": lambda store: [store.problems() == []],
    }[first](node.again())
    assert found[0]
    assert sorted(node.held()) == sorted(pair for record in records for pair in record.held)


def test_release_tells_of_a_record_that_only_the_kernel_knows(tmp_path):
    node = Node(str(tmp_path / "state"))
    records = populated(node)
    node.rules = mappings_of(*records)
    for name in ("cnimeta.db", "cnimeta.db-wal"):
        if (tmp_path / "state" / name).exists():
            (tmp_path / "state" / name).unlink()
    assert node.again().release(key("c0"), quarantine_s=0).held == records[0].held
    node.assert_whole()


def test_mappings_that_cannot_be_listed_are_not_taken_for_none(node):
    records = populated(node)
    node.lose()

    def fails():
        raise CniError("the ruleset cannot be read", code=5)

    node._mappings = fails
    for use in (
        lambda store: store.hold(draft("next"), demand()),
        lambda store: store.load(key("c0")),
        lambda store: list(store.records()),
    ):
        with pytest.raises(CniError, match="ruleset cannot be read"):
            use(node.again())
    del node._mappings
    node.rules = mappings_of(*records)
    assert not node.again().hold(draft("next"), demand("80/tcp", "81/udp")).record.held & set().union(
        *(record.held for record in records)
    )


def test_container_deleted_while_its_record_was_lost_leaves_nothing(node):
    """Its rules were listed just before DEL removed them; DEL then releases what it loaded before."""
    records = populated(node)
    node.rules = mappings_of(*records)
    node.lose()
    node.again().try_writing()  # another command makes the state anew, with the container that is being deleted
    assert node.again().release(key("c0"), token=records[0].token, quarantine_s=0).salvaged
    assert node.again().load(key("c0")) is None
    node.assert_whole()


def test_add_whose_record_was_lost_gives_up_and_leaves_nothing(node):
    record = node.again().hold(draft(), demand()).record
    node.rules = mappings_of(record)
    node.lose()
    with pytest.raises(Superseded):
        node.again().settle(record._replace(phase="mapped"))
    node.rules = []
    node.again().release(record.key, token=record.token, quarantine_s=0)
    assert node.bits() == []
    node.assert_whole()


def test_kernel_is_believed_when_a_record_is_from_before(tmp_path):
    """The log was lost with the last transactions: c0 went, and c1 was given its port."""
    node = Node(str(tmp_path / "state"))
    old = populated(node)[0]
    before = node.contents()
    state = {path.name: path.read_bytes() for path in (tmp_path / "state").iterdir() if path.is_file()}
    node.again().release(key("c0"), quarantine_s=0, sticky_s=0)
    port = old.ports[0].host_port
    new = node.again().hold(draft("new"), demand(ports=f"{port}")).record
    for name in ("cnimeta.db-wal", "cnimeta.db-shm"):
        if (tmp_path / "state" / name).exists():
            (tmp_path / "state" / name).unlink()
    (tmp_path / "state" / "cnimeta.db").write_bytes(state["cnimeta.db"])
    node.rules = mappings_of(new)
    found = node.again().load(key("new"))
    assert found.held == new.held
    assert node.again().load(key("c0")).held == old.held - new.held
    assert any("is another container's now" in line for line in node.log)
    assert any("transactions are lost" in line for line in node.log)
    node.assert_whole()
    node.again().release(key("c0"), quarantine_s=0)
    assert ("tcp", port) in node.bits()
    assert before


def test_mapping_that_its_record_lacks_is_held(tmp_path):
    node = Node(str(tmp_path / "state"))
    records = populated(node)
    more = Explicit(20150, 80, "tcp", "")
    node.rules = mappings_of(*records, records[0]._replace(ports=(), explicit=(more,)))
    node.sql("UPDATE meta SET value=1 WHERE key='sequence'")
    assert node.again().load(key("c0")).explicit == (more,)
    assert node.again().load(key("c0")).undo == {"number": 0}
    assert ("tcp", 20150) in node.bits()
    node.assert_whole()


def test_mappings_of_two_containers_on_one_port_do_not_stop_anything(node):
    populated(node)
    one, other = (Record("net", name, "eth0", ports=(Port(1, "tcp", 20100, "", ""),)) for name in ("a", "b"))
    node.rules = mappings_of(one, other)
    node.lose()
    node.again().try_writing()
    assert node.held() == [("tcp", 20100)]
    node.assert_whole()


@pytest.mark.parametrize(("mapped", "here"), [(False, True), (True, True), (False, False)])
def test_record_of_an_attachment_that_was_deleted_stays_away_when_transactions_are_lost(tmp_path, mapped, here):
    """Unless another installation's plugin may have mapped its ports: then it may live, and nobody here knows."""
    node = Node(str(tmp_path / "state"))
    held = node.again().hold(draft("c1")._replace(undo={"mappedHere": here}), demand()).record
    kept = node.again().hold(draft("c2"), demand()).record
    saved = {
        name: (tmp_path / "state" / name).read_bytes()
        for name in ("cnimeta.db", "cnimeta.db-wal")
        if (tmp_path / "state" / name).exists()
    }
    node.again().release(held.key)
    for name, data in saved.items():
        (tmp_path / "state" / name).write_bytes(data)
    node.rules = mappings_of(held) if mapped else []
    away = here and not mapped
    assert {record.key for record in node.again().records()} == {kept.key, *([] if away else [held.key])}
    assert any("left out" in line for line in node.log) == away


class Wrong(Database):
    """A database in which the check of every page finds something."""

    def problems(self, *, quick=False):
        return ["row 1 missing from index"]


def test_database_that_its_check_finds_wrong_is_made_anew_by_rebuilding(tmp_path):
    node = Node(str(tmp_path / "state"))
    held = node.again().hold(draft("c1"), demand()).record
    node.open = Wrong
    node.again().rebuild()
    assert [line for line in node.log if "is damaged (row 1 missing from index)" in line]
    node.open = Database
    assert node.held() == sorted(held.held)


def test_nothing_is_reported_when_the_folder_is_used_for_the_first_time(node):
    node.again().hold(draft(), demand())
    assert node.log == []
    assert node.again().problems() == []


def test_disagreements_are_told_and_rebuilt(node):
    records = populated(node)
    node.sql("UPDATE OR REPLACE ports SET port=20190 WHERE attachment=1 AND protocol='tcp'")
    port = records[0].ports[0].host_port
    assert set(node.again().problems()) == {
        f"port {port}/tcp has a record and is not held",
        "port 20190/tcp is held and has no record",
        "port 20190/tcp is held and has no bit",
        f"port {port}/tcp has a bit and is not held",
    }
    node.again().rebuild()
    assert node.again().problems() == []
    assert [node.again().load(record.key) for record in records] == records
    node.log.clear()
    node.again().rebuild()
    assert node.log == []


# --- later versions --------------------------------------------------------------------------------------


def later(node: Node) -> None:
    """The database as a later version leaves it: a column more, its number, its seal."""
    from cnimeta.store import sql

    if node.is_real:
        import _sqlite3

        connection = _sqlite3.connect(f"{node.folder}/cnimeta.db", isolation_level=None)
    else:
        connection = node.databases.connections[node.folder]
    connection.execute("ALTER TABLE attachments ADD COLUMN extra TEXT")
    connection.execute("PRAGMA user_version=9")
    sql.set_seal(connection)
    if node.is_real:
        connection.close()


def test_later_database_is_refused_on_add_and_tolerated_on_del(node):
    records = populated(node)
    later(node)
    before = node.contents()
    for refused in (
        lambda store: store.hold(draft("next"), demand()),
        lambda store: store.settle(records[0]),
        lambda store: store.try_writing(),
        lambda store: store.rebuild(),
        lambda store: store.occupancy(),
    ):
        with pytest.raises(StateUnusable, match="later version") as raised:
            refused(node.again())
        assert raised.value.code == 104
    assert node.contents() == before
    assert list(node.again().records()) == records
    assert node.again().unlisted("net", set()) == records
    assert node.again().pending() == ()
    assert node.again().release(records[0].key) == records[0]
    assert node.again().release(records[0].key) is None
    assert node.again().load(records[0].key) is None
    assert node.sql("SELECT value FROM meta WHERE key='stale'") == [(1,)]
    assert not {("net", "c0")} & set(node.sql("SELECT network, container_id FROM attachments"))
    held = set(node.sql("SELECT protocol, port FROM ports"))
    assert not held & records[0].held  # the later version's trigger
    assert set(node.bits()) > held  # and its bitmaps, which it makes anew


def test_stale_bitmaps_are_made_anew_by_the_version_that_knows_them(node):
    records = populated(node)
    node.sql("DELETE FROM attachments WHERE container_id='c0'")
    node.sql("INSERT INTO meta VALUES ('stale', 1)")
    assert "stale" in node.again().problems()[0]
    assert node.bits()
    node.again().hold(draft("next"), demand("80/tcp", "81/udp"))
    node.assert_whole()
    assert node.sql("SELECT value FROM meta WHERE key='stale'") == []
    assert [node.again().load(record.key) for record in records[1:]] == records[1:]
    assert not [line for line in node.log if "damaged" in line]


@pytest.mark.parametrize("undo", ["release", "rebuild"])
def test_stale_bitmaps_are_made_anew_whoever_comes_first(node, undo):
    records = populated(node)
    node.sql("DELETE FROM attachments WHERE container_id='c0'")
    node.sql("INSERT INTO meta VALUES ('stale', 1)")
    if undo == "release":
        node.again().release(records[1].key)
    else:
        node.again().rebuild()
    node.assert_whole()
    assert node.sql("SELECT value FROM meta WHERE key='stale'") == []


def test_records_of_a_later_version_are_read_as_far_as_they_can_be(node):
    records = populated(node)
    later(node)
    body = {**document.decode(1, encode(records[0])).raw, "extra": [1]}
    node.damage_document("c0", document.encode(2, body))
    node.damage_document("c1", document.encode(2, {"elsewhere": 1}))
    node.damage_document("c2", "damaged")
    assert node.again().load(key("c0")) == records[0]
    for container, record in (("c1", records[1]), ("c2", records[2])):
        found = node.again().load(key(container))
        assert (found.key, found.token, found.boot_id, found.salvaged) == (record.key, record.token, "boot-1", True)
        assert node.again().release(key(container)).key == key(container)
    assert [record.container_id for record in node.again().records()] == ["c0"]
    assert not [line for line in node.log if "made anew" in line]
