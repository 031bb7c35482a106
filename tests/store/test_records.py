"""The store of a plugin author: records on a real database and on one in memory."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnimeta.errors import InvalidEnvironment, StateUnusable
from cnimeta.store import document
from cnimeta.store.database import Database
from cnimeta.store.records import Records
from cnimeta.testing.store import MemoryDatabases

pytestmark = pytest.mark.unit

KEY = ("net", "c1", "eth0")


class Shelf:
    """Where records are; `records()` is the next process."""

    def __init__(self, folder: str, kind: str) -> None:
        self.folder = folder
        self.databases = MemoryDatabases()
        self.open = Database if kind == "real" else self.databases
        self.log: list[str] = []

    def records(self, version: int = 1, boot_id: str = "") -> Records:
        return Records(self.folder, log=self.log.append, version=version, boot_id=boot_id, open_database=self.open)

    def change(self, statement: str, *values: object) -> None:
        self.records()._database.write(lambda connection: connection.execute(statement, values))


@pytest.fixture(params=["real", "memory"])
def shelf(request, tmp_path):
    return Shelf(str(tmp_path / "state"), request.param)


def test_record_is_there_for_the_next_process_until_it_is_removed(shelf):
    shelf.records().put(KEY, {"address": "10.0.0.2", "more": [1, None, {"a": "\U0001f600\0"}]})
    assert shelf.records().get(KEY).raw == {"address": "10.0.0.2", "more": [1, None, {"a": "\U0001f600\0"}]}
    shelf.records().put(KEY, {"address": "10.0.0.3"})
    assert shelf.records().get(KEY).text("address") == "10.0.0.3"
    shelf.records().remove(KEY)
    shelf.records().remove(KEY)
    assert shelf.records().get(KEY) is None


def test_looking_makes_no_database_when_there_is_none(shelf):
    records = shelf.records()
    assert records.get(KEY) is None
    assert records.every() == []
    assert records.of_container("c1") == []
    records.remove(KEY)
    assert not records._database.exists()


def test_records_are_listed_by_key_and_by_container(shelf):
    keys = [("b", "c1", "eth0"), ("a", "c2", "eth0"), ("a", "c1", "eth1")]
    for key in keys:
        shelf.records().put(key, {"key": list(key)})
    assert [stored.key for stored in shelf.records().every()] == sorted(keys)
    assert [stored.body.texts("key") for stored in shelf.records().of_container("c1")] == [
        ["a", "c1", "eth1"],
        ["b", "c1", "eth0"],
    ]


def test_records_stay_when_the_boot_is_another(shelf):
    shelf.records(boot_id="one").put(KEY, {"a": 1})
    assert shelf.records(boot_id="two").get(KEY).raw == {"a": 1}


def test_record_of_a_later_version_can_be_removed_and_not_read(shelf):
    shelf.records(version=2).put(KEY, {"a": 1})
    with pytest.raises(StateUnusable) as raised:
        shelf.records(version=1).get(KEY)
    assert raised.value.code == 104
    assert [stored.body for stored in shelf.records().every()] == [None]
    assert shelf.records(version=3).get(KEY).raw == {"a": 1}
    shelf.records().remove(KEY)
    assert shelf.records().get(KEY) is None


@pytest.mark.parametrize("text", ["", "x", '{"version":1,"crc":0,"record":{}}', document.encode(1, {"key": ["other"]})])
def test_damaged_record_is_an_error_and_not_gone(shelf, text):
    shelf.records().put(KEY, {"a": 1})
    shelf.records().put(("net", "c2", "eth0"), {"b": 2})
    shelf.change("UPDATE records SET document=? WHERE container_id='c1'", text)
    with pytest.raises(StateUnusable, match='"c1" cannot be read'):
        shelf.records().get(KEY)
    assert [(stored.key[1], stored.body and stored.body.raw) for stored in shelf.records().every()] == [
        ("c1", None),
        ("c2", {"b": 2}),
    ]
    assert any("cannot be read" in line for line in shelf.log)
    shelf.records().put(KEY, {"a": 3})
    assert shelf.records().get(KEY).raw == {"a": 3}


def test_bytes_that_are_no_text_are_refused(shelf):
    odd = os.fsdecode(b"x\xff")
    with pytest.raises(InvalidEnvironment):
        shelf.records().put(("net", odd, "eth0"), {})
    with pytest.raises(InvalidEnvironment):
        shelf.records().put(KEY, {"a": odd})
    with pytest.raises(InvalidEnvironment):
        shelf.records().get(("net", odd, "eth0"))
    assert shelf.records().every() == []


def test_lock_of_an_attachment_is_had(tmp_path):
    records = Records(str(tmp_path / "state"), log=lambda _: None)
    with records.locks.of(KEY).held():
        records.put(KEY, {"a": 1})
    assert records.get(KEY).raw == {"a": 1}


def test_what_can_be_read_of_a_damaged_database_is_taken_over(tmp_path):
    shelf = Shelf(str(tmp_path / "state"), "real")
    for number in range(300):
        shelf.records().put(("net", f"c{number:03}", "eth0"), {"text": f"{number}" * 40})
    path = f"{shelf.folder}/cnimeta.db"
    size = os.path.getsize(path)
    with open(path, "r+b") as file:
        file.seek(size // 2 // 4096 * 4096)
        file.write(b"\xa5" * 4096)
    seen = shelf.records().every()
    shelf.change("UPDATE records SET document=document")
    found = {stored.key[1]: stored.body.text("text") for stored in shelf.records().every() if stored.body is not None}
    assert len(found) > 200
    assert all(text == str(int(name[1:])) * 40 for name, text in found.items())
    assert len(seen) <= 300
    assert any("damaged" in line for line in shelf.log)
    assert shelf.records()._database.problems() == []


bodies = st.dictionaries(
    st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(st.characters(exclude_categories=["Cs"]), max_size=8),
        lambda inner: st.lists(inner, max_size=3),
        max_leaves=5,
    ),
    max_size=5,
)


@given(st.integers(0, 10**9 - 1), bodies)
@settings(deadline=None)
def test_document_reads_back_as_it_was_written(version, body):
    assert document.decode(version, document.encode(version, body)).raw == body


@given(st.integers(0, 10**8), bodies, st.data())
@settings(deadline=None)
def test_document_with_any_changed_bit_is_damaged_also_in_its_version(version, body, data):
    text = document.encode(version, body).encode()
    place = data.draw(st.integers(0, len(text) - 1))
    bit = data.draw(st.integers(0, 7))
    changed = text[:place] + bytes([text[place] ^ 1 << bit]) + text[place + 1 :]
    with pytest.raises((document.Damaged, UnicodeDecodeError)):
        document.decode(10**9, changed.decode())
