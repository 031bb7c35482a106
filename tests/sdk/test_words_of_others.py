"""What others write, in whatever length and characters, is shown short and printable, and read within limits."""

from __future__ import annotations

import json
import sys
from typing import Any

import pytest

from cnimeta.delegate.call import Delegates
from cnimeta.errors import CniError, DecodingFailure, legible
from cnimeta.host.values import Completed
from cnimeta.plugin.base import Plugin
from cnimeta.plugin.dispatch import run
from cnimeta.spec import cniargs
from cnimeta.spec.jsonio import loads_all
from cnimeta.spec.netconf import MAX_BYTES, NetConf
from cnimeta.terminal.table import table

pytestmark = pytest.mark.unit

NASTY = "\x1b[2J\x1b]0;owned\x07\r\nfake line\u202eevil\x00\x9b31m\udcff\u2028" + "w" * 1_000_000
ENVIRON = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_IFNAME": "eth0",
    "CNI_NETNS": "/run/netns/none",
    "CNI_PATH": "/bin",
}
CONF = {"cniVersion": "1.1.0", "name": "net", "type": "x", "prevResult": {"ips": [{"address": "10.0.0.2/24"}]}}


class Babbling:
    """A PluginExec whose plugin fails with these words."""

    def __init__(self, stdout: bytes) -> None:
        self.stdout = stdout

    def run(self, *_: object) -> Completed:
        return Completed(1, self.stdout)


class Calling(Plugin):
    """Logs and delegates."""

    name = "calling"

    def __init__(self, stdout: bytes) -> None:
        self.stdout = stdout

    def add(self, request: Any) -> Any:
        request.log(f"calling {NASTY}")
        delegates = Delegates(Babbling(self.stdout), request.environ, ["/bin"], lambda *_: "/bin/x")
        return delegates.add({"type": "x", "cniVersion": "1.1.0"}, undo=True)


def harmless(text: str, limit: int = 20_000) -> None:
    assert text.isprintable()
    assert len(text) < limit


@pytest.mark.parametrize(
    "stdout",
    [
        json.dumps({"code": 7, "msg": NASTY, "details": NASTY}).encode(),
        NASTY.encode("utf-8", "replace"),
        b"\xff" * 1_000_000,
        b"{}" * 500_000,
    ],
    ids=["an error object", "words", "bytes", "many objects"],
)
def test_words_of_a_delegate_are_short_and_printable_wherever_they_come_out(stdout: bytes) -> None:
    lines: list[str] = []
    outcome = run(Calling(stdout), ENVIRON, json.dumps(CONF).encode(), lines.append)
    answer = json.loads(outcome.stdout)
    assert answer["code"] == (7 if b"code" in stdout else 105)
    for text in (answer["msg"], answer["details"], *lines):
        harmless(text)


def test_error_is_printable_however_its_details_came_to_it() -> None:
    error = CniError(NASTY)
    error.details = NASTY
    for text in (str(error), error.msg, *map(str, error.as_json("1.1.0").values())):
        harmless(text)


def test_table_shows_no_character_that_acts_on_a_terminal() -> None:
    text = table(("HEAD",), [[NASTY[:60]], ["näh"]])
    assert all(line.isprintable() for line in text.split("\n"))
    assert "näh" in text


def test_letters_of_every_language_stay_as_they_are() -> None:
    assert legible("Straße 街 улица") == "Straße 街 улица"
    assert legible("a\tb\nc") == "a\\tb\\nc"
    assert legible("x" * 11, 10) == "xxxxxxx..."


@pytest.mark.parametrize("name", ["CNI_ARGS", "CNI_PATH", "CNI_NETNS"])
@pytest.mark.parametrize("verb", ["ADD", "CHECK", "DEL"])
def test_bytes_that_are_no_text_are_refused_and_do_not_keep_del_from_its_work(name: str, verb: str) -> None:
    value = "A=\udcff" if name == "CNI_ARGS" else "/\udcff"
    lines: list[str] = []
    environ = {**ENVIRON, "CNI_COMMAND": verb, name: value}
    outcome = run(Plugin(), environ, json.dumps(CONF).encode(), lines.append)
    if verb == "DEL":
        assert outcome == (0, "")
    else:
        answer = json.loads(outcome.stdout)
        assert (answer["code"], name in answer["msg"]) == (4, True)


def test_arguments_of_the_runtime_have_a_limit() -> None:
    text = "A=" + "x" * cniargs.MAX_CHARACTERS
    with pytest.raises(CniError) as caught:
        cniargs.parse(text)
    assert caught.value.code == 4
    assert cniargs.parse(text, strict=False) == {}
    assert cniargs.parse(text[:-2]) == {"A": "x" * (cniargs.MAX_CHARACTERS - 2)}


def test_configuration_has_a_limit() -> None:
    body = json.dumps(CONF).encode()
    assert NetConf.decode(body + b" " * (MAX_BYTES - len(body))).name == "net"
    with pytest.raises(DecodingFailure, match="longer than"):
        NetConf.decode(body + b" " * (MAX_BYTES - len(body) + 1))


@pytest.mark.parametrize("unit", ["1 ", "{}\n", '"\\ud800" ', " "])
def test_documents_one_after_the_other_are_read_in_linear_time(unit: str) -> None:
    """Steps, not seconds: reading a hundred times the text may take a hundred times the steps, and not more."""
    try:
        assert steps(lambda: loads_all(unit * 90)) < 90 * 60
        assert steps(lambda: loads_all(" " + unit * 90_000)) < 90 * 60 + 3000
    except DecodingFailure as error:
        assert "more than 100" in error.msg


def steps(attempt: Any) -> int:
    """How many lines run."""
    count = 0

    def trace(*_: object) -> Any:
        nonlocal count
        count += 1
        return trace

    sys.settrace(trace)
    try:
        attempt()
    finally:
        sys.settrace(None)
    return count
