"""The index file and the pure changes of the index."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cnimeta_plugins.hostport_alloc.allocate.expose import PROTOCOLS, Explicit
from cnimeta_plugins.hostport_alloc.allocate.picks import Held
from cnimeta_plugins.hostport_alloc.state import index as state
from cnimeta_plugins.hostport_alloc.state.record import Annotation, Pod, Port, Record, decode, encode

pytestmark = pytest.mark.unit

protocols = st.sampled_from(PROTOCOLS)
numbers = st.integers(1, 65535)
texts = st.text(max_size=12)
times = st.floats(0, 1e12)

indexes = st.builds(
    state.Index,
    generation=st.integers(0, 2**60),
    boot_id=texts,
    bits=st.fixed_dictionaries(
        {name: st.sets(numbers, max_size=8).map(lambda ports: sum(1 << p for p in ports)) for name in PROTOCOLS}
    ),
    pins=st.lists(st.builds(state.Pin, protocols, numbers, texts, texts), max_size=4).map(tuple),
    quarantine=st.lists(st.builds(Held, protocols, numbers, times, times), max_size=6).map(tuple),
    sticky=st.just(b'\n["ns","a",1,[]]\n'),
    last=st.none()
    | st.builds(
        state.Last,
        st.sampled_from(["reserve", "release"]),
        texts,
        texts,
        st.lists(st.tuples(protocols, numbers), max_size=4).map(tuple),
    ),
)
records = st.builds(
    Record,
    network=texts,
    container_id=texts,
    ifname=texts,
    netns=texts,
    boot_id=texts,
    token=texts,
    created=times,
    phase=st.sampled_from(["reserved", "mapped", "releasing"]),
    pod=st.none() | st.builds(Pod, texts, texts, texts),
    ports=st.lists(st.builds(Port, numbers, protocols, numbers, texts, texts), max_size=4).map(tuple),
    explicit=st.lists(st.builds(Explicit, numbers, numbers, protocols, texts), max_size=3).map(tuple),
    annotation=st.builds(
        Annotation, st.sampled_from(["none", "pending", "done"]), st.none() | st.just({"a": [1]}), texts
    ),
    undo=st.none() | st.dictionaries(texts, st.lists(st.integers(), max_size=3), max_size=3),
    salvaged=st.booleans(),
)


@given(indexes)
@settings(deadline=None)
def test_index_reads_back_as_it_was_written(index):
    assert state.decode(state.encode(index)) == index


@given(records)
@settings(deadline=None)
def test_record_reads_back_as_it_was_written(record):
    assert decode(encode(record)) == record


@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda tail: b"cnimeta-hostports 1\n" + tail))
def test_anything_else_is_damaged_and_never_an_index(data):
    with pytest.raises(state.DamagedIndex):
        state.decode(data)


@given(indexes, st.integers(0, 10**6), st.integers(1, 255))
@settings(deadline=None)
def test_index_with_a_changed_byte_is_damaged(index, place, flip):
    data = bytearray(state.encode(index))
    data[place % len(data)] ^= flip
    with pytest.raises(state.DamagedIndex):
        state.decode(bytes(data))


@given(indexes, st.integers(0, 10**6))
@settings(deadline=None)
def test_index_that_was_cut_off_is_damaged(index, end):
    data = state.encode(index)
    with pytest.raises(state.DamagedIndex):
        state.decode(data[: end % len(data)])


port_lists = st.lists(st.builds(Port, numbers, protocols, numbers, st.just("r")), max_size=4).map(tuple)


@given(port_lists, port_lists)
def test_free_undoes_hold_and_touches_nothing_else(own, other):
    mine, theirs = Record("n", "a", "i", ports=own), Record("n", "b", "i", ports=other)
    if mine.held & theirs.held:
        return
    before = state.hold(state.Index(), theirs, "b")
    after = state.free(state.hold(before, mine, "a"), mine.held, "a")
    assert {name: bits for name, bits in after.bits.items() if bits} == {n: b for n, b in before.bits.items() if b}
    assert (after.pins, after.quarantine) == (before.pins, before.quarantine)


def test_quarantine_forgets_what_has_expired_and_keeps_the_order_of_release():
    index = state.Index()
    for number, seconds in enumerate([10, 1, 10]):
        record = Record("n", "c", "i", ports=(Port(80, "tcp", 100 + number, "r"),))
        index = state.quarantine(index, record, float(number), seconds)
    assert [held.port for held in state.quarantined(index, 2.5)] == [100, 102]
