"""The parts of the benchmarks that a run of minutes would find broken at its end: the page, pictures, the probe."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from cnimeta.cli.install import install

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "bench"))

import benchmarks  # noqa: E402
import common  # noqa: E402
import picture  # noqa: E402

pytestmark = pytest.mark.unit


def texts(path: Path) -> list[str]:
    """The words of a picture."""
    return [one.text or "" for one in ET.parse(path).iter() if one.tag.endswith("text")]


def test_pictures_are_whole_and_name_everything_that_is_drawn(tmp_path: Path) -> None:
    picture.lines(tmp_path / "lines.svg", "by <size>", (0, 10), {"a & b": [1, 200], "short": [3]}, "ms")
    assert {"by <size>", "a & b", "short", "10"} <= set(texts(tmp_path / "lines.svg"))
    picture.bars(tmp_path / "bars.svg", "beside", {"ADD": {"ours": 1, "theirs": 900}}, "ms")
    assert {"ADD", "ours", "theirs"} <= set(texts(tmp_path / "bars.svg"))
    picture.stacked(tmp_path / "deep" / "stacked.svg", "parts", {"ADD": {"x": 1, "y": 2}, "DEL": {"x": 0}}, "ms")
    assert {"ADD", "DEL", "x", "y", "3.00 ms"} <= set(texts(tmp_path / "deep" / "stacked.svg"))


def test_a_row_has_its_ratio_and_bar() -> None:
    rows = [
        common.Row("ADD", 5, 10, "ms", 0.55),
        common.Row("alone", 5, None, "ms", 20),
        common.Row("rate", 99, 98, "%"),
    ]
    lines = benchmarks.table("Title", "How.", rows).splitlines()
    assert lines[:3] == ["## Title", "", "How."]
    assert lines[-3:] == [
        "| ADD | 5.0 ms | 10.0 ms | 0.5 x | 0.55 x |",
        "| alone | 5.0 ms |  |  | 20 ms |",
        "| rate | 99.0 % | 98.0 % |  |  |",
    ]


def test_every_section_is_a_benchmark_and_every_benchmark_a_section() -> None:
    found = {
        path.stem
        for path in (ROOT / "bench").glob("*.py")
        if any(f"\ndef {word}(" in path.read_text(encoding="utf-8") for word in ("measure", "section"))
    }
    assert found - {"benchmarks"} == set(benchmarks.SECTIONS)


def test_the_probe_is_a_launcher_that_tells_where_its_time_went(tmp_path: Path) -> None:
    import where

    install(str(tmp_path / "bin"), ["portmap"])
    (tmp_path / "probe").mkdir()
    program = where.probe(str(tmp_path / "bin" / "portmap"), str(tmp_path / "probe"))
    environ = {"CNI_COMMAND": "VERSION"}
    done = subprocess.run(
        [program], env=environ, input=b'{"cniVersion":"1.0.0","n":1}', capture_output=True, check=True
    )
    assert "supportedVersions" in json.loads(done.stdout)
    told = json.loads(done.stderr)
    assert told["code"] > 0
    assert told["inside"] == pytest.approx(sum(told.values()) - told["inside"])
