"""The document of a record, and what records are made from when they are lost. Pure."""

from __future__ import annotations

import pytest
from hostport_state_kit import mappings_of
from hypothesis import given, settings
from hypothesis import strategies as st

from cnimeta_plugins.hostport_alloc.allocate.expose import PROTOCOLS, Explicit
from cnimeta_plugins.hostport_alloc.allocate.picks import Port
from cnimeta_plugins.hostport_alloc.state.record import Annotation, Damaged, Later, Pod, Record, decode, encode
from cnimeta_plugins.hostport_alloc.state.rows import overlap, places
from cnimeta_plugins.hostport_alloc.state.salvage import Sources, merged

pytestmark = pytest.mark.unit

protocols = st.sampled_from(PROTOCOLS)
numbers = st.integers(1, 65535)
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=12)
times = st.floats(0, 1e12)

records = st.builds(
    Record,
    network=texts,
    container_id=texts,
    ifname=texts,
    netns=texts,
    netns_id=texts,
    boot_id=texts,
    token=texts,
    created=times,
    phase=st.sampled_from(["reserved", "mapped"]),
    pod=st.none() | st.builds(Pod, texts, texts, texts),
    ports=st.lists(st.builds(Port, numbers, protocols, numbers, texts, texts), max_size=4).map(tuple),
    explicit=st.lists(st.builds(Explicit, numbers, numbers, protocols, texts), max_size=3).map(tuple),
    annotation=st.builds(
        Annotation, st.sampled_from(["none", "pending", "done"]), st.none() | st.just({"a": [1]}), texts
    ),
    undo=st.none() | st.dictionaries(texts, st.lists(st.integers(), max_size=3), max_size=3),
    salvaged=st.booleans(),
)


@given(records)
@settings(deadline=None)
def test_record_reads_back_as_it_was_written(record):
    assert decode(encode(record)) == record


def test_record_document_is_refused_when_any_bit_is_changed():
    record = Record("net", "c1", "eth0", ports=(Port(80, "tcp", 20000, "default"),), undo={"a": [1, "x"]})
    data = encode(record).encode()
    cases = 0
    for place in range(len(data)):
        for bit in range(8):
            changed = data[:place] + bytes([data[place] ^ 1 << bit]) + data[place + 1 :]
            with pytest.raises((Damaged, UnicodeDecodeError)):
                decode(changed.decode())
            cases += 1
    assert cases == 8 * len(data)


@given(records, st.integers(0, 10**6))
@settings(deadline=None)
def test_record_document_is_refused_when_it_was_cut_off(record, end):
    text = encode(record)
    with pytest.raises(Damaged):
        decode(text[: end % len(text)])


@given(st.text(max_size=80) | st.text(max_size=80).map(lambda tail: '{"version":1,"crc":0,"record":' + tail))
def test_anything_else_is_damaged_and_never_a_record(text):
    with pytest.raises(Damaged):
        decode(text)


def test_document_of_a_later_version_is_read_where_it_has_the_keys_and_later_where_not():
    from cnimeta.store import document

    record = Record("net", "c1", "eth0", token="t", ports=(Port(80, "tcp", 20000, "default"),))
    body = document.decode(1, encode(record)).raw
    assert decode(document.encode(3, {**body, "extra": {}})) == record
    with pytest.raises(Later, match="version 3"):
        decode(document.encode(3, {**body, "ports": "elsewhere"}))


# --- which records are made from what is known -------------------------------------------------------------

few = st.builds(Port, st.just(80), protocols, st.integers(1, 6), st.just("r"), st.sampled_from(["", "10.0.0.1", "::"]))
ports = st.lists(few, max_size=3).map(tuple)
keys = st.tuples(st.sampled_from(["n", "m"]), st.sampled_from("abc"), st.just("eth0"))
some = st.builds(
    lambda key, ports, boot, salvaged: Record(*key, boot_id=boot, token="t", ports=ports, salvaged=salvaged),
    keys,
    ports,
    st.sampled_from(["now", "before"]),
    st.booleans(),
)


def unique(found: list[Record]) -> tuple[Record, ...]:
    return tuple({record.key: record for record in found}.values())


@given(st.lists(some, max_size=5).map(unique), st.lists(some, max_size=5).map(unique), st.lists(some, max_size=5))
@settings(deadline=None, max_examples=200)
def test_no_port_has_two_containers_and_no_mapping_is_without_its_record_whatever_is_known(readable, broken, mapped):
    broken = tuple(record._replace(salvaged=True) for record in broken)
    found = merged(Sources(tuple(mappings_of(*mapped)), readable, broken), "now", 1.0, lambda _: None)
    assert len({record.key for record in found}) == len(found)
    assert {record.key for record in readable} <= {record.key for record in found}
    alive = [record for record in found if record.boot_id == "now"]
    for one in alive:
        for other in alive:
            for protocol, port, host_ip in places(one) if one.container_id != other.container_id else ():
                for held in places(other):
                    assert held[:2] != (protocol, port) or not overlap(held[2], host_ip)
    held = {pair for record in alive for pair in record.held}
    for record in mapped:
        assert record.held <= held  # by whomever: it is not given out again
    if not mapped:
        for record in broken:
            assert record.boot_id != "now" or record.held <= held
