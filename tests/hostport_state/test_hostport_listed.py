"""What lists show: from columns that are written with the documents, and never without a word other than they."""

from __future__ import annotations

import _sqlite3
import json
import os
from typing import TYPE_CHECKING

import pytest
from hostport_state_kit import BOOT, Node, demand, draft, key

from cnimeta.store import sql
from cnimeta.store.values import Schema
from cnimeta_plugins.hostport_alloc.allocate.expose import Explicit
from cnimeta_plugins.hostport_alloc.operator import formats
from cnimeta_plugins.hostport_alloc.operator.listing import entries_of
from cnimeta_plugins.hostport_alloc.state import listed
from cnimeta_plugins.hostport_alloc.state.record import Annotation, Pod, Record, encode
from cnimeta_plugins.hostport_alloc.state.schema import SCHEMA

if TYPE_CHECKING:
    from pathlib import Path

    from cnimeta_plugins.hostport_alloc.state.store import Store

pytestmark = pytest.mark.unit

FIRST = Schema(SCHEMA.steps[:1])


def populated(node: Node) -> list[Record]:
    """Containers of every kind: with a Pod, with explicit ports, pending, reserved only, of an earlier boot."""
    store = node.again()
    store.hold(draft("earlier", pod="old"), demand("9/udp", ports="21000-21009"))
    node.boot_id = "boot-2"
    store = node.again()
    pending = store.hold(draft("c1", pod="web"), demand("80/tcp", "53/tcp+udp")).record
    pending = pending._replace(phase="mapped", annotation=Annotation("pending", {"a": 1}, "no answer"))
    store.settle(pending)
    explicit = (Explicit(8080, 80, "tcp", "192.0.2.1"), Explicit(8081, 81, "sctp", ""))
    store.hold(draft("c2", explicit=explicit, network="other"), demand("81/tcp"))
    node.clock.advance(600)
    store.hold(draft("c3"), demand("82/tcp"))
    return list(node.again().records())


def expected(node: Node, records: list[Record]) -> list[listed.Listed]:
    """What the documents say."""
    now = node.clock.now()
    return sorted(port for record in records for port in listed.of(record, node.boot_id, now))


def test_list_shows_what_the_documents_say(node: Node) -> None:
    records = populated(node)
    found = node.again().listed()
    assert sorted(found) == expected(node, records)
    assert [port[:2] for port in found] == sorted(port[:2] for port in found)
    states = {port[7]: port[11] for port in found}
    assert states == {"earlier": "earlier boot", "c1": "mapped", "c2": "reserved", "c3": "reserved"}
    assert {port[2] for port in found if port[7] == "c2"} == {"default", "explicit"}
    assert {port[10] for port in found if port[7] in ("c1", "c3")} == {600, 0}
    node.again().release(key("c1"))
    assert not [port for port in node.again().listed() if port[7] == "c1"]
    assert node.sql("SELECT count(*) FROM exposed") == [(len(found) - 3,)]


def test_list_reads_no_document(node: Node) -> None:
    populated(node)
    before = node.again().listed()
    plan = node.sql(f"EXPLAIN QUERY PLAN {listed.RELATION} {listed.ORDER}", node.boot_id, "x", 0.0)
    assert any("COVERING INDEX attachments_listed" in row[-1] for row in plan), plan
    node.damage_document("c1", "no document")
    assert node.again().listed() == before


def rendered(store: Store, form: str, most: int | None = None) -> str:
    """What Python makes of it."""
    return formats.rendered(entries_of(store), form, most)


def test_text_from_the_database_is_what_python_makes_of_it(node: Node) -> None:
    populated(node)
    for seconds in (0, 60, 59, 1, 7000, 80, 165_000, 20, 3 * 86400):
        node.clock.advance(seconds)
        store = node.again()
        assert store.printed(formats.HEADS, None) == rendered(store, "table")
        assert store.printed_json() == rendered(store, "json")
    table = rendered(store, "table")
    widest = max(map(len, table.splitlines()))
    assert store.printed(formats.HEADS, widest) == table
    assert store.printed(formats.HEADS, widest - 1) is None
    assert rendered(store, "table", widest - 1) != table


@pytest.mark.parametrize("name", ["\N{GREEK SMALL LETTER ALPHA}", "a\nb", "a\x1b[31m", "a\x7f"])
def test_text_that_is_not_plain_is_left_to_python(node: Node, name: str) -> None:
    store = node.again()
    store.hold(draft("c1")._replace(pod=Pod("ns", name)), demand("80/tcp"))
    assert store.printed(formats.HEADS, None) is None
    assert "a\nb" not in rendered(store, "table")
    found = store.printed_json()
    assert found == (rendered(store, "json") if name in ("a\nb", "a\x1b[31m") else None)
    if found is not None:
        assert json.loads(found)[0]["pod"] == f"ns/{name}"


def test_nothing_is_printed_when_nothing_is_held(node: Node) -> None:
    store = node.again()
    store.try_writing()
    assert store.printed(formats.HEADS, None) is None
    assert store.printed_json() is None


@pytest.mark.parametrize("ifnames", [("eth0", "eth0"), ("eth0", "net1")])
def test_gc_finds_what_the_runtime_does_not_list(node: Node, ifnames: tuple[str, str]) -> None:
    store = node.again()
    for container, ifname in zip(("c1", "c2"), ifnames, strict=True):
        store.hold(draft(container)._replace(ifname=ifname), demand("80/tcp"))
    store.hold(draft("c3", network="other"), demand("80/tcp"))
    network = draft("c1").network
    assert [record.container_id for record in store.unlisted(network, {("c1", ifnames[0])})] == ["c2"]
    assert [record.container_id for record in store.unlisted(network, {("c1", "none"), ("c2", ifnames[1])})] == ["c1"]
    assert store.unlisted("nowhere", ()) == []
    assert len(store.unlisted(network, ())) == 2
    odd = draft("a\x1fb\x1ec")
    store.hold(odd, demand("80/tcp"))
    assert {record.container_id for record in store.unlisted(network, {("c2", ifnames[1])})} == {"c1", odd.container_id}


@pytest.mark.parametrize(
    "change",
    [
        "UPDATE exposed SET host_port=1 WHERE place=0",
        "UPDATE exposed SET range='x'",
        "DELETE FROM exposed",
        "INSERT INTO exposed VALUES (77, 0, 1, 'tcp', '', 1, '')",
        "UPDATE attachments SET phase='mapped' WHERE container_id='c3'",
        "UPDATE attachments SET pod_name='x' WHERE container_id='c1'",
        "UPDATE attachments SET annotation_error='' WHERE container_id='c1'",
        "UPDATE attachments SET created=created+1",
    ],
)
def test_check_finds_columns_that_are_not_what_the_document_says(node: Node, change: str) -> None:
    records = populated(node)
    assert node.again().problems() == []
    node.sql(change)
    assert any("lists show" in line for line in node.again().problems())
    node.again().rebuild()
    assert node.again().problems() == []
    assert sorted(node.again().listed()) == expected(node, records)


def test_repair_of_nothing_keeps_nobody_out(node: Node) -> None:
    populated(node)
    before = node.sql("SELECT value FROM meta WHERE key='sequence'")
    node.again().rebuild()
    assert node.sql("SELECT value FROM meta WHERE key='sequence'") == before
    node.sql("INSERT INTO meta VALUES ('stale', 1)")
    node.again().rebuild()
    assert node.sql("SELECT 1 FROM meta WHERE key='stale'") == []
    assert node.again().problems() == []


def test_list_of_a_later_versions_state_is_read_from_the_documents(node: Node) -> None:
    records = populated(node)
    connection = (
        _sqlite3.connect(f"{node.folder}/cnimeta.db", isolation_level=None)
        if node.is_real
        else node.databases.connections[node.folder]
    )
    connection.execute("DROP TABLE exposed")
    connection.execute("DROP TRIGGER attachments_hidden")
    connection.execute("PRAGMA user_version=9")
    sql.set_seal(connection)
    if node.is_real:
        connection.close()
    assert sorted(node.again().listed()) == expected(node, records)
    assert node.again().printed(formats.HEADS, None) is node.again().printed_json() is None


def test_containers_and_beginnings_are_found_without_reading_the_others(node: Node) -> None:
    populated(node)
    assert sorted(node.again().containers()) == ["c1", "c2", "c3"]
    assert {record.container_id for record in node.again().beginning("c")} == {"c1", "c2", "c3"}
    node.damage_document("c3", "no document")
    assert [record.container_id for record in node.again().beginning("c1")] == ["c1"]
    assert node.again().beginning("C1") == node.again().beginning("c1x") == []


# --- the first version of the tables ----------------------------------------------------------------------


def first_version(folder: str, records: list[Record], damaged: str) -> None:
    """A database as version 1 of the tables has it, and one document that cannot be read."""
    os.makedirs(folder, 0o700)
    connection = _sqlite3.connect(f"{folder}/cnimeta.db", isolation_level=None)
    os.chmod(f"{folder}/cnimeta.db", 0o600)
    connection.execute("PRAGMA journal_mode=WAL")
    sql.begin(connection, FIRST, BOOT, 5)
    for record in records:
        pod = record.pod
        names = (pod.namespace, pod.name) if pod is not None else ("", "")
        document = "{" if record.container_id == damaged else encode(record)
        connection.execute(
            "INSERT INTO attachments (network, container_id, ifname, token, boot_id, pod_namespace, pod_name, annotation,"
            " document) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
            (*record.key, record.token, record.boot_id, *names, record.annotation.state, document),
        )
    for protocol in ("tcp", "udp", "sctp"):
        connection.execute("INSERT INTO bitmaps VALUES (?, ?, ?)", (protocol, bytes(8192), 0))
    connection.execute("INSERT INTO meta VALUES ('stale', 1)")
    connection.close()
    with open(f"{folder}/sequence", "wb") as file:
        from cnimeta.store.sequence import _encode

        file.write(_encode(5))


@pytest.mark.parametrize("damaged", ["", "c2"])
def test_state_of_the_first_version_is_migrated(tmp_path: Path, damaged: str) -> None:
    source = Node(str(tmp_path / "source"))
    records = [record for record in populated(source) if record.boot_id == "boot-2"]
    records = [record._replace(boot_id=BOOT) for record in records]
    node = Node(str(tmp_path / "state"))
    node.clock = source.clock
    first_version(node.folder, records, damaged)
    found = node.again().listed()
    readable = [record for record in records if record.container_id != damaged]
    assert sorted(found) == expected(node, readable)
    assert node.sql("PRAGMA user_version") == [(SCHEMA.version,)]
    if damaged:
        assert "cannot be read" in node.again().problems()[0]
    else:
        assert [line for line in node.again().problems() if "lists show" in line] == []
    assert [record for record in node.again().records() if not record.salvaged] == readable


def test_earlier_version_serves_del_on_the_state_of_this_one(tmp_path: Path) -> None:
    """Version 1's reader and this version's tables: refused on ADD, and DEL leaves nothing behind."""
    from cnimeta.errors import StateUnusable
    from cnimeta_plugins.hostport_alloc.state.contents import PortContents
    from cnimeta_plugins.hostport_alloc.state.store import Store

    node = Node(str(tmp_path / "state"))
    populated(node)
    contents = PortContents(node._mappings, node.clock, node.boot_id, node.log.append)
    contents.schema = FIRST
    store = Store(node.open(node.folder, contents, node.boot_id, node.log.append), node.clock, node.boot_id, print)
    with pytest.raises(StateUnusable, match="later version"):
        store.hold(draft("c9"), demand())
    for container in ("c1", "c3"):
        assert store.release(key(container)) is not None
    del store
    node.again().rebuild()  # the bitmaps were left stale
    node.assert_whole()
    assert {port[7] for port in node.again().listed()} == {"earlier", "c2"}


def test_doctor_is_told_of_damaged_pages_and_makes_no_state(tmp_path: Path) -> None:
    from cnimeta.spec.netconf import NetConf
    from cnimeta.testing.sockets import FakeSockets
    from cnimeta_plugins.hostport_alloc.operator.examine import examine
    from cnimeta_plugins.hostport_alloc.wiring import Wiring

    node = Node(str(tmp_path / "state"))
    wiring = Wiring(sockets=FakeSockets(), clock=node.clock, boot_id=node.boot_id, mapper=lambda _: None)
    conf = NetConf(
        {"cniVersion": "1.0.0", "name": "net", "type": "hostport_alloc", "dataDir": node.folder, "expose": ["80/tcp"]}
    )
    assert examine(wiring, conf) == []
    assert not os.path.exists(node.folder)
    populated(node)
    wiring = Wiring(sockets=FakeSockets(), clock=node.clock, boot_id=node.boot_id, mapper=lambda _: None)
    assert examine(wiring, conf) == []
    node.sql("PRAGMA wal_checkpoint(TRUNCATE)")
    (root,) = node.sql("SELECT rootpage FROM sqlite_master WHERE name='remembered_until'")
    (size,) = node.sql("PRAGMA page_size")
    with open(f"{node.folder}/cnimeta.db", "r+b") as file:
        file.seek((root[0] - 1) * size[0])
        file.write(b"\xff" * 64)
    wiring = Wiring(sockets=FakeSockets(), clock=node.clock, boot_id=node.boot_id, mapper=lambda _: None)
    told = examine(wiring, conf)
    assert told
    assert all("cnimeta ports repair" in line for line in told)
