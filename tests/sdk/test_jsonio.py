"""jsonio reads what the standard library reads, less what Go refuses, and writes what it can read."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

import cnimeta
from cnimeta.errors import DecodingFailure
from cnimeta.spec import jsonio
from cnimeta.spec.jsonio import MAX_DEPTH, dumps, loads, loads_all, loads_object

pytestmark = pytest.mark.unit

TEXT = st.text(st.characters(exclude_categories=["Cs"]))
DOCUMENTS = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=False, allow_infinity=False), TEXT),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(TEXT, inner, max_size=4)),
    max_leaves=20,
)


@given(DOCUMENTS)
def test_what_is_written_is_read_back_when_any_document_is_given(value):
    text = dumps(value)
    assert text.isascii()
    assert "\n" not in text
    assert loads(text) == value == json.loads(text)


@given(DOCUMENTS, st.sampled_from([None, 1, "\t"]), st.booleans())
def test_text_of_the_standard_library_is_read_when_indented_or_not(value, indent, ascii_only):
    text = " \n" + json.dumps(value, indent=indent, ensure_ascii=ascii_only) + "\r\n\t"
    assert loads(text.encode()) == value


@given(DOCUMENTS)
def test_text_is_what_the_standard_library_writes(value):
    assert dumps(value) == json.dumps(value, separators=(",", ":"))


@given(st.text(alphabet='{}[]":,0123456789.eE+-truefalsn \\ud8"a\n', max_size=40))
def test_both_readers_agree_when_given_near_json(text):
    try:
        theirs = json.loads(text.strip(" \t\n\r"), parse_constant=float)
        theirs = json.loads(json.dumps(theirs).encode("utf-8", "replace"))
    except ValueError:
        theirs = ValueError
    try:
        ours = loads(text)
    except DecodingFailure:
        ours = ValueError
    if theirs is not ValueError and "\\ud8" not in text and not any(odd in repr(theirs) for odd in ("inf", "nan")):
        assert ours == theirs
    if theirs is ValueError:
        assert ours is ValueError


@given(st.lists(DOCUMENTS, max_size=4))
def test_documents_are_told_apart_when_one_follows_the_other(values):
    text = " \n".join(json.dumps(value, indent=4) for value in values)
    assert loads_all(text) == values


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        (" \n\t ", "empty"),
        ("{", "not valid JSON"),
        ('{"a":1}{"a":2}', "extra text at character 7"),
        ("NaN", "NaN is not JSON"),
        ("[Infinity]", "Infinity is not JSON"),
        ("[-Infinity]", "-Infinity is not JSON"),
        ("[1e999]", "out of range"),
        ("[" + "9" * 5000 + "]", "not valid JSON"),
        ('"\x01"', "not valid JSON"),
        ("\ufeff{}", "not valid JSON"),
        ("{'a':1}", "not valid JSON"),
        ('{"a":1,}', "not valid JSON"),
        ("[01]", "not valid JSON"),
        ("\u00a0{}", "not valid JSON"),
    ],
)
def test_text_is_refused_with_code_6_when_it_is_not_json(text, words):
    with pytest.raises(DecodingFailure, match="thing") as caught:
        loads(text, "thing")
    assert words in caught.value.msg
    assert caught.value.code == 6


def test_bytes_are_refused_when_not_utf8():
    with pytest.raises(DecodingFailure, match="not UTF-8 text: byte 2"):
        loads(b'{"\xff":1}', "stdin")


@pytest.mark.parametrize("depth", [MAX_DEPTH + 1, 500, 990, 100_000])
@pytest.mark.parametrize("unit", ["[", '{"a":'])
def test_nesting_is_refused_when_it_could_not_be_written_again(depth, unit):
    closing = "]" if unit == "[" else "}"
    with pytest.raises(DecodingFailure, match="nested deeper than 100 levels"):
        loads(unit * depth + "1" + closing * depth)


def test_nesting_is_read_and_written_when_at_the_limit():
    text = "[" * MAX_DEPTH + "]" * MAX_DEPTH
    assert dumps(loads(text)) == text


def test_wide_documents_are_read_when_they_have_many_brackets():
    value = {"list": [{"a": [1]}] * 10_000}
    assert loads(dumps(value)) == value


def test_half_a_surrogate_pair_becomes_the_replacement_character():
    """Go does the same; a lone half could not be passed on as a file name, an argument or UTF-8 text."""
    assert loads('{"a\\ud800":["\\udfffx", "\\ud83d\\ude00", "\\uD800"]}') == {"a\ufffd": ["\ufffdx", "😀", "\ufffd"]}


def test_integers_stay_whole_when_long():
    assert loads("[18446744073709551616, -1]") == [2**64, -1]
    assert isinstance(loads("1.0"), float)
    assert isinstance(loads("1e3"), float)


def test_the_last_of_two_equal_keys_wins():
    assert loads('{"a":1,"a":2}') == {"a": 2}


@pytest.mark.parametrize("value", [[], "x", 1, None, True, 1.5])
def test_a_document_is_refused_when_it_must_be_an_object(value):
    with pytest.raises(DecodingFailure, match=f"must be a JSON object, got {jsonio.kind(value)}"):
        loads_object(dumps(value))


def test_values_without_a_json_form_are_refused_when_written():
    with pytest.raises(TypeError, match="bytes has no JSON form"):
        dumps({"a": b"x"})
    with pytest.raises(ValueError, match="not JSON compliant"):
        dumps([math.inf])


@given(DOCUMENTS)
def test_the_fallback_agrees_when_there_is_no_accelerator(value):
    text = json.dumps(value)
    assert jsonio._stdlib_scan(text, 0) == jsonio._scan(text, 0)
    assert jsonio._stdlib_encode(value) == jsonio._encode(value)


def test_the_fallback_refuses_what_the_accelerator_refuses():
    for text in ("NaN", "[1e999]", "[-Infinity]"):
        with pytest.raises(ValueError):
            jsonio._stdlib_scan(text, 0)


def test_the_accelerator_is_in_use_on_cpython():
    assert jsonio._scan is not jsonio._stdlib_scan


@pytest.mark.parametrize("text", ["{", "{'a':1}", '{"a":1,}', '"\\ud8"', '["\x01"]', "[1e999]", "nul", '{"a" 1}'])
def test_text_is_refused_with_code_6_when_json_was_never_imported(text):
    """A plugin's process has no `json`; the accelerator of Python 3.11 then has no exception class to raise."""
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from cnimeta.spec.jsonio import loads\n"
        "from cnimeta.errors import CniError\n"
        "assert 'json' not in sys.modules\n"
        "try:\n    loads(sys.stdin.read())\nexcept CniError as error:\n    print(error.code, error.msg)\n"
    )
    root = os.path.dirname(os.path.dirname(cnimeta.__file__))
    done = subprocess.run(
        [sys.executable, "-I", "-S", "-c", code, root], input=text, capture_output=True, text=True, check=False
    )
    assert done.stdout.startswith("6 document is not valid JSON"), done
