"""The example of a hook, a zone of SRV records, with the plugin as a runtime starts it, killed and repeated."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hostport_harness import pod_args
from kernel_node import Failed, KernelNode, assert_nothing_left

from cnimeta.testing.agent import RunningAgent, eventually

if TYPE_CHECKING:
    from collections.abc import Callable

    from cnimeta.testing.netns import Namespace

pytestmark = pytest.mark.kernel

EXAMPLE = Path(__file__).parents[2] / "examples" / "hook" / "srv_zone.py"


class Hooked:
    """A node whose hook is the example."""

    def __init__(self, make_netns: Callable[[str], Namespace], folder: Path) -> None:
        self.folder = folder
        self.node = KernelNode(make_netns, folder, ("hostport_alloc", "portmap"))
        self.program = folder / "srv_zone.py"
        self.program.write_text(EXAMPLE.read_text())
        self.program.chmod(0o755)
        settings = {"zone": "ports.example.", "folder": str(folder)}
        (folder / "srv_zone.json").write_text(json.dumps(settings))
        self.path = folder / "net.conflist"
        self.conf = self.configured(policy="deferred")

    def configured(self, **keys: Any) -> dict[str, Any]:
        conf = self.node.conf(notify={"program": str(self.program), "timeout": 60, **keys})
        self.path.write_text(json.dumps({"cniVersion": "1.0.0", "name": "pods", "plugins": [conf]}))
        return conf

    def deliver(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = ("-P", "-m", "cnimeta.cli.main", "ports", "deliver", "--conf", str(self.path), *words)
        return self.node.node.run(sys.executable, *command, check=False)

    def services(self) -> set[tuple[str, int, str]]:
        """(service, port, address) of the zone."""
        path = self.folder / "zone"
        text = path.read_text() if path.exists() else ""
        names = dict(re.findall(r"^(ip-\S+) A (\S+)$", text, re.MULTILINE))
        found = re.findall(r"^(_\S+) SRV 0 0 (\d+) (\S+)$", text, re.MULTILINE)
        return {(service, int(port), names[name]) for service, port, name in found}


def test_zone_has_what_is_mapped_and_follows_the_end(make_netns: Callable[[str], Namespace], tmp_path: Path) -> None:
    hooked = Hooked(make_netns, tmp_path)
    node, conf = hooked.node, hooked.conf
    for name in ("c1", "c2"):
        node.call("ADD", conf, name, args=pod_args(f"web-{name}"))
    ports = {name: node.ports(name)[0] for name in ("c1", "c2")}
    done = hooked.deliver()
    assert (done.returncode, done.stdout) == (0, "2 events told, 0 still waiting\n")
    assert hooked.services() == {(f"_80._tcp.web-{name}.default", ports[name], "192.0.2.10") for name in ports}
    node.serve("c1")
    (port,) = (port for service, port, _ in hooked.services() if "web-c1" in service)
    assert node.fetch(port) == "hello from c1"
    node.call("DEL", node.conf(), "c1")
    node.call("DEL", node.conf(), "c2")
    kept = hooked.program.read_text()
    hooked.program.write_text(f"#!{sys.executable}\nimport os, signal\nos.kill(os.getppid(), signal.SIGKILL)\n")
    assert hooked.deliver().returncode == -signal.SIGKILL  # the one that delivers is killed, at the hook's hand
    hooked.program.write_text(kept)
    assert hooked.deliver("--json").returncode == 0
    assert hooked.services() == set()
    assert_nothing_left(node)
    node.close()


def test_required_hook_decides_and_the_agent_delivers_the_rest(
    make_netns: Callable[[str], Namespace], tmp_path: Path
) -> None:
    hooked = Hooked(make_netns, tmp_path)
    node, conf = hooked.node, hooked.configured(policy="required")
    node.call("ADD", conf, args=pod_args("web"))
    assert {service for service, _, _ in hooked.services()} == {"_80._tcp.web.default"}
    (tmp_path / "srv_zone.json").write_text("{}")
    with pytest.raises(Failed, match=r"ended with status 1") as caught:
        node.call("ADD", conf, "c2", args=pod_args("web2"))
    assert caught.value.code == 106
    assert node.records().keys() == {"c1"}
    settings = {"zone": "ports.example.", "folder": str(tmp_path)}
    (tmp_path / "srv_zone.json").write_text(json.dumps(settings))
    node.call("DEL", conf)
    agent = RunningAgent(tmp_path, "--deliver", "0.5", "--conf", str(hooked.path))
    try:
        eventually(lambda: hooked.services() == set())
    finally:
        agent.close()
    assert_nothing_left(node)
