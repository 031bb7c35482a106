"""What a line of the log is, and what spans a report comes to; both whatever the words of others are."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cnimeta.agent.log import Log
from cnimeta.host.spool import Spool
from cnimeta.node.monitor.ledger import Ledger
from cnimeta.observe.logline import ERROR, INFO, body, text
from cnimeta.observe.spans import spans

if TYPE_CHECKING:
    from pathlib import Path

pytestmark = pytest.mark.unit

REPORT: dict[str, Any] = {
    "plugin": "hostport_alloc",
    "verb": "ADD",
    "code": 0,
    "network": "pods",
    "containerID": "c1",
    "ifname": "eth0",
    "pod": "games/web-0",
    "began": 1000.5,
    "seconds": 0.25,
    "way": "agent",
    "span": "00000000000000aa",
    "trace": "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "traceState": "a=b",
    "called": [["bridge", "ADD", 0, 0.01, 0.2], ["portmap", "ADD", 100, 0.21, 0.04]],
    "waits": [],
    "counted": [],
}


@pytest.fixture
def written(tmp_path: Path) -> Any:
    """A log in a file, and what is in it."""

    class Written:
        def __init__(self) -> None:
            self.path = tmp_path / "log"
            self.descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)

        @property
        def lines(self) -> list[str]:
            return self.path.read_text().splitlines()

    return Written()


@given(st.text(max_size=50), st.dictionaries(st.sampled_from(["a", "b"]), st.text(max_size=50)))
def test_a_line_is_one_line_of_printable_text_whatever_is_said(message: str, fields: dict[str, str]) -> None:
    line = text(INFO, message, fields, priority=False)
    assert line.isprintable()
    found = json.loads(json.dumps(body(INFO, message, fields, 1000.0)))
    assert found["message"].isprintable()
    assert set(fields) <= set(found)


def test_values_are_told_apart_when_they_are_no_single_word() -> None:
    fields = {"a": "two words", "b": 'q"=', "c": 0.25, "d": True, "e": "", "f": "plain/0"}
    assert text(ERROR, "said", fields, priority=True) == (
        '<3>cnimeta agent: said a="two words" b="q\\"=" c=0.25 d=true f=plain/0'
    )


def test_identity_of_the_container_is_in_the_line_of_what_was_served(written: Any) -> None:
    Log("text", None, written.descriptor).served(REPORT)
    Log("json", None, written.descriptor).served({**REPORT, "code": 11, "message": "range is exhausted"})
    served, failed = written.lines
    assert served == (
        "cnimeta agent: served plugin=hostport_alloc verb=ADD containerID=c1 ifname=eth0 network=pods pod=games/web-0"
        " code=0 seconds=0.25 traceID=4bf92f3577b34da6a3ce929d0e0e4736 spanID=00f067aa0ba902b7"
    )
    found = json.loads(failed)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", found.pop("time"))
    assert found == {
        "level": "error",
        "message": "error: range is exhausted",
        "plugin": "hostport_alloc",
        "verb": "ADD",
        "containerID": "c1",
        "ifname": "eth0",
        "network": "pods",
        "pod": "games/web-0",
        "code": 11,
        "seconds": 0.25,
        "traceID": "4bf92f3577b34da6a3ce929d0e0e4736",
        "spanID": "00f067aa0ba902b7",
    }


def test_errors_are_counted_and_the_last_is_kept(tmp_path: Path, written: Any) -> None:
    spool = Spool.made(str(tmp_path / "observed"))
    log = Log("text", spool, written.descriptor)
    log("a warning")
    log.error("first")
    log.kept().error("last")
    log.info("fine")
    ledger = Ledger(spool.folder)
    assert ledger.hold()
    ledger.fold()
    assert ledger.totals.last_error is not None
    assert ledger.totals.last_error.text == "last"
    values = {labels: value for (name, labels), value in ledger.totals.counters.items() if "log" in name}
    assert values == {(("level", "warning"),): 1, (("level", "error"),): 2}
    assert len(written.lines) == 4


def test_the_journal_is_told_the_level_when_stderr_is_its(written: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    found = os.fstat(written.descriptor)
    monkeypatch.setenv("JOURNAL_STREAM", f"{found.st_dev}:{found.st_ino}")
    Log("text", None, written.descriptor).error("x")
    Log("json", None, written.descriptor).error("x")
    assert written.lines[0] == "<3>cnimeta agent: x"
    assert written.lines[1].startswith("{")


def numbered() -> Any:
    numbers = iter(range(1, 100))
    return lambda _: next(numbers)


def test_spans_are_the_callers_childs_and_delegates_are_ours() -> None:
    whole, bridge, portmap = spans(REPORT, numbered())
    assert (whole.name, whole.trace, whole.parent, whole.id) == (
        *("hostport_alloc ADD", 0x4BF92F3577B34DA6A3CE929D0E0E4736),
        *(0x00F067AA0BA902B7, 0xAA),
    )
    assert whole.ended_ns - whole.began_ns == 250_000_000
    assert whole.attributes["k8s.pod.name"] == "web-0"
    assert whole.attributes["cni.container_id"] == "c1"
    assert (bridge.name, bridge.parent, bridge.is_call, bridge.error) == ("bridge ADD", 0xAA, True, "")
    assert bridge.began_ns == whole.began_ns + 10_000_000
    assert portmap.error == "error 100"


def test_spans_begin_a_trace_when_the_caller_is_in_none() -> None:
    alone = {key: value for key, value in REPORT.items() if key not in ("trace", "traceState", "span")}
    whole, *_ = spans({**alone, "code": 7, "message": "bad"}, numbered())
    assert (whole.trace, whole.parent, whole.error) == (1, 0, "bad")


@pytest.mark.parametrize("change", [{"trace": REPORT["trace"][:-2] + "00"}, {"verb": None}])
def test_there_are_no_spans_when_the_trace_is_not_sampled_or_it_is_no_invocation(change: dict[str, Any]) -> None:
    report = {key: value for key, value in {**REPORT, **change}.items() if value is not None}
    assert spans(report, numbered()) == []


COLLECTOR = """
import http.server, sys, zlib
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.headers.get("Content-Encoding") == "gzip":
            content = zlib.decompress(content, 31)
        self.send_response(200)
        self.end_headers()
        request = ExportTraceServiceRequest.FromString(content)
        for of in request.resource_spans:
            service = {one.key: one.value.string_value for one in of.resource.attributes}["service.name"]
            for span in (span for scope in of.scope_spans for span in scope.spans):
                print(self.path, service, span.name, span.trace_id.hex(), span.parent_span_id.hex(), span.status.code, flush=True)
    def log_message(self, *_): pass

server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
print(server.server_port, flush=True)
server.serve_forever()
"""

EXPORTING = """
import json, sys
from cnimeta.node.monitor.export import Export
export = Export()
export([json.loads(sys.stdin.read()), {"verb": "ADD"}, {"event": "x"}])
export.flush()
"""


def test_a_collector_gets_the_spans_when_they_are_exported() -> None:
    with subprocess.Popen([sys.executable, "-c", COLLECTOR], stdout=subprocess.PIPE, text=True) as collector:
        assert collector.stdout is not None
        try:
            port = int(collector.stdout.readline())
            environ = {**os.environ, "OTEL_EXPORTER_OTLP_ENDPOINT": f"http://127.0.0.1:{port}"}
            subprocess.run(
                [sys.executable, "-c", EXPORTING], input=json.dumps(REPORT), env=environ, text=True, check=True
            )
            found = sorted(collector.stdout.readline().split() for _ in range(3))
        finally:
            collector.kill()
    trace = "4bf92f3577b34da6a3ce929d0e0e4736"
    assert found == [
        ["/v1/traces", "cnimeta", "bridge", "ADD", trace, "00000000000000aa", "0"],
        ["/v1/traces", "cnimeta", "hostport_alloc", "ADD", trace, "00f067aa0ba902b7", "0"],
        ["/v1/traces", "cnimeta", "portmap", "ADD", trace, "00000000000000aa", "2"],
    ]
