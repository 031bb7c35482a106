"""`cnimeta metrics`: right from the first look on, in a form that Prometheus reads; unknown is not zero."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from cnimeta.cli.main import main
from cnimeta.errors import CniError, StateUnusable
from cnimeta.node.monitor.collected import collected, process_ticks
from cnimeta.observe.metrics import Metric, Sample, gauge, render
from cnimeta.observe.totals import Totals
from cnimeta.plugin import Plugin
from cnimeta.testing.addresses import FakeAddresses
from cnimeta.testing.clock import FakeClock
from cnimeta.testing.delegates import FakeDelegate, FakeExec, address_result
from cnimeta.testing.kube import FakePods, Fault
from cnimeta.testing.memory import call
from cnimeta.testing.namespaces import FakeNamespaces
from cnimeta.testing.sockets import FakePortScan, FakeSockets
from cnimeta.testing.store import FakeLocks, MemoryDatabases
from cnimeta_plugins.hostport_alloc.main import HostportAlloc
from cnimeta_plugins.hostport_alloc.operator import own, wrap
from cnimeta_plugins.hostport_alloc.wiring import Wiring

if TYPE_CHECKING:
    from collections.abc import Iterable

pytestmark = pytest.mark.runtime

ROOT = Path(__file__).parents[2]
REPORT = {"plugin": "portmap", "verb": "ADD", "code": 0, "seconds": 0.3, "way": "agent"}
POD = "IgnoreUnknown=1;K8S_POD_NAMESPACE=default;K8S_POD_NAME=web;K8S_POD_UID=0a-1b"


class Node:
    """A node with hostport_alloc around bridge, in a folder of configurations."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pods, self.sockets, self.databases = FakePods(), FakeSockets(), MemoryDatabases()
        executor = FakeExec(FakeDelegate("bridge", result=address_result("10.1.0.2/24")), FakeDelegate("portmap"))
        self.plugin = HostportAlloc(
            Wiring(
                executor=executor,
                locate=executor.locate,
                open_database=self.databases,
                locks=FakeLocks(),
                clock=FakeClock(),
                sockets=self.sockets,
                scan=FakePortScan(),
                addresses=FakeAddresses("192.0.2.10"),
                pods=lambda _: self.pods,
                mapper=lambda _: None,
                namespaces=FakeNamespaces(),
                boot_id="boot",
            )
        )
        self.entry = {
            "type": "hostport_alloc",
            "ranges": {"default": "20000-20009", "games": "7000-7004"},
            "expose": ["80/tcp"],
            "delegates": [{"type": "bridge"}],
            "kubernetes": {"kubeconfig": "/k", "timeout": 5},
            "dataDir": "/data",
        }
        self.write("10.conflist", {"cniVersion": "1.0.0", "name": "pods", "plugins": [self.entry]})

    def write(self, name: str, document: Any) -> None:
        (self.folder / name).write_text(document if isinstance(document, str) else json.dumps(document))

    def add(self, name: str, args: str = "") -> None:
        call(self.plugin, "ADD", {**self.entry, "cniVersion": "1.0.0", "name": "pods"}, container_id=name, args=args)

    @property
    def values(self) -> dict[str, float]:
        """`name{label="value"}` to value, as Prometheus reads it."""
        lines = render(self.plugin.metrics(str(self.folder))).splitlines()
        return {line.rpartition(" ")[0]: float(line.rpartition(" ")[2]) for line in lines if not line.startswith("#")}


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def test_gauges_are_right_when_nothing_was_ever_allocated(node: Node) -> None:
    node.sockets.busy = {("tcp", 7000)}
    values = node.values
    assert values['cnimeta_hostports{range="default",state="free"}'] == 10
    assert values['cnimeta_hostports{range="games",state="blocked"}'] == 1
    assert values['cnimeta_hostports{range="games",state="used"}'] == 0
    assert values["cnimeta_annotations_pending"] == 0
    assert values["cnimeta_configuration_first"] == 1
    assert node.databases.connections == {}


def test_gauges_follow_when_containers_come_and_go(node: Node) -> None:
    node.pods.create("default", "web", uid="0a-1b")
    node.pods.faults += [Fault(drop=True)] * 2
    node.add("c1", POD)
    node.add("c2")
    values = node.values
    assert values['cnimeta_hostports{range="default",state="used"}'] == 2
    assert values['cnimeta_hostports{range="default",state="free"}'] == 8
    assert values["cnimeta_hostport_containers"] == 2
    assert values["cnimeta_annotations_pending"] == 1
    assert values['cnimeta_annotations_pending_by_reason{reason="no_answer"}'] == 1
    call(node.plugin, "DEL", {**node.entry, "cniVersion": "1.0.0", "name": "pods"}, container_id="c2")
    assert node.values['cnimeta_hostports{range="default",state="quarantined"}'] == 1


def test_it_is_told_whose_configuration_is_first(node: Node) -> None:
    node.write("05.conflist", {"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "bridge"}]})
    assert node.values["cnimeta_configuration_first"] == 0
    own.take(str(node.folder / "05.conflist"), wrap.Options({"default": "20000-20009"}))
    assert node.values["cnimeta_configuration_first"] == node.values["cnimeta_configuration_in_step"] == 1
    node.write("05.conflist", {"cniVersion": "1.0.0", "name": "new", "plugins": [{"type": "bridge"}]})
    assert node.values["cnimeta_configuration_in_step"] == 0
    node.write("00-.conf", "{")
    assert node.values["cnimeta_configuration_first"] == 0


def test_there_are_no_zeros_when_the_state_cannot_be_read(node: Node) -> None:
    node.add("c1")
    node.databases.connections["/data"].execute("PRAGMA user_version=99")  # a later version's
    with pytest.raises(CniError):
        list(node.plugin.metrics(str(node.folder)))
    said: list[str] = []
    metrics, failed = collected({"hostport_alloc": node.plugin}, str(node.folder), said.append)
    assert failed
    assert said[0].startswith("no metrics of hostport_alloc: ")
    assert "hostports" not in render(metrics)
    assert 'cnimeta_metrics_success{plugin="hostport_alloc"} 0' in render(metrics)


def test_the_others_are_told_of_when_one_plugin_fails() -> None:
    class Broken(Plugin):
        def metrics(self, net_dir: str) -> Iterable[Metric]:
            yield gauge("lost", "x", 1)
            raise StateUnusable("gone")

    class Good(Plugin):
        def metrics(self, net_dir: str) -> Iterable[Metric]:
            yield gauge("kept", "x", 1)

    text = render(collected({"a": Broken(), "b": Good()}, "/", lambda _: None)[0])
    assert "lost" not in text
    assert "kept 1" in text


def promtool(*words: str, text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(["promtool", *words], input=text, capture_output=True, text=True, check=False)


def test_promtool_reads_it_when_everything_is_in_it(node: Node) -> None:
    node.pods.create("default", "web", uid="0a-1b")
    node.add("c1", POD)
    text = render(collected({"hostport_alloc": node.plugin}, str(node.folder), print)[0])
    done = promtool("check", "metrics", text=text)
    assert (done.returncode, done.stderr) == (0, "")


def test_what_was_counted_is_added_to_the_zeros_that_a_plugin_gives(node: Node) -> None:
    totals = Totals()
    totals.add({**REPORT, "counted": [["cnimeta_hostport_exhausted_total", [["range", "games"]]]] * 2})
    text = render(collected({"hostport_alloc": node.plugin}, str(node.folder), print, totals)[0])
    assert 'cnimeta_hostport_exhausted_total{range="games"} 2' in text
    assert 'cnimeta_hostport_exhausted_total{range="default"} 0' in text
    assert text.count("# TYPE cnimeta_hostport_exhausted_total counter") == 1
    labels = 'code="0",plugin="portmap",verb="ADD"'
    found = re.findall(rf'cnimeta_operation_duration_seconds_bucket{{code="0",le="(\S+)",{labels[9:]}}} (\S+)', text)
    assert [float(value) for bound, value in found if bound in ("0.25", "0.5", "+Inf")] == [0, 1, 1]


def test_an_agent_is_down_when_its_process_is_gone_or_another_one(node: Node) -> None:
    totals = Totals()
    for pid, ticks, up in ((os.getpid(), process_ticks(os.getpid()), 1), (os.getpid(), 1, 0), (2**22, 1, 0)):
        totals.add({"event": "agent started", "at": 1.0, "pid": pid, "ticks": ticks, "version": "1", "counted": []})
        text = render(collected({}, str(node.folder), print, totals)[0])
        assert f"cnimeta_agent_up {up}" in text


@given(st.text(max_size=30), st.text(max_size=30))
def test_a_line_is_one_line_when_labels_and_texts_are_of_any_kind(value: str, about: str) -> None:
    lines = render([Metric("x", about, [Sample(1, (("a", value),))])]).split("\n")
    assert len(lines) == 4
    assert lines[2].endswith('"} 1')


def test_the_file_is_for_everybody_and_whole_when_it_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CNIMETA_OBSERVED", str(tmp_path / "observed"))
    nets, file = tmp_path / "net.d", tmp_path / "out.prom"
    nets.mkdir()
    assert main(["metrics", "--net-dir", str(nets), "--output", str(file)]) == 0
    assert file.stat().st_mode & 0o777 == 0o644
    assert "cnimeta_configuration_first 0" in file.read_text()
    assert 'cnimeta_launches_total{plugin="portmap",way="alone"} 0' in file.read_text()
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == ["out.prom"]
    assert main(["metrics", "--net-dir", str(nets), "--output", str(tmp_path / "none" / "x")]) == 1


def test_each_alert_fires_when_it_should_and_only_then(tmp_path: Path) -> None:
    shutil.copy(ROOT / "deploy" / "alerts.yaml", tmp_path)
    shutil.copy(Path(__file__).parent / "alerts_test.yaml", tmp_path)
    done = promtool("test", "rules", str(tmp_path / "alerts_test.yaml"))
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_page_has_every_metric_and_alert_when_they_are_listed(node: Node) -> None:
    node.entry |= {"quotas": {"namespace": 5}, "notify": {"program": "/bin/true"}}
    node.write("10.conflist", {"cniVersion": "1.0.0", "name": "pods", "plugins": [node.entry]})
    node.pods.faults += [Fault(drop=True)] * 2
    node.pods.create("default", "web", uid="0a-1b")
    node.add("c1", POD)
    page = (ROOT / "docs" / "observe.md").read_text()
    node.write("05.conflist", {"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "bridge"}]})
    own.take(str(node.folder / "05.conflist"), wrap.Options({"default": "20000-20009"}, data_dir="/data"))
    totals = Totals()
    totals.agent = {"pid": os.getpid(), "ticks": process_ticks(os.getpid()), "version": "1", "at": 1.0}
    totals.add({**REPORT, "called": [["bridge", "ADD", 0, 0.1, 0.1]]})
    text = render(collected({"hostport_alloc": node.plugin}, str(node.folder), print, totals)[0])
    assert promtool("check", "metrics", text=text).stderr == ""
    names = set(re.findall(r"^# TYPE (\S+)", text, re.MULTILINE))
    assert set(re.findall(r"^\| `(cnimeta_\w+)", page, re.MULTILINE)) == names
    rules = yaml.safe_load((ROOT / "deploy" / "alerts.yaml").read_text())["groups"][0]["rules"]
    assert {rule["alert"] for rule in rules} == set(re.findall(r"^\| `(Cnimeta\w+)", page, re.MULTILINE))
    used = {name for rule in rules for name in re.findall(r"cnimeta_\w+?(?=_count|_sum|\b)", rule["expr"])}
    assert used <= names
    tested = (Path(__file__).parent / "alerts_test.yaml").read_text()
    assert {rule["alert"] for rule in rules} == set(re.findall(r"alertname: (\w+)", tested))
