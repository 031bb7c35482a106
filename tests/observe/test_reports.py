"""From an invocation to the sums: notes, the report, the spool, the ledger. None is lost, none counted twice."""

from __future__ import annotations

import concurrent.futures
import json
import os
import subprocess
import sys
import threading
from typing import TYPE_CHECKING, Any

import pytest

from cnimeta.cli.install import install
from cnimeta.errors import HostPortConflict, IoFailure, StateUnusable
from cnimeta.host.spool import MAX_BYTES, Spool
from cnimeta.node.monitor.ledger import Ledger
from cnimeta.observe import notes
from cnimeta.observe.totals import DROPPED, LAUNCHES, OPERATIONS
from cnimeta.plugin import report as reports

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

pytestmark = pytest.mark.unit

ENVIRON = {
    "CNI_COMMAND": "ADD",
    "CNI_CONTAINERID": "c1",
    "CNI_IFNAME": "eth0",
    "CNI_ARGS": "IgnoreUnknown=1;K8S_POD_NAMESPACE=games;K8S_POD_NAME=web-0",
    "TRACEPARENT": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "observed"
    made.mkdir(mode=0o700)
    return made


@pytest.fixture(autouse=True)
def closed() -> Iterator[None]:
    yield
    notes.end()


def noted() -> notes.Notes:
    notes.begin()
    notes.about("portmap", "pods")
    notes.about("bridge", "others")
    notes.called("bridge", "ADD", 0, notes.moment())
    notes.waited("database", notes.moment() - 2)
    notes.waited("database", notes.moment(), unless_s=1)
    notes.count("x_total", range="games")
    found = notes.end()
    assert found is not None
    return found


def test_report_says_who_asked_for_what_and_what_it_went_through() -> None:
    found = noted()
    found.failure = HostPortConflict("taken\x1b[31m", "by\nc2")
    body = reports.report(found, ENVIRON, reports.ALONE)
    assert body is not None
    assert {key: body[key] for key in ("plugin", "verb", "code", "network", "containerID", "ifname", "pod", "way")} == {
        "plugin": "portmap",
        "verb": "ADD",
        "code": 100,
        "network": "pods",
        "containerID": "c1",
        "ifname": "eth0",
        "pod": "games/web-0",
        "way": "alone",
    }
    assert body["message"] == "taken\\x1b[31m (by\\nc2)"
    ((plugin, verb, code, _, seconds),) = body["called"]  # type: ignore[misc, union-attr]
    assert (plugin, verb, code) == ("bridge", "ADD", 0)
    assert 0 <= seconds < 1  # type: ignore[operator]
    (wait,) = body["waits"]  # type: ignore[misc, union-attr]
    assert wait[0] == "database"
    assert 2 <= wait[1] < 3  # type: ignore[operator]
    assert body["counted"] == [["x_total", [["range", "games"]]]]
    assert body["trace"] == ENVIRON["TRACEPARENT"]


def test_nothing_is_noted_when_the_process_has_not_begun_to() -> None:
    notes.end()
    notes.about("portmap")
    notes.called("bridge", "ADD", 0, notes.moment())
    notes.count("x_total")
    assert notes.end() is None


@pytest.mark.parametrize("verb", ["VERSION", "", "DOCTOR", "add"])
def test_there_is_no_report_when_it_is_not_about_a_network(verb: str) -> None:
    assert reports.report(noted(), {**ENVIRON, "CNI_COMMAND": verb}, reports.ALONE) is None


def test_delegates_are_told_of_the_invocations_own_span_when_it_becomes_one() -> None:
    notes.begin()
    environ = dict(ENVIRON)
    reports.enter_span(environ)
    found = notes.end()
    assert found is not None
    body = reports.report(found, environ, reports.AGENT)
    assert body is not None
    assert body["trace"] == ENVIRON["TRACEPARENT"]
    assert environ["TRACEPARENT"] == f"00-4bf92f3577b34da6a3ce929d0e0e4736-{body['span']}-01"
    assert body["span"] != "00f067aa0ba902b7"


@pytest.mark.parametrize("parent", ["", "00-0-0-0", "00-" + "0" * 32 + "-00f067aa0ba902b7-01", "\x1b[31m"])
def test_a_trace_that_is_none_is_in_no_report(parent: str) -> None:
    environ = {**ENVIRON, "TRACEPARENT": parent}
    notes.begin()
    reports.enter_span(environ)
    assert environ["TRACEPARENT"] == parent
    body = reports.report(noted(), environ, reports.ALONE)
    assert body is not None
    assert "trace" not in body


def leave(folder: Path, count: int = 1) -> None:
    for _ in range(count):
        reports.leave(noted(), ENVIRON, str(folder), reports.ALONE)


def launches(ledger: Ledger) -> float:
    return ledger.totals.counters.get((LAUNCHES, (("plugin", "portmap"), ("way", "alone"))), 0)


def test_sums_grow_and_stay_when_another_process_goes_on(folder: Path) -> None:
    leave(folder, 3)
    first = Ledger(str(folder))
    assert first.hold()
    assert len(first.fold()) == 3
    assert first.fold() == []
    leave(folder)
    assert not Ledger(str(folder)).hold()
    first.release()
    second = Ledger(str(folder))
    assert second.hold()
    assert launches(second) == 3
    second.fold()
    assert launches(second) == launches(Ledger(str(folder))) == 4
    key = OPERATIONS, (("plugin", "portmap"), ("verb", "ADD"), ("code", "0"))
    assert sum(second.totals.histograms[key][:-1]) == 4


@pytest.mark.parametrize("kept", [False, True])
def test_every_report_is_counted_once_when_who_adds_up_was_killed(folder: Path, kept: bool) -> None:
    """Before the sums were kept, or after that and before the lines were removed."""
    leave(folder, 2)
    if kept:
        os.link(folder / "reports", folder / "spare")
        ledger = Ledger(str(folder))
        assert ledger.hold()
        ledger.fold()
        ledger.release()
        os.rename(folder / "spare", folder / "reports.taken")
    else:
        Spool(str(folder)).take()
    leave(folder)
    ledger = Ledger(str(folder))
    assert ledger.hold()
    ledger.fold()
    assert launches(ledger) == 3
    assert sorted(os.listdir(folder)) == ["lock", "totals.json"]


def test_every_line_is_read_once_when_many_write_while_one_reads(folder: Path) -> None:
    spool, ended, found = Spool(str(folder)), threading.Event(), []

    def read() -> None:
        last = False
        while not last:
            last = ended.is_set()
            _, lines = spool.take()
            found.extend(lines.splitlines())
            spool.done()

    reader = threading.Thread(target=read)
    reader.start()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        written = list(pool.map(lambda number: spool.append(b"%d\n" % number), range(2000)))
    ended.set()
    reader.join()
    left = [number for number, was in enumerate(written) if was]
    assert sorted(map(int, found)) == left
    assert len(left) > 1900  # who meets the reader three times gives up


def test_file_stops_growing_when_nobody_reads_it(folder: Path) -> None:
    spool = Spool(str(folder))
    line = b"x" * (MAX_BYTES // 4) + b"\n"
    for _ in range(6):
        spool.append(line)
    assert (folder / "reports").stat().st_size <= MAX_BYTES


def test_nothing_is_made_when_nobody_reads(tmp_path: Path) -> None:
    assert not Spool(str(tmp_path / "none")).append(b"x\n")
    assert list(tmp_path.iterdir()) == []


def test_folder_of_somebody_else_is_not_used(tmp_path: Path) -> None:
    folder = tmp_path / "theirs"
    folder.mkdir()
    folder.chmod(0o777)
    with pytest.raises(StateUnusable):
        Ledger(str(folder)).hold()
    (tmp_path / "file").write_text("")
    with pytest.raises((StateUnusable, IoFailure)):
        Ledger(str(tmp_path / "file" / "in")).hold()


@pytest.mark.parametrize(
    "line",
    [
        b"{",
        b"[]",
        b"{}",
        b'{"verb":"ADD"}',
        b'{"verb":"ADD","plugin":["x"],"code":0,"seconds":1,"way":"alone"}',
        b'{"verb":"ADD","plugin":"p","code":0,"seconds":-1,"way":"alone"}',
        b'{"event":"x","counted":[["a b",[]]]}',
        b'{"event":"x","counted":[["a",[["b"]]]]}',
        b"\xff",
    ],
)
def test_damaged_line_is_counted_as_dropped_and_the_others_are_kept(folder: Path, line: bytes) -> None:
    Spool(str(folder)).append(line + b"\n")
    leave(folder)
    ledger = Ledger(str(folder))
    assert ledger.hold()
    ledger.fold()
    assert ledger.totals.counters[DROPPED, ()] == 1
    assert launches(ledger) == 1


@pytest.mark.parametrize("content", ["{", "[]", '{"version": 2, "counters": 5}', '{"version": 1, "counters": [[1]]}'])
def test_sums_begin_anew_when_their_file_is_damaged(folder: Path, content: str) -> None:
    (folder / "totals.json").write_text(content)
    leave(folder)
    ledger = Ledger(str(folder))
    assert ledger.hold()
    ledger.fold()
    assert launches(ledger) == 1


def test_series_are_bounded_when_names_are_many(folder: Path) -> None:
    ledger = Ledger(str(folder))
    assert ledger.hold()
    for number in range(3000):
        ledger.totals.add({"event": "x", "counted": [["x_total", [["range", str(number)]]]]})
    assert len(ledger.totals.counters) <= 2001
    assert ledger.totals.counters[DROPPED, ()] >= 1000


def run(folder: Path, plugin: str, verb: str, **environ: str) -> dict[str, Any]:
    environ = {"CNI_COMMAND": verb, "CNI_CONTAINERID": "c1", "CNI_IFNAME": "eth0", "CNI_NETNS": "/x", **environ}
    text = json.dumps({"cniVersion": "1.1.0", "name": "pods", "type": plugin})
    path = str(folder / "bin" / plugin)
    done = subprocess.run([path], env=environ, input=text, capture_output=True, text=True, check=False)
    return json.loads(done.stdout)


@pytest.mark.parametrize(("agent", "way"), [(False, "alone"), (True, "fallback")])
def test_launcher_leaves_a_report_where_one_is_read(tmp_path: Path, folder: Path, agent: bool, way: str) -> None:
    install(str(tmp_path / "bin"), ["portmap"], agent=agent)
    environ = {"CNIMETA_OBSERVED": str(folder), "CNIMETA_AGENT": str(tmp_path / "none" / "agent.sock")}
    answer = run(tmp_path, "portmap", "ADD", **environ)
    run(tmp_path, "portmap", "VERSION", **environ)
    run(tmp_path, "portmap", "ADD", **{**environ, "CNIMETA_OBSERVED": str(tmp_path / "none")})
    ((line),) = (folder / "reports").read_text().splitlines()
    body = json.loads(line)
    assert (body["plugin"], body["verb"], body["code"], body["way"]) == ("portmap", "ADD", answer["code"], way)
    assert body["message"] == answer["msg"]
    assert os.stat(folder / "reports").st_mode & 0o777 == 0o600


def test_cost_of_a_report_is_small_beside_a_start(folder: Path) -> None:
    """Far less than 0.1 ms of processor time; the bound leaves room for a slow machine."""
    import time

    began = time.process_time()
    leave(folder, 500)
    assert (time.process_time() - began) / 500 < 0.0005


def test_nothing_of_reports_is_imported_when_nobody_reads(tmp_path: Path) -> None:
    code = (
        "import sys; from cnimeta.plugin import dispatch; from cnimeta.observe import notes; notes.begin();"
        "dispatch._report(); print(*sys.modules)"
    )
    environ = {**os.environ, "CNIMETA_OBSERVED": str(tmp_path / "none"), "CNI_COMMAND": "ADD"}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=True)
    assert "cnimeta.plugin.report" not in done.stdout.split()
    assert "cnimeta.host.spool" not in done.stdout.split()
