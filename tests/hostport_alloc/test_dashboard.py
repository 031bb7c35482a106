"""A real Prometheus scrapes a real agent that has served real ADDs and DELs; the dashboard and the alerts ask it."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import time
import urllib.parse
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from kernel_node import Failed, KernelNode, assert_nothing_left

from cnimeta.agent.wire import VARIABLE
from cnimeta.testing.agent import RunningAgent, eventually

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from cnimeta.testing.netns import Namespace

pytestmark = pytest.mark.kernel

ROOT = Path(__file__).parents[2]
DASHBOARD = json.loads((ROOT / "deploy" / "observe" / "dashboard.json").read_text())
SILENT = {
    *("cnimeta_configuration_in_step", "cnimeta_configuration_kept", "cnimeta_configuration_derived_total"),
    *("cnimeta_annotations_pending_by_reason", "cnimeta_metrics_success"),
}
"""Of these there is no series on the node of the test, or none that the panel shows: nothing is wrong there."""


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


class Prometheus:
    def __init__(self, folder: Path, target: str) -> None:
        folder.mkdir()
        config = {
            "global": {"scrape_interval": "500ms", "evaluation_interval": "500ms"},
            "rule_files": [str(ROOT / "deploy" / "alerts.yaml")],
            "scrape_configs": [{"job_name": "cnimeta", "static_configs": [{"targets": [target]}]}],
        }
        (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
        self.address = f"127.0.0.1:{free_port()}"
        words = [f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data"]
        with (folder / "log").open("wb") as log:
            self.process = subprocess.Popen(
                ["prometheus", *words, f"--web.listen-address={self.address}"], stdout=log, stderr=log
            )

    def get(self, path: str, **query: str) -> Any:
        url = f"http://{self.address}/api/v1/{path}?{urllib.parse.urlencode(query)}"
        with urllib.request.urlopen(url, timeout=10) as answer:
            return json.load(answer)["data"]

    def query(self, expression: str) -> list[Any]:
        return self.get("query", query=expression)["result"]

    def value(self, expression: str) -> float:
        """Of the one series; -1 as long as there is none."""
        try:
            found = self.query(expression)
        except OSError:  # it is being started
            return -1
        return float(found[0]["value"][1]) if found else -1

    def close(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def prometheus(tmp_path: Path) -> Iterator[Callable[[str], Prometheus]]:
    made: list[Prometheus] = []

    def start(target: str) -> Prometheus:
        made.append(Prometheus(tmp_path / "prometheus", target))
        return made[-1]

    yield start
    for one in made:
        one.close()


def queries() -> dict[str, str]:
    """Every expression of the dashboard as Grafana would send it, by the panel's title."""
    return {
        f"{panel['title']} {target['refId']}": target["expr"]
        .replace("$instance", ".*")
        .replace("$__rate_interval", "1m")
        for panel in DASHBOARD["panels"]
        for target in panel.get("targets", ())
    }


def test_the_dashboard_shows_what_the_agent_served(
    make_netns: Callable[[str], Namespace],
    tmp_path: Path,
    prometheus: Callable[[str], Prometheus],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    nets = tmp_path / "net.d"
    nets.mkdir()
    target = f"127.0.0.1:{free_port()}"
    agent = RunningAgent(tmp_path / "agent", "--deliver", "0", "--metrics", target, "--net-dir", str(nets))
    monkeypatch.setenv(VARIABLE, agent.socket)
    node = KernelNode(make_netns, tmp_path, ("hostport_alloc", "portmap"))
    conf = node.conf()
    network = {"cniVersion": "1.0.0", "name": conf["name"], "plugins": [conf]}
    (nets / "10-pods.conflist").write_text(json.dumps(network))
    try:
        server = prometheus(target)
        node.call("ADD", conf)
        eventually(lambda: server.value('cnimeta_hostports{range="default",state="used"}') == 1, 60)
        with pytest.raises(Failed):
            node.call("ADD", {**conf, "expose": ["none/tcp"]}, "c2")
        node.call("DEL", conf)
        operations = 'cnimeta_operation_duration_seconds_count{plugin="hostport_alloc",code="0",verb="%s"}'
        eventually(lambda: server.value(operations % "DEL") == server.value(operations % "ADD") == 1, 60)
        eventually(lambda: server.value('cnimeta_hostports{range="default",state="used"}') == 0, 60)
        assert server.value('cnimeta_launches_total{plugin="hostport_alloc",way="agent"}') == 3
        assert server.value('cnimeta_delegate_duration_seconds_count{plugin="portmap",verb="ADD"}') == 1
        assert server.value("cnimeta_agent_up") == 1
        time.sleep(1)  # two scrapes, for what asks how something grows
        for title, expression in queries().items():
            found = server.query(expression)
            names = set(re.findall(r"cnimeta_\w+?(?=_bucket|_sum|_count|\b)", expression))
            assert found or names & SILENT, (title, expression)
        groups = server.get("rules", type="alert")["groups"]
        assert {rule["health"] for group in groups for rule in group["rules"]} == {"ok"}
        firing = [one["labels"]["alertname"] for one in server.get("alerts")["alerts"] if one["state"] == "firing"]
        assert firing == []
    finally:
        agent.close()
    assert_nothing_left(node)


def test_every_metric_has_a_panel_or_an_alert() -> None:
    page = (ROOT / "docs" / "observe.md").read_text()
    shown = " ".join(queries().values()) + (ROOT / "deploy" / "alerts.yaml").read_text()
    names = set(re.findall(r"`(cnimeta_\w+)`", "".join(re.findall(r"^\| `cnimeta_.*?\|", page, re.MULTILINE))))
    told = {"cnimeta_info", "cnimeta_agent_start_time_seconds", "cnimeta_hostports_explicit"}
    told |= {"cnimeta_hostport_quota_limit", "cnimeta_hostport_quota_used"}
    assert {name for name in names if name not in shown} <= told
    assert len(names) > 20


def test_panels_lie_beside_each_other_and_have_their_own_numbers() -> None:
    panels = DASHBOARD["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    taken: set[tuple[int, int]] = set()
    for panel in panels:
        at = panel["gridPos"]
        cells = {(x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])}
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
