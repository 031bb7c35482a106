"""cnimeta.namedtuple.NamedTuple behaves as typing.NamedTuple."""

from __future__ import annotations

import copy
import pickle
import typing

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnimeta.namedtuple import NamedTuple

pytestmark = pytest.mark.unit


class Ours(NamedTuple):
    """Three fields."""

    a: int
    b: str = "x"
    c: tuple = ()

    @property
    def twice(self):
        return self.a * 2

    def shifted(self, by):
        return self._replace(a=self.a + by)


class Theirs(typing.NamedTuple):
    """Three fields."""

    a: int
    b: str = "x"
    c: tuple = ()

    @property
    def twice(self):
        return self.a * 2

    def shifted(self, by):
        return self._replace(a=self.a + by)


VALUES = st.one_of(st.integers(), st.text(), st.none(), st.tuples(st.integers()))
ARGS = st.lists(VALUES, max_size=4)
KWARGS = st.dictionaries(st.sampled_from(["a", "b", "c", "d"]), VALUES, max_size=4)


def attempt(make):
    try:
        return tuple(make())
    except TypeError:
        return TypeError


@given(ARGS, KWARGS)
def test_construction_agrees_when_given_any_arguments(args, kwargs):
    ours, theirs = attempt(lambda: Ours(*args, **kwargs)), attempt(lambda: Theirs(*args, **kwargs))
    assert ours == theirs


@given(VALUES, VALUES, VALUES, VALUES)
def test_records_agree_when_read_compared_and_changed(a, b, c, other):
    ours, theirs = Ours(a, b, c), Theirs(a, b, c)
    assert (ours.a, ours.b, ours.c) == (theirs.a, theirs.b, theirs.c) == tuple(ours)
    assert ours == theirs
    assert hash(ours) == hash(theirs)
    assert repr(ours).removeprefix("Ours") == repr(theirs).removeprefix("Theirs")
    assert ours._asdict() == theirs._asdict()
    assert tuple(ours._replace(b=other)) == tuple(theirs._replace(b=other))
    assert tuple(Ours._make((a, b, c))) == tuple(Theirs._make((a, b, c)))
    assert pickle.loads(pickle.dumps(ours)) == ours
    assert type(pickle.loads(pickle.dumps(ours))) is Ours
    assert copy.deepcopy(ours) == ours


def test_class_attributes_agree():
    for name in ("_fields", "_field_defaults", "__match_args__", "__doc__", "__module__"):
        assert getattr(Ours, name) == getattr(Theirs, name), name
    assert tuple(Ours.__annotations__) == tuple(Theirs.__annotations__)
    assert Ours.__slots__ == ()
    assert Ours(2).twice == Theirs(2).twice == 4
    assert tuple(Ours(2).shifted(3)) == tuple(Theirs(2).shifted(3))


def test_matching_works_by_position():
    match Ours(1, "y"):
        case Ours(1, b, ()):
            assert b == "y"
        case _:
            pytest.fail("no match")


def test_records_are_immutable():
    for record in (Ours(1), Theirs(1)):
        with pytest.raises(AttributeError):
            record.a = 2
        with pytest.raises(AttributeError):
            record.new = 2


def test_replace_refuses_an_unknown_field():
    with pytest.raises(TypeError, match="nope"):
        Ours(1)._replace(nope=2)


def test_a_default_before_a_plain_field_is_refused_when_the_class_is_made():
    with pytest.raises(TypeError, match="without a default"):

        class Wrong(NamedTuple):
            a: int = 1
            b: int


def test_a_record_without_fields_is_an_empty_tuple():
    class Empty(NamedTuple):
        pass

    assert Empty() == ()
    assert repr(Empty()).endswith("Empty()")
