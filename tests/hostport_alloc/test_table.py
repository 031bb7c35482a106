"""The table of `cnimeta ports`: whole where a program reads it, cut to fit where a person does."""

from __future__ import annotations

import fcntl
import io
import os
import struct
import sys
import termios

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnimeta.terminal.table import table, width
from cnimeta_plugins.hostport_alloc.operator.formats import listing

pytestmark = pytest.mark.unit

ENTRY: dict[str, str | int] = {
    "hostPort": 23541,
    "protocol": "tcp",
    "range": "default",
    "containerPort": 80,
    "ageSeconds": 600,
    "pod": "kube-system/a-deployment-with-a-long-name-6d4b75cb6d-hw4xk",
    "containerID": "0123456789abcdef" * 4,
    "network": "a-network-of-forty-characters-or-so-abcd",
    "state": "mapped",
    "annotation": "done",
}


def test_nothing_is_cut_when_it_fits_or_nobody_looks() -> None:
    assert table(("A", "LONG"), [["aaaa", "b"]]) == "A     LONG\naaaa  b\n"
    assert table(("A", "LONG"), [["aaaa", "b"]], 10) == "A     LONG\naaaa  b\n"
    assert str(ENTRY["pod"]) in listing([ENTRY])


def test_the_widest_columns_are_cut_when_the_terminal_is_narrow() -> None:
    heads, line = listing([ENTRY], 120).splitlines()
    assert heads.startswith("HOST PORT  PROTOCOL  RANGE    PORT  POD ")
    assert line.startswith("23541      tcp       default  80    kube-system/")
    assert line.count("…") == 2
    assert "0123456789ab " in line
    assert line.endswith("10m  mapped  done")
    assert len(line) <= 120


@given(st.integers(59, 300), st.lists(st.text("ab\N{GREEK SMALL LETTER ALPHA}", max_size=80), min_size=1, max_size=4))
def test_no_line_is_longer_than_the_terminal_when_cells_are_of_any_length(most: int, pods: list[str]) -> None:
    lines = listing([{**ENTRY, "pod": pod} for pod in pods], most).splitlines()
    assert len(lines) == len(pods) + 1
    assert max(len(line) for line in lines) <= most


def test_numbers_and_a_few_characters_of_each_cell_are_left_when_nothing_fits() -> None:
    line = listing([ENTRY], 10).splitlines()[1]
    assert line.split() == ["23541", "tcp", "def…", "80", "kub…", "012…", "a-n…", "10m", "map…", "done"]


def test_a_plain_character_ends_a_cut_cell_when_stdout_knows_no_ellipsis(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), encoding="latin-1"))
    assert "kub~" in listing([ENTRY], 10)


@pytest.mark.parametrize(("columns", "wide"), [("100", 100), ("0", None), ("x", None), ("", None)])
def test_columns_says_how_wide_it_is_when_stdout_is_no_terminal(
    monkeypatch: pytest.MonkeyPatch, columns: str, wide: int | None
) -> None:
    monkeypatch.setenv("COLUMNS", columns)
    assert width() == wide


def test_the_terminal_says_how_wide_it_is_when_stdout_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("COLUMNS", raising=False)
    ours, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 91, 0, 0))
    with os.fdopen(theirs, "w") as terminal, os.fdopen(ours):
        monkeypatch.setattr(sys, "stdout", terminal)
        assert width() == 91
